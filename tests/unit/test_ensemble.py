"""Many runs as one: every member is the run it would have been alone, and the whole is an ordinary run."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import TensorDataset

import helios_fn as hf
from helios_fn import tree
from helios_fn.data.members import Members
from helios_fn.ensemble import all_stopped, ensemble, evaluate_members, member, stack, unstack
from helios_fn.errors import NotTraceable

K = 3
X = torch.randn(22, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
Y = (X[:, 0] > X[:, 1]).long()
BATCHES = [(X[:8], Y[:8]), (X[8:16], Y[8:16]), (X[16:], Y[16:])]


def net(width=6):
    return nn.Sequential(nn.Linear(5, width), nn.BatchNorm1d(width), nn.Tanh(), nn.Linear(width, 2)).double()


MODEL, _, _ = hf.functional(net)


def loss_fn(params, buffers, batch, key):
    x, y = batch
    noise = 0.1 * hf.random.normal(key, x.shape, dtype=x.dtype)
    logits, buffers = MODEL(params, buffers, x + noise)
    accuracy = (logits.argmax(1) == y).float().mean()
    return F.cross_entropy(logits, y), hf.Aux(buffers=buffers, weight=len(y), metrics={"accuracy": accuracy})


def step(state, batch):
    """Momentum whose learning rate is a tensor of the state, so that members may differ in it."""
    mean = hf.microsteps(hf.value_and_grad(loss_fn, has_aux=True), state, batch)
    momentum = tree.map(lambda m, g: 0.9 * m + g, state.opt_state["momentum"], mean.grads)
    params = tree.map(lambda p, m: p - state.opt_state["rate"] * m, state.params, momentum)
    finite = torch.stack([leaf.isfinite().all() for leaf in tree.leaves(mean.grads)]).all()
    bad = (state.first_bad < 0) & ~finite
    return state.replace(
        params=params,
        buffers=mean.buffers,
        opt_state={**state.opt_state, "momentum": momentum},
        averages=tree.map(lambda a, p: torch.lerp(a, p, 0.1), state.averages, params),
        metrics={"loss": mean.loss, **mean.metrics},
        first_bad=torch.where(bad, state.counters.iteration, state.first_bad),
        extra={**state.extra, "seen": state.extra["seen"] + 1},
    )


def start(seed, rate=0.05, build=net, **extra):
    _, params, buffers = hf.functional(build, seed=seed)
    memory = {"rate": torch.tensor(rate, dtype=torch.float64), "momentum": tree.map(torch.zeros_like, params)}
    state = hf.init_state(params, opt_state=memory, buffers=buffers, seed=seed, average=hf.ema())
    return state.replace(extra={"seen": torch.zeros((), dtype=torch.int64), "width": 7, **extra})


def starts(count=K):
    return [start(seed, rate=0.05 * (seed + 1)) for seed in range(count)]


def driven(step, state, batches):
    """What `run` does with the state between steps, as far as a step can see it."""
    for batch in batches:
        state = step(state.replace(metrics={}), batch)
        counters = hf.Counters(state.counters.iteration + 1, state.counters.micro_step + 1)
        state = state.replace(counters=counters)
    return state


def assert_same(found, expected):
    """Equal trees, but for rounding: a few hundred times that of float64 after some tens of operations on each other.

    Under a map, torch sums over a dimension in the order that suits the layout of K members in one tensor.
    """
    assert tree.paths(found) == tree.paths(expected)
    for (path, left), right in zip(tree.items(found), tree.leaves(expected), strict=True):
        if isinstance(left, torch.Tensor) and left.is_floating_point():
            assert left.dtype == right.dtype, path
            assert torch.allclose(left, right, rtol=1e-12, atol=1e-13), path
        else:
            assert tree.equal(left, right), path


def loader(**keywords):
    return hf.Loader(TensorDataset(X, Y), batch_size=8, **keywords)


def config(**keywords):
    return hf.RunConfig(unit="iteration", progress=False, **keywords)


# Members and the states they came from


@pytest.mark.parametrize("count", [1, 3])
def test_unstacking_gives_back_what_was_stacked(count):
    """Bit for bit, all fields; no memory is shared."""
    states = starts(count)
    stacked = stack(states)
    assert stacked.params["0.weight"].shape == (count, 6, 5)
    assert tree.equal(unstack(stacked), states)
    assert tree.equal(member(stacked, -1), states[-1])
    before = tree.digest(stacked)
    tree.map(lambda leaf: leaf.zero_() if isinstance(leaf, torch.Tensor) else None, unstack(stacked))
    assert tree.digest(stacked) == before


def test_each_member_is_its_separate_run():
    """With weights, learning rates and noise of its own, batch statistics, averages and a ragged tail."""
    together = driven(ensemble(step), stack(starts()), BATCHES * 2)
    assert_same(unstack(together), [driven(step, state, BATCHES * 2) for state in starts()])


def test_members_that_are_chains_of_matrix_products_are_their_separate_runs_bit_for_bit():
    """On the CPU torch multiplies K matrices by the kernel that it uses for one, very small ones aside."""
    model, _, _ = hf.functional(lambda: nn.Sequential(nn.Linear(16, 32), nn.Tanh(), nn.Linear(32, 4)))

    def plain(state, batch):
        grad_fn = hf.value_and_grad(lambda params: F.cross_entropy(model(params, {}, batch[0])[0], batch[1]))
        loss, grads = grad_fn(state.params)
        return state.replace(params=tree.map(lambda p, g: p - 0.1 * g, state.params, grads), metrics={"loss": loss})

    params = [
        hf.functional(lambda: nn.Sequential(nn.Linear(16, 32), nn.Tanh(), nn.Linear(32, 4)), seed=i)[1] for i in (1, 2)
    ]
    states = [hf.init_state(each, opt_state=()) for each in params]
    batches = [
        (torch.randn(16, 16, generator=torch.Generator().manual_seed(i)), torch.arange(16) % 4) for i in range(5)
    ]
    together = unstack(driven(ensemble(plain), stack(states), batches))
    assert tree.equal([state.params for state in together], [driven(plain, state, batches).params for state in states])


def test_members_with_data_orders_of_their_own_are_their_separate_runs():
    """Each run shuffles by its own key; the whole is driven by `run` and so are the runs alone."""
    states, cfg = starts(), config(total=7)
    data = Members(loader(), stack(states).extra.keys)
    together = hf.run(ensemble(step, batches="own"), stack(states), data, cfg).state
    assert_same(unstack(together), [hf.run(step, state, loader(), cfg).state for state in states])


def test_several_micro_batches_in_an_iteration_are_mapped_too():
    batch = hf.MicroBatches(tuple(BATCHES), 0, 3)
    together = driven(ensemble(step), stack(starts()), [batch, batch])
    assert_same(unstack(together), [driven(step, state, [batch, batch]) for state in starts()])


def test_dropout_of_ordinary_modules_is_keyed_by_member():
    """Each member drops what it would have dropped alone."""

    def dropping(state, batch):
        with hf.random.keyed(hf.step_key(state, "dropout")):
            kept = F.dropout(state.params["0.weight"], 0.5)
        return state.replace(params={**state.params, "0.weight": kept})

    together = unstack(driven(ensemble(dropping), stack(starts()), BATCHES[:2]))
    alone = [driven(dropping, state, BATCHES[:2]) for state in starts()]
    assert tree.equal([state.params for state in together], [state.params for state in alone])
    assert not torch.equal(together[0].params["0.weight"] == 0, together[1].params["0.weight"] == 0)


def test_metrics_are_told_of_each_member_and_as_their_mean():
    state = ensemble(step)(stack(starts()), BATCHES[0])
    alone = [step(each, BATCHES[0]).metrics["loss"] for each in starts()]
    assert list(state.metrics) == [
        name for metric in ("loss", "accuracy") for name in (metric, *(f"{metric}/{i}" for i in range(K)))
    ]
    assert_same([state.metrics[f"loss/{i}"] for i in range(K)], alone)
    assert_same(state.metrics["loss"], torch.stack(alone).mean())


def test_an_ensemble_resumes_bit_for_bit_from_its_checkpoint(tmp_path):
    """The whole is one state in one file; some members have stopped before, some after."""

    def trained(root, *totals):
        mapped = ensemble(step, batches="own", stop=lambda state: state.extra["seen"] >= state.extra["limit"])
        for total in totals:
            states = [start(seed, limit=torch.tensor(2 + 2 * seed)) for seed in range(K)]
            data = Members(loader(), stack(states).extra.keys)
            cfg = config(total=total, checkpoint_every=1, root=tmp_path / root)
            result = hf.run(mapped, stack(states), data, cfg)
        return result.state

    assert tree.equal(trained("stopped", 3, 9), trained("whole", 9))


# Stopping


def stop_second_after_three(state):
    return (state.extra["seen"] >= 3) & (state.extra["number"] == 1)


def test_a_stopped_member_keeps_its_bits_and_the_others_do_not_notice():
    states = [start(seed, number=torch.tensor(seed)) for seed in range(K)]
    stopping = driven(ensemble(step, stop=stop_second_after_three), stack(states), BATCHES * 2)
    going = unstack(driven(ensemble(step), stack(states), BATCHES * 2))
    assert stopping.extra.active.tolist() == [True, False, True]
    found = unstack(stopping)
    assert tree.equal([found[0], found[2]], [going[0], going[2]])
    at_stop = driven(step, states[1], BATCHES)
    for name in ("params", "buffers", "opt_state", "averages", "extra"):
        assert_same(getattr(found[1], name), getattr(at_stop, name))


def test_a_stopped_member_has_no_metrics_and_no_part_in_their_mean():
    states = [start(seed, number=torch.tensor(seed)) for seed in range(K)]
    metrics = driven(ensemble(step, stop=stop_second_after_three), stack(states), BATCHES * 2).metrics
    assert math.isnan(metrics["loss/1"])
    assert metrics["loss"] == (metrics["loss/0"] + metrics["loss/2"]) / 2


def test_a_run_ends_when_all_members_have_stopped():
    mapped = ensemble(step, stop=lambda state: state.extra["seen"] >= 4)
    result = hf.run(mapped, stack(starts()), loader(), config(total=100), should_stop=all_stopped)
    assert result.reason is hf.Reason.SHOULD_STOP
    assert result.state.counters.iteration == 4


def test_a_member_that_goes_bad_is_frozen_before_and_the_others_go_on():
    """Its state is that before the bad iteration, and it remembers which that was."""
    rates = [0.05, math.inf, 0.1]
    states = [start(seed, rate) for seed, rate in enumerate(rates)]
    result = hf.run(ensemble(step, non_finite="freeze"), stack(states), loader(), config(total=6)).state
    assert int(result.first_bad) == -1
    assert result.extra.first_bad.tolist() == [-1, 1, -1]
    assert result.extra.active.tolist() == [True, False, True]
    batches = [batch for epoch in range(2) for batch in loader().epoch(states[0].key, epoch)]
    assert not tree.leaves(member(result, 1).params)[0].isfinite().any()
    assert tree.equal(member(result, 1).extra["seen"], torch.tensor(1))
    assert_same(member(result, 2).params, driven(step, states[2], batches).params)


def test_one_bad_member_is_a_matter_of_the_drivers_policy_unless_it_is_frozen():
    states = [start(0), start(1, rate=math.inf)]
    cfg = config(total=20, check_finite_every=1)
    with pytest.raises(hf.RunFailed, match="was not finite in iteration"):
        hf.run(ensemble(step), stack(states), loader(), cfg)


# Evaluation


def evaluate(params, buffers, batch):
    x, y = batch
    logits, _ = MODEL.eval(params, buffers, x)
    return hf.Aux(metrics={"loss": F.cross_entropy(logits, y)}, weight=len(y))


def test_evaluating_members_is_evaluating_each():
    states, held_out = starts(), loader(shuffle=False)
    together = hf.Validator(evaluate_members(evaluate), held_out)(stack(states))
    alone = [hf.Validator(evaluate, held_out)(state)["loss"] for state in states]
    assert [together[f"loss/{i}"] for i in range(K)] == pytest.approx(alone)
    assert together["loss"] == pytest.approx(sum(alone) / K)


# Compiled


def small(sizes=(5, 2)):
    """A step with few operations, so that what is compiled is the ensemble around it; and a state of two members."""
    model, params, buffers = hf.functional(lambda: nn.Linear(*sizes).double())

    def plain(state, batch):
        grad_fn = hf.value_and_grad(lambda params, x: model(params, state.buffers, x)[0].square().mean())
        loss, grads = grad_fn(state.params, batch[0])
        extra = {"seen": state.extra["seen"] + 1, "steps": state.extra["steps"] + 1}
        params = tree.map(lambda p, g: p - 0.1 * g, state.params, grads)
        return state.replace(params=params, extra=extra, metrics={"loss": loss})

    extra = {"seen": torch.zeros((), dtype=torch.int64), "steps": 3}
    states = [hf.init_state(params, opt_state=(), buffers=buffers, extra=extra, seed=seed) for seed in range(2)]
    states[1] = states[1].replace(params=tree.map(lambda leaf: 2 * leaf, params))
    return plain, stack(states)


def both(batches):
    """An ensemble that stops one of its members, its state, and a batch."""
    plain, state = small()
    own = tree.map(lambda leaf: torch.stack([leaf, leaf.roll(1, 0)]), BATCHES[0])
    mapped = ensemble(plain, batches=batches, stop=lambda state: state.metrics["loss"] < 0.9, non_finite="freeze")
    return mapped, state, BATCHES[0] if batches == "shared" else own


def test_a_compiled_donating_ensemble_says_the_same_in_the_memory_it_was_given():
    """In one graph, also where the module has no buffers and members have Python scalars in common."""
    mapped, state, batch = both("shared")
    expected = mapped(state, batch)
    assert expected.extra.active.tolist() == [False, True]
    places = {name: leaf.data_ptr() for name, leaf in state.params.items()}
    found = hf.compile(mapped, backend="eager").donating(state, batch)
    assert_same(found, expected)
    assert {name: leaf.data_ptr() for name, leaf in found.params.items()} == places


@pytest.mark.soak
@pytest.mark.parametrize("batches", ["shared", "own"])
def test_an_ensemble_compiles_into_one_graph_that_says_the_same(batches):
    mapped, state, batch = both(batches)
    assert_same(hf.compile(mapped, backend="aot_eager")(state, batch), mapped(state, batch))


@pytest.mark.soak
@pytest.mark.filterwarnings("ignore:.torch.jit.script:DeprecationWarning")  # in the compiler's own imports
def test_a_compiled_ensemble_with_all_it_can_have_says_the_same_as_an_eager_one():
    """Noise by key, batch statistics, averages: also by the code generator, which rounds in its own way."""
    expected = ensemble(step)(stack(starts()), BATCHES[0])
    for backend in ("aot_eager", "inductor"):
        assert_same(hf.compile(ensemble(step), backend=backend)(stack(starts()), BATCHES[0]), expected)


# Data


def test_batches_of_members_are_those_of_their_own_loaders():
    keys = hf.random.split(hf.random.key(3), 2)
    data = Members(loader(), keys)
    cursor, share = hf.Cursor(epoch=1, batch=1), hf.types.Share("iteration", 2)
    feed, alone = data.open(cursor, key=keys[0], share=share), [loader().open(cursor, key=k, share=share) for k in keys]
    for _ in range(3):
        found, expected = next(feed), [next(each) for each in alone]
        assert found.cursor == expected[0].cursor
        for at, items in enumerate(zip(*(each.items for each in expected), strict=True)):
            assert tree.equal(found.items[at], [torch.stack(column) for column in zip(*items, strict=True)])
    feed.close()


def test_members_may_read_streams_each_at_its_own_position():
    """Positions are kept for each member, and reading goes on from them."""

    def numbers(first):
        def open_numbers(position, key):
            return ((torch.tensor(n), n + 1) for n in range(first if position is None else position, 100))

        return hf.Stream(open_numbers, batch_size=2)

    keys = hf.random.split(hf.random.key(0), 2)
    share = hf.types.Share()
    first = next(Members([numbers(0), numbers(50)], keys).open(hf.Cursor(), key=keys[0], share=share))
    assert first.items[0].tolist() == [[0, 1], [50, 51]]
    assert first.cursor.position == (2, 52)
    again = next(Members([numbers(0), numbers(50)], keys).open(first.cursor, key=keys[0], share=share))
    assert again.items[0].tolist() == [[2, 3], [52, 53]]


def test_going_on_with_other_keys_is_refused(tmp_path):
    """The members' keys decide the bytes of the batches, so they are part of what a checkpoint records."""
    states, cfg = stack(starts()), config(total=2, checkpoint_every=1, root=tmp_path)
    mapped = ensemble(step, batches="own")
    hf.run(mapped, states, Members(loader(), states.extra.keys), cfg)
    other = Members(loader(), hf.random.split(hf.random.key(9), K))
    with pytest.raises(hf.ResumeRefused, match=r"data\.keys"):
        hf.run(mapped, states, other, dataclasses.replace(cfg, total=3))


