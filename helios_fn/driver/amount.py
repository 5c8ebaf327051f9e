"""How much is read: limits on the batches of an epoch, and the length of a run in units of its own."""

from __future__ import annotations

import dataclasses
from typing import Any

from ..config import RunConfig, Total
from ..data import Loader, Phases
from ..types import Share, Source
from .evaluate import Validator


def limited_source(source: Source | Phases, cfg: RunConfig) -> Source | Phases:
    """The source with ``limit_train_batches`` or ``overfit_batches`` applied.

    Raises:
        ValueError: there is a limit, but not a `Loader` to be limited.
    """
    if cfg.limit_train_batches is None and cfg.overfit_batches is None:
        return source
    if isinstance(source, Phases):
        phases = [source.source(phase) for phase in range(len(source))]
        return source.replace([_limited(each, cfg) for each in phases])
    return _limited(source, cfg)


def _limited(source: Any, cfg: RunConfig) -> Source:
    if not isinstance(source, Loader):
        field = "overfit_batches" if cfg.limit_train_batches is None else "limit_train_batches"
        raise ValueError(
            f"{field} limits an hf.Loader (or a torch DataLoader), and {type(source).__name__} is none: "
            "limit the data yourself"
        )
    if cfg.overfit_batches is not None:
        return source.overfit(cfg.overfit_batches)
    assert cfg.limit_train_batches is not None
    return source.limit(cfg.limit_train_batches)


def limited_validation(validate: Any, cfg: RunConfig) -> Any:
    """The validation with ``limit_valid_batches`` applied.

    Raises:
        ValueError: there is a limit, but ``validate`` is no `Validator`.
    """
    if cfg.limit_valid_batches is None:
        return validate
    if not isinstance(validate, Validator):
        raise ValueError("limit_valid_batches limits an hf.Validator; a function of your own reads what it wants")
    return validate.limit(cfg.limit_valid_batches)


def in_units(cfg: RunConfig, source: Source | Phases, share: Share) -> RunConfig:
    """The configuration with a total in units of the run, whatever measure it was given in; rounded up.

    Raises:
        ValueError: the data does not tell how much that is.
    """
    if not isinstance(cfg.total, Total):
        return cfg
    n, unit = cfg.total.n, cfg.total.unit
    if unit == cfg.unit:
        return dataclasses.replace(cfg, total=n)
    batches = getattr(source, "batches_per_epoch", None)
    if batches is None:
        what = "phases may have epochs of different lengths" if isinstance(source, Phases) else "a stream has no epochs"
        raise ValueError(f"total={cfg.total} cannot be counted, for {what}: give a total in {cfg.unit}s")
    if unit == "iteration":  # in the epoch unit, whose last iteration of an epoch takes what is left
        return dataclasses.replace(cfg, total=-(-n // -(-batches // share.micro_batches)))
    count = n * batches if unit == "epoch" else _batches_of(n, source, batches, cfg.total)
    return dataclasses.replace(cfg, total=-(-count // (share.micro_batches if cfg.unit == "iteration" else batches)))


def _batches_of(samples: int, source: Any, batches: int, total: Total) -> int:
    """How many batches it takes to read so many samples."""
    inside, size = getattr(source, "samples_per_epoch", None), getattr(source, "batch_size", None)
    if inside is None or size is None:
        raise ValueError(
            f"total={total} cannot be counted, for {type(source).__name__} does not tell how many samples its batches "
            'have (samples_per_epoch and batch_size): give hf.Total(n, "epoch") or a number of units'
        )
    epochs, rest = divmod(samples, inside)
    return int(epochs * batches + -(-rest // size))
