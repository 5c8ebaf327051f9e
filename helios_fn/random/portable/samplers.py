"""``torch.rand``, ``torch.normal``, ``torch.multinomial`` and the other functions that return random tensors."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

import torch
import torch.nn.functional as F

from ...types import Key
from .. import draws
from .source import Source, check_options, exponential, integers, normal, uniform

_Values: TypeAlias = Callable[[Key, Any, torch.dtype, Any], torch.Tensor]


def rand(source: Source, *size: Any, **options: Any) -> torch.Tensor:
    """``torch.rand``."""
    return _new(source, "rand", uniform, _size(size, options), options)


def randn(source: Source, *size: Any, **options: Any) -> torch.Tensor:
    """``torch.randn``."""
    return _new(source, "randn", normal, _size(size, options), options)


def randint(source: Source, *bounds: Any, size: Any = None, **options: Any) -> torch.Tensor:
    """``torch.randint``."""
    given = list(bounds)
    size = given.pop() if size is None else size
    low, high = _bounds(given, options)
    return _new(source, "randint", _integers(low, high), tuple(size), options, torch.int64)


def rand_like(source: Source, input: torch.Tensor, **options: Any) -> torch.Tensor:
    """``torch.rand_like``."""
    return _like(source, "rand_like", uniform, input, options)


def randn_like(source: Source, input: torch.Tensor, **options: Any) -> torch.Tensor:
    """``torch.randn_like``."""
    return _like(source, "randn_like", normal, input, options)


def randint_like(source: Source, input: torch.Tensor, *bounds: Any, **options: Any) -> torch.Tensor:
    """``torch.randint_like``."""
    low, high = _bounds(list(bounds), options)
    return _like(source, "randint_like", _integers(low, high), input, options)


def randperm(source: Source, n: int, *, dtype: torch.dtype | None = None, **options: Any) -> torch.Tensor:
    """``torch.randperm``."""
    device = options.pop("device", None) or _default_device()
    check_options("randperm", options)
    return draws.permutation(source.next_key(), n, device=device).to(torch.int64 if dtype is None else dtype)


def bernoulli(source: Source, input: torch.Tensor, p: float | None = None, **options: Any) -> torch.Tensor:
    """``torch.bernoulli`` and ``Tensor.bernoulli``."""
    check_options("bernoulli", options)
    chances = input.detach() if p is None else p
    return draws.bernoulli(source.next_key(), input.shape, p=chances, device=input.device).to(input.dtype)


def gaussian(
    source: Source,
    mean: torch.Tensor | float = 0.0,
    std: torch.Tensor | float = 1.0,
    size: Any = None,
    **options: Any,
) -> torch.Tensor:
    """``torch.normal``."""
    if size is not None:
        return _new(source, "normal", normal, tuple(size), options) * std + mean
    check_options("normal", options)
    tensors = [value.detach() for value in (mean, std) if isinstance(value, torch.Tensor)]
    shape = torch.broadcast_shapes(*[tensor.shape for tensor in tensors])
    values = normal(source.next_key(), shape, tensors[0].dtype, tensors[0].device)
    return values * _constant(std) + _constant(mean)


def multinomial(
    source: Source, input: torch.Tensor, num_samples: int, replacement: bool = False, **options: Any
) -> torch.Tensor:
    """``torch.multinomial``; the weights are not checked. Sums are rounded: where two indices are as good as tied,
    compiled code may choose the other one.
    """
    check_options("multinomial", options)
    weights = input.detach()
    if replacement:
        sums = weights.cumsum(-1, dtype=torch.float64)
        total = sums[..., -1:]
        shape = (*weights.shape[:-1], num_samples)
        levels = uniform(source.next_key(), shape, torch.float64, weights.device) * total
        # Rounding may reach the total, which no index exceeds.
        levels = torch.minimum(levels, torch.nextafter(total, torch.zeros_like(total)))
        return torch.searchsorted(sums, levels, right=True)
    if num_samples > weights.shape[-1]:
        raise ValueError(f"cannot draw {num_samples} of {weights.shape[-1]} indices without replacement")
    # Whose clock rings first, at these rates: https://doi.org/10.1016/j.ipl.2005.11.003
    waits = exponential(source.next_key(), weights.shape, torch.float64, weights.device)
    return (weights / waits).topk(num_samples, -1).indices


def gumbel_softmax(
    source: Source, logits: torch.Tensor, tau: float = 1, hard: bool = False, eps: float = 1e-10, dim: int = -1
) -> torch.Tensor:
    """``F.gumbel_softmax``; ``eps`` has no effect, as in torch."""
    noise = -exponential(source.next_key(), logits.shape, logits.dtype, logits.device).log()
    soft = ((logits + noise) / tau).softmax(dim)
    if not hard:
        return soft
    chosen = soft.argmax(dim, keepdim=True)
    return torch.zeros_like(soft).scatter(dim, chosen, 1.0) - soft.detach() + soft


def rrelu(
    source: Source,
    input: torch.Tensor,
    lower: float = 1 / 8,
    upper: float = 1 / 3,
    training: bool = False,
    inplace: bool = False,
) -> torch.Tensor:
    """``F.rrelu`` and ``torch.rrelu``: slopes of negative elements are uniform in training, else their mean."""
    if not training:
        return F.leaky_relu(input, (lower + upper) / 2, inplace)
    slopes = uniform(source.next_key(), input.shape, input.dtype, input.device) * (upper - lower) + lower
    factors = torch.where(input.detach() < 0, slopes, 1.0)
    return input.mul_(factors) if inplace else input * factors


def rrelu_(
    source: Source, input: torch.Tensor, lower: float = 1 / 8, upper: float = 1 / 3, training: bool = False
) -> torch.Tensor:
    """``torch.rrelu_``."""
    return rrelu(source, input, lower, upper, training, True)


def _new(
    source: Source, name: str, values: _Values, size: Any, options: dict[str, Any], dtype: torch.dtype | None = None
) -> torch.Tensor:
    dtype = options.pop("dtype", None) or dtype or torch.get_default_dtype()
    device = options.pop("device", None) or _default_device()
    requires_grad = options.pop("requires_grad", False)
    check_options(name, options)
    drawn = values(source.next_key(), size, dtype, device)
    return drawn.requires_grad_() if requires_grad else drawn


def _like(source: Source, name: str, values: _Values, input: torch.Tensor, options: dict[str, Any]) -> torch.Tensor:
    options.setdefault("dtype", None)
    filled = {**options, "dtype": options["dtype"] or input.dtype, "device": options.get("device") or input.device}
    return _new(source, name, values, input.shape, filled)


def _integers(low: int, high: int) -> _Values:
    return lambda key, shape, dtype, device: integers(key, shape, low, high, device).to(dtype)


def _bounds(given: list[Any], options: dict[str, Any]) -> tuple[int, int]:
    high = options.pop("high") if "high" in options else given.pop()
    low = options.pop("low") if "low" in options else (given.pop() if given else 0)
    return int(low), int(high)


def _size(size: tuple[Any, ...], options: dict[str, Any]) -> tuple[int, ...]:
    if "size" in options:
        return tuple(options.pop("size"))
    if len(size) == 1 and isinstance(size[0], tuple | list):
        return tuple(size[0])
    return size


def _default_device() -> torch.device:
    return torch.empty(0).device  # torch.get_default_device cannot be compiled


def _constant(value: Any) -> Any:
    return value.detach() if isinstance(value, torch.Tensor) else value
