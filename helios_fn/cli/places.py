"""What a path on the command line means: a checkpoint, a plain file of weights, or the root of runs."""

from __future__ import annotations

import argparse
from pathlib import Path

from ..checkpoint import OS, Checkpoint
from ..checkpoint.listing import survey
from ..checkpoint.manifest import FILE_NAME
from ..checkpoint.names import is_checkpoint_name
from ..errors import CheckpointError

Found = tuple[Path, Checkpoint | CheckpointError]


def existing(text: str) -> Path:
    """A path to something."""
    path = Path(text).expanduser()
    if not path.exists():
        raise argparse.ArgumentTypeError(f"{text} does not exist")
    return path


def root(text: str) -> Path:
    """The folder of a run, or the ``checkpoints`` in it: the former in any case."""
    path = existing(text)
    if (path / "checkpoints").is_dir():
        return path
    if path.resolve().name == "checkpoints" and not (path / FILE_NAME).exists():
        return path.resolve().parent
    raise argparse.ArgumentTypeError(f"{text} is no root: there is no folder checkpoints in it")


def place(text: str) -> Path:
    """A checkpoint, a safetensors file, or a root."""
    path = existing(text)
    if is_checkpoint(path) or path.suffix == ".safetensors":
        return path
    try:
        return root(text)
    except argparse.ArgumentTypeError:
        raise argparse.ArgumentTypeError(
            f"{text} is neither a checkpoint (it has no {FILE_NAME}) nor a root (it has no folder checkpoints)"
        ) from None


def single(text: str) -> Path:
    """One checkpoint or file: of a root, the newest checkpoint."""
    path = place(text)
    return path if is_checkpoint(path) or path.suffix == ".safetensors" else newest(path)


def is_checkpoint(path: Path) -> bool:
    """Whether a folder is meant to be a checkpoint, sound or not."""
    named_so = path.is_dir() and is_checkpoint_name(path.resolve().name) and not (path / "checkpoints").is_dir()
    return named_so or (path / FILE_NAME).exists()


def found_in(path: Path) -> list[Found]:
    """All checkpoints in a root, damaged ones included, run by run and oldest first."""

    def order(found: Found) -> tuple[str, int, int, str]:
        path, entry = found
        if isinstance(entry, Checkpoint):
            return entry.manifest.run, entry.iteration, entry.micro_step, path.name
        return "\uffff", 0, 0, path.name  # after all others: nobody knows when

    return sorted(survey(OS, path.resolve() / "checkpoints"), key=order)


def newest(path: Path) -> Path:
    """The newest checkpoint in a root.

    Raises:
        CheckpointError: there is none, there are several runs, or one is damaged and may be the newest.
    """
    found = found_in(path)
    for _, entry in found:
        if isinstance(entry, CheckpointError):
            raise CheckpointError(f"{entry}; name the checkpoint that you mean instead of its root")
    entries = [entry for _, entry in found if isinstance(entry, Checkpoint)]
    runs = sorted({entry.manifest.run for entry in entries})
    if not entries:
        raise CheckpointError(f"there is no checkpoint in {path}")
    if len(runs) > 1:
        raise CheckpointError(f"{path} holds the runs {', '.join(runs)}: name the checkpoint that you mean")
    return entries[-1].path
