"""A run as one object, from its folder alone."""

from __future__ import annotations

import dataclasses
import logging
import os
import sys
from collections.abc import Iterable
from pathlib import Path

from .. import registry
from ..checkpoint import OS, Checkpoint
from ..checkpoint import format as checkpoints
from ..checkpoint.listing import newest_valid
from ..errors import CheckpointError
from ..state import OUTPUT_ONLY
from .build import Built, build
from .changes import RECORD
from .spec import Experiment

_LOGGER = logging.getLogger("helios_fn")


def load_run(path: str | os.PathLike[str], *, discover: bool | Iterable[str] = (), name: str | None = None) -> Built:
    """The experiment that wrote a checkpoint, built again, with the checkpoint's state.

    ``load_run("runs/digits").run()`` goes on with the training; ``.test()`` evaluates it.

    A checkpoint never chooses code to run: its experiment names parts, and only those that this process has
    registered are made. The packages that register them are to be imported before, or named in ``discover``.
    ``discover=True`` imports the packages that the checkpoint itself names: only for a folder that you trust as you
    do a program. Options come from the checkpoint in any case, so trust the registered parts with any.

    Args:
        path: the root of a run, for its newest valid checkpoint, or one checkpoint. Nothing in it is changed.
        discover: packages to import, or whether to import those that the checkpoint names.
        name: which run, where a root has several.

    Returns:
        What `Experiment.build` makes, with ``state`` from the checkpoint, and a ``config`` whose ``root`` is what the
        folder is called now and whose ``resume`` goes on from that checkpoint.

    Raises:
        CheckpointError: there is no valid checkpoint, or it was not written by an experiment.
        ValueError: a package that the checkpoint names has not been discovered, or a part is not registered.
    """
    given = Path(path).expanduser().absolute()
    chosen = _chosen(given, name)
    experiment = _experiment(chosen, str(chosen.path) if chosen.path == given else "auto")
    if discover is True:
        registry.discover(*experiment.discover)
    else:
        packages = () if discover is False else tuple(discover)
        registry.discover(*packages)
        _check_known(experiment, chosen)
        _check_paths(experiment, chosen)
    return _with_state(build(experiment, discover=False), chosen)


def with_newest(built: Built) -> Built:
    """What was built, with the state of the newest valid checkpoint in its root.

    Raises:
        CheckpointError: there is none.
        ValueError: the experiment keeps none.
        ResumeRefused: it holds another state than the experiment's.
    """
    root = built.config.root
    if root is None:
        raise ValueError(f"{built.experiment.source.name} keeps no checkpoints: set run.root, and train")
    return _with_state(built, _chosen(Path(root).expanduser().absolute(), built.config.name))


def _with_state(built: Built, chosen: Checkpoint) -> Built:
    _LOGGER.info("loading %s", chosen.path)
    state = checkpoints.load(chosen.path, chosen.manifest, built.state, free=OUTPUT_ONLY)
    return dataclasses.replace(built, state=state)


def _chosen(path: Path, name: str | None) -> Checkpoint:
    """The checkpoint at a path, or the newest valid one in a root."""
    if not path.exists():
        raise CheckpointError(f"{path} does not exist: nothing has been trained there, or the path is wrong")
    if path.name != "checkpoints" and not (path / "checkpoints").is_dir():
        return _named(path)
    return newest_valid(OS, path, name)


def _named(path: Path) -> Checkpoint:
    manifest = checkpoints.verify(path)
    if path.parent.name != "checkpoints":
        raise CheckpointError(
            f"{path} is a checkpoint, but not in the folder of a run, <root>/checkpoints: read its parts by hf.restore"
        )
    return Checkpoint(path, manifest)


def _experiment(chosen: Checkpoint, resume: str) -> Experiment:
    """What the checkpoint says it was made by, with the folder as it is called now.

    Wherever the checkpoint says to write, nothing is written outside of its own root.
    """
    text = chosen.record.get(RECORD)
    if not isinstance(text, str):
        raise CheckpointError(
            f"{chosen.path} was not written by an experiment, so nothing says how its step was made: make step, state "
            "and loader as its script did, and hand them to hf.run, or load parts of it by hf.restore"
        )
    overrides = {"run.root": str(chosen.path.parent.parent), "run.resume": resume}
    return Experiment.loads(text, overrides, name=f"the experiment of {chosen.path}")


def _check_known(experiment: Experiment, chosen: Checkpoint) -> None:
    missing = [name for name in experiment.discover if name not in sys.modules]
    if missing:
        names = ", ".join(map(repr, experiment.discover))
        raise ValueError(
            f"{chosen.path} names the package{'s' * (len(missing) > 1)} {', '.join(missing)}, and what a checkpoint "
            f"names is not imported unasked: hand over discover=[{names}] (--discover), or discover=True (--trust) "
            "if you trust that folder"
        )


def _check_paths(experiment: Experiment, chosen: Checkpoint) -> None:
    for sink in experiment.sinks:
        if "path" in sink.options:
            raise ValueError(
                f"{chosen.path} has the sink {sink.name!r} write to {sink.options['path']!r}, and what a checkpoint "
                "names is not written to unasked: hand over discover=True (--trust) if you trust that folder"
            )
