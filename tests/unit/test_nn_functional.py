"""Modules as pure functions of their weights."""

from __future__ import annotations

import copy
import gc
import pickle
import random as python_random
import weakref
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations

from helios_fn import random, tree
from helios_fn.nn import functional


class Block(nn.Module):
    """Batch norm, dropout, a frozen layer and a constant that is no part of the state dict."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(4, 6)
        self.norm = nn.BatchNorm1d(6)
        self.drop = nn.Dropout(0.5)
        self.fixed = nn.Linear(6, 6).requires_grad_(False)
        self.last = nn.Linear(6, 3)
        self.register_buffer("bias", torch.tensor(0.25), persistent=False)

    def forward(self, x):
        return self.last(self.fixed(self.drop(torch.relu(self.norm(self.first(x)))))) + self.bias


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(5, 4)
        self.head = nn.Linear(4, 5, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, index):
        return self.head(self.embed(index))


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attend = nn.MultiheadAttention(8, 2, dropout=0.1, batch_first=True)
        self.lstm = nn.LSTM(8, 8, batch_first=True)

    def forward(self, x):
        return self.lstm(self.attend(x, x, x, need_weights=False)[0])[0]


class Counting(nn.Module):
    """Replaces one buffer and writes to another."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(2))
        self.register_buffer("replaced", torch.zeros(()))
        self.register_buffer("written", torch.zeros(2))

    def forward(self, x):
        self.replaced = self.replaced + 1
        self.written[0] += 1
        return x * self.weight


FACTORIES = {
    "block": (Block, lambda: torch.randn(5, 4)),
    "tied": (Tied, lambda: torch.randint(0, 5, (3,))),
    "attention": (Attention, lambda: torch.randn(2, 3, 8)),
    "counting": (Counting, lambda: torch.randn(2)),
    "spectral norm": (lambda: parametrizations.spectral_norm(nn.Linear(4, 3)), lambda: torch.randn(5, 4)),
    "weight norm": (lambda: parametrizations.weight_norm(nn.Linear(4, 3)), lambda: torch.randn(5, 4)),
    "transformer": (lambda: nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), lambda: torch.randn(2, 3, 8)),
}


def values(module: nn.Module) -> dict[str, torch.Tensor]:
    """The tensors of a module now, in copies."""
    tensors = (*module.named_parameters(), *module.named_buffers())
    return {name: tensor.detach().clone() for name, tensor in tensors}


@pytest.fixture
def case(request):
    build, make_input = FACTORIES[request.param]
    torch.manual_seed(3)
    return build(), make_input()


@pytest.mark.parametrize("case", FACTORIES, indirect=True)
@pytest.mark.parametrize("mode", ["train", "eval"])
def test_a_call_has_the_bits_of_the_module(case, mode):
    """Output, gradients and new buffers, in both forms."""
    module, x = case
    model, params, buffers = functional(module)
    module.train(mode == "train")
    before = tree.map(torch.clone, buffers)
    key = random.key(1)
    with random.scope(key):
        expected = module(x)
    weights = {name: tensor.detach().requires_grad_() for name, tensor in params.items()}
    output, new_buffers = (model if mode == "train" else model.eval)(weights, buffers, x, key=key)
    assert tree.equal(output.detach(), expected.detach())
    now = values(module)
    assert tree.equal(new_buffers, {name: now[name] for name in buffers})
    assert tree.equal(buffers, before)
    _names, wanted = zip(*module.named_parameters(), strict=True)
    trainable = [tensor for tensor in wanted if tensor.requires_grad]
    found = torch.autograd.grad(output.square().sum(), list(weights.values()))
    assert tree.equal(list(found), list(torch.autograd.grad(expected.square().sum(), trainable)))


@pytest.mark.parametrize("case", FACTORIES, indirect=True)
def test_params_are_the_trainable_tensors_and_buffers_all_others(case):
    module, _ = case
    _, params, buffers = functional(module)
    trainable = {name: tensor for name, tensor in module.named_parameters() if tensor.requires_grad}
    assert list(params) == list(trainable)
    assert set(buffers) == values(module).keys() - trainable.keys()
    assert tree.equal({**params, **buffers}, values(module))


