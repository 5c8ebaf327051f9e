"""Saving, restoring and seeding the hidden global generators of Python's ``random`` and legacy NumPy.

The official ways (``random.getstate``, ``numpy.random.get_state`` and their counterparts) turn 624 words
into Python integers and back: 25 and 120 microseconds for one fork, more than many a training step has
to spare. So both states are copied as memory. Before the first copy, the memory is compared with what
the official way reports; where it differs in any word (another Python, another layout), the official
way is used. Both ways give the same bits.

``state`` below is 2,496 bytes: the 624 words of a Mersenne Twister that has not drawn yet.
"""

from __future__ import annotations

import ctypes
import functools
import random
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np

from .generators import STATE_WORDS

_UNUSED = np.uint32(STATE_WORDS).tobytes()  # the position after the last word: the next draw twists first
_numpy: ModuleType = np.random  # NumPy's stubs leave out some of its public functions
_Memory = ctypes.c_char * (4 * (STATE_WORDS + 1))
_python: Any = random.getstate.__self__  # type: ignore[attr-defined]


class PythonState(NamedTuple):
    """The state of ``random``: its twister, and the waiting second normal of a pair, if any."""

    twister: Any
    gauss: float | None


class NumpyState(NamedTuple):
    """The state of legacy NumPy: its bit generator, that one's memory, and the official form.

    The official form is ``None`` where the memory holds everything, the memory where it is not known.
    """

    bit_generator: Any
    twister: bytes | None
    official: dict[str, Any] | None


def save_python() -> PythonState:
    """The present state of Python's ``random``."""
    memory = _python_memory()
    if memory is None:
        version, twister, gauss = random.getstate()
        return PythonState((version, twister), gauss)
    return PythonState(memory.raw, _python.gauss_next)


def load_python(saved: PythonState) -> None:
    """Put a saved state of Python's ``random`` back."""
    memory = _python_memory()
    if memory is None:
        random.setstate((*saved.twister, saved.gauss))
    else:
        memory.raw = saved.twister
        _python.gauss_next = saved.gauss


def seed_python(state: bytes) -> None:
    """Give Python's ``random`` a new state."""
    memory = _python_memory()
    if memory is None:
        random.setstate((3, (*np.frombuffer(state, np.uint32).tolist(), STATE_WORDS), None))
    else:
        memory.raw = _UNUSED + state
        _python.gauss_next = None


def save_numpy() -> NumpyState:
    """The present state of legacy NumPy. No other thread may draw from it meanwhile."""
    bit_generator = _numpy.get_bit_generator()
    memory = _numpy_memory(bit_generator)
    if memory is None:
        return NumpyState(bit_generator, None, _numpy.get_state(legacy=False))
    # Legacy normals come in pairs, and only the slow way tells whether the second one of a pair waits.
    # But a waiting one is handed out without touching the twister, so drawing one tells as well.
    before = memory.raw
    waiting = _numpy.standard_normal()
    if memory.raw != before:
        memory.raw = before
        _numpy.set_bit_generator(bit_generator)  # drops the second one of the pair just made
        return NumpyState(bit_generator, before, None)
    official = _numpy.get_state(legacy=False) | {"has_gauss": 1, "gauss": waiting}
    _numpy.set_state(official)
    return NumpyState(bit_generator, before, official)


def load_numpy(saved: NumpyState) -> None:
    """Put a saved state of legacy NumPy back."""
    if saved.official is None:
        memory = _numpy_memory(saved.bit_generator)
        memory.raw = saved.twister
        _numpy.set_bit_generator(saved.bit_generator)  # drops a waiting normal
    else:
        _numpy.set_bit_generator(saved.bit_generator)
        _numpy.set_state(saved.official)


def seed_numpy(state: bytes) -> None:
    """Give legacy NumPy a new state; it becomes a Mersenne Twister if it was none."""
    bit_generator = _numpy.get_bit_generator()
    if type(bit_generator) is not np.random.MT19937:
        bit_generator = _spare_twister()
    memory = _numpy_memory(bit_generator)
    if memory is None:
        key = np.frombuffer(state, np.uint32)
        bit_generator.state = {"bit_generator": "MT19937", "state": {"key": key, "pos": STATE_WORDS}}
    else:
        memory.raw = state + _UNUSED
    _numpy.set_bit_generator(bit_generator)  # drops a waiting normal


@functools.cache
def _spare_twister() -> Any:
    # One is enough: within a scope that has put it in place, inner scopes save and restore its state.
    return np.random.MT19937(0)


@functools.cache
def _python_memory() -> Any:
    """The memory in which ``random`` keeps position and words, if that can be verified."""
    offset = object.__basicsize__
    if not hasattr(_python, "gauss_next") or type(_python).__basicsize__ < offset + ctypes.sizeof(_Memory):
        return None
    memory = _Memory.from_address(id(_python) + offset)
    *words, position = random.getstate()[1]
    return memory if memory.raw == np.array((position, *words), np.uint32).tobytes() else None


def _numpy_memory(bit_generator: Any) -> Any:
    """The memory in which a bit generator keeps words and position, if it is an MT19937 and verified."""
    if type(bit_generator) is not np.random.MT19937 or not _numpy_layout_is_known():
        return None
    return _Memory.from_address(bit_generator.ctypes.state_address)


@functools.cache
def _numpy_layout_is_known() -> bool:
    probe: Any = np.random.MT19937(1)
    probe.random_raw(5)
    inner = probe.state["state"]
    expected = inner["key"].astype(np.uint32).tobytes() + np.uint32(inner["pos"]).tobytes()
    return bool(_Memory.from_address(probe.ctypes.state_address).raw == expected)
