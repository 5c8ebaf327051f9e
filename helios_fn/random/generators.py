"""Native generators seeded from keys: a ``torch.Generator`` and a NumPy ``Generator`` at full speed.

Their streams belong to torch and NumPy, so they are exact for one version and device only.

**The words of a state.** Mersenne Twister states (torch on the CPU, Python's ``random``, legacy NumPy)
are filled with the output of SFC64 (http://pracrand.sourceforge.net), as NumPy implements it, from the
state (seed, offset, 1) with counter 1, after the 12 discarded outputs its author prescribes. Every bit
of the key thus reaches the state. ``torch.Generator.manual_seed`` would not do: on the CPU it keeps only
the low 32 bits of a seed, where about 77,000 derived seeds already collide with probability one half.
"""

from __future__ import annotations

import ctypes
import struct
import threading
from typing import Any

import numpy as np
import torch

from ..types import Key
from .derive import Words
from .keys import key_words

STATE_WORDS = 624
"""32-bit words in the state of a Mersenne Twister (MT19937)."""

_PURPOSE = 1
_WARM_UP = 12
_FOUR_WORDS = struct.Struct("=4Q").pack_into
_HEADER = 3  # torch's state begins with: the seed; "left" and "seeded"; "next" (8 bytes each)


def generator(key: Key, device: torch.device | str = "cpu") -> torch.Generator:
    """A new torch generator that is a function of the key and the kind of device.

    On the CPU all bits of the key enter its state, elsewhere a seed of 64 bits. Its draws are those of
    torch's default generator within ``scope(key)``.

    Raises:
        TypeError: the key is not concrete (under ``vmap`` or ``torch.compile``).
    """
    return torch_generator(key_words(key), torch.device(device))


def numpy_generator(key: Key) -> np.random.Generator:
    """A new NumPy generator: NumPy's own Philox4x64 with the key's 128 bits as its key.

    Raises:
        TypeError: the key is not concrete (under ``vmap`` or ``torch.compile``).
    """
    return philox_generator(key_words(key))


def philox_generator(words: Words) -> np.random.Generator:
    """`numpy_generator` of host words."""
    seed, offset = words
    return np.random.Generator(np.random.Philox(key=seed | offset << 64))


def torch_generator(words: Words, device: torch.device) -> torch.Generator:
    """`generator` of host words."""
    made = torch.Generator(device)
    if device.type == "cpu":
        set_torch_state(made, state_words(words, 1 + STATE_WORDS // 2))
    else:
        made.manual_seed(int(state_words(words, 1)[0]))
    return made


def state_words(words: Words, count: int) -> np.ndarray:
    """The first ``count`` words (uint64) that states are filled with; see the module's docstring."""
    scratch = _scratch()
    scratch.reset(words)
    return scratch.sfc64.random_raw(_WARM_UP + count)[_WARM_UP:]


def set_torch_state(target: torch.Generator, words: np.ndarray) -> None:
    """Set a CPU generator's state from 1 + 312 words: its nominal seed, and the words of its twister."""
    scratch = _scratch()
    scratch.state[0] = words[0]
    scratch.twister[:] = words[1:].view(np.uint32)
    target.set_state(scratch.tensor)


class _Scratch:
    """What seeding needs for a moment; made once for each thread, since making it takes longer than using it."""

    def __init__(self) -> None:
        self.sfc64: Any = np.random.SFC64(0)
        self._memory = _verified_memory(self.sfc64)
        self.tensor = torch.Generator().manual_seed(1).get_state()
        self.state = self.tensor.numpy().view(np.uint64)
        self.twister = self.state[_HEADER : _HEADER + STATE_WORDS]
        # The first words that MT19937's published initialisation gives for seed 1 show where they are kept.
        if self.twister[:3].tolist() != [1, 1812433254, 3713160357]:
            raise RuntimeError(
                f"torch {torch.__version__} keeps the state of its CPU generator in a layout that helios_fn does "
                "not know; use a version of torch that the requirements name"
            )

    def reset(self, words: Words) -> None:
        """Put the expander into the state that two words stand for."""
        if self._memory is not None:
            _FOUR_WORDS(self._memory, 0, *words, _PURPOSE, 1)
        else:
            state = np.array((*words, _PURPOSE, 1), np.uint64)
            official = {"bit_generator": "SFC64", "state": {"state": state}, "has_uint32": 0, "uinteger": 0}
            self.sfc64.state = official


def _verified_memory(sfc64: Any) -> Any:
    """Where an SFC64 keeps its state, if it can be verified: ten times faster to write than to set officially."""
    memory = (ctypes.c_uint64 * 4).from_address(sfc64.ctypes.state_address)
    return memory if list(memory) == sfc64.state["state"]["state"].tolist() else None


class _Local(threading.local):
    scratch: _Scratch | None = None


_local = _Local()


def _scratch() -> _Scratch:
    scratch = _local.scratch
    if scratch is None:
        scratch = _local.scratch = _Scratch()
    return scratch