def test_an_instance_is_copied_and_left_alone():
    module = Block()
    before = values(module)
    model, params, buffers = functional(module)
    model(params, buffers, torch.randn(5, 4))
    for tensor in (*params.values(), *buffers.values()):
        tensor.add_(1)
    assert tree.equal(values(module), before)
    assert module.training


@pytest.fixture
def little_to_collect():
    """`gc.collect` looks through what the test has made, and not through all that was imported."""
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.mark.parametrize("case", FACTORIES, indirect=True)
def test_nothing_keeps_the_weights_of_a_call(case, little_to_collect):
    module, x = case
    model, params, buffers = functional(module)
    given = [weakref.ref(tensor) for tensor in (*params.values(), *buffers.values())]
    model(params, buffers, x)
    model.eval(params, buffers, x)
    del params, buffers
    gc.collect()
    assert all(reference() is None for reference in given)


def test_buffers_are_not_written_even_where_no_version_counter_moves():
    """torch's batch norm kernel writes its statistics without telling the version counter."""
    model, params, buffers = functional(lambda: nn.BatchNorm1d(3))
    before = tree.map(torch.clone, buffers)
    versions = [tensor._version for tensor in buffers.values()]
    _, new_buffers = model(params, buffers, torch.randn(4, 3))
    assert tree.equal(buffers, before)
    assert [tensor._version for tensor in buffers.values()] == versions
    assert new_buffers["num_batches_tracked"] == 1
    assert not torch.equal(new_buffers["running_mean"], buffers["running_mean"])


def test_writes_in_eval_form_do_not_reach_the_caller():
    model, params, buffers = functional(Counting)
    _, new_buffers = model.eval(params, buffers, torch.ones(2))
    assert tree.equal(buffers, {"replaced": torch.zeros(()), "written": torch.zeros(2)})
    assert tree.equal(new_buffers, {"replaced": torch.ones(()), "written": torch.tensor([1.0, 0.0])})


def test_frozen_parameters_come_back_as_the_same_tensors():
    model, params, buffers = functional(Block)
    _, new_buffers = model(params, buffers, torch.randn(5, 4))
    assert new_buffers["fixed.weight"] is buffers["fixed.weight"]
    assert list(new_buffers) == list(buffers)


def test_absent_buffers_stay_absent():
    model, params, _ = functional(lambda: nn.Linear(2, 2))
    output, new_buffers = model(params, None, torch.ones(1, 2))
    assert new_buffers is None
    assert tree.equal(output, model.eval(params, {}, torch.ones(1, 2))[0])


def test_initial_weights_are_a_function_of_the_seed_and_draw_from_no_global_generator():
    def factory():
        module = nn.Linear(3, 3)
        with torch.no_grad():
            module.bias.fill_(python_random.random() + np.random.rand())
        return module

    torch.manual_seed(1)
    before = torch.get_rng_state(), python_random.getstate(), np.random.get_state()[1].tolist()
    _, first, _ = functional(factory, seed=1)
    _, again, _ = functional(factory, seed=1)
    _, other, _ = functional(factory, seed=2)
    assert tree.equal(first, again)
    assert not torch.equal(first["weight"], other["weight"])
    assert not torch.equal(first["bias"], other["bias"])
    assert torch.equal(before[0], torch.get_rng_state())
    assert before[1:] == (python_random.getstate(), np.random.get_state()[1].tolist())


def test_noise_is_a_function_of_the_key_alone():
    model, params, buffers = functional(lambda: nn.Dropout(0.5))
    x = torch.ones(64)
    state = torch.get_rng_state()
    first = model(params, buffers, x, key=random.key(1))[0]
    torch.rand(3)
    assert tree.equal(model(params, buffers, x, key=random.key(1))[0], first)
    assert not torch.equal(model(params, buffers, x, key=random.key(2))[0], first)
    torch.set_rng_state(state)
    with random.scope(random.key(1)):
        assert tree.equal(model(params, buffers, x)[0], first)
    assert torch.equal(torch.get_rng_state(), state)


def test_the_forms_differ_in_modes_only_and_frozen_norms_stay_frozen():
    module = nn.Sequential(nn.BatchNorm1d(3), nn.BatchNorm1d(3))
    module[1].eval()
    model, params, buffers = functional(module)
    x = torch.randn(4, 3)
    _, trained = model(params, buffers, x)
    assert [int(trained[f"{i}.num_batches_tracked"]) for i in (0, 1)] == [1, 0]
    assert tree.equal(model.eval(params, buffers, x)[1], buffers)
    assert not module[1].training
    assert module[0].training


