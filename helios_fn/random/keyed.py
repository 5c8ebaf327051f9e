"""`keyed`: make the random functions of torch, as ordinary modules call them, portable draws from a key."""

from __future__ import annotations

from types import TracebackType
from typing import Any, NoReturn, Self

import numpy as np
import torch
from torch.overrides import TorchFunctionMode

from ..types import Key
from .ambient import ambient_fingerprint, drawn
from .compiling import show_all_functions
from .innermost import opened
from .keys import fold_in, host_words
from .portable import table

_SCOPE = "use helios_fn.random.scope(key), or hf.functional(..., draws='scope')"


class _Mode(TorchFunctionMode):
    """Sends random functions to their stand-ins and all others on."""

    def next_key(self) -> Key:
        raise NotImplementedError

    def _refuse(self, function: Any, reason: str) -> NoReturn:
        raise NotImplementedError

    def _inside(self, function: Any) -> Any:
        """``function`` with its random functions treated as here, for an operator that takes functions."""
        raise NotImplementedError

    def _is_innermost(self) -> bool:
        return True

    def __torch_function__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        kwargs = {} if kwargs is None else kwargs
        stand_in = table.STAND_INS.get(func)
        if stand_in is not None:
            # A generator that is named is its caller's business.
            if kwargs.get("generator") is None and self._is_innermost():
                return stand_in(self, *args, **kwargs)
        elif func in table.UNUSUAL or isinstance(func, table.OPERATORS):
            return self._unusual(func, args, kwargs)
        elif not torch.compiler.is_compiling() and func in table.KERNELS and self._is_innermost():
            self._refuse(func, table.KERNELS[func])
        return func(*args, **kwargs)

    def _unusual(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if self._is_innermost() and kwargs.get("generator") is None:
            if func in table.REFUSED:
                self._refuse(func, table.REFUSED[func])
            if func in table.RECURRENT and table.recurrent_dropout(args):
                self._refuse(func, "its dropout is drawn inside of a kernel")
            if isinstance(func, torch._ops.HigherOrderOperator):
                # What it runs would be out of sight: an operator is called with this mode put aside.
                args = tuple([self._inside(arg) if callable(arg) else arg for arg in args])
            elif isinstance(func, table.OPERATORS) and table.is_random_operator(func):
                self._refuse(func, "operators are called past torch's functions")
        return func(*args, **kwargs)


class keyed(_Mode):  # noqa: N801 - used like a function
    """Context manager: inside, call number n of a random function of torch draws from ``fold_in(key, n)``.

    Calls are counted from 0 in program order; dropout out of training, or with p = 0, is no call. The
    draws are those of `helios_fn.random`: ``F.dropout(x, p)`` keeps the elements where
    ``bernoulli(fold_in(key, n), x.shape, p=1 - p)`` is true, ``torch.rand`` is `uniform`,
    ``torch.randn`` is `normal`, and so on. So ordinary modules become functions of the key, with the
    same integer draws (the same dropout masks, bit for bit) eager, inside ``torch.compile`` (the key must be
    an input of the compiled region, and the context entered inside it), under ``torch.func.grad``, and under
    ``vmap`` over keys, where each lane draws from its own. Under ``vmap`` with one key all lanes draw alike.

    Covered are torch's functions for dropout, attention, sampling and filling tensors, hence
    ``torch.distributions`` where it samples by them. What is random and cannot be keyed is refused by name when
    it is called: samplers by rejection (``torch.poisson``, ``torch.distributions.Gamma``), dropout between
    the layers of ``nn.LSTM`` and its like, operators of ``torch.ops`` that are tagged as random.
    Calls that name a ``generator`` are left alone. Python's ``random``, NumPy, and kernels that
    tell torch nothing of their draws cannot be seen; outside of compiled regions the context looks at its end
    whether any of the global generators was used.

    A function that is handed to an operator (``torch.cond``, ``torch.utils.checkpoint`` in compiled regions) runs in a
    `keyed` of its own, whose key is that of one call. Outside of compiled regions checkpoints are refused.

    Contexts nest, and the innermost one decides, a `scope` inside of this one too. Entered again, the
    same context counts from 0 again. While one is open outside of a compiled region, no other thread may draw
    from the global generators.

    Example:
        >>> with hf.random.keyed(hf.random.key(0)):
        ...     x = torch.nn.functional.dropout(torch.ones(3))

    Raises:
        TypeError: a random function is called that cannot be keyed.
        RuntimeError: this very context is open already, or a global generator was drawn from inside.
    """

    def __init__(self, key: Key, /) -> None:
        super().__init__()
        if torch.compiler.is_compiling():
            show_all_functions()
        self._words = host_words(key)
        self._key = key
        self._count = 0
        self._numpy: np.random.Generator | None = None
        self._outer: Any = None
        self._before: dict[str, bytes] | None = None

    def __enter__(self) -> Self:
        self._count = 0
        if not torch.compiler.is_compiling():
            if self._before is not None:
                raise RuntimeError("this context is open already; make a new one for each nested use")
            self._before = ambient_fingerprint()
            self._outer, opened.innermost = opened.innermost, self
        super().__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        super().__exit__(kind, error, traceback)
        if not torch.compiler.is_compiling():
            before, self._before = self._before, None
            opened.innermost, self._outer, self._numpy = self._outer, None, None
            if error is None and before is not None:
                _check_unused(before)

    def next_key(self) -> Key:
        """The key of the next draw."""
        number = self._count
        self._count = number + 1
        if not torch.compiler.is_compiling():
            _check_not_recomputed()
        return fold_in(self._key, number)

    def _inside(self, function: Any) -> Any:
        key = self.next_key()

        def body(*args: Any, **kwargs: Any) -> Any:
            with keyed(key):
                return function(*args, **kwargs)

        return body

    def _is_innermost(self) -> bool:
        return torch.compiler.is_compiling() or opened.innermost is self

    def _unusual(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        result = super()._unusual(func, args, kwargs)
        if func in table.EMPTY and self._words is None and isinstance(result, torch.Tensor):
            # Made to be filled: under vmap it needs memory for each lane. Whatever is in it stays.
            mine = self._key[0] == self._key[0]
            return torch.where(mine.to(result.device), result, result)
        return result

    def _refuse(self, function: Any, reason: str) -> NoReturn:
        raise TypeError(f"{_name(function)} cannot draw from a key, since {reason}: {_SCOPE}")


class unopened(_Mode):  # noqa: N801 - used like a function
    """Context manager for where a `scope` cannot be opened: inside, random functions raise a TypeError."""

    def next_key(self) -> Key:
        """Refused."""
        raise TypeError(_UNOPENED)

    def _inside(self, function: Any) -> Any:
        def body(*args: Any, **kwargs: Any) -> Any:
            with unopened():
                return function(*args, **kwargs)

        return body

    def _refuse(self, function: Any, reason: str) -> NoReturn:
        raise TypeError(f"{_name(function)}: {_UNOPENED}")


_UNOPENED = (
    "the model draws random numbers where its key has no value yet (torch.compile, or vmap over keys), so that no "
    "scope can be opened: make the model with hf.functional(..., draws='keyed')"
)


def _name(function: Any) -> str:
    return getattr(function, "__name__", None) or repr(function)


def _check_unused(before: dict[str, bytes]) -> None:
    names = drawn(before, ambient_fingerprint())
    if names:
        raise RuntimeError(
            f"inside of keyed(), something drew from (or seeded) the global generator of {', '.join(names)}, so it is "
            f"not a function of the key. Draw with helios_fn.random, or {_SCOPE}"
        )


def _check_not_recomputed() -> None:
    """Refuse to draw in what ``torch.utils.checkpoint`` will run again: by then the context is closed."""
    hooks = torch._C._autograd._top_saved_tensors_default_hooks(True)
    if hooks is not None and hooks[0].__module__ == "torch.utils.checkpoint":
        raise TypeError(
            "torch.utils.checkpoint would run this code again outside of keyed(), with other draws: compile it, or "
            f"{_SCOPE}"
        )
