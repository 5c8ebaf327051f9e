"""The folder of a run: which checkpoint it goes on from, where its logs are, and saving its state."""

from __future__ import annotations

import datetime
import json
import logging
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Self

from ..branching import Branch
from ..checkpoint import Checkpoint, Lock, Prepared, Save, Store, Writer, entry_of, ranked
from ..config import RunConfig
from ..distributed import World
from ..errors import CheckpointError
from ..sinks import log_name
from ..state import OUTPUT_ONLY, TrainState
from ..types import Json
from .descent import begin, check_same, history_of
from .record import check_resumable
from .rows import fetch

if TYPE_CHECKING:
    from ..checkpoint import ShardedStore

_LOGGER = logging.getLogger("helios_fn")
_LOG_DIR = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,127}")  # what `log_name` makes; anything else could lead elsewhere


class Start(NamedTuple):
    """Where a run starts: the state, each sink's mark, the log folder, and where cut-off rows are kept.

    ``checkpoint`` is where this folder holds the state already, if it does.
    """

    state: TrainState
    marks: dict[str, Json]
    log_dir: Path | None
    superseded: Path | None
    checkpoint: Path | None


class RunFolder:
    """The root of a run, locked against other processes while it is open. Without a root it keeps nothing.

    Args:
        cfg: names the root, the run, and how to resume.
        facts: the geometry and environment of this run, see `record`.
        metadata: ``metadata(state) -> str`` is appended to the names of checkpoints, but for the first
            one, whose state has no metrics yet.
        after_save: called where checkpoints are written, after each that has become durable and before the next;
            `tidy` by default.
        world: the processes over which the state is sharded: all of them read and write, rank 0 does all else. Then
            opening it, `go_on` and `save` are collective, and `lock` is to be called after opening.
    """

    def __init__(
        self,
        cfg: RunConfig,
        facts: Mapping[str, Json],
        metadata: Callable[[TrainState], str] | None = None,
        *,
        after_save: Callable[[], object] | None = None,
        world: World | None = None,
    ) -> None:
        self._cfg = cfg
        # Through JSON and back, so that facts compare equal to what a checkpoint gives back.
        self._facts: dict[str, Any] = json.loads(json.dumps(facts))
        self._metadata = metadata
        self._log_dir: Path | None = None
        self._history: list[Json] = []
        self._root = None if cfg.root is None else Path(cfg.root).expanduser().absolute()
        self._world = world
        self._store: Store | None = None
        self._shards: ShardedStore | None = None
        self._lock: Lock | None = None
        background = cfg.async_save and world is None
        self._writer = Writer(background=background, after_save=self.tidy if after_save is None else after_save)

    def over(self, world: World) -> RunFolder:
        """The same folder for a state that is sharded over these processes."""
        return RunFolder(self._cfg, self._facts, self._metadata, world=world)

    def __enter__(self) -> Self:
        if self._root is not None and self._world is None:
            self._store = Store(self._root, self._cfg.name)
            self.lock()
        elif self._root is not None and self._world is not None:
            from ..checkpoint import ShardedStore

            self._shards = ShardedStore(self._root, self._cfg.name, group=self._world.group)
            self._store = self._shards.store
        return self

    def lock(self) -> None:
        """Keep other runs out; raises `RootLocked` if there is one."""
        if self._store is not None:
            self._lock = self._store.lock()

    def __exit__(self, *_: object) -> None:
        if self._lock is not None:
            # A run waits for its writer, but not when it is aborted: then the writer is the last to leave.
            self._writer.close(self._lock.release)

    @property
    def keeps(self) -> bool:
        """Whether there is a root to save into."""
        return self._store is not None

    def start(self, fresh: TrainState) -> Start:
        """The state to start from, by ``cfg.resume``: a checkpoint's or the fresh one.

        Raises:
            CheckpointError: the wanted checkpoint does not exist, or none that exists is valid.
            ResumeRefused: it belongs to another run.
        """
        return self.go_on(self.choose(), fresh)

    def go_on(self, chosen: Checkpoint | None, fresh: TrainState) -> Start:
        """The same from the checkpoint that `choose` returned."""
        if chosen is None:
            return Start(fresh, {}, self._new_log_dir(), None, None)
        assert self._store is not None
        foreign = chosen.path.parent != self._store.folder
        state = self._load(chosen, fresh, lift=self._branch.lift if self._branch and foreign else ())
        self._history = history_of(chosen)
        if foreign:
            state, entry = begin(chosen, state, fresh, self._branch or Branch(chosen.path), self._facts)
            self._history.append(entry)
        state = self._with_early_stop(state, chosen)
        _LOGGER.info("going on from %s", chosen.path)
        if foreign:
            return Start(state, {}, self._new_log_dir(), None, None)
        superseded = self._store.supersede(chosen) if self._writes else None
        log_dir = self._old_log_dir(chosen)
        return Start(state, _fact(chosen, "sinks"), log_dir, superseded, chosen.path)

    def rollback(self, like: TrainState) -> Start:
        """The newest valid checkpoint again, for a run that has gone bad since; ``like`` is any of its states."""
        return self.back_to(self.newest(), like)

    def newest(self) -> Checkpoint:
        """The newest valid checkpoint; raises CheckpointError if there is none."""
        assert self._store is not None
        newest = self._store.newest()
        if newest is None:
            raise CheckpointError(f"there is no checkpoint in {self._store.folder} to roll back to")
        return newest

    def back_to(self, newest: Checkpoint, like: TrainState) -> Start:
        """The same for a checkpoint that is known."""
        state = self._with_early_stop(self._load(newest, like), newest)
        return Start(state, _fact(newest, "sinks"), self._log_dir, None, newest.path)

    def save(self, state: TrainState, marks: dict[str, Json], *, metadata: bool = True) -> Save:
        """Begin to write the state as a checkpoint, after the one before; needs a root.

        All that the checkpoint says is found out now, and what cannot be saved is refused now. Only the disk's work
        is left to the writer, which reads the tensors as they are: they must not change before it has ended.
        """
        assert self._store is not None
        record: dict[str, Json] = {
            **self._facts,
            "config": self._cfg.describe(),
            **({"history": self._history} if self._history else {}),
            "sinks": marks,
            "log_dir": None if self._log_dir is None else self._log_dir.name,
            "validation": {name: repr(value) for name, value in fetch(state.validation.metrics).items()},
            "cycles": state.validation.cycles,
        }
        details: dict[str, Any] = {
            "epoch": state.cursor.epoch,
            "iteration": state.counters.iteration,
            "micro_step": state.counters.micro_step,
            "record": record,
            "metadata": self._label(state) if metadata else "",
            "free": OUTPUT_ONLY,
        }
        return self._writer.submit(self._prepared(state, details))

    def _prepared(self, state: TrainState, details: dict[str, Any]) -> Prepared:
        store, shards, aside = self._store, self._shards, self._cfg.async_save
        assert store is not None
        if shards is not None:
            parts = shards.prepare(state, **details)
            return Prepared(parts.parts.folder, lambda: shards.commit(parts))
        pending = store.prepare(state, **details)
        return Prepared(pending.folder, lambda: store.commit(pending, background=aside))

    def tidy(self) -> None:
        """Remove the checkpoints that ``cfg.retention`` does not keep; to be called when a newer one is durable.

        A disk that refuses is no reason to end the training: it is reported, and tried again at the next save.
        """
        if self._store is None or self._cfg.retention is None or not self._writes:
            return
        try:
            self._store.prune(self._cfg.retention)
        except CheckpointError as error:
            _LOGGER.warning("old checkpoints stay for now: %s", error)

    @property
    def _writes(self) -> bool:
        return self._world is None or self._world.is_main

    def _label(self, state: TrainState) -> str:
        if self._metadata is None or state.counters.iteration == 0:
            return ""
        return self._metadata(state)

    def choose(self) -> Checkpoint | None:
        """The checkpoint to start from, by ``cfg.resume``; ``None`` for a fresh start. Raises as `start` does."""
        resume = self._cfg.resume
        if self._store is None:
            if resume in ("auto", None):
                return None
            raise ValueError(f"resume={resume!r} needs a folder to look in: set root")
        if isinstance(resume, Branch):
            return self._of_branch(resume)
        if resume == "auto":
            return self._store.newest()
        if resume is None:
            self._insist_on_none("resume=None starts afresh")
            return None
        if resume == "last":
            return self._insist_on_one(self._store.newest())
        if resume == "best":
            return self._insist_on_one(self._best(), " with the metric that is watched")
        path = Path(resume).expanduser().absolute()
        if not path.exists():
            raise CheckpointError(
                f"resume={str(resume)!r} is neither 'auto', 'last', 'best' or None nor a folder that exists"
            )
        chosen = self._store.at(path)
        if chosen.path.parent != self._store.folder:
            self._insist_on_none(f"resume={str(resume)!r} branches off another run")
        return chosen

    @property
    def _branch(self) -> Branch | None:
        return self._cfg.resume if isinstance(self._cfg.resume, Branch) else None

    def _of_branch(self, branch: Branch) -> Checkpoint:
        """The branch's own newest checkpoint, or where it begins."""
        assert self._store is not None
        newest = self._store.newest()
        if newest is not None:
            check_same(newest, branch)
            return newest
        chosen = self._store.at(branch.checkpoint.expanduser().absolute())
        if chosen.path.parent == self._store.folder:
            raise CheckpointError(f"{chosen.path} lies in the root of the branch itself: give the branch another root")
        return chosen

    def _insist_on_none(self, intent: str) -> None:
        assert self._store is not None
        existing = [*self._store.entries(), *self._store.damaged()]
        if existing:
            raise CheckpointError(
                f"{intent}, but {self._store.folder} already holds {len(existing)} checkpoints of run "
                f"{self._cfg.name!r}: choose another root or name, or remove them yourself"
            )

    def _insist_on_one(self, found: Checkpoint | None, such: str = "") -> Checkpoint:
        assert self._store is not None
        if found is None:
            raise CheckpointError(
                f"resume={self._cfg.resume!r} found no checkpoint of run {self._cfg.name!r}{such} "
                f"in {self._store.folder}"
            )
        return found

    def _best(self) -> Checkpoint | None:
        monitored = self._cfg.monitored
        assert self._store is not None
        assert monitored is not None  # RunConfig has seen to it
        assert monitored.monitor is not None
        entries = [entry_of(checkpoint) for checkpoint in self._store.entries()]
        while candidates := ranked(entries, monitored.monitor, monitored.mode):
            entries.remove(candidates[0])
            path = self._store.folder / candidates[0].name
            try:
                return self._store.at(path)
            except CheckpointError as error:
                _LOGGER.warning("passing over %s: %s", path, error)
        return None

    def _load(self, chosen: Checkpoint, fresh: TrainState, lift: Sequence[str] = ()) -> TrainState:
        assert self._store is not None
        for warning in check_resumable(dict(chosen.record), self._facts, f"checkpoint {chosen.path}", lift):
            _LOGGER.warning("%s", warning)
        return (self._shards or self._store).load(chosen, fresh, free=OUTPUT_ONLY)

    def _with_early_stop(self, state: TrainState, chosen: Checkpoint) -> TrainState:
        """The state with its bookkeeping started anew where another metric, or another direction, is watched now."""
        watched = self._cfg.early_stop
        saved = _fact(chosen, "config").get("early_stop")
        known = (saved.get("monitor"), saved.get("mode")) if isinstance(saved, dict) else None
        if watched is None or known == (watched.monitor, watched.mode):
            return state
        _LOGGER.warning(
            "early_stop watches %s (%s) from here on: its best value starts anew", watched.monitor, watched.mode
        )
        return state.replace(validation=state.validation._replace(best=watched.worst, bad_cycles=0))

    def _new_log_dir(self) -> Path | None:
        if self._root is not None:
            logs = self._root / "logs"
            taken = {entry.name for entry in logs.iterdir()} if logs.is_dir() else set()
            self._log_dir = logs / log_name(self._cfg.name, datetime.datetime.now(), taken)
        return self._log_dir

    def _old_log_dir(self, chosen: Checkpoint) -> Path | None:
        name = chosen.record.get("log_dir")
        if not isinstance(name, str) or self._root is None or not _LOG_DIR.fullmatch(name):
            return self._new_log_dir()
        self._log_dir = self._root / "logs" / name
        return self._log_dir


def _fact(checkpoint: Checkpoint, name: str) -> dict[str, Json]:
    """A mapping that `RunFolder.save` put into the record, empty where it is not one."""
    found = checkpoint.record.get(name)
    return dict(found) if isinstance(found, dict) else {}
