"""Global generators: a scope makes them functions of a key and leaves no trace."""

from __future__ import annotations

import random
import threading

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import helios_fn.random as hr
from helios_fn.random import ambient, ambient_fingerprint, drawn, fold_in, generator, generators, key, scope, twisters

DRAWS = {
    "torch.rand": lambda: torch.rand(3),
    "torch.randn": lambda: torch.randn(33),
    "torch.randperm": lambda: torch.randperm(20),
    "nn.Dropout": lambda: torch.nn.Dropout(0.5)(torch.ones(64)),
    "nn.Linear": lambda: torch.nn.Linear(3, 3).weight.detach(),
    "random.random": random.random,
    "random.gauss": lambda: random.gauss(0, 1),
    "random.shuffle": lambda: random.sample(range(100), 10),
    "np.random.rand": lambda: np.random.rand(2),
    "np.random.randn": np.random.randn,
    "np.random.shuffle": lambda: np.random.permutation(30),
    "hf.random.numpy": lambda: hr.numpy().standard_normal(3),
}
GLOBAL = {name: draw for name, draw in DRAWS.items() if name != "hf.random.numpy"}
names = st.lists(st.sampled_from(sorted(GLOBAL)), max_size=6)
every_draw = pytest.mark.parametrize("draw", DRAWS.values(), ids=DRAWS)


@pytest.fixture(params=["memory", "official"])
def access(request, monkeypatch):
    """Both ways to reach the states: as memory, and the fallback where the layout is not known."""
    if request.param == "official":
        monkeypatch.setattr(twisters, "_python_memory", lambda: None)
        monkeypatch.setattr(twisters, "_numpy_memory", lambda bit_generator: None)
    return request.param


@pytest.fixture(autouse=True)
def _undo():
    states = torch.get_rng_state(), random.getstate(), np.random.get_state()
    yield
    torch.set_rng_state(states[0])
    random.setstate(states[1])
    np.random.set_state(states[2])


def official() -> list[object]:
    """The ambient states by the official, slow ways; `ambient_fingerprint` is itself under test."""
    numpy_state = np.random.get_state()
    return [torch.get_rng_state().tolist(), random.getstate(), numpy_state[1].tolist(), numpy_state[2:]]


def run(chosen: list[str]) -> list[object]:
    return [np.asarray(DRAWS[name]()).tolist() for name in chosen]


def test_the_states_are_reached_as_memory_here():
    """Otherwise everything still works, five times slower: worth knowing when a new Python or NumPy comes."""
    assert twisters._python_memory() is not None
    assert twisters._numpy_layout_is_known()


@every_draw
def test_the_same_key_gives_the_same_draws(draw, access):
    with scope(key(1)):
        first = draw()
    torch.rand(1), random.gauss(0, 1), np.random.randn()
    with scope(key(1)):
        again = draw()
    with scope(key(2)):
        other = draw()
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


@given(names, st.integers(0, 50), st.integers(0, 2), st.integers(0, 2), names)
@settings(max_examples=50)
def test_outside_draws_go_on_as_if_there_had_been_no_scope(before, seed, normals, gausses, after):
    torch.manual_seed(seed), random.seed(seed), np.random.seed(seed)
    run(before), [np.random.randn() for _ in range(normals)], [random.gauss(0, 1) for _ in range(gausses)]
    state = official()
    with scope(key(seed)):
        run(before)
    assert official() == state
    expected = run(after)
    torch.manual_seed(seed), random.seed(seed), np.random.seed(seed)
    run(before), [np.random.randn() for _ in range(normals)], [random.gauss(0, 1) for _ in range(gausses)]
    assert run(after) == expected


@pytest.mark.parametrize("waiting", [0, 1])
def test_nothing_is_left_behind_by_an_exception(waiting, access):
    [(np.random.randn(), random.gauss(0, 1)) for _ in range(waiting)]
    state = official()

    def fail():
        run(list(DRAWS))
        torch.manual_seed(0), random.seed(0), np.random.seed(0)
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError), scope(key(0)), scope(key(1)):
        fail()
    assert official() == state


