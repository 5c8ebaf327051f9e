"""Where a run comes from: what a branch changes in the state that it starts from, and what is written down of it."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any, NamedTuple

from .. import tree
from ..branching import Branch
from ..checkpoint import Checkpoint, Manifest, canonical
from ..checkpoint.format import read_manifest
from ..dtensors import any_sharded
from ..errors import CheckpointError
from ..overriding import overridden
from ..patterns import Chooser
from ..state import TrainState
from ..types import Cursor, Json
from .record import Facts, lifted

_RUNS_OWN = ("cursor.*", "counters.*", "metrics.*", "key", "first_bad")


class Branched(NamedTuple):
    """The state that a branch starts with, and its entry for the history."""

    state: TrainState
    entry: dict[str, Json]


def history_of(checkpoint: Checkpoint) -> list[Json]:
    """The branches that led to a checkpoint, the oldest first; what is none is left out."""
    found = checkpoint.record.get("history")
    return [entry for entry in found if isinstance(entry, dict)] if isinstance(found, list) else []


def begin(chosen: Checkpoint, state: TrainState, fresh: TrainState, branch: Branch, facts: Facts) -> Branched:
    """The first state of a branch: that of the checkpoint, with what the branch changes.

    Args:
        chosen: where it starts.
        state: what was saved there.
        fresh: the state that the new run would have started from; its seed counts where that is lifted.
        branch: what to change.
        facts: the geometry of the new run.

    Raises:
        ValueError: the changes do not fit the state.
    """
    changes = [{"fact": name, "old": old, "new": new} for name, old, new in lifted(chosen.record, facts, branch.lift)]
    entry: dict[str, Json] = {
        **_request(branch),
        "run": chosen.manifest.run,
        "iteration": chosen.iteration,
        "micro_step": chosen.micro_step,
        "files": _files(chosen.manifest),
        "digest": None if any_sharded(tree.leaves(state)) else tree.digest(state),
    }
    owned = Chooser(_RUNS_OWN)
    state, leaves = overridden(state, branch.override)
    for change in leaves:
        if owned(change.leaf):
            raise ValueError(f"override cannot change {change.leaf}: the run itself keeps it")
    names = [str(change["fact"]) for change in changes]
    if any(name == "data" or name.startswith("data.") for name in names):
        moved = Cursor(state.cursor.phase, state.cursor.epoch + (state.cursor.batch > 0), 0)
        if moved != state.cursor:
            changes.append({"fact": "cursor", "old": list(state.cursor[:3]), "new": list(moved[:3])})
        state = state.replace(cursor=moved)
    if any(name.startswith("seed") for name in names):
        state = state.replace(key=fresh.key)
    entry["changes"] = [*changes, *(change._asdict() for change in leaves)]
    return Branched(state, entry)


def check_same(newest: Checkpoint, branch: Branch) -> None:
    """Check that a checkpoint in the branch's own root belongs to this very branch, so that it may go on from there.

    Raises:
        CheckpointError: it is another run's, or another branch's.
    """
    history = history_of(newest)
    last: Any = history[-1] if history else None
    wanted = _request(branch)
    if not isinstance(last, dict) or {name: last.get(name) for name in wanted} != wanted:
        came = f"was begun as {_shown(last)}" if isinstance(last, dict) else "did not branch off another run"
        raise CheckpointError(
            f"{newest.path} {came}, and resume asks for {_shown(wanted)}: choose another root for another branch, or "
            "resume='auto' to go on with the one that is there"
        )
    known, found = last.get("files"), _files_at(branch)
    if None not in (known, found) and known != found:
        raise CheckpointError(
            f"{newest.path} was begun from another checkpoint of the same name than {branch.checkpoint}: choose "
            "another root for another branch, or resume='auto' to go on with the one that is there"
        )


def _request(branch: Branch) -> dict[str, Json]:
    """What was asked for, as plain JSON that compares equal later. A moved folder is the same."""
    wanted: dict[str, Json] = {name: _value(value) for name, value in sorted(branch.override.items())}
    return {"checkpoint": branch.checkpoint.name, "lift": list(branch.lift), "override": wanted, "note": branch.note}


def _files_at(branch: Branch) -> str | None:
    """Of the checkpoint at which a branch begins; ``None`` if that is gone by now."""
    try:
        return _files(read_manifest(branch.checkpoint.expanduser().absolute()))
    except (CheckpointError, OSError):
        return None


def _files(manifest: Manifest) -> str:
    """What tells a checkpoint from others of its name, of which there are many: runs are called ``run`` by default."""
    files: Any = {name: list(entry) for name, entry in manifest.files.items()}
    return hashlib.sha256(canonical.dump(files)).hexdigest()[:16]


def _value(value: Any) -> str:
    return repr(value) if isinstance(value, bool | int | float | complex | str) else tree.digest(value)[:16]


def _shown(request: Mapping[str, Any]) -> str:
    parts = [f"{name}={request[name]!r}" for name in ("lift", "override", "note") if request.get(name)]
    return f"a branch of {request.get('checkpoint')}" + (f" with {', '.join(parts)}" if parts else "")
