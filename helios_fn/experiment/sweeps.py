"""Sweeps: the experiments that one file describes, run one after another or as one."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

from ..errors import RunFailed
from ..types import Reason, Result
from .build import build
from .spec import Experiment
from .toml import value_text

_LONGEST = 100


class Outcome(NamedTuple):
    """What became of one member of a sweep.

    Attributes:
        name: what differs, ``"lr=0.001,seed=1"``.
        metrics: of its last validation, or of its last iteration where there is none.
        iteration: how far it is.
        reason: why it ended; ``None`` where it failed.
        failure: what it raised, in one line.
    """

    name: str
    metrics: Mapping[str, float]
    iteration: int
    reason: Reason | None
    failure: str = ""


def members(experiment: Experiment) -> dict[str, Experiment]:
    """See `Experiment.members`."""
    sweep = experiment.sweep
    if sweep is None:
        return {"": experiment}
    alone, changes = dataclasses.replace(experiment, sweep=None), sweep.changes()
    object.__setattr__(alone, "_source", experiment.source)
    found = {}
    for name, change in zip(_names(changes), changes, strict=True):
        root = experiment.run.root
        within = {} if root is None or "run.root" in change else {"run.root": f"{root}/{name}"}
        found[name] = alone.replace({**change, **within}, by="the sweep over")
    return found


def run_members(
    experiment: Experiment, *, announce: Callable[[str], object] | None = None, **keywords: Any
) -> list[Outcome]:
    """Train the members of a sweep; ``keywords`` go to `helios_fn.run`, and ``announce`` hears of each before.

    One after another, each in its own folder; a member that fails does not keep the others from being trained, and
    one that is stopped by a signal or its time limit ends the sweep. The same line again goes on where that was. With
    ``sweep.together``, all at once as one run.

    Raises:
        ValueError: a member cannot be built, or not together.
        ImportError: a package of ``discover`` cannot be imported.
    """
    if experiment.sweep is not None and experiment.sweep.together:
        return _outcomes(experiment, experiment.build().run(**keywords))
    found: list[Outcome] = []
    every = members(experiment)
    for number, (name, each) in enumerate(every.items(), start=1):
        if name and announce is not None:
            announce(f"member {number} of {len(every)}: {name}")
        found.append(_run_one(name, each, keywords))
        if found[-1].reason in (Reason.SIGNAL, Reason.TIME):
            break
    return found


def _run_one(name: str, experiment: Experiment, keywords: dict[str, Any]) -> Outcome:
    if not name:
        return _outcome(name, build(experiment).run(**keywords))
    try:
        return _outcome(name, build(experiment).run(**keywords))
    except RunFailed as error:
        return Outcome(name, {}, error.iteration, None, str(error))


def _outcome(name: str, result: Result) -> Outcome:
    return Outcome(name, _metrics(result), result.state.counters.iteration, result.reason)


def by_member(experiment: Experiment, metrics: Mapping[str, float]) -> dict[str, dict[str, float]]:
    """The metrics of a sweep's members, by name, out of those of their ensemble: ``loss/3`` is ``loss`` of member 3."""
    found = {}
    for lane, name in enumerate(members(experiment)):
        tail = f"/{lane}"
        found[name] = {key.removesuffix(tail): value for key, value in metrics.items() if key.endswith(tail)}
    return found


def _outcomes(experiment: Experiment, result: Result) -> list[Outcome]:
    """What became of the members of an ensemble."""
    iteration, found = result.state.counters.iteration, []
    bad = result.state.extra.first_bad.tolist()
    for (name, metrics), first in zip(by_member(experiment, _metrics(result)).items(), bad, strict=True):
        failure = "" if first < 0 else f"the loss or a gradient was not finite in iteration {first + 1}"
        found.append(Outcome(name, metrics, iteration, None if failure else result.reason, failure))
    return found


def _metrics(result: Result) -> dict[str, float]:
    metrics = result.state.validation.metrics or result.state.metrics
    return {name: float(value) for name, value in metrics.items()}


def _names(changes: list[dict[str, Any]]) -> Iterable[str]:
    """For each member what differs, in characters that name folders anywhere."""
    paths = list(changes[0])
    short = [path.rsplit(".", 1)[-1] for path in paths]
    labels = [path if short.count(tail) > 1 else tail for path, tail in zip(paths, short, strict=True)]
    if "name" in short:  # which says nothing by itself
        labels = [path if tail == "name" else label for path, tail, label in zip(paths, short, labels, strict=True)]
    taken: set[str] = set()
    for number, change in enumerate(changes):
        words = [f"{label}={_word(value)}" for label, value in zip(labels, change.values(), strict=True)]
        name = ",".join(words)
        if len(name) > _LONGEST or name in taken:
            name = f"member-{number}"
        taken.add(name)
        yield name


def _word(value: Any) -> str:
    if isinstance(value, Mapping) and isinstance(value.get("name"), str):
        value = value["name"]
    text = value if isinstance(value, str) else value_text(value)
    return re.sub(r"[^A-Za-z0-9_.+-]+", "-", text).strip("-") or "-"
