"""The global generators of a process as one value: torch's defaults, Python's ``random``, legacy NumPy.

All functions here act on the whole process. Nothing else may draw from these generators at the same
time: a draw by another thread would be lost, or would enter the sequence. A process started by
``fork`` or ``spawn`` has generators of its own.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from types import TracebackType
from typing import Any, NamedTuple, Self, TypeAlias

import numpy as np
import torch

from . import imaged, twisters
from .derive import Words
from .generators import STATE_WORDS, state_words
from .twisters import NumpyState, PythonState

_HALF = STATE_WORDS // 2  # one twister's state in 64-bit words


class Ambient(NamedTuple):
    """The states of the global generators; of CUDA's, one for each device once CUDA is initialised."""

    torch: bytes
    cuda: tuple[torch.Tensor, ...]
    python: PythonState
    numpy: NumpyState


def capture() -> Ambient:
    """The present states."""
    return Ambient(*capture_torch(), twisters.save_python(), twisters.save_numpy())


def capture_torch() -> tuple[bytes, tuple[torch.Tensor, ...]]:
    """The present states of torch's generators: the CPU's, and those of CUDA."""
    return imaged.image(torch.default_generator), tuple([each.get_state() for each in _cuda_generators()])


Glance: TypeAlias = tuple[tuple[Any, ...], tuple[torch.Tensor, ...]]
"""The states of the global generators in the form that costs least to take and to compare: CUDA's are apart."""


def glance() -> Glance | None:
    """The present states, or ``None`` where they cannot be had quickly."""
    seen = twisters.glance()
    if seen is None:
        return None
    cpu, cuda = capture_torch()
    return (cpu, *seen), cuda


def still_holds(before: Glance) -> bool:
    """Whether the generators are as they were; where that cannot be seen at once, the answer is no."""
    now = glance()
    if now is None or now[0] != before[0] or len(now[1]) != len(before[1]):
        return False
    return all(map(torch.equal, now[1], before[1]))


def put_back(before: Glance) -> None:
    """Give the generators the states that `glance` has seen."""
    (cpu, *seen), cuda = before
    restore_torch((cpu, cuda))
    python, numpy = twisters.of_glance(seen)
    twisters.load_python(python)
    twisters.load_numpy(numpy)


def restore(ambient: Ambient) -> None:
    """Put captured states back."""
    restore_torch(ambient[:2])
    twisters.load_python(ambient.python)
    twisters.load_numpy(ambient.numpy)


def restore_torch(captured: tuple[bytes, tuple[torch.Tensor, ...]]) -> None:
    """Put captured states of torch's generators back."""
    cpu, cuda = captured
    imaged.put_back(torch.default_generator, cpu)
    if cuda:  # else CUDA was not initialised then
        for each, state in zip(_cuda_generators(), cuda, strict=True):
            each.set_state(state)


def seed(words: Words) -> None:
    """Make the next draws from each global generator a function of two 64-bit words.

    All CUDA devices get the same seed, so that noise does not depend on which device a process uses.
    """
    data = state_words(words, 1 + 3 * _HALF).tobytes()
    _seed_torch(data[: 8 + 8 * _HALF])
    twisters.seed_python(data[8 + 8 * _HALF : 8 + 16 * _HALF])
    twisters.seed_numpy(data[8 + 16 * _HALF :])


def seed_torch(words: Words) -> None:
    """The part of `seed` that concerns torch."""
    _seed_torch(state_words(words, 1 + _HALF).tobytes())


def _seed_torch(words: bytes) -> None:
    imaged.seed(torch.default_generator, words)
    for each in _cuda_generators():
        each.manual_seed(int.from_bytes(words[:8], sys.byteorder))


def ambient_fingerprint() -> dict[str, bytes]:
    """The exact states of the global generators, by name: two are equal if nothing was drawn between.

    The names are "torch", "torch.cuda:<i>" (once CUDA is initialised), "random" and "numpy.random".
    """
    ambient = capture()
    # In the official form: an image has bytes that mean nothing, and who puts a state back need not put back those.
    prints = {"torch": _bytes_of_tensor(torch.default_generator.get_state())}
    prints |= {f"torch.cuda:{i}": _bytes_of_tensor(state) for i, state in enumerate(ambient.cuda)}
    prints["random"] = _bytes_of(ambient.python)
    prints["numpy.random"] = _bytes_of(ambient.numpy)
    return prints


def drawn(before: dict[str, bytes], after: dict[str, bytes]) -> list[str]:
    """The names of the generators that were drawn from (or seeded) between two fingerprints.

    A CUDA generator that only one of the two knows, because CUDA was initialised between, is left out.
    """
    return [name for name, print_ in before.items() if after.get(name, print_) != print_]


class preserved_globals:  # noqa: N801 - used like a function
    """Context manager: what is drawn from or done to the global generators inside is undone at exit.

    Also after an exception. May be nested and used again, but an instance cannot be entered twice at once.
    """

    __slots__ = ("_saved",)

    def __init__(self) -> None:
        self._saved: Ambient | None = None

    def __enter__(self) -> Self:
        if self._saved is not None:
            raise RuntimeError("this context is open already; make a new one for each nested use")
        self._saved = capture()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        saved, self._saved = self._saved, None
        if saved is None:
            raise RuntimeError("this context is not open")
        restore(saved)


def _bytes_of_tensor(state: torch.Tensor) -> bytes:
    with torch._C._DisableFuncTorch():  # under torch.func.grad no tensor gives its memory
        return state.numpy().tobytes()


def _bytes_of(state: PythonState | NumpyState) -> bytes:
    return b"|".join(_flat(part) for part in state if part is not None)


def _flat(part: Any) -> bytes:
    if isinstance(part, Mapping):
        return b"|".join(name.encode() + _flat(value) for name, value in part.items())
    if isinstance(part, np.ndarray):
        return part.tobytes()
    return part if isinstance(part, bytes) else repr(part).encode()


def _cuda_generators() -> tuple[torch.Generator, ...]:
    # Asking must not initialise CUDA.
    return torch.cuda.default_generators if torch.cuda.is_initialized() else ()
