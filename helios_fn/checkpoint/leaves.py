"""Leaves as data: the scalars and dtypes that can be stored exactly, and how they are written."""

from __future__ import annotations

import math
import struct
from collections.abc import Callable
from typing import Any, NamedTuple

import torch

from ..errors import ResumeRefused
from ..types import Json

MAX_DIMENSIONS = 64
"""More than any operator takes."""

# fmt: off
_DTYPE_NAMES = (
    "bool",
    "uint8", "uint16", "uint32", "uint64",
    "int8", "int16", "int32", "int64",
    "bfloat16", "float16", "float32", "float64",
    "complex32", "complex64", "complex128",
    "float8_e4m3fn", "float8_e4m3fnuz", "float8_e5m2", "float8_e5m2fnuz", "float8_e8m0fnu",
    "float4_e2m1fn_x2",
)
# fmt: on

DTYPES: dict[str, torch.dtype] = {name: getattr(torch, name) for name in _DTYPE_NAMES if hasattr(torch, name)}
"""The dtypes that can be stored, by name: all dense ones that this version of torch knows."""

DTYPE_NAMES: dict[torch.dtype, str] = {dtype: name for name, dtype in DTYPES.items()}


def dtype_from_json(name: Json) -> str:
    """The name of a dtype, which exists here.

    Raises:
        ValueError: no dtype has this name.
        ResumeRefused: this version of torch lacks it.
    """
    if not isinstance(name, str) or name not in _DTYPE_NAMES:
        raise ValueError(f"unknown dtype {str(name)[:40]!r}")
    if name not in DTYPES:
        raise ResumeRefused(f"dtype {name} is unknown to torch {torch.__version__}; use a newer torch")
    return name


class TensorSpec(NamedTuple):
    """Where a tensor lives in its checkpoint.

    ``strides`` and ``offset`` count elements; ``storage`` numbers the stored ranges of bytes and is
    ``None`` for a tensor without elements.
    """

    dtype: str
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    storage: int | None
    offset: int

    def __str__(self) -> str:
        return f"{self.dtype}{list(self.shape)}"


class Scalar(NamedTuple):
    """A Python scalar of the named type."""

    type: str
    value: Any

    def __str__(self) -> str:
        return self.type


class Unknown(NamedTuple):
    """A leaf that is neither a tensor nor a scalar; it occurs in templates, never in checkpoints."""

    type: str

    def __str__(self) -> str:
        return self.type


class Piece(NamedTuple):
    """A block of a sharded tensor: entry ``entry`` of the shard file ``file``, from the element at ``offsets`` on."""

    file: int
    entry: int
    offsets: tuple[int, ...]
    sizes: tuple[int, ...]

    @property
    def numel(self) -> int:
        """The number of elements."""
        return math.prod(self.sizes)


class ShardedSpec(NamedTuple):
    """Where the pieces of a sharded tensor live in its checkpoint. They overlap nowhere, and together are the whole."""

    dtype: str
    shape: tuple[int, ...]
    pieces: tuple[Piece, ...]

    def __str__(self) -> str:
        return f"{self.dtype}{list(self.shape)}"


Leaf = TensorSpec | ShardedSpec | Scalar | Unknown


def _number_from(text: str) -> int:
    if not text.lstrip("-").startswith("0x"):
        raise ValueError(f"not a hexadecimal number: {text[:40]!r}")
    return int(text, 16)


def _int_to_json(value: int) -> Json:
    # Hexadecimal is linear in the number of digits; decimal is quadratic, and limited by Python.
    return value if abs(value) < 1 << 63 else hex(value)


def _int_from_json(value: Json) -> int:
    return _number_from(value) if isinstance(value, str) else _exactly(int, value)


def _float_to_json(value: float) -> Json:
    # Finite floats are exact in JSON; infinities and the bits of NaNs are not, so they go as bits.
    return value if math.isfinite(value) else struct.pack(">d", value).hex()


def _float_from_json(value: Json) -> float:
    if isinstance(value, str):
        bits = bytes.fromhex(value)
        if len(bits) != 8:
            raise ValueError("the bits of a float are 16 hexadecimal digits")
        return float(struct.unpack(">d", bits)[0])
    return float(_exactly(float, value))


