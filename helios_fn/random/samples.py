"""Randomness of single samples: what data loading draws, whatever worker it happens in.

The words of a sample are one Philox block of (key, epoch, index), see `helios_fn.random.derive`. All
that is drawn for the sample is a function of these 128 bits, so the bytes of a batch depend neither on
the number of workers nor on where reading began.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, SupportsIndex, TypeAlias

import numpy as np
import torch
from numpy.typing import ArrayLike

from ..types import Key
from . import ambient, derive
from .derive import Words
from .generators import philox_generator, torch_generator
from .keys import fold_words, key_words

SampleWords: TypeAlias = np.ndarray | Sequence[int]
"""Four 32-bit words: a row of `sample_words`."""

_CPU = torch.device("cpu")


def sample_words(key: Key, epoch: SupportsIndex, indices: ArrayLike) -> np.ndarray:
    """The random words of samples: uint32 of shape (n, 4), one row for each of the n indices.

    Row i depends on the key, the epoch and ``indices[i]`` alone, so any grouping gives the same rows.

    Raises:
        TypeError: ``indices`` or ``epoch`` are not integers.
        ValueError: ``indices`` do not have one dimension.
    """
    indices = np.asarray(indices)
    if indices.ndim != 1:
        raise ValueError(f"indices must have one dimension, got shape {indices.shape}")
    if indices.size and indices.dtype.kind not in "iu":
        raise TypeError(f"indices must be integers, got {indices.dtype}")
    parent = fold_words(key_words(key), epoch)
    return derive.blocks(parent, indices.astype(np.uint64), derive.SAMPLE)


def seed_globals(words: SampleWords, /) -> None:
    """Seed all global generators (see `scope`) from a sample's words, for good.

    Nothing is saved: meant for worker processes, and for use within `preserved_globals` elsewhere.
    All 128 bits enter each Mersenne Twister state.
    """
    ambient.seed(_pair(words))


def sample_generator(words: SampleWords, /, *, reuse: np.random.Generator | None = None) -> np.random.Generator:
    """A NumPy generator (Philox4x64) for one sample, keyed with the sample's words.

    Args:
        words: the sample's words.
        reuse: a generator that this function made before and nobody uses any more; it is rekeyed in
            place, which takes a fifth of the time of making one.

    Raises:
        TypeError: ``reuse`` is not built on Philox.
    """
    if reuse is None:
        return philox_generator(_pair(words))
    bit_generator: Any = reuse.bit_generator
    if not isinstance(bit_generator, np.random.Philox):
        raise TypeError(f"reuse must come from sample_generator, got a generator on {type(bit_generator).__name__}")
    bit_generator.state = {
        "bit_generator": "Philox",
        "state": {"counter": _ZEROS, "key": np.array(_pair(words), np.uint64)},
        "buffer": _ZEROS,
        "buffer_pos": 4,  # past the end: the next draw makes a new block
        "has_uint32": 0,
        "uinteger": 0,
    }
    return reuse


def sample_torch_generator(words: SampleWords, /) -> torch.Generator:
    """A torch CPU generator for one sample; its draws are those of ``seed_globals`` and ``torch.rand``."""
    return torch_generator(_pair(words), _CPU)


def _pair(words: SampleWords) -> Words:
    w0, w1, w2, w3 = words.tolist() if isinstance(words, np.ndarray) else words
    return w0 | w1 << 32, w2 | w3 << 32


_ZEROS = np.zeros(4, np.uint64)
