"""The arithmetic of formulas: what stands for branches and for numbers where values may be unknown.

Scalars (rates, decays, bias corrections) are Python floats or 0-d float64 tensors, computed in double precision
either way, and meet a parameter only through `at`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch


def at(param: torch.Tensor, scalar: Any) -> Any:
    """``scalar`` as arithmetic with ``param`` takes it: a number as it is, a tensor in its dtype and on its device."""
    return scalar.to(device=param.device, dtype=param.dtype) if isinstance(scalar, torch.Tensor) else scalar


def once(scalars: tuple[Any, ...], params: Sequence[torch.Tensor]) -> tuple[Any, ...]:
    """``scalars``; in a compiled region on the CPU, tensors among them are computed before the loops over ``params``.

    The compiler would fuse their arithmetic into each loop, and raise a power or take a cosine anew for every few
    elements: three quarters of the time of a compiled Adam. It keeps what is put together where it was put together.
    """
    if not torch.compiler.is_compiling() or any(param.device.type != "cpu" for param in params):
        return scalars
    found = [scalar for scalar in scalars if isinstance(scalar, torch.Tensor) and scalar.is_floating_point()]
    if not found:
        return scalars
    kept = iter(torch.stack([*found, found[0]]).unbind())  # of one tensor alone it would keep nothing
    return tuple(next(kept) if any(scalar is each for each in found) else scalar for scalar in scalars)


def present(scalar: Any) -> bool:
    """Whether a term with this factor must be computed; a factor that may be changed counts, whatever its value."""
    return isinstance(scalar, torch.Tensor) or scalar != 0


def following(count: int | torch.Tensor) -> Any:
    """The number of the update after ``count`` updates, for arithmetic: ``count + 1``, in float64 if a tensor."""
    return count.to(torch.float64) + 1 if isinstance(count, torch.Tensor) else count + 1


def pick(condition: Any, first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    """``first`` where ``condition`` (a bool, or a 0-d tensor) holds, else ``second``."""
    if isinstance(condition, torch.Tensor):
        return torch.where(condition.to(first.device), first, second)
    return first if condition else second


def double(scalar: Any) -> torch.Tensor:
    """``scalar`` as a float64 tensor."""
    return scalar.to(torch.float64) if isinstance(scalar, torch.Tensor) else torch.tensor(scalar, dtype=torch.float64)


def root(square: torch.Tensor) -> torch.Tensor:
    """The square root, whose derivative at 0 is 0.

    That of ``sqrt`` is infinite, and makes NaN of every gradient through an update whose own gradient had a
    zero. Since squares vanish where the gradient does, 0 gives the right derivative of the whole.
    """
    positive = square > 0
    return torch.where(positive, torch.where(positive, square, 1).sqrt(), 0)


def toward(start: torch.Tensor, end: torch.Tensor, weight: Any) -> torch.Tensor:
    """``start + weight * (end - start)``."""
    return start + at(start, weight) * (end - start)
