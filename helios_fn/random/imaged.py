"""The state of torch's CPU generator as bytes, in a sixth of the time that the official way takes.

``get_state`` makes a tensor of 632 words, and ``torch.equal`` of two of them takes twice as long again: together a
twentieth of a small training step, which asks only whether anything was drawn. So the state is copied as memory: from
where the generator keeps it, seed, twister and waiting normals. Before the first copy, it is verified on a generator
of our own that states put back as memory are those that the official way reports; where they are not (another layout),
the official way is used.
"""

from __future__ import annotations

import ctypes
import functools
import struct
from typing import Any

import numpy as np
import torch

from .generators import STATE_WORDS, set_torch_state

_HEAD = 20  # bytes before the words: seed, how many are left, whether it is seeded, which is next
_SEARCHED = 256  # bytes; the words of every known version begin within them, and the whole is ten times as long
# Head, words, padding; the waiting float and double, each followed by whether it waits, and padded.
_Image = ctypes.c_char * (_HEAD + 4 * STATE_WORDS + 4 + 8 + 16)
_WAITING_FLOAT = struct.pack("=f?3x", 1.2345, True)  # how the official form ends


def image(generator: torch.Generator) -> bytes:
    """The present state of a CPU generator, for `put_back`. Two images that are equal are of equal states."""
    offset = _offset()
    if offset is None:
        return _official(generator)
    return _memory(generator._cdata + offset).raw  # type: ignore[attr-defined]


def put_back(generator: torch.Generator, image: bytes) -> None:
    """Give a CPU generator the state of which this is the image."""
    offset = _offset()
    if offset is None:
        generator.set_state(torch.frombuffer(bytearray(image), dtype=torch.uint8))
    else:
        _memory(generator._cdata + offset).raw = image  # type: ignore[attr-defined]


def seed(generator: torch.Generator, words: bytes) -> None:
    """What `set_torch_state` does, with the bytes of its words."""
    offset = _offset()
    if offset is None:
        set_torch_state(generator, np.frombuffer(words, np.uint64))
    else:
        before, after = _around_words()
        _memory(generator._cdata + offset).raw = words[:8] + before + words[8:] + after  # type: ignore[attr-defined]


@functools.cache
def _around_words() -> tuple[bytes, bytes]:
    """What is around the seed and the words of a generator that was seeded and has not drawn yet."""
    fresh = image(torch.Generator("cpu").manual_seed(1))
    return fresh[8:_HEAD], fresh[_HEAD + 4 * STATE_WORDS :]


@functools.lru_cache(maxsize=8)
def _memory(address: int) -> Any:
    return _Image.from_address(address)


def _official(generator: torch.Generator) -> bytes:
    with torch._C._DisableFuncTorch():  # under torch.func.grad no tensor gives its memory
        return generator.get_state().numpy().tobytes()


@functools.cache
def _offset() -> int | None:
    """Where in a CPU generator its state begins, or ``None`` if that cannot be verified."""
    owner = torch.Generator("cpu").manual_seed(1)
    address = getattr(owner, "_cdata", None)
    if not isinstance(address, int):
        return None
    # The first words of MT19937's published initialisation.
    first = np.array([1, 1812433254, 3713160357], np.uint32).tobytes()
    offset = (ctypes.c_char * _SEARCHED).from_address(address).raw.find(first) - _HEAD
    if offset < 0:
        return None
    memory, images = _Image.from_address(address + offset), dict[bytes, bytes]()
    for state in _different_states():
        owner.set_state(torch.frombuffer(bytearray(state), dtype=torch.uint8))
        images[state] = memory.raw
    for state, found in images.items():
        memory.raw = found
        if _official(owner) != state:
            return None
    return offset


def _different_states() -> list[bytes]:
    """States that differ in each of their parts, as the official way reports them."""
    other = torch.Generator("cpu")
    states = [_official(other.manual_seed(seed)) for seed in (1, 2**63 + 5)]
    for draw in (torch.rand, torch.randn, torch.randn, torch.rand):  # the first normal leaves a second one waiting
        draw(1, generator=other, device="cpu")
        states.append(_official(other))
    states.append(states[-1][: -len(_WAITING_FLOAT)] + _WAITING_FLOAT)
    return states
