"""A short run of everything, to find mistakes before the long one; it leaves nothing behind."""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Callable, Iterable
from typing import Any

from .. import schedule
from ..config import Every, RunConfig
from ..data import Loader, Phases, as_source
from ..distributed import connect
from ..state import TrainState
from ..types import Observer, Result, Sink, Step
from .evaluate import Validator
from .loop import Validate
from .outlets import Outlets
from .run import run


def dev_run(
    step: Step,
    init_state: TrainState | Callable[[], TrainState],
    loader: Any,
    cfg: RunConfig,
    *,
    iterations: int = 2,
    validate: Validate | None = None,
    sinks: Iterable[Sink] = (),
    observers: Iterable[Observer] = (),
    **keywords: Any,
) -> Result:
    """A few iterations of the run that ``hf.run`` with the same arguments would make, in a temporary folder.

    What the long run does at its own times is done here after each iteration: a row, every check, a checkpoint; and a
    validation (of as many batches) after each unit. An epoch ends after so many iterations. Observers and
    ``should_stop`` are called as usual. Sinks are checked, but not opened, for what they write to places of their own
    could not be taken back; and whatever ``resume`` says, the run starts afresh.

    Args:
        iterations: how many (of ``unit="epoch"``: in the one epoch).
        keywords: and all others: see `run`.

    Returns:
        The state after the last iteration, and why it ended.

    Raises:
        ValueError: ``iterations`` is no integer of at least 1; otherwise as `run` does.
    """
    if type(iterations) is not int or iterations < 1:
        raise ValueError(f"iterations must be an integer of at least 1, got {iterations!r}")
    Outlets(sinks, ())  # refuses what would be refused later
    source, world = as_source(loader), connect(cfg.seconds("collective_timeout"))
    with tempfile.TemporaryDirectory(prefix="helios_fn_dev_run_") as folder:
        # One folder for all processes: a sharded state is written by all of them.
        root = str(world.tell_all(folder))
        share = schedule.share_of(cfg, world.rank, world.size)
        shortened = _shortened(cfg, root, iterations, share.micro_batches, source, validate)
        result = run(step, init_state, source, shortened, validate=validate, observers=observers, **keywords)
        world.barrier()  # until the others have left the folder, too
        return result


def _shortened(cfg: RunConfig, root: str, iterations: int, micro_batches: int, source: Any, validate: Any) -> RunConfig:
    changes: dict[str, Any] = {
        "total": iterations if cfg.unit == "iteration" else 1,
        "log_every": Every(1, "iteration"),
        "fingerprint_every": None,  # no sink is there to keep them
        "checkpoint_every": Every(1, "iteration"),
        "checkpoint_every_seconds": None,
        "root": root,
        "resume": "auto",
        "check_finite_every": 1,
        "check_replicas_every": 1,
        "purity_checks": max(iterations, cfg.purity_checks),
    }
    if cfg.validate_every is not None:
        changes["validate_every"] = 1
        changes["sanity_batches"] = min(cfg.sanity_batches, iterations)
        if isinstance(validate, Validator):
            changes["limit_valid_batches"] = iterations
    if cfg.unit == "epoch" and _is_limitable(source):
        field = "limit_train_batches" if cfg.overfit_batches is None else "overfit_batches"
        changes[field] = iterations * micro_batches
    return dataclasses.replace(cfg, **changes)


def _is_limitable(source: Any) -> bool:
    sources = [source.source(phase) for phase in range(len(source))] if isinstance(source, Phases) else [source]
    return all(isinstance(each, Loader) for each in sources)
