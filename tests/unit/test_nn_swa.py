"""Equal-weight averages against torch's AveragedModel, decays that change, and batch statistics measured anew."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.optim import swa_utils
from torch.utils.data import TensorDataset

import helios_fn as hf
from helios_fn import tree


def params_at(step: int, dtype=torch.float32):
    generator = torch.Generator().manual_seed(step)
    return {"b": torch.randn(2, generator=generator).to(dtype), "w": torch.randn(3, 2, generator=generator).to(dtype)}


class Holder(nn.Module):
    """A torch module of the same parameters, in the same order."""

    def __init__(self):
        super().__init__()
        self.b, self.w = nn.Parameter(torch.zeros(2)), nn.Parameter(torch.zeros(3, 2))


@pytest.mark.parametrize("donate", [False, True])
@pytest.mark.parametrize(("start", "every"), [(0, 1), (7, 1), (5, 3), (50, 2)])
def test_fifty_updates_have_the_bits_of_torchs_averaged_model(start, every, donate):
    average, module = hf.swa(start, every=every), Holder()
    averaged = swa_utils.AveragedModel(module, multi_avg_fn=swa_utils.get_swa_multi_avg_fn())
    shadow = average.init(params_at(0))
    for count in range(51):
        params = params_at(count)
        if count:
            shadow = average.update(shadow, params, count, donate=donate)
        if count >= start and (count - start) % every == 0:
            module.load_state_dict(params)
            averaged.update_parameters(module)
        wanted = dict(averaged.module.state_dict()) if count >= start else params
        assert tree.equal(shadow, {name: wanted[name] for name in params}), count


@settings(max_examples=30, deadline=None)
@given(start=st.integers(0, 6), every=st.integers(1, 4), updates=st.integers(1, 15))
def test_the_shadow_is_the_mean_of_the_parameters_taken(start, every, updates):
    average = hf.swa(start, every=every)
    shadow = average.init(params_at(0, torch.float64))
    for count in range(1, updates + 1):
        shadow = average.update(shadow, params_at(count, torch.float64), count)
    taken = range(start, updates + 1, every) if updates >= start else [updates]
    for name, leaf in shadow.items():
        mean = torch.stack([params_at(count, torch.float64)[name] for count in taken]).mean(0)
        torch.testing.assert_close(leaf, mean, rtol=1e-12, atol=1e-12)


AVERAGES = {
    "swa": lambda: hf.swa(2, every=2),
    "warmup": lambda: hf.ema(0.99, warmup=True),
    "function": lambda: hf.ema(hf.optim.schedules.linear(0.5, 0.9, 4)),
    "float": lambda: hf.ema(0.9),
}


@pytest.mark.parametrize("name", AVERAGES)
def test_an_update_is_pure_and_mapped_and_recorded_it_agrees(name):
    """The formula for counts that are tensors gives what the branches on integers give."""
    average = AVERAGES[name]()
    shadow = average.init(params_at(0))
    for step in range(1, 7):
        params = params_at(step)
        before = tree.digest((shadow, params))
        new = average.update(shadow, params, step)
        assert tree.equal(new, average.update(shadow, params, step))
        assert tree.digest((shadow, params)) == before
        stacked = tree.map(lambda leaf: torch.stack([leaf, leaf]), (shadow, params))
        counts = torch.tensor([step, step])
        many = torch.vmap(average.update)(*stacked, counts)
        recorded = tree.map(lambda leaf: leaf.clone().requires_grad_(), params)
        again = tree.map(torch.Tensor.detach, average.update(shadow, recorded, torch.tensor(step)))
        for key, leaf in new.items():
            torch.testing.assert_close(many[key][1], leaf)
            torch.testing.assert_close(again[key], leaf)
        shadow = new


def test_compiled_with_a_step_it_agrees_and_is_one_graph():
    def loss_fn(params, buffers, batch, key):
        return (params["w"] @ params["b"]).square().sum() + batch.sum() * params["w"].sum()

    average, optimizer = hf.swa(1, every=2), hf.optim.sgd(0.01)
    plain = hf.make_step(loss_fn, optimizer, average=average)
    whole = hf.make_step(loss_fn, optimizer, average=average, compile="whole", compile_options={"backend": "eager"})
    state = other = hf.init_state(params_at(0), optimizer, average=average)
    torch._dynamo.utils.counters.clear()
    for step in range(5):
        state, other = plain(state, torch.ones(2) * step), whole(other, torch.ones(2) * step)
        torch.testing.assert_close(state.averages, other.averages)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1


def test_a_warm_up_follows_the_parameters_more_closely_in_the_beginning():
    average, shadow = hf.ema(0.5, warmup=True), {"w": torch.zeros(1, dtype=torch.float64)}
    expected = 0.0
    for count in range(1, 20):
        decay = min(0.5, (1 + count) / (10 + count))
        shadow = average.update(shadow, {"w": torch.full((1,), float(count), dtype=torch.float64)}, count)
        expected = decay * expected + (1 - decay) * count
        assert shadow["w"].item() == pytest.approx(expected, rel=1e-12)


def test_between_two_terms_the_shadow_itself_is_passed_on():
    average = hf.swa(0, every=3)
    shadow = average.init(params_at(0))
    assert average.update(shadow, params_at(1), 1) is shadow


def test_half_precision_parameters_have_a_float32_mean():
    average = hf.swa(0)
    shadow = average.init({"w": torch.ones(1, dtype=torch.bfloat16)})
    for count in range(1, 300):
        shadow = average.update(shadow, {"w": torch.full((1,), 2.0, dtype=torch.bfloat16)}, count)
    assert shadow["w"].dtype is torch.float32
    assert shadow["w"].item() == pytest.approx(2 - 1 / 300, rel=1e-4)


@pytest.mark.parametrize(
    ("make", "error", "words"),
    [
        (lambda: hf.swa(-1), ValueError, "start must be at least 0"),
        (lambda: hf.swa(0, every=0), ValueError, "every must be at least 1"),
        (lambda: hf.swa(0.75), TypeError, "start must be an integer, a number of updates, got 0.75"),
        (lambda: hf.ema(lambda count: 0.9, warmup=True), TypeError, "warmup=True is for a decay that is a number"),
        (lambda: hf.ema(lambda count: 1.5).update({}, {}, 3), ValueError, "returned 1.5 at update 3"),
    ],
)
def test_wrong_arguments_are_refused(make, error, words):
    with pytest.raises(error, match=words):
        make()


class Net(nn.Module):
    """Two batch norms, one of them frozen in eval mode, and one without statistics."""

    def __init__(self, frozen=False):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4, momentum=0.3), nn.ReLU(), nn.Dropout(0.0))
        self.mid = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.BatchNorm1d(4, track_running_stats=False))
        self.last = nn.Linear(4, 2)
        if frozen:
            self.mid.eval()

    def forward(self, x):
        return self.last(self.mid(self.body(x)))


X = torch.randn(11, 3, generator=torch.Generator().manual_seed(0))
DATA = TensorDataset(X, torch.arange(11))


@pytest.mark.parametrize("batch_size", [3, 4, 11])
def test_refreshed_statistics_have_the_bits_of_torchs_update_bn(batch_size):
    """A ragged last batch included; nothing that was given is changed, and the module's own momentum is left alone."""
    model, params, buffers = hf.functional(Net)
    params = tree.map(lambda leaf: leaf + 0.1, params)
    buffers = tree.map(lambda leaf: leaf + 1, buffers)
    before = tree.digest((params, buffers))
    loader = hf.Loader(DATA, batch_size, shuffle=False, workers=0)
    found = hf.refresh_batch_norm(model, params, buffers, loader)
    module = Net()
    module.load_state_dict({**params, **buffers})
    swa_utils.update_bn([X[at : at + batch_size] for at in range(0, 11, batch_size)], module)
    assert tree.equal(found, dict(module.named_buffers()))
    assert tree.digest((params, buffers)) == before
    assert tree.equal(found, hf.refresh_batch_norm(model, params, buffers, loader))
    assert model._train.pattern.module.body[1].momentum == 0.3


