"""Checkpoints of older formats made into new ones of the present format, step by step.

Each step is a pure function from the documents of one format to those of the next. The old checkpoints are only
read: they stay valid for the version that wrote them.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from ..errors import CheckpointError, ResumeRefused
from ..types import Json
from . import canonical, format, manifest
from .checksum import Checksums
from .files import OS, PIECE, FileSystem, disk_errors, make_folders, open_file, read_exactly, read_file, remove_folder
from .lock import Lock
from .names import UNFINISHED
from .snapshot import MAX_STATE_SIZE, STATE, TENSORS

Pieces = Iterator[bytes | memoryview]


class Documents(NamedTuple):
    """The JSON of a checkpoint.

    Attributes:
        manifest: the fields of ``manifest.json`` without ``format``, ``digest`` and ``files``, which say how the
            files are written and not what they mean.
        state: the content of ``state.json``.
    """

    manifest: Mapping[str, Json]
    state: Json


class Step(NamedTuple):
    """From one format to the next.

    Attributes:
        change: makes the new documents; changes nothing in its argument.
        tensors: makes the bytes of the new tensor file, given the old documents and the old bytes.
    """

    change: Callable[[Documents], Documents] = lambda documents: documents
    tensors: Callable[[Documents, Pieces], Pieces] = lambda _, pieces: pieces


STEPS: Mapping[int, Step] = {
    1: Step(),  # the documents are the same: one SHA-256 for each file became checksums of its chunks
}
"""The steps to the next format, by the format that they start from."""


class Migrated(NamedTuple):
    """What became of a checkpoint: ``new`` is where it is now, or ``None``, and then ``problem`` says why."""

    old: Path
    new: Path | None
    format: int
    problem: str = ""


def migrate(root: Path | str, into: Path | str | None = None, *, files: FileSystem = OS) -> list[Migrated]:
    """Write all checkpoints of a root in the present format, as the checkpoints of another root, and verify them.

    Nothing in ``root`` is changed. To go on from the new checkpoints, name the new root in the run's configuration.
    It has all that a resume needs but the logs, which start anew, with a warning. Checkpoints that are in the
    present format already are written as well, so that the new root has the newest of all; those in ``superseded``
    and ``damaged`` are not. What an earlier, interrupted call has written is kept.

    Args:
        root: the folder of runs that has the folder ``checkpoints``; or a single checkpoint.
        into: the new root; by default it lies beside the old one, as ``<root>-migrated``.
        files: the file system, replaced in tests.

    Returns:
        One entry for each checkpoint found, by name; none if there is none of an older format, and then nothing
        was written. A damaged one has no new path.

    Raises:
        CheckpointError: there are no checkpoints, or the disk refused.
        ResumeRefused: one is of a newer format than this version of helios_fn knows.
        RootLocked: a run is using the new root.
    """
    given = Path(root).resolve()
    with disk_errors(f"migrate {given}"):
        folders, home = _folders(files, given)
        found = [(folder, *_format_of(files, folder)) for folder in folders]
        if all(number in (0, manifest.FORMAT, manifest.SHARDED_FORMAT) for _, number, _ in found):
            return []
        target = home.with_name(f"{home.name}-migrated") if into is None else Path(into).resolve()
        if target == home:
            raise CheckpointError(f"{target} is where the old checkpoints are, which stay as they are; choose another")
        make_folders(files, target / "checkpoints")
        with Lock(target / "lock"):
            return [_migrate(files, folder, number, target, problem) for folder, number, problem in found]


def upgrade(documents: Documents, start: int, stop: int, steps: Mapping[int, Step] = STEPS) -> Documents:
    """The documents of format ``start`` in format ``stop``."""
    for number in range(start, stop):
        documents = steps[number].change(documents)
    return documents


def _folders(files: FileSystem, given: Path) -> tuple[list[Path], Path]:
    """The checkpoints meant, and the root that they belong to."""
    if not files.is_folder(given):
        raise CheckpointError(f"{given} is not a folder")
    if manifest.FILE_NAME in files.listdir(given):
        return [given], given.parent.parent if given.parent.name == "checkpoints" else given.parent
    home = given / "checkpoints"
    names = files.listdir(home) if files.is_folder(home) else []
    folders = [home / name for name in names if not name.startswith(".") and files.is_folder(home / name)]
    if not folders:
        raise CheckpointError(f"there are no checkpoints in {home}; name the root of a run, or one checkpoint")
    return folders, given


def _format_of(files: FileSystem, folder: Path) -> tuple[int, str]:
    """The format of a checkpoint; 0 where the manifest is damaged, with the reason."""
    try:
        data = read_file(files, folder / manifest.FILE_NAME, manifest.MAX_SIZE)
        number, body = manifest.parse(data)
        if number > manifest.SHARDED_FORMAT:
            raise manifest.refusal(number, body, folder)
        return number, "it is sharded and needs no migration: copy it" if number == manifest.SHARDED_FORMAT else ""
    except ResumeRefused:
        raise
    except CheckpointError as error:
        return 0, f"{folder}: {error}"


def _migrate(files: FileSystem, old: Path, number: int, target: Path, problem: str) -> Migrated:
    if problem:
        return Migrated(old, None, number, problem)
    new = target / "checkpoints" / old.name
    unfinished = new.with_name(UNFINISHED + new.name)
    present = files.listdir(new.parent)
    try:
        if new.name in present:  # of an earlier call
            format.verify(new, files=files)
            return Migrated(old, new, number)
        if unfinished.name in present:
            remove_folder(files, unfinished)
        try:
            _write(files, old, unfinished)
            format.verify(unfinished, files=files)
        except BaseException:
            with contextlib.suppress(OSError):
                remove_folder(files, unfinished)
            raise
    except CheckpointError as error:
        return Migrated(old, None, number, str(error))
    files.rename(unfinished, new)
    files.sync_folder(new.parent)
    return Migrated(old, new, number)


def _write(files: FileSystem, old: Path, new: Path) -> None:
    number, body = manifest.parse(read_file(files, old / manifest.FILE_NAME, manifest.MAX_SIZE))
    try:
        expected = _files_of(number, body)
        if expected[STATE].size > MAX_STATE_SIZE:
            raise ValueError(f"{STATE} is said to have {expected[STATE].size} bytes")
    except ValueError as error:
        raise CheckpointError(f"{old / manifest.FILE_NAME} is damaged: {error}") from error
    state = b"".join(_pieces(files, old / STATE, number, expected[STATE]))
    fields = {name: value for name, value in body.items() if name != "files"}
    try:
        before = Documents(fields, canonical.parse(state))
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{old / STATE} is damaged: {error}") from error
    pieces: Pieces = _pieces(files, old / TENSORS, number, expected[TENSORS])
    for step in range(number, manifest.FORMAT):
        pieces = STEPS[step].tensors(upgrade(before, number, step), pieces)
    after = upgrade(before, number, manifest.FORMAT)
    try:
        description = manifest.from_body({**after.manifest, "files": {}})
    except ValueError as error:
        raise CheckpointError(f"{old / manifest.FILE_NAME} is damaged: {error}") from error
    contents: dict[str, Iterable[bytes | memoryview]] = {TENSORS: pieces, STATE: [canonical.dump(after.state)]}
    format.write_files(files, new, contents, description)


def _pieces(files: FileSystem, path: Path, number: int, expected: _Expected) -> Pieces:
    """The bytes of a file; whether they are right is known at the end."""
    update, result = _summing(number)
    with open_file(files, path) as handle:
        found = files.size(handle)
        if found != expected.size:
            raise CheckpointError(f"{path} is damaged: it has {found} bytes instead of {expected.size}")
        for start in range(0, found, PIECE):
            piece = memoryview(bytearray(min(PIECE, found - start)))
            read_exactly(files, handle, piece, path, start)
            update(piece)
            yield piece
    if result() != expected.sums:
        raise CheckpointError(f"{path} is damaged: its digest differs from the manifest's")


def _summing(number: int) -> tuple[Callable[[memoryview], None], Callable[[], Any]]:
    """How the files of a format are summed: where the bytes go, and what comes out."""
    if number == 1:
        hasher = hashlib.sha256()
        return hasher.update, hasher.hexdigest
    checksums = Checksums()
    return checksums.update, lambda: checksums.entry().chunks


class _Expected(NamedTuple):
    """What a manifest says of a file."""

    size: int
    sums: Any


def _files_of(number: int, body: Mapping[str, Json]) -> dict[str, _Expected]:
    if number == 1:
        entries = body.get("files")
        found = {name: _file_of_format_1(each) for name, each in entries.items()} if isinstance(entries, dict) else {}
    else:
        found = {name: _Expected(*entry) for name, entry in manifest.from_body(body).files.items()}
    if found.keys() != {TENSORS, STATE}:
        raise ValueError("it does not list the files of a checkpoint")
    return found


def _file_of_format_1(entry: Json) -> _Expected:
    if not isinstance(entry, dict) or entry.keys() != {"size", "sha256"}:
        raise ValueError("a file without size and digest")
    size = entry["size"]
    if type(size) is not int or not 0 <= size < 1 << 63:
        raise ValueError("a file's size is not a count")
    return _Expected(size, entry["sha256"])
