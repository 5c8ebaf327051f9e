"""The files that hold the pieces of sharded tensors: their names, their entries, and what must fit what in them."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable
from typing import NamedTuple

from ..types import Json
from .header import Entry, entry_from_json
from .leaves import DTYPES, Leaf, ShardedSpec

_NAME = re.compile(r"shards-\d{5,9}-of-\d{5,9}\.safetensors", re.ASCII)


class ShardFile(NamedTuple):
    """A shard file and its entries in order."""

    name: str
    entries: tuple[Entry, ...]


def shard_file_name(rank: int, world: int) -> str:
    """The file that process ``rank`` of ``world`` writes."""
    return f"shards-{rank:05d}-of-{world:05d}.safetensors"


def is_shard_file(name: str) -> bool:
    """Whether a file has the name of a shard file."""
    return _NAME.fullmatch(name) is not None


def shard_files_to_json(shards: Iterable[ShardFile]) -> Json:
    """Shard files as JSON."""
    return [[shard.name, [[name, dtype, [*shape]] for name, dtype, shape in shard.entries]] for shard in shards]


def shard_files_from_json(data: Json) -> tuple[ShardFile, ...]:
    """The inverse of `shard_files_to_json`, trusting nothing.

    Raises:
        ValueError: no shard files are written like that.
    """
    if not isinstance(data, list) or not data:
        raise ValueError("shard files that are none")
    found = []
    for item in data:
        if not isinstance(item, list) or len(item) != 2 or not isinstance(item[1], list):
            raise ValueError("a shard file without name and entries")
        name = item[0]
        if not isinstance(name, str) or not is_shard_file(name):
            raise ValueError("a shard file with a bad name")
        entries = tuple(entry_from_json(entry) for entry in item[1])
        if len({entry.name for entry in entries}) != len(entries):
            raise ValueError("two entries of one name")
        found.append(ShardFile(name, entries))
    return tuple(found)


def check_pieces(leaves: Iterable[Leaf], shards: tuple[ShardFile, ...], files: Collection[str]) -> None:
    """Check that each entry of the shard files is one piece of one leaf, and that the manifest lists these files.

    Raises:
        ValueError: it is otherwise.
    """
    sizes = {(f, e): entry.size for f, shard in enumerate(shards) for e, entry in enumerate(shard.entries)}
    for leaf in leaves:
        if isinstance(leaf, ShardedSpec):
            for piece in leaf.pieces:
                if sizes.pop((piece.file, piece.entry), None) != piece.numel * DTYPES[leaf.dtype].itemsize:
                    raise ValueError(f"a piece of {leaf} has no place of its own, or one of another size")
    if sizes:
        raise ValueError("a shard file holds what no leaf refers to")
    if sorted(shard.name for shard in shards) != sorted(filter(is_shard_file, files)):
        raise ValueError("the shard files are not those of the manifest")
