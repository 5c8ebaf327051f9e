"""The manifest of a checkpoint: what it is, what its files hold, and how to tell that it is whole."""

from __future__ import annotations

import functools
import hashlib
import importlib.metadata
import platform
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy
import torch

from ..errors import CheckpointError, ResumeRefused
from ..types import Json
from . import canonical
from .checksum import CHUNK, FileEntry

FORMAT = 2
SHARDED_FORMAT = 3
"""That of checkpoints with more files than one for tensors and one for the state; else it is the same."""
FILE_NAME = "manifest.json"
MAX_SIZE = 16 << 20
_INDENT = 1
_CHECKSUM = re.compile(r"[0-9a-f]{32}")


class Manifest(NamedTuple):
    """What a checkpoint says about itself.

    Attributes:
        run: the name of the run that wrote it.
        epoch: completed epochs.
        iteration: completed calls of ``step``.
        micro_step: consumed micro-batches; Helios' ``global_iteration``.
        metadata: the last part of the folder's name.
        files: the other files, by name.
        versions: the libraries that wrote it.
        record: whatever the caller wanted to be kept; any JSON object.
    """

    run: str
    epoch: int
    iteration: int
    micro_step: int
    metadata: str
    files: dict[str, FileEntry]
    versions: dict[str, str]
    record: dict[str, Json]


@functools.cache
def _own_version() -> str:
    try:
        return importlib.metadata.version("helios_fn")
    except importlib.metadata.PackageNotFoundError:  # a source tree that is not installed
        return "unknown"


def versions() -> dict[str, str]:
    """The versions of the libraries in this process."""
    return {
        "helios_fn": _own_version(),
        "torch": str(torch.__version__),
        "numpy": numpy.__version__,
        "python": platform.python_version(),
    }


def encode(manifest: Manifest) -> bytes:
    """The bytes of the manifest file; `decode` accepts them.

    Raises:
        TypeError: the record is not made of JSON values.
        ValueError: the record is too large or nested too deeply, or a count is negative.
    """
    return _encoded(manifest)[0]


def owned(manifest: Manifest) -> Manifest:
    """The manifest that `decode` makes of what `encode` writes, with a record of its own.

    Raises:
        TypeError, ValueError: as `encode` does.
    """
    body = _encoded(manifest)[1]
    return from_body({name: body[name] for name in Manifest._fields})


def _encoded(manifest: Manifest) -> tuple[bytes, dict[str, Any]]:
    """The bytes, and what is read from them."""
    body: dict[str, Any] = manifest._asdict() | {"format": SHARDED_FORMAT if len(manifest.files) > 2 else FORMAT}
    body["files"] = {name: entry._asdict() for name, entry in manifest.files.items()}
    _check_counts(body)
    try:
        data = canonical.dump(body | {"digest": _digest(body)}, indent=_INDENT)
        found: Any = canonical.parse(data, indent=_INDENT)
    except (TypeError, ValueError) as error:
        raise type(error)(f"record cannot be stored as JSON: {error}") from error
    if len(data) > MAX_SIZE:
        raise ValueError(f"record makes a manifest of {len(data)} bytes; at most {MAX_SIZE} are possible")
    return data, found


def decode(data: bytes, folder: Path = Path("<root>", "checkpoints", "<name>")) -> Manifest:
    """Make a manifest of the bytes of its file; ``folder`` is where that lies, for messages.

    A change of any bit of them is noticed.

    Raises:
        CheckpointError: the bytes are not those that `encode` wrote.
        ResumeRefused: they were written in another version of the format.
    """
    found, body = parse(data)
    files = body.get("files")
    if found != (SHARDED_FORMAT if isinstance(files, dict) and len(files) > 2 else FORMAT):
        raise refusal(found, body, folder)
    try:
        return from_body(body)
    except ValueError as error:
        raise CheckpointError(f"{FILE_NAME} is damaged: {error}") from error


def parse(data: bytes) -> tuple[int, dict[str, Json]]:
    """The format of a manifest and its fields, whatever the format; they are as they were written, no more.

    Raises:
        CheckpointError: the bytes are no manifest, or were changed since.
    """
    try:
        body = canonical.parse(data, indent=_INDENT)
        if not isinstance(body, dict):
            raise ValueError("not an object")
        digest = body.pop("digest", None)
        if digest != _digest(body):
            raise ValueError("its digest differs from its content")
        found = body.pop("format", None)
        if type(found) is not int or found < 1:
            raise ValueError(f"its format is {str(found)[:40]}")
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{FILE_NAME} is damaged: {error}") from error
    return found, body


def refusal(found: int, body: Mapping[str, Json], folder: Path) -> ResumeRefused:
    """Why a checkpoint in another format cannot be used, and what to do."""
    wrote = body.get("versions")
    writer = str(wrote.get("helios_fn", "unknown"))[:40] if isinstance(wrote, dict) else "unknown"
    facts = (
        f"{folder} is in format {str(found)[:40]}, written by helios_fn {writer}; "
        f"helios_fn {versions()['helios_fn']} reads format {FORMAT}"
    )
    if found > FORMAT:
        return ResumeRefused(f"{facts}: use the version that wrote it, or a newer one")
    return ResumeRefused(
        f"{facts}: write it anew with `python -m helios_fn migrate {folder.parent.parent}`, and use the new root"
    )


def from_body(body: Mapping[str, Json]) -> Manifest:
    """A manifest from the fields of the present format, trusting nothing.

    Raises:
        ValueError: no manifest has such fields.
    """
    if body.keys() != set(Manifest._fields):
        raise ValueError(f"its fields are {', '.join(sorted(body))}"[:400])
    _check_counts(body)
    for name, kind in {"run": str, "metadata": str, "files": dict, "versions": dict, "record": dict}.items():
        if type(body[name]) is not kind:
            raise ValueError(f"{name} is not a {kind.__name__}")
    fields: dict[str, Any] = dict(body)
    return Manifest(**fields | {"files": {name: _file_entry(entry) for name, entry in fields["files"].items()}})


def _digest(body: dict[str, Any]) -> str:
    return hashlib.sha256(canonical.dump(body)).hexdigest()


def _check_counts(body: Mapping[str, Any]) -> None:
    for name in ("epoch", "iteration", "micro_step"):
        if type(body[name]) is not int or not 0 <= body[name] < 1 << 63:
            raise ValueError(f"{name} must be a whole number of at least 0, got {str(body[name])[:40]}")


def _file_entry(entry: Any) -> FileEntry:
    if not isinstance(entry, dict) or entry.keys() != {"size", "chunks"}:
        raise ValueError("a file without size and checksums")
    size, chunks = entry["size"], entry["chunks"]
    if type(size) is not int or not 0 <= size < 1 << 63:
        raise ValueError("a file's size is not a count")
    if not isinstance(chunks, list) or len(chunks) != -(-size // CHUNK):
        raise ValueError("a file's checksums do not fit its size")
    if not all(isinstance(chunk, str) and _CHECKSUM.fullmatch(chunk) for chunk in chunks):
        raise ValueError("a file's checksum is not one")
    return FileEntry(size, tuple(chunks))
