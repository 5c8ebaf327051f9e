"""`scope`: make whatever code draws from the global generators a pure function of a key."""

from __future__ import annotations

from types import TracebackType
from typing import Self

import numpy as np

from ..types import Key
from . import ambient
from .ambient import Ambient
from .generators import philox_generator
from .innermost import opened
from .keys import key_words


class scope:  # noqa: N801 - used like a function
    """Context manager: inside, all global generators are seeded from ``key``; at exit they are put back.

    It covers torch's default generators (the CPU's, and those of all CUDA devices if CUDA is
    initialised at entry), Python's ``random`` and legacy NumPy, so ``nn.Dropout``, ``random.shuffle`` or
    ``np.random.rand`` inside draw what the key says, and code outside draws as if the scope had not been
    there; after an exception too. `numpy` gives the scope's own NumPy generator.

    Scopes may be nested, and one scope may be entered again, with the same draws each time.
    The generators belong to the process: while a scope is open, no other thread may draw from them or
    open a scope. Inside ``torch.compile`` or per lane of ``vmap`` use the draws of `helios_fn.random`.

    Example:
        >>> with hf.random.scope(hf.random.key(0)):
        ...     noise = torch.rand(3)

    Raises:
        TypeError: the key is not concrete (under ``vmap`` or ``torch.compile``).
        RuntimeError: this very scope is open already.
    """

    __slots__ = ("_numpy", "_outer", "_saved", "_words")

    def __init__(self, key: Key, /) -> None:
        self._words = key_words(key)
        self._saved: Ambient | None = None
        self._outer: scope | None = None
        self._numpy: np.random.Generator | None = None

    def __enter__(self) -> Self:
        if self._saved is not None:
            raise RuntimeError("this scope is open already; make a new one for each nested use")
        saved = ambient.capture()
        try:
            ambient.seed(self._words)
        except BaseException:
            ambient.restore(saved)
            raise
        self._saved, self._outer, opened.innermost = saved, opened.innermost, self
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        saved = self._saved
        if saved is None:
            raise RuntimeError("this scope is not open")
        opened.innermost = self._outer
        self._saved = self._outer = self._numpy = None
        ambient.restore(saved)


def numpy() -> np.random.Generator:
    """The NumPy generator of the innermost open `scope` (or `keyed`): one object for as long as that is open.

    Its draws are those of ``numpy_generator(key)``; they do not depend on draws from the globals.

    Raises:
        RuntimeError: no scope is open in this thread.
        TypeError: it is a `keyed` whose key is not concrete.
    """
    innermost = opened.innermost
    if innermost is None:
        raise RuntimeError(
            "no scope is open in this thread: draw within a loss_fn run by make_step, or within "
            "`with helios_fn.random.scope(key):`, or make a generator with helios_fn.random.numpy_generator(key)"
        )
    if innermost._words is None:
        raise TypeError("this needs a concrete key, but the key of the innermost keyed() is being traced")
    if innermost._numpy is None:
        innermost._numpy = philox_generator(innermost._words)
    return innermost._numpy
