"""What the folder of a run tells of its iterations: rows, fingerprints, checkpoints."""

from __future__ import annotations

import dataclasses
import logging
from pathlib import Path
from typing import Literal, TypeAlias

from ..checkpoint import OS, Checkpoint, open_contents
from ..checkpoint.listing import survey
from ..errors import CheckpointError
from ..fingerprint import fingerprint
from ..sinks import read_log
from ..types import Fingerprint, Row

By: TypeAlias = Literal["checkpoint", "fingerprint", "metrics"]
"""What tells of an iteration."""
Known: TypeAlias = tuple[By, dict[str, str]]
"""The digests of a state's leaves by path, and what tells of them."""

_LOGGER = logging.getLogger("helios_fn")


@dataclasses.dataclass(frozen=True, eq=False)
class Evidence:
    """What is known of one run.

    Attributes:
        root: its folder.
        name: what the run is called.
        checkpoints: by iteration, those with a sound manifest; files are read when they are asked for.
        rows: of its JSONL logs, by kind and iteration.
        fingerprints: of the same logs, by iteration.
    """

    root: Path
    name: str
    checkpoints: dict[int, Checkpoint]
    rows: dict[tuple[str, int], Row]
    fingerprints: dict[int, Fingerprint]
    _read: dict[int, dict[str, str] | None] = dataclasses.field(default_factory=dict, repr=False)

    @property
    def newest(self) -> Checkpoint:
        """The checkpoint of the highest iteration."""
        return self.checkpoints[max(self.checkpoints)]

    @property
    def last(self) -> int:
        """The highest iteration of which anything is known."""
        return max([*self.checkpoints, *self.fingerprints, *(iteration for _, iteration in self.rows)])

    def at(self, iteration: int) -> Known | None:
        """The digests of the state's leaves after an iteration, and by what they are known; ``None`` if they are not.

        A checkpoint is read, and each byte of it checked; a damaged one is passed over with a warning.
        """
        if iteration in self.fingerprints:
            return "fingerprint", dict(self.fingerprints[iteration].state)
        if iteration not in self.checkpoints:
            return None
        if iteration not in self._read:
            self._read[iteration] = _digests(self.checkpoints[iteration])
        digests = self._read[iteration]
        return None if digests is None else ("checkpoint", digests)


def gather(root: Path | str, name: str | None = None) -> Evidence:
    """All that the folder of a run tells.

    Args:
        root: the folder.
        name: which run, where it holds several.

    Raises:
        CheckpointError: there is no checkpoint, or there are several runs and no ``name``.
    """
    root = Path(root).expanduser().absolute()
    folder = root / "checkpoints"
    if not folder.is_dir():
        raise CheckpointError(f"{root} is no root of a run: there is no folder checkpoints in it")
    found = [entry for _, entry in survey(OS, folder) if isinstance(entry, Checkpoint)]
    runs = sorted({entry.manifest.run for entry in found})
    if name is None and len(runs) > 1:
        raise CheckpointError(f"{root} holds the runs {', '.join(runs)}: say which one, name={runs[0]!r}")
    own = sorted(
        (entry for entry in found if name in (None, entry.manifest.run)),
        key=lambda entry: (entry.iteration, entry.micro_step, entry.path.name),
    )
    if not own:
        raise CheckpointError(f"there is no checkpoint {f'of run {name!r} ' if name else ''}in {folder}")
    rows, fingerprints = _logged(root, own[-1])
    return Evidence(root, own[-1].manifest.run, {entry.iteration: entry for entry in own}, rows, fingerprints)


def _logged(root: Path, newest: Checkpoint) -> tuple[dict[tuple[str, int], Row], dict[int, Fingerprint]]:
    rows: dict[tuple[str, int], Row] = {}
    fingerprints: dict[int, Fingerprint] = {}
    log_dir = newest.record.get("log_dir")
    folder = root / "logs" / Path(log_dir).name if isinstance(log_dir, str) else root / "logs"
    for path in sorted(folder.glob("*.jsonl")):
        try:
            lines = read_log(path)
        except ValueError as error:
            _LOGGER.warning("passing over a log: %s", error)
            continue
        for line in lines:
            if isinstance(line, Fingerprint):
                fingerprints[line.iteration] = line
            else:
                rows[line.kind, line.iteration] = line
    return rows, fingerprints


def _digests(checkpoint: Checkpoint) -> dict[str, str] | None:
    try:
        values = open_contents(checkpoint.path).values()
    except CheckpointError as error:
        _LOGGER.warning("passing over %s: %s", checkpoint.path, error)
        return None
    return {path: fingerprint(value)[""] for path, value in values.items()}