def test_a_module_handed_over_in_eval_mode_is_trained_in_train_form():
    model, params, buffers = functional(nn.Sequential(nn.Dropout(0.5)).eval())
    assert (model(params, buffers, torch.ones(64))[0] == 0).any()
    assert (model.eval(params, buffers, torch.ones(64))[0] == 1).all()


def test_an_exception_leaves_the_model_usable_and_without_weights():
    class Fails(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones(2))
            self.register_buffer("filled", None)

        def forward(self, x, fail=False):
            if fail:
                self.filled = torch.ones(1)
                raise ArithmeticError("no")
            return x * self.weight

    model, params, buffers = functional(Fails)
    with pytest.raises(ArithmeticError):
        model(params, buffers, torch.ones(2), fail=True)
    (skeleton,) = model._train._idle
    assert skeleton.module.weight.is_meta
    assert skeleton.module.filled is None
    assert tree.equal(model(params, buffers, torch.ones(2))[0], torch.ones(2))


def test_threads_with_their_own_weights_do_not_meet():
    model, params, buffers = functional(lambda: nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8), nn.Linear(8, 8)))
    x = torch.randn(16, 8)
    trees = [tree.map(lambda leaf, factor=factor: leaf * factor, params) for factor in range(8)]
    alone = [model(weights, buffers, x) for weights in trees]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda index: model(trees[index % 8], buffers, x), range(80)))
    assert all(tree.equal(result, alone[index % 8]) for index, result in enumerate(together))


def test_a_model_may_be_used_within_itself():
    class Recursive(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.full((1,), 2.0))

        def forward(self, x, inner=None):
            before = x * self.weight
            return before if inner is None else inner(before) * self.weight

    model, params, buffers = functional(Recursive)
    tripled = {"weight": params["weight"] * 1.5}
    output, _ = model(params, buffers, torch.ones(1), inner=lambda x: model(tripled, buffers, x)[0])
    assert output == 2 * 3 * 2


def test_models_can_be_copied_and_pickled():
    """Spawned processes receive what a step closes over by pickle."""
    model, params, buffers = functional(Block)
    x = torch.randn(5, 4)
    expected = model.eval(params, buffers, x)
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert tree.equal(twin.eval(params, buffers, x), expected)


def test_vmap_over_stacked_weights_equals_a_loop():
    model, params, buffers = functional(lambda: nn.Linear(3, 2))
    stacked = {name: torch.stack([tensor, tensor * 2]) for name, tensor in params.items()}
    x = torch.randn(4, 3)
    outputs = torch.vmap(lambda weights: model(weights, buffers, x)[0])(stacked)
    for index in (0, 1):
        weights = {name: tensor[index] for name, tensor in stacked.items()}
        torch.testing.assert_close(outputs[index], model(weights, buffers, x)[0])


class Everything(nn.Module):
    """Dropout, batch norm, a frozen layer and tied weights."""

    def __init__(self) -> None:
        super().__init__()
        self.block, self.tied = Block(), nn.Linear(4, 3, bias=False)
        self.again = nn.Linear(4, 3)
        self.again.weight = self.tied.weight

    def forward(self, x):
        return self.block(x) + self.tied(x) - self.again(x).relu()


@pytest.mark.parametrize(
    ("backend", "build"), [("aot_eager", Everything), pytest.param("inductor", Block, marks=pytest.mark.soak)]
)
def test_a_keyed_model_is_the_same_function_eager_and_compiled(backend, build):
    """Output, new buffers and gradients, with the key as an input of the region."""
    model, params, buffers = functional(build, draws="keyed")
    x, (first, second) = torch.randn(5, 4), random.split(random.key(3))

    def call(params, buffers, x, key):
        def loss(params):
            output, trained = model(params, buffers, x, key=key)
            return output.square().sum() + model.eval(params, trained, x, key=key)[0].sum(), (output, trained)

        return torch.func.grad(loss, has_aux=True)(params)

    compiled = torch.compile(call, backend=backend, fullgraph=True)
    for key in (first, second):
        expected = call(params, buffers, x, key)
        for got, wanted in zip(tree.leaves(compiled(params, buffers, x, key)), tree.leaves(expected), strict=True):
            torch.testing.assert_close(got, wanted)
    assert not torch.equal(call(params, buffers, x, first)[1][0], call(params, buffers, x, second)[1][0])