KEYS = list(hf.random.split(hf.random.key(0), 2))


@pytest.mark.parametrize(
    ("source", "keys", "error", "words"),
    [
        (loader, [], ValueError, "at least one member"),
        (lambda: [loader()], KEYS, ValueError, "1 sources for 2 keys"),
        (lambda: [loader()] * 2, KEYS, ValueError, "given twice"),
        (lambda: [loader(), 3], KEYS, TypeError, r"sources\[1\] must be a Loader"),
        (lambda: [loader(), loader().limit(1)], KEYS, ValueError, r"equally many batches, got \[3, 1\]"),
        (lambda: Members(loader(), KEYS), KEYS, TypeError, "one source for each member"),
    ],
)
def test_what_members_can_read(source, keys, error, words):
    with pytest.raises(error, match=words):
        Members(source(), keys)


def test_batches_of_unequal_shapes_are_refused_by_their_path():
    wider = hf.Loader(TensorDataset(torch.zeros(22, 6), Y), batch_size=8)
    feed = Members([loader(), wider], KEYS).open(hf.Cursor(), key=KEYS[0], share=hf.types.Share())
    with pytest.raises(
        ValueError, match=r"batch\[0\] is float64\[8, 5\] for member 0 and float32\[8, 6\] for member 1"
    ):
        next(feed)


