"""Saving, restoring and seeding the hidden global generators of Python's ``random`` and legacy NumPy.

The official ways (``random.getstate``, ``numpy.random.get_state`` and their counterparts) turn 624 words
into Python integers and back: 25 and 120 microseconds for one fork, more than many a training step has
to spare. So both states are copied as memory. Before the first copy, the memory is compared with what
the official way reports; where it differs in any word (another Python, another layout), the official
way is used. Both ways give the same bits.

Both generators make normals in pairs and keep the second one for the next call: that is state too.

``state`` below is 2,496 bytes: the 624 words of a Mersenne Twister that has not drawn yet.
"""

from __future__ import annotations

import ctypes
import functools
import random
import struct
from collections.abc import Sequence
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np

from .generators import STATE_WORDS

_UNUSED = np.uint32(STATE_WORDS).tobytes()  # the position after the last word: the next draw twists first
_numpy: ModuleType = np.random  # NumPy's stubs leave out some of its public functions
_Memory = ctypes.c_char * (4 * (STATE_WORDS + 1))
_Waiting = ctypes.c_char * 16  # whether a normal waits (an int, padded), and the normal (a double)
_NONE_WAITS = bytes(16)
_python: Any = random.getstate.__self__  # type: ignore[attr-defined]


class PythonState(NamedTuple):
    """The state of ``random``: its twister, and the waiting second normal of a pair, if any."""

    twister: Any
    gauss: float | None


class NumpyState(NamedTuple):
    """The state of legacy NumPy: its bit generator, that one's memory and its waiting normal, and the official form.

    The official form is ``None`` where the memory is known, the others where it is not.
    """

    bit_generator: Any
    twister: bytes | None
    waiting: bytes | None
    official: dict[str, Any] | None


def save_python() -> PythonState:
    """The present state of Python's ``random``."""
    memory = _python_memory()
    if memory is None:
        version, twister, gauss = random.getstate()
        return PythonState((version, twister), gauss)
    return PythonState(memory.raw, _python.gauss_next)


def glance() -> tuple[Any, ...] | None:
    """Both states as one tuple that can be compared, or ``None`` where memory cannot be read; see `of_glance`."""
    bit_generator = _numpy.get_bit_generator()
    numpy, python = _numpy_memory(bit_generator), _python_memory()
    if numpy is None or python is None:
        return None
    return bit_generator, numpy.raw, _waiting().raw, python.raw, _python.gauss_next


def of_glance(seen: Sequence[Any]) -> tuple[PythonState, NumpyState]:
    """The states that `glance` saw."""
    bit_generator, twister, waiting, python, gauss = seen
    return PythonState(python, gauss), NumpyState(bit_generator, twister, waiting, None)


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
    """The present state of legacy NumPy."""
    bit_generator = _numpy.get_bit_generator()
    memory = _numpy_memory(bit_generator)
    if memory is None:
        return NumpyState(bit_generator, None, None, _numpy.get_state(legacy=False))
    return NumpyState(bit_generator, memory.raw, _waiting().raw, None)


def load_numpy(saved: NumpyState) -> None:
    """Put a saved state of legacy NumPy back."""
    if _numpy.get_bit_generator() is not saved.bit_generator:
        _numpy.set_bit_generator(saved.bit_generator)
    if saved.official is None:
        _numpy_memory(saved.bit_generator).raw = saved.twister
        _waiting().raw = saved.waiting
    else:
        _numpy.set_state(saved.official)


def seed_numpy(state: bytes) -> None:
    """Give legacy NumPy a new state; it becomes a Mersenne Twister if it was none."""
    bit_generator = _numpy.get_bit_generator()
    if type(bit_generator) is not np.random.MT19937:
        bit_generator = _spare_twister()
        _numpy.set_bit_generator(bit_generator)
    memory = _numpy_memory(bit_generator)
    if memory is None:
        key = np.frombuffer(state, np.uint32)
        bit_generator.state = {"bit_generator": "MT19937", "state": {"key": key, "pos": STATE_WORDS}}
        _numpy.set_bit_generator(bit_generator)  # drops a waiting normal
    else:
        memory.raw = state + _UNUSED
        _waiting().raw = _NONE_WAITS


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


@functools.lru_cache(maxsize=4)
def _numpy_memory(bit_generator: Any) -> Any:
    """The memory in which a bit generator keeps words and position, if it is an MT19937 and all is verified."""
    if type(bit_generator) is not np.random.MT19937 or not _numpy_layout_is_known():
        return None
    # The cache keeps the generator alive, so its memory is not given to anybody else.
    return _Memory.from_address(bit_generator.ctypes.state_address)


@functools.cache
def _numpy_layout_is_known() -> bool:
    probe: Any = np.random.MT19937(1)
    probe.random_raw(5)
    inner = probe.state["state"]
    expected = inner["key"].astype(np.uint32).tobytes() + np.uint32(inner["pos"]).tobytes()
    memory = _Memory.from_address(probe.ctypes.state_address)
    return bool(memory.raw == expected) and _waiting_offset() is not None


@functools.cache
def _waiting() -> Any:
    """The memory in which legacy NumPy keeps a waiting normal; asked for once it is known where that is."""
    return _Waiting.from_address(id(_numpy.get_state.__self__) + _waiting_offset())


@functools.cache
def _waiting_offset() -> Any:
    """Where in a ``RandomState`` a waiting normal is kept, found in one that nobody else uses; or ``None``."""
    owner: Any = _numpy.RandomState(np.random.MT19937(1))
    if type(_numpy.get_state.__self__) is not type(owner):
        return None
    state, telltale = owner.get_state(legacy=False), 1.2345678912345e-7
    owner.set_state(state | {"has_gauss": 1, "gauss": telltale})
    raw = (ctypes.c_char * type(owner).__basicsize__).from_address(id(owner)).raw
    image = struct.pack("=i4xd", 1, telltale)
    offset = raw.find(image)
    if offset < 0 or raw.count(image) != 1:
        return None
    memory = _Waiting.from_address(id(owner) + offset)
    memory.raw = _NONE_WAITS
    emptied = owner.get_state(legacy=False)["has_gauss"] == 0
    memory.raw = struct.pack("=i4xd", 1, 2 * telltale)
    return offset if emptied and owner.standard_normal() == 2 * telltale else None