def test_a_keyed_model_maps_over_keys_and_over_weights():
    """Buffers need one value for each lane as soon as batch norm writes to them."""
    model, params, buffers = functional(Everything, draws="keyed")
    x, keys = torch.randn(5, 4), random.split(random.key(3), 3)
    stacked = {name: torch.stack([tensor, tensor * 2, tensor * 3]) for name, tensor in params.items()}
    three = {name: torch.stack([tensor] * 3) for name, tensor in buffers.items()}

    def call(params, buffers, key):
        return model(params, buffers, x, key=key)

    shared = torch.vmap(call, in_dims=(None, 0, 0))(params, three, keys)
    own = torch.vmap(call)(stacked, three, keys)
    for lane in range(3):
        weights = {name: tensor[lane] for name, tensor in stacked.items()}
        for mapped, alone in ((shared, call(params, buffers, keys[lane])), (own, call(weights, buffers, keys[lane]))):
            torch.testing.assert_close(mapped[0][lane], alone[0])
            for name, tensor in alone[1].items():
                torch.testing.assert_close(mapped[1][name][lane], tensor)


def test_a_keyed_model_draws_by_random_keyed():
    model, params, buffers = functional(lambda: nn.Dropout(0.5), draws="keyed")
    x, key = torch.ones(50), random.key(1)
    keep = random.bernoulli(random.fold_in(key, 0), (50,))
    for draw in (model(params, buffers, x, key=key)[0], _in(random.keyed(key), lambda: model(params, buffers, x)[0])):
        assert torch.equal(draw, 2.0 * keep)
    assert torch.equal(model.eval(params, buffers, x, key=key)[0], x)


def _in(context, function):
    with context:
        return function()


REMEDY = r"no scope can be opened: make the model with hf\.functional\(\.\.\., draws='keyed'\)"


def test_a_scoped_model_says_what_to_do_where_no_scope_can_be_opened():
    x, keys = torch.ones(3, 4), random.split(random.key(1))

    def call(build):
        model, params, buffers = functional(build)
        return lambda key: model(params, buffers, x, key=key)[0]

    quiet = call(lambda: nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.0)))
    assert torch.equal(torch.compile(quiet, backend="eager", fullgraph=True)(keys[0]), quiet(keys[0]))
    torch.testing.assert_close(torch.vmap(quiet, out_dims=None)(keys), quiet(keys[0]))
    for build in (lambda: nn.Dropout(0.5), lambda: nn.RNN(4, 4, 2, dropout=0.1)):
        with pytest.raises(TypeError, match=REMEDY):
            torch.vmap(call(build))(keys)
    with pytest.raises(torch._dynamo.exc.Unsupported, match=REMEDY):
        torch.compile(call(lambda: nn.Dropout(0.5)), backend="eager", fullgraph=True)(keys[0])


def test_the_way_to_draw_is_one_of_two():
    with pytest.raises(ValueError, match="draws must be 'scope' or 'keyed', got 'key'"):
        functional(Block, draws="key")


def test_an_exception_in_a_keyed_call_closes_the_context():
    class Fails(nn.Module):
        def forward(self, x):
            raise ArithmeticError(float(torch.rand(())))

    model, params, buffers = functional(Fails, draws="keyed")
    for _ in range(2):
        with pytest.raises(ArithmeticError):
            model(params, buffers, torch.ones(1), key=random.key(0))
    assert torch._C._len_torch_function_stack() == 0