# Mistakes


@pytest.mark.parametrize(
    ("other", "words"),
    [
        (lambda: start(1, build=lambda: nn.Linear(5, 2)), r"structure, but states\[1\] has no params\['0.bias'\]"),
        (
            lambda: start(1, build=lambda: net(7)),
            r"params\['0.bias'\] is float64\[6\] in states\[0\] and float64\[7\] in states\[1\]: .* of their own",
        ),
        (lambda: start(1, width=8), r"extra\['width'\] is int 7 in states\[0\] and int 8 .* make it a tensor"),
        (lambda: start(1, more=1), r"states\[0\] has no extra\['more'\], but states\[1\] has"),
        (lambda: start(1).replace(counters=hf.Counters(1, 1)), "advance together, but counters is"),
    ],
)
def test_members_that_do_not_fit_are_refused_by_path(other, words):
    with pytest.raises(ValueError, match=words):
        stack([start(0), other()])


def test_what_is_no_ensemble_is_told_how_to_become_one():
    for call in (lambda: ensemble(step)(start(0), BATCHES[0]), lambda: unstack(start(0)), lambda: member(BATCHES, 0)):
        with pytest.raises(TypeError, match=r"make it by hf.stack"):
            call()
    with pytest.raises(TypeError, match="is an ensemble already"):
        stack([stack(starts())])
    with pytest.raises(ValueError, match="at least one state"):
        stack([])
    with pytest.raises(TypeError, match=r"states\[0\] must be a TrainState, got int 3"):
        stack([3])
    with pytest.raises(IndexError, match="no member 3 among 3"):
        member(stack(starts()), 3)


