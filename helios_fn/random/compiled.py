"""`Seeded`: a compiled function whose draws from torch's generators are a function of a key."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from ..signature import Signature
from ..types import Key
from .imaged import image, put_back
from .within import torch_scope

_KINDS = 8  # of batches whose graphs are known to draw nothing


class Seeded:
    """A compiled function, called in a `torch_scope`; but without one where it is known to draw nothing.

    A scope takes as long as a small network's compiled step. What a graph draws is fixed when it is made, and what
    tensors are like decides which graph it is. So where a call drew nothing, calls with a batch of the same kind are
    not seeded any more, but watched.
    """

    def __init__(self, function: Callable[..., Any]) -> None:
        self._function = function
        self._quiet: list[Signature] = []

    def __call__(self, key: Key, batch: Sequence[Any], *args: Any, consumes: bool) -> Any:
        """``function(*args)``, in a scope of ``key``; ``batch`` are those leaves whose kind may change between calls.

        With ``consumes``, the function overwrites its arguments and cannot be called again.

        Raises:
            RuntimeError: it consumed its arguments and drew, after it had drawn nothing from a batch of that kind.
        """
        if not torch.cuda.is_initialized():
            for kind in self._quiet:
                if kind.matches(batch):
                    return self._watched(key, batch, args, consumes)
        return self._seeded(key, batch, args)

    def _watched(self, key: Key, batch: Sequence[Any], args: tuple[Any, ...], consumes: bool) -> Any:
        generator = torch.default_generator
        before = image(generator)
        result = self._function(*args)
        if image(generator) == before:
            return result
        put_back(generator, before)
        self._quiet.clear()
        if consumes:
            raise RuntimeError(
                "a compiled step that had drawn nothing from torch's generators drew now, and its state is given "
                "away: draw in every call, hand its key to models made with functional(..., draws='keyed'), or "
                "set donate=False"
            )
        return self._seeded(key, batch, args)

    def _seeded(self, key: Key, batch: Sequence[Any], args: tuple[Any, ...]) -> Any:
        generator = torch.default_generator
        with torch_scope(key):
            before = image(generator)
            result = self._function(*args)
            is_quiet = image(generator) == before and not torch.cuda.is_initialized()
        if is_quiet and all(isinstance(leaf, torch.Tensor) for leaf in batch):
            self._quiet = [*self._quiet[1 - _KINDS :], Signature(batch)]
        return result
