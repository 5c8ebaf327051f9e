"""Dropout in all its forms. Element j of a mask is `bernoulli` of the next key, whatever runs it."""

from __future__ import annotations

import math
from typing import Any

import torch

from .. import draws
from .source import Source

_ALPHA = 1.7580993408473766  # of the self-normalising activation, as in torch (https://arxiv.org/abs/1706.02515)


def dropout(
    source: Source, input: torch.Tensor, p: float = 0.5, training: bool = True, inplace: bool = False
) -> torch.Tensor:
    """``F.dropout``."""
    _check(p)
    if not training or p == 0:
        return input
    return _multiply(input, _mask(source, input.shape, p, input), inplace)


def plain(source: Source, input: torch.Tensor, p: float, train: bool) -> torch.Tensor:
    """``torch.dropout``."""
    return dropout(source, input, p, train)


def plain_(source: Source, input: torch.Tensor, p: float, train: bool) -> torch.Tensor:
    """``torch.dropout_``."""
    return dropout(source, input, p, train, True)


def native(source: Source, input: torch.Tensor, p: float, train: bool | None) -> tuple[torch.Tensor, torch.Tensor]:
    """``torch.native_dropout``: the output, and which elements were kept."""
    _check(p)
    if train is False or p == 0:
        return input.clone(), torch.ones_like(input, dtype=torch.bool)
    mask = _mask(source, input.shape, p, input)
    return input * mask, mask != 0


def channels(
    source: Source,
    input: torch.Tensor,
    p: float = 0.5,
    training: bool = True,
    inplace: bool = False,
    *,
    lead: int | None = None,
) -> torch.Tensor:
    """``F.dropout1d`` and its like: whole channels are dropped. ``lead`` is the number of dimensions of a channel.

    Raises:
        ValueError: ``input`` has neither the dimensions of a batch nor of a sample.
    """
    _check(p)
    if lead is not None and input.dim() not in (lead + 1, lead + 2):
        raise ValueError(f"dropout{lead}d takes inputs of {lead + 1} or {lead + 2} dimensions, got {input.dim()}")
    if not training or p == 0:
        return input
    return _multiply(input, _mask(source, _channel_shape(input, lead), p, input), inplace)


def dropout1d(source: Source, input: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
    """``F.dropout1d``."""
    return channels(source, input, *args, lead=1, **kwargs)


def dropout2d(source: Source, input: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
    """``F.dropout2d``. As in torch, three dimensions are a batch of samples of one dimension."""
    return channels(source, input, *args, **kwargs)


def dropout3d(source: Source, input: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
    """``F.dropout3d``."""
    return channels(source, input, *args, lead=3, **kwargs)


def feature(source: Source, input: torch.Tensor, p: float, train: bool) -> torch.Tensor:
    """``torch.feature_dropout``."""
    return channels(source, input, p, train)


def feature_(source: Source, input: torch.Tensor, p: float, train: bool) -> torch.Tensor:
    """``torch.feature_dropout_``."""
    return channels(source, input, p, train, True)


def alpha(
    source: Source, input: torch.Tensor, p: float = 0.5, training: bool = False, inplace: bool = False
) -> torch.Tensor:
    """``F.alpha_dropout``."""
    return _alpha(source, input, input.shape, p, training, inplace)


def feature_alpha(
    source: Source, input: torch.Tensor, p: float = 0.5, training: bool = False, inplace: bool = False
) -> torch.Tensor:
    """``F.feature_alpha_dropout``."""
    return _alpha(source, input, _channel_shape(input, None), p, training, inplace)


def alpha_(source: Source, input: torch.Tensor, p: float, train: bool) -> torch.Tensor:
    """``torch.alpha_dropout_``."""
    return alpha(source, input, p, train, True)


def feature_alpha_(source: Source, input: torch.Tensor, p: float, train: bool) -> torch.Tensor:
    """``torch.feature_alpha_dropout_``."""
    return feature_alpha(source, input, p, train, True)


def _alpha(source: Source, input: torch.Tensor, shape: Any, p: float, training: bool, inplace: bool) -> torch.Tensor:
    _check(p)
    if not training or p == 0:
        return input
    if p == 1:
        return _multiply(input, _mask(source, shape, p, input), inplace)
    scale = 1.0 / math.sqrt((_ALPHA * _ALPHA * p + 1) * (1 - p))
    kept = draws.mask(source.next_key(), shape, p=1 - p, value=1.0, dtype=input.dtype, device=input.device)
    shift = (kept - 1) * (_ALPHA * scale) + _ALPHA * scale * p
    if inplace:
        return input.mul_(kept * scale).add_(shift)
    return input * (kept * scale) + shift


def _mask(source: Source, shape: Any, p: float, like: torch.Tensor) -> torch.Tensor:
    value = 0.0 if p == 1 else 1 / (1 - p)
    return draws.mask(source.next_key(), shape, p=1 - p, value=value, dtype=like.dtype, device=like.device)


def _multiply(input: torch.Tensor, mask: torch.Tensor, inplace: bool) -> torch.Tensor:
    return input.mul_(mask) if inplace else input * mask


def _channel_shape(input: torch.Tensor, lead: int | None) -> tuple[int, ...]:
    """The shape of one decision for each channel: of a batch (n, c, 1, ...), of a sample (c, 1, ...)."""
    dims = 1 if lead is not None and input.dim() == lead + 1 else 2
    if input.dim() < dims:
        raise ValueError(f"dropout of channels takes inputs of at least 2 dimensions, got {input.dim()}")
    return (*input.shape[:dims], *(1 for _ in range(input.dim() - dims)))


def _check(p: float) -> None:
    if not 0 <= p <= 1:
        raise ValueError(f"dropout probability has to be between 0 and 1, but got {p}")
