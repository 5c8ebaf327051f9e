"""What a checkpoint says about the run that wrote it, and whether a run may go on from it.

One table decides: facts of ``geometry`` decide the bits of the run, so another value is refused;
facts of ``environment`` may decide them, so another value is reported; all else may change freely.
"""

from __future__ import annotations

import platform
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import numpy
import torch

from .. import random
from ..config import RunConfig
from ..errors import ResumeRefused
from ..patterns import Chooser, closest
from ..state import TrainState
from ..types import Json, Share

Facts: TypeAlias = Mapping[str, Any]
"""What a run says of itself, by name; see `geometry` and `environment`."""

_REMEDIES = {
    "micro_batches": "set micro_batches={saved} so that the run keeps its mathematics",
    "seed": "hand hf.init_state the same seed",
    "data.length": "a run continues only on the data it began with",
}


def geometry(
    cfg: RunConfig, share: Share, data: dict[str, Json], state: TrainState, validate: Any = None
) -> dict[str, Json]:
    """The facts that decide the bits of a run, beside the state itself."""
    limit: dict[str, Json] = {} if cfg.limit_valid_batches is None else {"valid_batches": validate.batches}
    return {
        **limit,
        "unit": cfg.unit,
        "micro_batches": share.micro_batches,
        "reduction": cfg.reduction,
        "seed": list(random.key_words(state.key)),
        "data": data,
    }


def environment(cfg: RunConfig, step: Any) -> dict[str, Json]:
    """The facts that may decide bits but are not ours to fix; ``step.compile`` says whether and how it is compiled."""
    return {
        "compile": getattr(step, "compile", None),
        "torch": torch.__version__,
        "numpy": numpy.__version__,
        "python": platform.python_version(),
        "machine": platform.machine(),
        "device": str(cfg.device),
        "threads": torch.get_num_threads(),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "cudnn_benchmark": torch.backends.cudnn.benchmark,
        "matmul_precision": torch.get_float32_matmul_precision(),
    }


def check_resumable(saved: Facts, current: Facts, where: str, lift: Sequence[str] = ()) -> list[str]:
    """Compare the record of a checkpoint with the run that wants to go on from it.

    Args:
        saved: what the checkpoint holds.
        current: the same of the run.
        where: the checkpoint, for messages.
        lift: names or patterns of facts that may differ, which a branch declares.

    Returns:
        Warnings, one for each fact of the environment that differs.

    Raises:
        ResumeRefused: a fact of the geometry differs that is not lifted; names every one with both values.
        ValueError: ``lift`` names no fact of either.
    """
    may_differ = {name for name, _, _ in lifted(saved, current, lift)}
    refusals = [
        f"  {name}: saved {old!r}, now {new!r}" + _remedy(name, old)
        for name, old, new in differences(saved.get("geometry", {}), current["geometry"])
        if name not in may_differ
    ]
    if refusals:
        raise ResumeRefused(
            f"{where} belongs to another run; going on would not give the bits of either:\n"
            + "\n".join(refusals)
            + "\nUse these values again, or another root: to start afresh, or to branch off with these changes by "
            "resume=hf.branch(checkpoint, lift=[...])"
        )
    return [
        f"{name} was {old!r} when the checkpoint was written and is {new!r} now: bits may differ from here on"
        for name, old, new in differences(saved.get("environment", {}), current["environment"])
    ]


def lifted(saved: Facts, current: Facts, lift: Sequence[str]) -> list[tuple[str, Any, Any]]:
    """The facts of the geometry that differ and are chosen by ``lift``, with both values. Raises as above."""
    if not lift:
        return []
    before, now = saved.get("geometry", {}), current["geometry"]
    chooser = Chooser(lift)
    names = [*_names(before), *_names(now)]
    for pattern in chooser.idle(names):
        raise ValueError(f"lift: no fact of a run is called {pattern!r}; did you mean {closest(pattern, names)}?")
    return [found for found in differences(before, now) if chooser(found[0])]


def _names(facts: Any, prefix: str = "") -> list[str]:
    if not isinstance(facts, dict):
        return [prefix]
    return [name for key, value in facts.items() for name in _names(value, f"{prefix}.{key}" if prefix else str(key))]


def _remedy(name: str, old: Any) -> str:
    return f" ({_REMEDIES[name].format(saved=old)})" if name in _REMEDIES else ""


def differences(saved: Any, current: Any, prefix: str = "") -> list[tuple[str, Any, Any]]:
    """Names of facts with both values, where they differ; nested facts are named with dots."""
    if isinstance(saved, dict) and isinstance(current, dict):
        found = []
        for name in sorted(saved.keys() | current.keys()):
            found += differences(saved.get(name), current.get(name), f"{prefix}.{name}" if prefix else name)
        return found
    return [] if saved == current else [(prefix, saved, current)]