def test_nothing_is_left_behind_if_seeding_fails(monkeypatch):
    state = official()
    monkeypatch.setattr(twisters, "seed_numpy", lambda state: 1 / 0)
    broken = scope(key(0))
    with pytest.raises(ZeroDivisionError), broken:
        pass
    assert official() == state
    monkeypatch.undo()
    with broken:
        assert torch.equal(torch.rand(2), torch.rand(2, generator=generator(key(0))))


@given(names, names, names)
@settings(max_examples=30)
def test_an_inner_scope_does_not_disturb_the_outer_one(first, inside, last):
    with scope(key(1)):
        undisturbed = run(first) + run(last)
    with scope(key(1)):
        outer = run(first)
        with scope(key(2)):
            run(inside)
        outer += run(last)
    assert outer == undisturbed


def test_both_ways_of_access_give_the_same_draws(monkeypatch):
    with scope(key(9)):
        by_memory = run(list(DRAWS))
    monkeypatch.setattr(twisters, "_python_memory", lambda: None)
    monkeypatch.setattr(twisters, "_numpy_memory", lambda bit_generator: None)
    with scope(key(9)):
        assert run(list(DRAWS)) == by_memory


@pytest.mark.parametrize("kind", [np.random.PCG64, np.random.Philox])
def test_another_ambient_bit_generator_changes_no_draw_and_comes_back(kind, access):
    with scope(key(1)):
        expected = run(list(DRAWS))
    original, ours = np.random.get_bit_generator(), kind(5)
    try:
        np.random.set_bit_generator(ours)
        state = repr(np.random.get_state(legacy=False))
        with scope(key(1)):
            assert run(list(DRAWS)) == expected
            with scope(key(2)):
                run(list(DRAWS))
        assert np.random.get_bit_generator() is ours
        assert repr(np.random.get_state(legacy=False)) == state
    finally:
        np.random.set_bit_generator(original)


def test_draws_in_a_scope_never_change_between_versions():
    """Pins the words that states are filled with, and torch's, Python's and NumPy's use of them."""
    assert generators.state_words((1, 2), 2).tolist() == [13878151382224238156, 754376815797483013]
    with scope(key(6691)):
        assert torch.rand(2).tolist() == [0.09451717138290405, 0.5456403493881226]
        assert random.random() == 0.9036326998946984
        assert np.random.rand() == 0.13307372358773395
        assert hr.numpy().random(2).tolist() == [0.5646100512692409, 0.538127574308158]


def test_the_scope_draws_what_the_generators_of_its_key_draw():
    with scope(key(4)):
        assert torch.equal(torch.rand(50), torch.rand(50, generator=generator(key(4))))
        assert np.array_equal(hr.numpy().random(5), hr.numpy_generator(key(4)).random(5))


def test_seeds_that_differ_in_high_bits_alone_give_other_streams():
    """torch.Generator.manual_seed drops the high 32 bits of a seed on the CPU."""
    seeds = [0, 1 << 32, 1 << 40, 1 << 63, 3 << 62]
    firsts = {tuple(torch.rand(8, generator=generator(key(seed))).tolist()) for seed in seeds}
    offsets = [torch.tensor([0, offset]) for offset in (1, 1 << 31, 1 << 33, 1 << 62)]
    firsts |= {tuple(torch.rand(8, generator=generator(each)).tolist()) for each in offsets}
    assert len(firsts) == len(seeds) + len(offsets)


def test_the_global_streams_of_a_scope_are_unrelated():
    with scope(key(0)):
        raw = [torch.randint(0, 2**31, (500,)).tolist(), [random.getrandbits(31) for _ in range(500)]]
        raw.append(np.random.randint(0, 2**31, 500).tolist())
    assert len(set().union(*raw)) > 1495


