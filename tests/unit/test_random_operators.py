"""The operators behind traced keys: C++, NumPy and tensor operations give the same bits."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from helios_fn.random import fold_in, kernels, key, key_words, operators, split
from helios_fn.random.derive import INT, child_traced

words = st.integers(-(2**63), 2**63 - 1)
some_keys = st.lists(st.tuples(words, words), min_size=1, max_size=4).map(torch.tensor)


@pytest.fixture(scope="module", autouse=True)
def _inductor():
    import torch._inductor.codecache  # noqa: F401 - what makes the C++ available

    if kernels._library() is None:
        pytest.skip("no C++ compiler")


@given(some_keys, st.sampled_from([1, 2, 63, 64, 65, 200]))
@settings(max_examples=30, deadline=None)
def test_all_forms_of_words_agree(keys, count):
    expected = operators.traced_words(keys, count)
    host = operators.host_words([key_words(each) for each in keys], 0, count)
    assert torch.equal(torch.from_numpy(host), expected)
    assert torch.equal(kernels.words(keys, count).to(torch.int64) & 0xFFFFFFFF, expected)
    assert torch.equal(operators.words(keys[0], count), expected[0])


@given(some_keys, words)
@settings(max_examples=30, deadline=None)
def test_all_forms_of_derivation_agree(keys, number):
    expected = torch.stack([fold_in(each, number) for each in keys])
    assert torch.equal(kernels.derive(keys, torch.full((len(keys),), number), INT), expected)
    traced = torch.stack([child_traced(each, torch.tensor(number), INT) for each in keys])
    assert torch.equal(traced, expected)


@pytest.mark.parametrize("available", [True, False])
def test_maps_over_keys_numbers_and_both(available, monkeypatch):
    if not available:
        monkeypatch.setattr(kernels, "_library", lambda: None)
    keys, numbers = split(key(1), 3), torch.arange(-1, 20)
    table = torch.stack([torch.stack([fold_in(each, int(n)) for n in numbers]) for each in keys])
    both = torch.vmap(lambda k: torch.vmap(lambda n: fold_in(k, n))(numbers))(keys)
    assert torch.equal(both, table)
    assert torch.equal(torch.vmap(lambda k: operators.derived(k, numbers, INT))(keys), table)
    nested = torch.vmap(torch.vmap(lambda k: operators.words(k, 3)))(table)
    assert torch.equal(nested, operators.traced_words(table, 3))


def test_a_missing_compiler_is_no_error(monkeypatch):
    kernels._compiled.cache_clear()
    monkeypatch.setattr(torch._inductor.codecache.CppCodeCache, "load", lambda source: 1 / 0)
    try:
        assert kernels._library() is None
        assert torch.equal(operators.words(key(3), 5), operators.traced_words(key(3), 5))
    finally:
        kernels._compiled.cache_clear()


def test_the_operators_keep_torchs_rules():
    """Fake kernels, functionalisation and dispatch: what torch's own checker of operators asks."""
    checks = ["test_schema", "test_autograd_registration", "test_faketensor", "test_aot_dispatch_dynamic"]
    torch.library.opcheck(torch.ops.helios_fn.words.default, (split(key(0), 3), 5), test_utils=checks)
    numbers = torch.arange(3)
    torch.library.opcheck(torch.ops.helios_fn.derive.default, (split(key(0), 3), numbers, INT), test_utils=checks)
