"""Portable draws: pinned, independent of shape, chunk and transform, and distributed as they say."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from helios_fn.random import (
    bernoulli,
    bits,
    draws,
    fold_in,
    key,
    key_words,
    normal,
    permutation,
    randint,
    split,
    uniform,
)
from helios_fn.random.philox import philox_int

KEY = fold_in(key(6691), "draws")
MANY = 200_000
SAMPLERS = {
    "bits": bits,
    "bits64": lambda k, s, **kw: bits(k, s, width=64, **kw),
    "uniform": uniform,
    "uniform64": lambda k, s, **kw: uniform(k, s, dtype=torch.float64, **kw),
    "uniform_scaled": lambda k, s, **kw: uniform(k, s, low=-2.0, high=3.0, **kw),
    "normal": normal,
    "normal64": lambda k, s, **kw: normal(k, s, mean=1.0, std=2.0, dtype=torch.float64, **kw),
    "bernoulli": lambda k, s, **kw: bernoulli(k, s, p=0.3, **kw),
    "randint": lambda k, s, **kw: randint(k, s, low=-5, high=1000, **kw),
}
every_sampler = pytest.mark.parametrize("sampler", SAMPLERS.values(), ids=SAMPLERS)


def test_draws_never_change_between_versions():
    """Noise drawn with these is part of what a resumed or repeated run must reproduce."""
    assert bits(KEY, 5).tolist() == [1114879658, 2112636580, 1026197091, 3197245751, 1963270546]
    assert bits(KEY, 2, width=64).tolist() == [9073705020548167338, -4714678134863395229]
    assert uniform(KEY, 3).tolist() == [0.4520059823989868, 0.9229528903961182, 0.16611307859420776]
    assert uniform(KEY, 2, dtype=torch.float64).tolist() == [0.3836232469454519, 0.565578097786965]
    assert randint(KEY, 8, high=10).tolist() == [4, 7, 8, 3, 6, 7, 1, 2]
    assert permutation(KEY, 8).tolist() == [4, 1, 5, 2, 6, 7, 3, 0]
    assert bernoulli(KEY, 8, p=0.3).tolist() == [True, False, True, False, False, False, False, False]
    expected = torch.tensor([-1.6402411460876465, 0.08368927240371704, -0.05934704840183258, -1.6910488605499268])
    torch.testing.assert_close(normal(KEY, 4), expected)  # logarithms may round differently elsewhere


@given(st.integers(0, 2**64 - 1), st.integers(0, 2**64 - 1), st.integers(1, 20))
@settings(max_examples=30)
def test_bits_are_the_blocks_of_the_specification(seed, offset, n):
    drawn = bits(torch.tensor([seed - 2**63, offset - 2**63]) ^ -(2**63), n).tolist()
    low, expected = 0xFFFFFFFF, []
    for i in range(-(-n // 4)):
        position = (offset + i) % 2**64
        expected += philox_int(position & low, position >> 32, 0, 0, seed & low, seed >> 32)
    assert drawn == expected[:n]


@every_sampler
def test_the_shape_only_arranges(sampler):
    flat = sampler(KEY, 60)
    assert torch.equal(sampler(KEY, (3, 4, 5)), flat.view(3, 4, 5))
    assert torch.equal(sampler(KEY, (7,)), flat[:7])
    assert torch.equal(sampler(KEY, ()), flat[0])
    assert sampler(KEY, (2, 0)).shape == (2, 0)


@every_sampler
def test_large_draws_are_made_of_the_same_numbers(sampler, monkeypatch):
    whole = sampler(KEY, (13, 17))
    monkeypatch.setattr(draws, "_CHUNK", 10)
    assert torch.equal(sampler(KEY, (13, 17)), whole)


@every_sampler
def test_mapped_draws_are_those_of_each_key(sampler):
    keys = split(KEY, 4)
    mapped = torch.func.vmap(lambda k: sampler(k, (3, 3)))(keys)
    assert torch.equal(mapped, torch.stack([sampler(k, (3, 3)) for k in keys]))


def test_mapped_permutations_are_those_of_each_key():
    keys = split(KEY, 4)
    assert torch.equal(
        torch.func.vmap(lambda k: permutation(k, 9))(keys), torch.stack([permutation(k, 9) for k in keys])
    )


def test_traced_draws_are_the_eager_ones():
    def draw_all(k):
        return [SAMPLERS[name](k, (5, 3)) for name in ("normal", "randint")]

    compiled = torch.compile(draw_all, backend="eager", fullgraph=True)
    for traced, eager in zip(compiled(KEY), draw_all(KEY), strict=True):
        assert torch.equal(traced, eager)


@every_sampler
def test_drawing_leaves_the_key_and_the_global_generator_alone(sampler):
    words, state = key_words(KEY), torch.get_rng_state()
    assert torch.equal(sampler(KEY, 10), sampler(KEY, 10))
    assert key_words(KEY) == words
    assert torch.equal(torch.get_rng_state(), state)


@every_sampler
def test_the_device_may_be_named(sampler):
    assert torch.equal(sampler(KEY, 10, device="cpu"), sampler(KEY, 10))
    with torch.device("meta"):  # a default device does not move draws
        assert sampler(KEY, 10).device.type == "cpu"


def chi_square(counts: torch.Tensor) -> float:
    """How far counts are from equal, in standard deviations of the chi-square statistic."""
    expected = counts.sum() / len(counts)
    degrees = len(counts) - 1
    return float((((counts - expected) ** 2 / expected).sum() - degrees) / math.sqrt(2 * degrees))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_uniforms_are_uniform_and_below_one(dtype):
    values = uniform(KEY, (MANY,), dtype=dtype)
    assert values.dtype is dtype
    assert values.min() >= 0
    assert values.max() < 1
    assert abs(chi_square((values.double() * 64).long().bincount(minlength=64).double())) < 4


@pytest.mark.parametrize("lag", [1, 2, 4])
def test_neighbouring_uniforms_are_unrelated(lag):
    values = uniform(KEY, (MANY,), dtype=torch.float64)
    cells = (values[:-lag] * 8).long() * 8 + (values[lag:] * 8).long()
    assert abs(chi_square(cells.bincount(minlength=64).double())) < 4


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_scaled_uniforms_stay_below_their_bound(dtype):
    """Rounding would reach `high` here in every second draw."""
    low = 1.0
    high = float(torch.nextafter(torch.tensor(low, dtype=dtype), torch.tensor(2.0, dtype=dtype)))
    assert (uniform(KEY, 1000, low=low, high=high, dtype=dtype) == low).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_normals_are_normal(dtype):
    values = normal(KEY, (MANY,), dtype=dtype)
    assert values.dtype is dtype
    assert torch.isfinite(values).all()
    equal_cells = (torch.special.ndtr(values.double()) * 64).long()
    assert abs(chi_square(equal_cells.bincount(minlength=64).double())) < 4
    pairs = values.view(-1, 2).double()  # both come from one radius and one angle
    assert abs(float(torch.corrcoef(pairs.T)[0, 1])) < 4 / math.sqrt(MANY / 2)
    scaled = normal(KEY, (MANY,), mean=3.0, std=0.5, dtype=dtype)
    torch.testing.assert_close(scaled, values * 0.5 + 3.0)


def test_halved_normals_are_rounded_ones():
    assert torch.equal(normal(KEY, 100, dtype=torch.bfloat16), normal(KEY, 100).bfloat16())


@pytest.mark.parametrize("p", [0.0, 0.1, 0.5, 0.999, 1.0])
def test_bernoulli_is_true_as_often_as_asked(p):
    drawn = bernoulli(KEY, (MANY,), p=p)
    assert drawn.dtype is torch.bool
    assert abs(int(drawn.sum()) - MANY * p) <= 4 * math.sqrt(MANY * p * (1 - p))


def test_bernoulli_takes_one_probability_for_each_element():
    p = torch.tensor([0.0, 0.25, 1.0])
    drawn = bernoulli(KEY, (1000, 3), p=p)
    assert torch.equal(drawn[:, 1], bernoulli(KEY, (1000, 3), p=0.25)[:, 1])
    assert not drawn[:, 0].any()
    assert drawn[:, 2].all()


@pytest.mark.parametrize(("low", "high"), [(0, 1), (-3, 4), (10, 74), (0, 2**32), (-(2**31), 2**31)])
def test_integers_fill_their_range_evenly(low, high):
    values = randint(KEY, (MANY,), low=low, high=high)
    assert values.min() >= low
    assert values.max() < high
    cells = min(high - low, 64)
    if cells > 1:
        spread = ((values - low).double() / (high - low) * cells).long()
        assert abs(chi_square(spread.bincount(minlength=cells).double())) < 4


@given(st.integers(0, 2**32 - 1), st.integers(-100, 100), st.integers(1, 2**32))
@settings(max_examples=30)
def test_integers_are_the_high_part_of_a_product(seed, low, span):
    words = bits(key(seed), 6, width=64).tolist()
    expected = [low + ((word % 2**64) * span >> 64) for word in words]
    assert randint(key(seed), 6, low=low, high=low + span).tolist() == expected


@given(st.integers(0, 2**32), st.integers(0, 200))
@settings(max_examples=30)
def test_permutations_are_permutations(seed, n):
    assert permutation(key(seed), n).sort().values.tolist() == list(range(n))


def test_all_orders_of_four_are_equally_likely():
    orders = torch.func.vmap(lambda k: permutation(k, 4))(split(KEY, 24_000))
    codes = orders @ torch.tensor([64, 16, 4, 1])
    counts = codes.unique(return_counts=True)[1]
    assert len(counts) == 24
    assert abs(chi_square(counts.double())) < 4


def test_arguments_are_checked():
    for wrong in (
        lambda: bits(KEY, width=16),
        lambda: uniform(KEY, low=1.0, high=1.0),
        lambda: uniform(KEY, high=math.inf),
        lambda: normal(KEY, std=-1.0),
        lambda: bernoulli(KEY, p=1.5),
        lambda: bernoulli(KEY, p=math.nan),
        lambda: randint(KEY, high=0),
        lambda: randint(KEY, high=2**32 + 1),
        lambda: uniform(KEY, (2, -1)),
        lambda: uniform(split(KEY)),
    ):
        with pytest.raises(ValueError, match=r"must|got"):
            wrong()
    with pytest.raises(TypeError, match=r"float16.*got torch\.int64"):
        uniform(KEY, dtype=torch.int64)
    with pytest.raises(TypeError, match=r"helios_fn\.random\.key"):
        normal(0)