def test_one_scope_may_be_entered_again_but_not_twice_at_once():
    mine = scope(key(0))
    with mine:
        first = torch.rand(2)
        with pytest.raises(RuntimeError, match="open already"), mine:
            pass
    with mine:
        assert torch.equal(torch.rand(2), first)
    with pytest.raises(RuntimeError, match="not open"):
        mine.__exit__(None, None, None)


def test_numpy_is_one_object_per_scope_and_needs_one():
    with pytest.raises(RuntimeError, match=r"no scope is open.*helios_fn\.random\.scope"):
        hr.numpy()
    with scope(key(0)):
        outer = hr.numpy()
        assert hr.numpy() is outer
        with scope(key(0)):
            assert hr.numpy() is not outer
        assert hr.numpy() is outer
    with pytest.raises(RuntimeError, match="no scope is open"):
        hr.numpy()


def test_another_thread_has_no_scope():
    seen: list[BaseException] = []

    def other():
        try:
            hr.numpy()
        except RuntimeError as error:
            seen.append(error)

    with scope(key(0)):
        thread = threading.Thread(target=other)
        thread.start()
        thread.join()
    assert len(seen) == 1


def test_a_scope_needs_a_concrete_key():
    with pytest.raises(TypeError, match="concrete key"):
        torch.func.vmap(lambda k: scope(k) and k)(hr.split(key(0)))
    with pytest.raises(TypeError, match="int64 tensor"):
        scope(0)


@pytest.mark.parametrize(
    ("chosen", "names"),
    [
        ([], []),
        (["torch.randn"], ["torch"]),
        (["random.gauss"], ["random"]),
        (["np.random.rand"], ["numpy.random"]),
        (["torch.rand", "np.random.randn"], ["torch", "numpy.random"]),
    ],
)
@pytest.mark.parametrize("waiting", [0, 1])
def test_a_fingerprint_tells_which_generator_was_drawn_from(chosen, names, waiting, access):
    [(np.random.randn(), random.gauss(0, 1)) for _ in range(waiting)]
    before = ambient_fingerprint()
    run(chosen)
    assert drawn(before, ambient_fingerprint()) == names


def test_a_fingerprint_sees_the_waiting_half_of_a_pair_of_normals(access):
    np.random.randn(), random.gauss(0, 1)
    before = ambient_fingerprint()
    np.random.randn(), random.gauss(0, 1)  # handed out without a draw from the twister
    assert drawn(before, ambient_fingerprint()) == ["random", "numpy.random"]


def test_taking_a_fingerprint_changes_nothing(access):
    for _ in range(2):
        state = official()
        assert ambient_fingerprint() == ambient_fingerprint()
        assert official() == state
        np.random.randn(), random.gauss(0, 1)


def test_preserved_globals_undoes_everything(access):
    np.random.randn()
    state = official()

    def fail():
        run(list(GLOBAL))
        with hr.preserved_globals():
            np.random.seed(1)
        raise KeyError

    kept = hr.preserved_globals()
    for _ in range(2):
        with pytest.raises(KeyError), kept:
            fail()
        assert official() == state
    with kept, pytest.raises(RuntimeError, match="open already"), kept:
        pass


def test_generators_of_other_devices_are_kept_and_keyed_alike(monkeypatch):
    """CPU generators stand in for those of two CUDA devices."""
    devices = torch.Generator().manual_seed(1), torch.Generator().manual_seed(2)
    monkeypatch.setattr(ambient, "_cuda_generators", lambda: devices)
    before = ambient_fingerprint()
    draws = []
    for _ in range(2):
        with scope(key(3)):
            draws += [torch.rand(3, generator=device).tolist() for device in devices]
    assert all(each == draws[0] for each in draws)
    assert drawn(before, ambient_fingerprint()) == []
    torch.rand(1, generator=devices[1])
    assert drawn(before, ambient_fingerprint()) == ["torch.cuda:1"]


def test_importing_and_seeding_do_not_initialise_cuda():
    with scope(fold_in(key(0), "quiet")):
        pass
    assert not torch.cuda.is_initialized()
