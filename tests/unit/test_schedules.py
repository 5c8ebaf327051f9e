"""Schedules are total, pure, described by their call, agree with torch's schedulers, and take tensors too."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.optim import lr_scheduler

from helios_fn.errors import NotTraceable
from helios_fn.optim import schedules
from helios_fn.optim.schedules.base import last_rate, rate_at

COUNTS = st.integers(0, 200) | st.integers(0, 2**63 - 1)
RATES = st.floats(1e-6, 10.0)
STEPS = st.integers(1, 150)

MADE = st.one_of(
    st.builds(schedules.constant, RATES),
    st.builds(schedules.linear, RATES, RATES, STEPS),
    st.builds(schedules.linear_warmup, RATES, STEPS),
    st.builds(schedules.cosine, RATES, STEPS, RATES),
    st.builds(schedules.step_decay, RATES, STEPS, st.floats(0.01, 1.0)),
    st.builds(schedules.polynomial, RATES, STEPS, st.floats(0.1, 4.0), RATES),
    st.builds(schedules.exponential, RATES, st.floats(0.01, 1.0)),
    st.builds(lambda start, growth: schedules.exponential(start, growth, 10 * start), RATES, st.floats(1.0, 3.0)),
    st.builds(
        lambda peak, warm, more: schedules.warmup_cosine(peak, warm, warm + more), RATES, st.integers(0, 99), STEPS
    ),
    st.builds(schedules.cosine_restarts, RATES, STEPS, st.integers(1, 4), RATES),
    st.builds(lambda at, a, b: schedules.piecewise([at], [a, schedules.cosine(b, 10)]), STEPS, RATES, RATES),
    st.builds(
        lambda gamma, steps: schedules.from_torch(lr_scheduler.ExponentialLR, gamma=gamma, base_lr=0.1, steps=steps),
        st.floats(0.5, 1.0),
        st.integers(1, 20),
    ),
)

# name: our schedule, torch's scheduler for a base rate of 0.4, how many counts they agree on
SCHEDULERS = {
    "LinearLR": (
        schedules.linear(0.1, 0.4, 20),
        lambda o: lr_scheduler.LinearLR(o, start_factor=0.25, end_factor=1.0, total_iters=20),
    ),
    "ConstantLR": (
        schedules.piecewise([5], [0.1, 0.4]),
        lambda o: lr_scheduler.ConstantLR(o, factor=0.25, total_iters=5),
    ),
    "CosineAnnealingLR": (
        schedules.cosine(0.4, 59, 0.01),
        lambda o: lr_scheduler.CosineAnnealingLR(o, T_max=59, eta_min=0.01),
    ),
    "StepLR": (schedules.step_decay(0.4, 7, 0.3), lambda o: lr_scheduler.StepLR(o, step_size=7, gamma=0.3)),
    "MultiStepLR": (
        schedules.piecewise([10, 30], [0.4, 0.04, 0.004]),
        lambda o: lr_scheduler.MultiStepLR(o, milestones=[10, 30], gamma=0.1),
    ),
    "PolynomialLR": (
        schedules.polynomial(0.4, 40, 2.0),
        lambda o: lr_scheduler.PolynomialLR(o, total_iters=40, power=2.0),
    ),
    "ExponentialLR": (schedules.exponential(0.4, 0.9), lambda o: lr_scheduler.ExponentialLR(o, gamma=0.9)),
    "CosineAnnealingWarmRestarts": (
        schedules.cosine_restarts(0.4, 6, 2, 0.02),
        lambda o: lr_scheduler.CosineAnnealingWarmRestarts(o, T_0=6, T_mult=2, eta_min=0.02),
    ),
    "restarts of equal length": (
        schedules.cosine_restarts(0.4, 6),
        lambda o: lr_scheduler.CosineAnnealingWarmRestarts(o, T_0=6),
    ),
    "SequentialLR": (
        schedules.warmup_cosine(0.4, 10, 59, 0.01, start=0.04),
        lambda o: lr_scheduler.SequentialLR(
            o,
            [
                lr_scheduler.LinearLR(o, start_factor=0.1, total_iters=10),
                lr_scheduler.CosineAnnealingLR(o, T_max=49, eta_min=0.01),
            ],
            milestones=[10],
        ),
    ),
}


def torch_rates(make, steps):
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=0.4)
    scheduler = make(optimizer)
    rates = []
    for _ in range(steps):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return rates


# torch builds its own SequentialLR in a way that it warns about itself
@pytest.mark.filterwarnings("ignore:.*:UserWarning:torch")
@pytest.mark.parametrize("name", SCHEDULERS)
def test_values_agree_with_torch(name):
    schedule, make = SCHEDULERS[name]
    assert [schedule(count) for count in range(60)] == pytest.approx(torch_rates(make, 60), rel=1e-9, abs=1e-15)


@settings(max_examples=150, deadline=None)
@given(schedule=MADE, count=COUNTS)
def test_a_schedule_is_a_total_pure_function_to_finite_floats(schedule, count):
    value = schedule(count)
    assert type(value) is float
    assert math.isfinite(value)
    assert value >= 0
    assert schedule(count) == value


@settings(max_examples=60, deadline=None)
@given(schedule=MADE)
def test_a_schedule_is_described_by_its_call_without_addresses(schedule):
    assert "0x" not in repr(schedule)
    if schedule.name != "from_torch":
        again = eval(repr(schedule), vars(schedules).copy())
        assert again == schedule
        assert [again(count) for count in range(30)] == [schedule(count) for count in range(30)]


@settings(max_examples=60, deadline=None)
@given(peak=RATES, warmup=st.integers(0, 50), decay=STEPS, end=st.floats(0, 1e-7))
def test_warmup_cosine_meets_its_corners_and_has_one_peak(peak, warmup, decay, end):
    schedule = schedules.warmup_cosine(peak, warmup, warmup + decay, end)
    values = [schedule(count) for count in range(warmup + decay + 3)]
    assert values[0] == (0.0 if warmup else peak)
    assert values[warmup] == peak
    assert values[-3:] == [end] * 3
    assert values[: warmup + 1] == sorted(values[: warmup + 1])
    assert values[warmup:] == sorted(values[warmup:], reverse=True)


@settings(max_examples=60, deadline=None)
@given(start=RATES, factor=st.floats(0.5, 3.0), ratio=st.floats(0.01, 100.0))
def test_an_exponential_with_an_end_never_passes_it(start, factor, ratio):
    end = start * ratio
    if (end - start) * (factor - 1) < 0:
        with pytest.raises(ValueError, match="never leads from"):
            schedules.exponential(start, factor, end)
        return
    schedule = schedules.exponential(start, factor, end)
    low, high = sorted((start, end))
    assert all(low * (1 - 1e-12) <= schedule(count) <= high * (1 + 1e-12) for count in [*range(50), 2**62])


@pytest.mark.parametrize(
    "make",
    [
        lambda o: lr_scheduler.OneCycleLR(o, max_lr=1.0, total_steps=50, cycle_momentum=False),
        lambda o: lr_scheduler.CyclicLR(o, base_lr=0.1, max_lr=1.0, step_size_up=7, cycle_momentum=False),
        lambda o: lr_scheduler.CosineAnnealingLR(o, T_max=13),
        lambda o: lr_scheduler.LambdaLR(o, lambda count: 1 / (count + 1)),
        lambda o: lr_scheduler.ChainedScheduler([lr_scheduler.ExponentialLR(o, 0.9), lr_scheduler.StepLR(o, 3)]),
    ],
)
def test_a_tabulated_scheduler_has_torchs_bits_and_holds_its_last_value(make):
    schedule = schedules.from_torch(make, base_lr=0.4, steps=50)
    wanted = torch_rates(make, 49)
    assert [schedule(count) for count in range(49)] == wanted
    assert schedule(50) == schedule(49) == schedule(10**12)


def test_a_tabulated_class_takes_its_arguments_and_carries_a_digest():
    one = schedules.from_torch(lr_scheduler.StepLR, 3, gamma=0.5, base_lr=0.4, steps=20)
    assert [one(count) for count in range(20)] == torch_rates(lambda o: lr_scheduler.StepLR(o, 3, gamma=0.5), 20)
    first, second = (
        schedules.from_torch(lr_scheduler.LambdaLR, function, base_lr=0.4, steps=20)
        for function in (lambda count: 1.0, lambda count: 0.5)
    )
    assert repr(first) != repr(second)


@settings(max_examples=150, deadline=None)
@given(schedule=MADE, count=st.integers(0, 200) | st.integers(0, 2**53))
def test_of_a_tensor_a_schedule_makes_a_float64_tensor_of_the_same_value(schedule, count):
    found = schedule(torch.tensor(count))
    assert (found.dtype, found.shape) == (torch.float64, ())
    # A rounding of the exponent count / period is amplified by the power or the cosine.
    assert found.item() == pytest.approx(schedule(count), rel=1e-9, abs=1e-12)


@settings(max_examples=40, deadline=None)
@given(schedule=MADE)
def test_schedules_are_mapped_over_counts(schedule):
    counts = torch.arange(40)
    found = torch.func.vmap(schedule)(counts)
    wanted = torch.tensor([schedule(count) for count in range(40)], dtype=torch.float64)
    torch.testing.assert_close(found, wanted, rtol=1e-12, atol=1e-15)
    last = torch.func.vmap(lambda count: last_rate(schedule, count))(counts)
    torch.testing.assert_close(last, wanted[[0, *range(39)]], rtol=1e-12, atol=1e-15)


MIXED = [
    schedules.constant(0.3),
    schedules.step_decay(0.4, 7, 0.3),
    schedules.polynomial(0.4, 20, 2.5, 0.01),
    schedules.exponential(0.1, 1.5, 1.0),
    schedules.warmup_cosine(0.4, 5, 20, 0.01),
    schedules.cosine_restarts(0.4, 3, 2, 0.01),
    schedules.piecewise([3, 9], [0.1, schedules.cosine(0.3, 5), lambda count: 0.1 * 0.9**count]),
    schedules.from_torch(lr_scheduler.ExponentialLR, gamma=0.9, base_lr=0.1, steps=15),
    lambda count: 1e-3 * 0.99**count,
    0.2,
]


# torch's own compiler warns of itself where it is first imported
@pytest.mark.filterwarnings("ignore:.*script_method.*:DeprecationWarning")
@pytest.mark.parametrize("backend", ["eager", pytest.param("inductor", marks=pytest.mark.soak)])
def test_schedules_compile_into_one_graph_for_all_counts(backend):
    def rates(count):
        return [rate_at(schedule, count) for schedule in MIXED]

    torch._dynamo.reset()
    compiled = torch.compile(rates, backend=backend, fullgraph=True)
    with torch._dynamo.config.patch(error_on_recompile=True):
        for count in range(30):
            found = [float(rate) for rate in compiled(torch.tensor(count))]
            assert found == pytest.approx(rates(count), rel=1e-12)


def test_functions_of_users_see_a_tensor_whose_arithmetic_is_that_of_floats():
    seen = []

    def user(count):
        seen.append(count)
        return 1e-3 * 0.99**count

    found = rate_at(user, torch.tensor(777))
    assert seen[0].dtype == torch.float64
    assert found.item() == pytest.approx(rate_at(user, 777), rel=1e-14)
    assert rate_at(lambda count: 0.5, torch.tensor(3)).dtype == torch.float64
    assert rate_at(0.5, torch.tensor(3)) == 0.5


def test_a_function_that_branches_on_a_mapped_count_is_told_what_to_write():
    counts = torch.arange(9)
    for user in (
        lambda count: 0.1 if count < 5 else 0.01,
        lambda count: min(1.0, count / 5),
        lambda count: math.cos(count),
    ):
        with pytest.raises(NotTraceable, match=r"torch\.where\(count < n, first, second\) for a branch"):
            torch.func.vmap(lambda count, user=user: rate_at(user, count))(counts)
    written = torch.func.vmap(lambda count: rate_at(lambda c: torch.where(c < 5, 0.1, 0.01), count))(counts)
    assert written.tolist() == pytest.approx([0.1] * 5 + [0.01] * 4, rel=1e-7)
    with pytest.raises(RuntimeError, match="mine"):
        torch.func.vmap(lambda count: rate_at(mistaken, count))(counts)


def mistaken(count):
    raise RuntimeError("mine")


def test_tabulating_warns_nobody_and_draws_nothing(recwarn):
    before = torch.get_rng_state()
    schedules.from_torch(lr_scheduler.StepLR, 3, base_lr=0.4, steps=5)
    assert torch.equal(torch.get_rng_state(), before)
    assert not recwarn.list


class Restless(lr_scheduler.LRScheduler):
    def get_lr(self):
        return [1.0]

    def step(self, loss):
        super().step()

    def _initial_step(self):
        pass


@pytest.mark.parametrize(
    ("make", "error", "words"),
    [
        (
            lambda: schedules.from_torch(lr_scheduler.ReduceLROnPlateau, base_lr=1.0, steps=9),
            TypeError,
            "step needs metrics",
        ),
        (lambda: schedules.from_torch(Restless, base_lr=1.0, steps=9), TypeError, "step needs loss"),
        (
            lambda: schedules.from_torch(lr_scheduler.OneCycleLR, max_lr=1.0, total_steps=9, base_lr=1.0, steps=9),
            ValueError,
            "cycle_momentum=False",
        ),
        (lambda: schedules.from_torch(lambda optimizer: 3, base_lr=1.0, steps=9), TypeError, "but got int"),
        (lambda: schedules.from_torch(lr_scheduler.StepLR, 3, base_lr=1.0, steps=0), ValueError, "steps"),
        (lambda: schedules.constant("a"), TypeError, "value must be a number"),
        (lambda: schedules.constant(math.nan), ValueError, "value must be finite"),
        (lambda: schedules.linear(0.0, 1.0, 0), ValueError, "steps must be at least 1"),
        (lambda: schedules.cosine(1.0, 2.5), TypeError, "steps must be an integer"),
        (lambda: schedules.step_decay(1.0, 5, 1.5), ValueError, "factor must be at most 1"),
        (lambda: schedules.polynomial(1.0, 5, 0.0), ValueError, "power must be above 0"),
        (lambda: schedules.exponential(1.0, 1.1), ValueError, "growth needs an end"),
        (lambda: schedules.warmup_cosine(1.0, 10, 10), ValueError, "total_steps must be above warmup_steps"),
        (lambda: schedules.warmup_cosine(1.0, -1, 10), ValueError, "warmup_steps must be at least 0"),
        (lambda: schedules.cosine_restarts(1.0, 5, 0), ValueError, "factor must be at least 1"),
        (lambda: schedules.piecewise([5, 5], [1.0, 0.5, 0.1]), ValueError, "boundaries must increase"),
        (lambda: schedules.piecewise([5], [1.0]), ValueError, "1 boundaries separate 2 values, got 1"),
        (lambda: schedules.piecewise([5], [1.0, "x"]), TypeError, r"values\[1\] must be a number"),
        (lambda: schedules.constant(1.0)(-1), ValueError, "updates applied so far, got -1"),
    ],
)
def test_wrong_arguments_are_refused(make, error, words):
    with pytest.raises(error, match=words):
        make()