def _complex_from_json(value: Json) -> complex:
    real, imag = _exactly(list, value)
    return complex(_float_from_json(real), _float_from_json(imag))


def _exactly(kind: type, value: Any) -> Any:
    if type(value) is not kind:
        raise ValueError(f"expected {kind.__name__}, got {type(value).__name__}")
    return value


class _Codec(NamedTuple):
    to_json: Callable[[Any], Json]
    from_json: Callable[[Json], Any]


_CODECS: dict[str, _Codec] = {
    "bool": _Codec(lambda value: value, lambda value: _exactly(bool, value)),
    "int": _Codec(_int_to_json, _int_from_json),
    "float": _Codec(_float_to_json, _float_from_json),
    "complex": _Codec(lambda value: [_float_to_json(value.real), _float_to_json(value.imag)], _complex_from_json),
    "str": _Codec(lambda value: value, lambda value: _exactly(str, value)),
}

SCALARS: tuple[type, ...] = (bool, int, float, complex, str)
"""The exact types of scalars; their subclasses would come back as something else."""


def is_text(value: str) -> bool:
    """Whether a string is Unicode text; one with unpaired surrogates would come back as another."""
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


def scalar_to_json(scalar: Scalar) -> Json:
    """A scalar as JSON, every bit kept."""
    return _CODECS[scalar.type].to_json(scalar.value)


def scalar_from_json(kind: str, value: Json) -> Scalar:
    """The inverse of `scalar_to_json`.

    Raises:
        ValueError: no scalar is written like that.
    """
    if kind not in _CODECS:
        raise ValueError(f"unknown kind of node {kind[:40]!r}")
    return Scalar(kind, _CODECS[kind].from_json(value))


def count_from_json(data: Json) -> int:
    """A number of elements, or the like.

    Raises:
        ValueError: something else.
    """
    if type(data) is not int or not 0 <= data < 1 << 62:
        raise ValueError("sizes must be whole numbers")
    return data


def sizes_from_json(data: Json) -> tuple[int, ...]:
    """A shape, strides or the like.

    Raises:
        ValueError: something else.
    """
    if not isinstance(data, list) or len(data) > MAX_DIMENSIONS:
        raise ValueError("sizes must be a list, and not a long one")
    return tuple([count_from_json(size) for size in data])


def sharded_to_json(spec: ShardedSpec) -> Json:
    """A sharded tensor's description as JSON."""
    pieces: list[Json] = [[piece.file, piece.entry, [*piece.offsets], [*piece.sizes]] for piece in spec.pieces]
    return {"kind": "sharded", "dtype": spec.dtype, "shape": [*spec.shape], "pieces": pieces}


def sharded_from_json(data: dict[str, Json]) -> ShardedSpec:
    """The inverse of `sharded_to_json`.

    Raises:
        ValueError: no sharded tensor is written like that, or the pieces are not the whole.
        ResumeRefused: it has a dtype that this version of torch lacks.
    """
    shape, pieces = sizes_from_json(data["shape"]), data["pieces"]
    if not isinstance(pieces, list):
        raise ValueError("a sharded tensor without pieces")
    spec = ShardedSpec(dtype_from_json(data["dtype"]), shape, tuple(map(_piece_from_json, pieces)))
    if sum(piece.numel for piece in spec.pieces) != math.prod(shape):
        raise ValueError("the pieces of a sharded tensor are not the whole")
    if len({piece.offsets for piece in spec.pieces}) != len(spec.pieces):
        raise ValueError("two pieces of a sharded tensor begin at one place")
    for piece in spec.pieces:
        inside = len(piece.offsets) == len(piece.sizes) == len(shape) and piece.numel > 0
        ends = zip(piece.offsets, piece.sizes, shape, strict=True) if inside else ()
        if not inside or any(offset + size > whole for offset, size, whole in ends):
            raise ValueError("a piece of a sharded tensor lies outside of it")
    return spec


def _piece_from_json(data: Json) -> Piece:
    if not isinstance(data, list) or len(data) != 4:
        raise ValueError("a piece without file, entry, offsets and sizes")
    file, entry, offsets, sizes = data
    return Piece(count_from_json(file), count_from_json(entry), sizes_from_json(offsets), sizes_from_json(sizes))
