"""The weights of a checkpoint as a plain safetensors file, for whoever knows nothing of this library."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file

from ..errors import CheckpointError
from ..patterns import Chooser
from .contents import SAFETENSORS_DTYPES, Contents, by_name, open_contents
from .files import OS, FileSystem, disk_errors
from .leaves import ShardedSpec, TensorSpec


class Exported(NamedTuple):
    """What was written: the tensors' names in the module, and their bytes."""

    names: tuple[str, ...]
    size: int


def export(
    checkpoint: Path | str,
    out: Path | str,
    *,
    averages: bool = False,
    module: str = "",
    ties: Mapping[str, str] | None = None,
    omit: Sequence[str] = (),
    files: FileSystem = OS,
) -> Exported:
    """Write parameters and buffers under the names that ``nn.Module.load_state_dict`` expects.

    The file is complete and durable, or not there. Reading the checkpoint checks each byte of it.

    Args:
        checkpoint: a checkpoint's folder.
        out: the file to make; its name ends in ``.safetensors``.
        averages: take the averaged parameters.
        module: the name of one module among several, as a key of ``params``; its tensors go by their
            names within it.
        ties: further names of tensors, new name to old: a state names a tied tensor once, a module's
            ``state_dict`` by each of its names.
        omit: patterns of names to leave out, such as buffers that are not persistent.

    Raises:
        ValueError: ``out`` exists or is named otherwise, the checkpoint has no such tensors, or two of a name.
        CheckpointError: the checkpoint is damaged, or the disk refused.
    """
    out = Path(out)
    if out.suffix != ".safetensors":
        raise ValueError(f"{out} must end in .safetensors, for that is what it will be")
    _refuse_to_overwrite(out)
    contents = open_contents(checkpoint)
    paths = _select(contents, "averages" if averages else "params", module, ties or {}, omit)
    values = contents.values(dict.fromkeys(paths.values(), torch.device("cpu")))
    # Copies where tensors share memory, which the format has no word for.
    tensors = {name: values[path].contiguous().clone() for name, path in paths.items()}
    unfinished = out.with_name(f".writing-{os.getpid()}-{out.name}")
    with disk_errors(f"write {out}"):
        try:
            _write(unfinished, tensors, files)
            _refuse_to_overwrite(out)
            files.rename(unfinished, out)
            files.sync_folder(out.resolve().parent)
        finally:
            with contextlib.suppress(OSError):
                files.remove(unfinished)
    return Exported(tuple(tensors), sum(tensor.numel() * tensor.element_size() for tensor in tensors.values()))


def _write(path: Path, tensors: Mapping[str, torch.Tensor], files: FileSystem) -> None:
    try:
        save_file(dict(tensors), path, metadata={"format": "pt"})
    except SafetensorError as error:
        raise CheckpointError(f"cannot write {path}: {error}") from error
    handle = files.open(path)
    try:
        files.sync(handle)
    finally:
        files.close(handle)


def _refuse_to_overwrite(out: Path) -> None:
    if os.path.lexists(out):
        raise ValueError(f"{out} exists: choose another name, or remove it yourself")


def _select(
    contents: Contents, params: str, module: str, ties: Mapping[str, str], omit: Sequence[str]
) -> dict[str, str]:
    """The path in the checkpoint for each name in the module."""
    found: dict[str, str] = {}
    specs = {path: leaf for path, leaf in contents.leaves().items() if isinstance(leaf, TensorSpec | ShardedSpec)}
    leaves = by_name(specs, f"in {contents.path}")
    if not any(name.startswith(f"{params}.") for name in leaves):
        raise ValueError(f"{contents.path} holds no {params}{_remedy(params, leaves)}")
    for field in (params, "buffers"):
        prefix = f"{field}.{module}." if module else f"{field}."
        for name, path in leaves.items():
            if name.startswith(prefix) and found.setdefault(name.removeprefix(prefix), path) != path:
                raise ValueError(f"{found[name.removeprefix(prefix)]} and {path} have the same name in the module")
    if not found:
        raise ValueError(f"{contents.path} has no module {module!r} in its {params}")
    left_out = Chooser(omit)
    for pattern in left_out.idle(found):
        raise ValueError(f"{pattern!r} matches no tensor; there are {', '.join(list(found)[:8])}")
    found = {name: path for name, path in found.items() if not (omit and left_out(name))}
    for name, path in found.items():
        if specs[path].dtype not in SAFETENSORS_DTYPES.values():
            raise ValueError(f"{name} is {specs[path]}, which a plain safetensors file cannot hold: omit it")
    for new, old in ties.items():
        if old not in found or new in found:
            raise ValueError(f"{new!r} cannot stand for {old!r}: {'it exists' if new in found else 'there is none'}")
        found[new] = found[old]
    return found


def _remedy(params: str, leaves: Mapping[str, str]) -> str:
    if params == "averages":
        return ": the run kept none (make_step(..., average=hf.ema(0.999)))"
    return f": it is not the state of a run; its leaves are {', '.join(list(leaves)[:4])}, ..."
