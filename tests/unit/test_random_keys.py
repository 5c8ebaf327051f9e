"""Keys: the specification, pinned; equal on the host and traced; nothing collides."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from helios_fn.random import bits, fold_in, key, key_words, split
from helios_fn.random.keys import consecutive
from helios_fn.random.philox import philox_int

LOW = 0xFFFFFFFF
seeds = st.integers(-(2**63), 2**64 - 1) | st.integers(0, 100)
ints = st.integers(-(2**63), 2**64 - 1) | st.integers(-3, 1000)
texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
data = st.lists(ints | texts, max_size=4)


def reference(words: tuple[int, int], datum: int | str) -> tuple[int, int]:
    """`fold_in` written from the docstring of helios_fn.random.derive."""
    if isinstance(datum, str):
        raw = datum.encode()
        parts = [raw[i : i + 8] for i in range(0, len(raw), 8)] or [b""]
        messages = [(int.from_bytes(p, "little"), 0x10) for p in parts[:-1]]
        messages.append((int.from_bytes(parts[-1], "little"), 0x20 + len(parts[-1])))
    else:
        messages = [(datum % 2**64, 2 if datum < 2**63 else 3)]
    for number, tag in messages:
        seed, offset = words
        r0, r1, r2, r3 = philox_int(offset & LOW, offset >> 32, 0, 1, seed & LOW, seed >> 32)
        w0, w1, w2, w3 = philox_int(number & LOW ^ r3, number >> 32, r2, tag, r0, r1)
        words = w0 + (w1 << 32), w2 + (w3 << 32)
    return words


# A change of any of these would silently give every run of every user other weights, batches and noise.
GOLDEN = [
    ((), (0x1A23, 0)),
    ((0,), (0x0C03A1A7B03086CF, 0x1F1227129793281D)),
    ((-1,), (0x76190FB911D27EC3, 0xD311D9FD8BB03FF0)),
    ((2**63,), (0x13B76E31B7361ADC, 0x905C6B0ED84E9569)),
    (("",), (0x75F91989D72BC5AE, 0x567E5350CD670C02)),
    (("dropout",), (0xD080BB5CB1D1248F, 0xE8EEA2276182810C)),
    (("validation metrics",), (0x5D1A2C48D88A0E1C, 0x4237ABD7F6C43C95)),
    (("micro", 7), (0x63465973A22087E6, 0xBB85DCD79E69AA83)),
]


@pytest.mark.parametrize(("path", "words"), GOLDEN)
def test_derived_keys_never_change_between_versions(path, words):
    assert key_words(fold_in(key(6691), *path)) == words


def test_split_keys_never_change_between_versions():
    assert [key_words(row) for row in split(key(6691))] == [
        (0xE2253FC690C0A52D, 0x640CFCBC7BF9C1ED),
        (0x276EE80892906487, 0xBB4545128A50BB33),
    ]


@given(seeds, data)
def test_fold_in_does_what_the_specification_says(seed, path):
    words = (seed % 2**64, 0)
    for datum in path:
        words = reference(words, datum)
    assert key_words(fold_in(key(seed), *path)) == words


@given(seeds)
def test_a_root_key_is_its_seed_and_offset_zero(seed):
    made = key(seed)
    assert made.dtype is torch.int64
    assert made.shape == (2,)
    assert made.device.type == "cpu"
    assert key_words(made) == (seed % 2**64, 0)


@given(seeds, data, data)
def test_folding_in_at_once_or_in_turn_is_the_same(seed, first, second):
    root = key(seed)
    assert torch.equal(fold_in(root, *first, *second), fold_in(fold_in(root, *first), *second))
    assert torch.equal(fold_in(root), root)


def test_different_data_give_different_keys():
    """Cases that a careless encoding confuses: types, lengths, concatenation, padding, wrap-around."""
    parts = [
        "",
        "\0",
        "a",
        "b",
        "ab",
        "a\0",
        "ab\0\0",
        "abcdefgh",
        "abcdefghi",
        "i",
        "1",
        0,
        1,
        97,
        -1,
        2**63,
        2**64 - 1,
    ]
    paths = [*itertools.product(parts, repeat=1), *itertools.product(parts, repeat=2)]
    keys = {key_words(fold_in(key(0), *path)) for path in paths} | {key_words(row) for row in split(key(0), 200)}
    assert len(keys) == len(paths) + 200


def test_many_derived_keys_do_not_collide_in_either_word():
    roots = torch.cat([split(key(seed), 2000) for seed in range(10)])
    deeper = torch.stack(
        [fold_in(key(seed), epoch, step) for seed in range(8) for epoch in range(8) for step in range(50)]
    )
    every = torch.cat([roots, deeper])
    for column in every.T:
        assert len(column.unique()) == len(every)


@given(seeds, texts, st.integers(0, 2**40) | st.integers(0, 600), st.integers(0, 20))
@settings(max_examples=40)
def test_consecutive_keys_are_the_folded_ones_and_nobody_else_has_them(seed, name, start, count):
    """The window that they come from is cached, so a write to one, or to the parent, must not reach who asks next."""
    parents = [key(seed), key(seed ^ 1)]
    for write_to_parent in (False, False, True, False):
        for parent in parents:  # two runs that take turns
            expected = [fold_in(parent, name, start + i) for i in range(count)]
            made = consecutive(parent, name, start, count)
            assert len(made) == count
            assert all(torch.equal(*pair) for pair in zip(made, expected, strict=True))
            [each.zero_() for each in made]
            if write_to_parent:
                parent.add_(1)


def test_consecutive_keys_are_the_same_in_inference_mode():
    parent = key(5)
    with torch.inference_mode():
        made = [consecutive(parent, "micro", number, 1)[0] for number in range(3)]
    assert all(torch.equal(one, fold_in(parent, "micro", number)) for number, one in enumerate(made))
    assert torch.equal(consecutive(parent, "micro", 1, 1)[0], made[1])


def test_consecutive_keys_are_derived_where_values_are_unknown():
    rows, steps = split(key(1), 3), torch.tensor([0, 300, 7])
    mapped = torch.func.vmap(lambda k, step: consecutive(k, "micro", step, 2)[1])(rows, steps)
    expected = [fold_in(row, "micro", int(step) + 1) for row, step in zip(rows, steps, strict=True)]
    assert torch.equal(mapped, torch.stack(expected))


def test_derivation_is_not_addition():
    assert not torch.equal(fold_in(key(1), 0), fold_in(key(0), 1))
    assert not torch.equal(fold_in(key(5), 2, 3), fold_in(key(5), 3, 2))


def test_derived_bits_are_unbiased_and_neighbours_unrelated():
    """Each bit of neighbouring keys is set, and differs between them, in half of the cases."""
    words = split(key(3), 20_000).numpy().view(np.uint64)
    for sample in (words, words[1:] ^ words[:-1]):
        share = np.unpackbits(sample.view(np.uint8), axis=1).mean(0)
        assert abs(share - 0.5).max() < 5 * 0.5 / np.sqrt(20_000)


@given(seeds, st.integers(0, 60), st.integers(0, 60))
@settings(max_examples=40)
def test_a_row_of_a_split_does_not_depend_on_how_many_there_are(seed, n, m):
    few, many = split(key(seed), min(n, m)), split(key(seed), max(n, m))
    assert few.shape == (min(n, m), 2)
    assert torch.equal(few, many[: len(few)])


def test_a_key_and_its_children_draw_unrelated_numbers():
    parent = key(11)
    streams = [bits(each, (500,)) for each in (parent, *split(parent, 3), fold_in(parent, 0), fold_in(parent, "a"))]
    assert len(torch.cat(streams).unique()) == 6 * 500


@given(seeds, data, st.integers(-(2**63), 2**63 - 1))
@settings(max_examples=20)
def test_traced_derivation_gives_the_bits_of_the_host(seed, path, number):
    rows = split(key(seed), 3)
    numbers = torch.tensor([number, 0, -1])
    expected = torch.stack([fold_in(row, *path, int(n)) for row, n in zip(rows, numbers, strict=True)])
    assert torch.equal(torch.func.vmap(lambda k, n: fold_in(k, *path, n))(rows, numbers), expected)
    assert torch.equal(
        torch.func.vmap(lambda n: fold_in(key(seed), *path, n))(numbers),
        torch.stack([fold_in(key(seed), *path, int(n)) for n in numbers]),
    )
    assert torch.equal(torch.func.vmap(lambda k: split(k, 4))(rows), torch.stack([split(row, 4) for row in rows]))


def test_compiled_derivation_gives_the_bits_of_the_host():
    def derive(root, step):
        return split(fold_in(root, step, "dropout"), 3)

    compiled = torch.compile(derive, backend="eager", fullgraph=True)
    for step in (0, 5):
        assert torch.equal(compiled(key(1), torch.tensor(step)), derive(key(1), step))


def test_gradient_transforms_see_concrete_keys():
    def loss(x, k):
        return x * key_words(fold_in(k, 1))[0]

    assert torch.func.grad(loss)(torch.tensor(1.0, dtype=torch.float64), key(0)) == key_words(fold_in(key(0), 1))[0]


@pytest.mark.parametrize("like", [np.int64(7), np.uint64(7), torch.tensor(7), torch.tensor(7, dtype=torch.int32)])
def test_integers_of_other_libraries_are_integers(like):
    assert torch.equal(fold_in(key(0), like), fold_in(key(0), 7))
    assert torch.equal(key(like), key(7))


@pytest.mark.parametrize("default", ["meta", torch.float16])
def test_keys_do_not_depend_on_torch_defaults(default):
    expected = fold_in(key(3), 1)
    if isinstance(default, str):
        with torch.device(default):
            made, rows = fold_in(key(3), 1), split(key(3), 40)
        assert rows.device.type == "cpu"
    else:
        made = fold_in(key(3), 1)
    assert torch.equal(made, expected)


@pytest.mark.parametrize("seed", [True, 1.0, "1", None, torch.tensor(1.0), torch.tensor([1, 2]), torch.tensor(True)])
def test_seeds_of_other_types_are_refused(seed):
    with pytest.raises(TypeError, match=r"integer"):
        key(seed)


@pytest.mark.parametrize("number", [2**64, -(2**63) - 1])
def test_integers_beyond_64_bits_are_refused(number):
    with pytest.raises(ValueError, match=r"seed must be in \[-2\*\*63, 2\*\*64\), got"):
        key(number)
    with pytest.raises(ValueError, match="data must be in"):
        fold_in(key(0), number)


@pytest.mark.parametrize("datum", [False, 0.5, None, b"a", (1,), torch.tensor(0.5), np.zeros(2)])
def test_data_of_other_types_are_refused(datum):
    with pytest.raises(TypeError):
        fold_in(key(0), datum)


def test_what_is_not_a_key_is_refused_with_the_remedy():
    with pytest.raises(TypeError, match=r"must be an int64 tensor, got int; make one with helios_fn\.random\.key"):
        fold_in(6691, 1)
    with pytest.raises(TypeError, match="float32"):
        split(torch.zeros(2))
    with pytest.raises(ValueError, match=r"shape \(2,\), got \(4, 2\)"):
        key_words(split(key(0), 4))
    with pytest.raises(ValueError, match="must not be negative"):
        split(key(0), -1)
    with pytest.raises(TypeError, match="n must be an integer"):
        split(key(0), 2.0)


def test_reading_a_key_under_vmap_is_refused_with_the_remedy():
    with pytest.raises(TypeError, match="concrete key"):
        torch.func.vmap(lambda k: torch.tensor(key_words(k)))(split(key(0)))
