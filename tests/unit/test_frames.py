"""Whatever kind of error a user raises: it is the one that is told, where it happened, and it keeps nothing alive."""

from __future__ import annotations

import dataclasses
import gc
import json
import traceback
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch

import helios_fn as hf
from helios_fn.frames import focused


@dataclasses.dataclass(frozen=True)
class Frozen(Exception):
    code: int


@dataclasses.dataclass
class Compared(Exception):
    values: Any


def raise_frozen(state, batch):
    raise Frozen(3)


def raise_compared(state, batch):
    try:
        raise Compared(torch.zeros(2))
    except Compared:
        raise Compared(torch.zeros(2)) from None


def raise_while_handling(state, batch):
    try:
        raise Compared(torch.zeros(2))
    except Compared:
        raise Compared(torch.zeros(2))  # noqa: B904


def raise_group(state, batch):
    raise ExceptionGroup("several", [ValueError("one"), Frozen(2)])


def run(step, **keywords):
    cfg = hf.RunConfig(unit="iteration", total=5, progress=False)
    return hf.run(step, hf.init_state({"w": torch.zeros(2)}), hf.Loader(torch.arange(8), 2), cfg, **keywords)


@pytest.mark.parametrize("step", [raise_frozen, raise_compared, raise_while_handling, raise_group])
def test_any_error_of_a_step_is_told(step):
    """Also one that cannot be written to, or not be compared: it is the cause, and its own line is the last one."""
    with pytest.raises(hf.RunFailed) as caught:
        run(step)
    cause = caught.value.__cause__
    assert isinstance(cause, Frozen | Compared | ExceptionGroup)
    assert traceback.extract_tb(cause.__traceback__)[-1].name == step.__name__


def test_an_error_that_passes_through_is_that_error():
    """Whatever it is."""
    with pytest.raises(Compared) as caught:
        run(raise_while_handling, pass_through=[Compared])
    assert traceback.extract_tb(caught.value.__traceback__)[-1].name == "raise_while_handling"


def test_evaluation_takes_the_types_that_pass_through_as_a_run_does():
    """As a list, too; and what is no type is refused at once, not when something fails."""

    def raising(params, buffers, batch):
        raise Compared(torch.zeros(2))

    state, loader = hf.init_state({"w": torch.zeros(1)}), hf.Loader(torch.arange(4), 2, shuffle=False)
    for evaluate in (hf.test, hf.predict, lambda *args, **kw: list(hf.predict_batches(*args, **kw))):
        with pytest.raises(Compared):
            evaluate(raising, state, loader, pass_through=[Compared])
        with pytest.raises(TypeError, match="pass_through lists exception types"):
            evaluate(raising, state, loader, pass_through=[3])


def test_a_fault_of_ours_that_shows_within_python_is_told_in_full():
    """Frames of Python's library are not the user's: what helios_fn hands over to it may be its own fault."""
    ours = str(Path(str(hf.__file__)).parent / "driver" / "nowhere.py")
    source = "def outer():\n    try:\n        inner()\n    except TypeError as error:\n        return error\n"
    source += "def inner():\n    json.dumps({1})\n"
    names: dict[str, Any] = {"json": json}
    exec(compile(source, ours, "exec"), names)
    error = names["outer"]()
    before = traceback.extract_tb(error.__traceback__)
    assert traceback.extract_tb(focused(error).__traceback__) == before
    assert not hasattr(error, "__notes__")


@pytest.mark.parametrize("outcome", ["ends", "fails", "passes"])
def test_a_run_that_is_over_keeps_no_state_alive(outcome, tmp_path):
    """Once its result or its error is dropped, all states are gone, without help from the garbage collector."""
    seen: list[weakref.ref] = []

    def step(state, batch):
        seen.append(weakref.ref(state.params["w"]))
        if outcome != "ends" and state.counters.iteration == 3:
            raise ValueError("no")
        return state.replace(params={"w": state.params["w"] + 1})

    def over():
        cfg = hf.RunConfig(unit="iteration", total=5, checkpoint_every=2, root=tmp_path, progress=False)
        state = hf.init_state({"w": torch.zeros(2)})
        passing = [ValueError] if outcome == "passes" else []
        try:
            hf.run(step, state, hf.Loader(torch.arange(8), 2), cfg, pass_through=passing)
        except (hf.RunFailed, ValueError):
            assert outcome != "ends"

    gc.collect()
    gc.disable()
    try:
        over()
        assert len(seen) >= 4
        assert not any(each() is not None for each in seen)
    finally:
        gc.enable()