@pytest.mark.parametrize(
    ("keywords", "error", "words"),
    [
        ({"step": start(0)}, TypeError, "step must be a function"),
        ({"step": step, "batches": "both"}, ValueError, "batches must be one of 'shared', 'own', got 'both'"),
        ({"step": step, "non_finite": "skip"}, ValueError, "'raise', 'freeze', got 'skip'"),
        ({"step": step, "stop": 3}, TypeError, "stop must be a function"),
    ],
)
def test_wrong_arguments_of_ensemble(keywords, error, words):
    with pytest.raises(error, match=words):
        ensemble(**keywords)


def at_params(function):
    """A step that does ``function`` to one of the params."""

    def strange(state, batch):
        return state.replace(params={**state.params, "0.bias": function(state.params["0.bias"])})

    return strange


SHARED = torch.zeros(6)


@pytest.mark.parametrize(
    ("function", "words"),
    [
        (lambda leaf: leaf * leaf.sum().item(), "reads the value of a tensor, as .item"),
        (lambda leaf: leaf if leaf.sum() > 0 else -leaf, "decides by the value of a tensor. Take torch.where"),
        (lambda leaf: leaf + torch.randn(6), r"draws from torch's generators.*draws='keyed'"),
        (lambda leaf: leaf[leaf > 0], "depends on values"),
        (lambda leaf: leaf.numpy(), r"reads the values of a tensor, as .tolist\(\)"),
        (lambda leaf: SHARED.copy_(leaf), "writes members' values into a tensor that they share"),
        (lambda leaf: leaf.requires_grad_(), "Take gradients by hf.value_and_grad"),
        (lambda leaf: torch._foreach_neg([leaf])[0], "uses an operator that cannot be mapped"),
    ],
)
def test_a_step_that_cannot_be_mapped_says_why_and_what_to_do(function, words):
    """Torch's own error is the cause."""
    with pytest.raises(NotTraceable, match=words) as caught:
        ensemble(at_params(function))(stack(starts()), BATCHES[0])
    assert isinstance(caught.value.__cause__, RuntimeError)