def test_batch_norms_in_eval_mode_keep_their_statistics():
    model, params, buffers = hf.functional(lambda: Net(frozen=True))
    found = hf.refresh_batch_norm(model, params, buffers, hf.Loader(DATA, 4, workers=0))
    assert torch.equal(found["mid.1.running_mean"], buffers["mid.1.running_mean"])
    assert not torch.equal(found["body.1.running_mean"], buffers["body.1.running_mean"])
    assert int(found["body.1.num_batches_tracked"]) == 3


def test_without_batch_norms_the_buffers_themselves_are_returned():
    model, params, buffers = hf.functional(lambda: nn.Linear(3, 2))
    assert hf.refresh_batch_norm(model, params, buffers, hf.Loader(DATA, 4, workers=0)) is buffers


def test_frozen_weights_and_a_forward_of_ones_own_work():
    given = hf.functional(Net)
    frozen = hf.freeze(*given, "body.*")
    loader = hf.Loader({"x": X, "y": torch.arange(11)}, 4, workers=0)

    def forward(model, params, buffers, batch):
        return model(params, buffers, batch["x"])

    found = hf.refresh_batch_norm(*frozen, loader, forward=forward)
    wanted = hf.refresh_batch_norm(*given, loader, forward=forward)
    assert all(torch.equal(found[name], leaf) for name, leaf in wanted.items())
    assert found["body.0.weight"] is given[1]["body.0.weight"]


def test_what_is_no_model_or_has_no_end_is_refused():
    model, params, buffers = hf.functional(Net)
    with pytest.raises(TypeError, match="the model must be what functional"):
        hf.refresh_batch_norm(lambda: 0, params, buffers, hf.Loader(DATA, 4, workers=0))
    with pytest.raises(ValueError, match="a stream has no end"):
        hf.refresh_batch_norm(model, params, buffers, hf.Stream(lambda position, key: iter(()), batch_size=2))


def test_a_validator_evaluates_the_average_of_a_run_by_choice():
    """``params=lambda state: state.averages`` is all that it takes."""

    def loss_fn(params, buffers, batch, key):
        return (params["w"] @ params["b"]).square().sum()

    def evaluate(params, buffers, batch):
        return hf.Aux(metrics={"b": params["b"].sum()}, weight=1)

    average, optimizer = hf.swa(2), hf.optim.sgd(0.01)
    state = hf.init_state(params_at(0), optimizer, average=average)
    loader = hf.Loader(DATA, 4, workers=0)
    validate = hf.Validator(evaluate, loader.replace(), params=lambda state: state.averages)
    cfg = hf.RunConfig(unit="iteration", total=5, validate_every=5, progress=False)
    final = hf.run(hf.make_step(loss_fn, optimizer, average=average), state, loader, cfg, validate=validate).state
    assert float(final.validation.metrics["b"]) == pytest.approx(float(final.averages["b"].sum()))
    assert not torch.equal(final.averages["b"], final.params["b"])