def test_a_compiled_call_takes_the_same_tensors_to_the_same_results():
    model, params, buffers = functional(Block)
    x = torch.randn(5, 4)

    def call(params, buffers, x):
        output, trained = model(params, buffers, x)
        return model.eval(params, trained, x), output.shape

    before = tree.map(torch.clone, buffers)
    expected = call(params, buffers, x)
    assert tree.equal(torch.compile(call, backend="aot_eager", fullgraph=True)(params, buffers, x)[0], expected[0])
    assert tree.equal(buffers, before)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda p, b: p.pop("last.bias"), "params do not fit the module; missing: 'last.bias'"),
        (
            lambda p, b: p.update({"last.biass": p.pop("last.bias")}),
            r"unknown: 'last.biass' \(did you mean 'last.bias'",
        ),
        (lambda p, b: b.pop("fixed.weight"), "buffers do not fit the module; missing: 'fixed.weight'"),
        (lambda p, b: b.update({"nrm": b.pop("bias")}), "missing: 'bias'; unknown: 'nrm'"),
    ],
)
def test_wrong_names_are_refused_with_the_right_ones(change, message):
    model, params, buffers = functional(Block)
    change(params, buffers)
    with pytest.raises(ValueError, match=message):
        model(params, buffers, torch.randn(5, 4))


def test_params_that_are_no_dict_are_refused():
    model, params, buffers = functional(lambda: nn.Linear(2, 2))
    with pytest.raises(TypeError, match="params must be a dict of names to tensors, got list"):
        model(list(params.values()), buffers, torch.ones(1, 2))


class Fills(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("cache", None)

    def forward(self, x):
        self.cache = x
        return x


class Forgets(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("cache", torch.zeros(1))

    def forward(self, x):
        self.cache = None
        return x


def test_buffers_that_come_or_go_are_refused():
    with pytest.raises(ValueError, match="filled its empty buffer 'cache'"):
        functional(Fills)[0]({}, {}, torch.ones(1))
    model, params, buffers = functional(Forgets)
    for _ in range(2):
        with pytest.raises(ValueError, match="replaced its buffer 'cache' by None"):
            model(params, buffers, torch.ones(1))


class _Sharded(nn.Linear):
    """Stands for a module after ``fully_shard``, whose class torch replaces by a subclass of FSDPModule."""


def _after_fully_shard():
    marker = type("FSDPModule", (), {"__module__": "torch.distributed.fsdp"})
    return type("FSDPLinear", (marker, _Sharded), {})(2, 2)


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: 3, TypeError, "takes a module or a callable that returns one, got int"),
        (lambda: dict, TypeError, "factory must return a torch.nn.Module, got dict"),
        (lambda: nn.DataParallel(nn.Linear(2, 2)), TypeError, r"hand over the wrapped module \(wrapper.module\)"),
        (lambda: nn.Sequential(_after_fully_shard()), TypeError, "at '0' .FSDPModule.*before fully_shard"),
        (lambda: torch.compile(nn.Linear(2, 2)), TypeError, "before torch.compile"),
        (lambda: torch.jit.script(nn.Linear(2, 2)), TypeError, "before it is scripted"),
        (lambda: nn.LazyLinear(2), ValueError, "'weight' has no shape yet"),
        (lambda: nn.Linear(2, 2, device="meta"), ValueError, "'weight' is on the meta device"),
        (lambda: nn.Sequential(nn.Embedding(3, 2, max_norm=1.0)), ValueError, "Embedding at '0' has max_norm=1.0"),
        (lambda: torch.nn.utils.weight_norm(nn.Linear(2, 2)), TypeError, "parametrizations.weight_norm works"),
    ],
)
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore:.*deprecated")
def test_modules_that_cannot_be_called_with_given_weights_are_refused_with_the_remedy(make, error, message):
    with pytest.raises(error, match=message):
        functional(make())


def test_distributed_wrappers_are_refused(tmp_path):
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        with pytest.raises(TypeError, match=r"DistributedDataParallel.*hand over the wrapped module"):
            functional(nn.parallel.DistributedDataParallel(nn.Linear(2, 2)))
        mesh = torch.distributed.init_device_mesh("cpu", (1,))
        from torch.distributed.fsdp import fully_shard
        from torch.distributed.tensor import distribute_module

        with pytest.raises(TypeError, match=r"FSDPLinear at '0' \(FSDPModule\).*before fully_shard"):
            functional(nn.Sequential(fully_shard(nn.Linear(2, 2), mesh=mesh)))
        with pytest.raises(TypeError, match=r"'0\.weight' is sharded \(a DTensor\).*before it is sharded"):
            functional(nn.Sequential(distribute_module(nn.Linear(2, 2), mesh)))
    finally:
        torch.distributed.destroy_process_group()
