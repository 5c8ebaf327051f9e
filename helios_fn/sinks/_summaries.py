"""What TensorBoard shows beside scalars, as its protocol buffers: histograms, images, texts, hyperparameters."""

from __future__ import annotations

import math
import re
import struct
import zlib
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch

from .. import tree
from ..dtensors import local
from ..types import RunInfo, Scalar

_BUCKETS = 64
_KEY = re.compile(r"\[(['\"]?)(.*?)\1\]")  # of a path such as ['0.weight'] or [0]
_COLOURS = {1: 0, 3: 2, 4: 6}  # PNG's colour types by channels: grey, RGB, RGBA


def histograms(name: str, values: Any) -> Iterator[Any]:
    """One histogram ``name/path`` per leaf of a tree; leaves that are no tensors, and those without a finite element,
    have none. Of a sharded leaf only the part of this process counts."""
    from tensorboard.compat.proto.summary_pb2 import HistogramProto, Summary

    for path, leaf in tree.items(values):
        found = _histogram(leaf) if isinstance(leaf, torch.Tensor) else None
        if found is not None:
            place = _KEY.sub(r".\2", path).lstrip(".")
            yield Summary.Value(tag=f"{name}/{place}" if place else name, histo=HistogramProto(**found))


def image(name: str, values: Any) -> Any:
    """A batch of images as one picture.

    Raises:
        ValueError: ``values`` are not images, see `picture`.
    """
    from tensorboard.compat.proto.summary_pb2 import Summary

    pixels = picture(name, values)
    height, width, channels = pixels.shape
    shown = Summary.Image(height=height, width=width, colorspace=channels, encoded_image_string=png(pixels))
    return Summary.Value(tag=name, image=shown)


def text(name: str, content: str) -> Any:
    """A text in Markdown."""
    from tensorboard.compat.proto.summary_pb2 import Summary
    from tensorboard.compat.proto.tensor_pb2 import TensorProto
    from tensorboard.compat.proto.tensor_shape_pb2 import TensorShapeProto
    from tensorboard.compat.proto.types_pb2 import DT_STRING

    shape = TensorShapeProto(dim=[TensorShapeProto.Dim(size=1)])
    tensor = TensorProto(dtype=DT_STRING, string_val=[content.encode("utf-8", "backslashreplace")], tensor_shape=shape)
    return Summary.Value(tag=f"{name}/text_summary", tensor=tensor, metadata=_metadata("text"))


def hyperparameters(values: Mapping[str, Scalar | str], run: str, begun: float) -> Any:
    """The row of a run in the table of hyperparameters; its metrics there are the last scalars."""
    from tensorboard.compat.proto.summary_pb2 import Summary
    from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData, SessionStartInfo

    start = SessionStartInfo(group_name=run, start_time_secs=begun)
    for name, value in values.items():
        if isinstance(value, bool):
            start.hparams[name].bool_value = value
        elif isinstance(value, str):
            start.hparams[name].string_value = value
        else:
            start.hparams[name].number_value = value
    content = HParamsPluginData(session_start_info=start, version=0).SerializeToString()
    return Summary.Value(tag="_hparams_/session_start_info", metadata=_metadata("hparams", content))


def run_as_text(info: RunInfo) -> str:
    """What a run is told to do, as a table; without anything that depends on where it goes on."""
    facts = {
        "name": info.name,
        "total": f"{info.total} {info.unit}s",
        "micro-batches per iteration": info.micro_batches,
        "batches per epoch": "unknown (a stream)" if info.batches_per_epoch is None else info.batches_per_epoch,
        "processes": info.processes,
    }
    return "\n".join(["| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in facts.items())])


def picture(name: str, values: Any) -> np.ndarray:
    """Images side by side, in rows of equal length: uint8 of shape (height, width, channels).

    Raises:
        ValueError: ``values`` are not uint8, or floats from 0 to 1, of shape (images, 1 or 3 or 4, height, width).
    """
    batch = torch.as_tensor(values).detach().cpu()
    if batch.dim() != 4 or batch.size(1) not in _COLOURS or batch.numel() == 0:
        raise ValueError(
            f"images[{name!r}] returned {tree.describe(batch)}: the shape must be (images, channels, height, width), "
            "with 1, 3 or 4 channels"
        )
    if batch.is_floating_point():
        if not bool(((batch >= 0) & (batch <= 1)).all()):
            low, high = float(batch.min()), float(batch.max())
            raise ValueError(f"images[{name!r}] returned floats from {low:.4g} to {high:.4g}: they must be from 0 to 1")
        batch = (batch.float() * 255).round().to(torch.uint8)
    if batch.dtype != torch.uint8:
        raise ValueError(f"images[{name!r}] returned {batch.dtype}: it must be uint8, or floats from 0 to 1")
    return _side_by_side(batch.permute(0, 2, 3, 1).numpy())


def png(pixels: np.ndarray) -> bytes:
    """A picture, uint8 of shape (height, width, channels), in the [PNG format](https://www.w3.org/TR/png-3/)."""
    height, width, channels = pixels.shape
    lines = np.zeros((height, 1 + width * channels), np.uint8)  # each begins with its filter: none
    lines[:, 1:] = pixels.reshape(height, -1)
    header = struct.pack(">IIBBBBB", width, height, 8, _COLOURS[channels], 0, 0, 0)
    parts = [(b"IHDR", header), (b"IDAT", zlib.compress(lines.tobytes())), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(_chunk(kind, data) for kind, data in parts)


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def _side_by_side(images: np.ndarray) -> np.ndarray:
    count, height, width, channels = images.shape
    columns = math.ceil(math.sqrt(count))
    rows = math.ceil(count / columns)
    sheet = np.zeros((rows * (height + 1) - 1, columns * (width + 1) - 1, channels), np.uint8)
    for at, each in enumerate(images):
        top, left = at // columns * (height + 1), at % columns * (width + 1)
        sheet[top : top + height, left : left + width] = each
    return sheet


def _histogram(leaf: torch.Tensor) -> dict[str, Any] | None:
    # On the CPU: the kernels that count on accelerators are not deterministic, which some people forbid.
    flat = local(leaf).detach().cpu().reshape(-1)
    values = (flat.abs() if flat.is_complex() else flat).to(torch.float64).numpy()
    values = values[np.isfinite(values)]
    if not values.size:
        return None
    low, high = float(values.min()), float(values.max())
    span = high / 2 - low / 2  # halves do not overflow
    places = (values / 2 - low / 2) / (span or 1.0) * _BUCKETS
    counts = np.bincount(np.minimum(places.astype(np.int64), _BUCKETS - 1), minlength=_BUCKETS)
    limits = np.minimum(low + 2 * (span * np.arange(1, _BUCKETS + 1) / _BUCKETS), high)
    limits[-1] = high
    with np.errstate(over="ignore"):
        squares = float(np.square(values).sum())
    sums = {"num": float(values.size), "sum": float(values.sum()), "sum_squares": squares}
    return {"min": low, "max": high, **sums, "bucket_limit": limits.tolist(), "bucket": counts.tolist()}


def _metadata(plugin: str, content: bytes = b"") -> Any:
    from tensorboard.compat.proto.summary_pb2 import SummaryMetadata

    return SummaryMetadata(plugin_data=SummaryMetadata.PluginData(plugin_name=plugin, content=content))