def test_a_scope_cannot_be_opened_for_each_member():
    def scoped(state, batch):
        with hf.random.scope(state.key):
            return state

    with pytest.raises(NotTraceable, match=r"opens a scope of the generators.*draws='keyed'"):
        ensemble(scoped)(stack(starts()), BATCHES[0])


def test_other_errors_of_a_step_pass_as_they_are():
    def broken(state, batch):
        return state.params["0.weight"] @ batch[0]

    with pytest.raises(RuntimeError, match="cannot be multiplied") as caught:
        ensemble(broken)(stack(starts()), BATCHES[0])
    assert type(caught.value) is RuntimeError


@pytest.mark.parametrize(
    ("strange", "error", "words"),
    [
        (lambda state, batch: None, TypeError, "must return a TrainState, got NoneType None"),
        (lambda state, batch: state.replace(extra={}), hf.PurityError, r"changed the structure.*at extra\['seen'\]"),
    ],
)
def test_a_step_that_returns_something_else_is_told_so(strange, error, words):
    with pytest.raises(error, match=words):
        ensemble(strange)(stack(starts()), BATCHES[0])


def test_an_own_batch_needs_a_row_for_each_member():
    with pytest.raises(ValueError, match=r"batch\[0\] is float64\[8, 5\], but .* leading dimension of 3 members"):
        ensemble(step, batches="own")(stack(starts()), BATCHES[0])


def test_stop_must_answer_with_a_tensor():
    with pytest.raises(TypeError, match="stop must return a 0-d bool tensor for each member, got bool True"):
        ensemble(step, stop=lambda state: True)(stack(starts()), BATCHES[0])


def test_an_evaluation_must_return_metrics():
    with pytest.raises(TypeError, match=r"eval_fn must return hf.Aux"):
        evaluate_members(lambda params, buffers, batch: 1.0)(stack(starts()).params, None, BATCHES[0])
