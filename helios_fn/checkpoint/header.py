"""The header of a [safetensors](https://github.com/huggingface/safetensors) file, as a function of its entries.

A reader that knows the entries compares the header with the one expected, and so never parses it.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Sequence
from typing import NamedTuple

from ..types import Json
from .leaves import sizes_from_json

_SIZES = {
    "BOOL": 1,
    "U8": 1,
    "I8": 1,
    "U16": 2,
    "I16": 2,
    "F16": 2,
    "BF16": 2,
    "U32": 4,
    "I32": 4,
    "F32": 4,
    "U64": 8,
    "I64": 8,
    "F64": 8,
}
_NAMES = {"bool": "BOOL", "bfloat16": "BF16"}


class Entry(NamedTuple):
    """One array of the file: row-major, of a dtype in the format's own spelling."""

    name: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def size(self) -> int:
        """The number of bytes."""
        return math.prod(self.shape) * _SIZES[self.dtype]


def dtype_name(dtype: str) -> str | None:
    """The format's spelling of a torch dtype (``"float32"``), where every reader knows it."""
    name = _NAMES.get(dtype) or dtype.replace("uint", "U").replace("int", "I").replace("float", "F")
    return name if name in _SIZES else None


def entry_from_json(data: Json) -> Entry:
    """An entry from the list of its fields, trusting nothing.

    Raises:
        ValueError: no entry is written like that.
    """
    if not isinstance(data, list) or len(data) != 3:
        raise ValueError("an entry without name, dtype and shape")
    name, dtype, shape = data
    if not isinstance(name, str) or name == "__metadata__" or not isinstance(dtype, str) or dtype not in _SIZES:
        raise ValueError("an entry with a bad name or dtype")
    return Entry(name, dtype, sizes_from_json(shape))


def encode(entries: Sequence[Entry]) -> bytes:
    """All bytes before the arrays, which follow without gaps in the order of ``entries``."""
    table: dict[str, object] = {"__metadata__": {"format": "pt"}}
    start = 0
    for entry in entries:
        stop = start + entry.size
        table[entry.name] = {"dtype": entry.dtype, "shape": entry.shape, "data_offsets": (start, stop)}
        start = stop
    text = json.dumps(table, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text
