"""Datasets that are tensors in memory: a batch is a selection of rows, not a list of samples."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeAlias

import numpy as np
import torch
from torch.utils.data import Subset, TensorDataset

from .permutation import Indices

Empty: TypeAlias = Callable[[Sequence[int], torch.dtype], torch.Tensor]
Select: TypeAlias = Callable[[Indices, Empty | None], Any]
"""``select(indices, empty)``: the batch of the samples; large tensors are made by ``empty``, if given."""


class Table:
    """A dict of tensors or arrays of equal length as a dataset: sample i is the dict of the rows i.

    Raises:
        TypeError: a name is not a string, or a column is neither a tensor nor a numeric array.
        ValueError: there is no column, or they differ in length.
    """

    def __init__(self, columns: dict[str, Any]) -> None:
        self.columns = {name: _column(name, column) for name, column in columns.items()}
        lengths = {name: len(column) for name, column in self.columns.items()}
        if len({*lengths.values()}) != 1:
            raise ValueError(f"a dict of columns needs columns of equal length, got {lengths}")

    def __len__(self) -> int:
        return len(next(iter(self.columns.values())))

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        return {name: column[index] for name, column in self.columns.items()}


def select_from(dataset: Any) -> Select | None:
    """How to select batches from a dataset of tensors; ``None`` for others.

    Law: what is selected is what collating the samples one by one would give. Only types that are known are
    taken, since a class of one's own may do anything.
    """
    kind = type(dataset)
    if kind is Subset:
        inner = select_from(dataset.dataset)
        return None if inner is None else _subset(inner, dataset.indices, len(dataset.dataset))
    if kind is TensorDataset:
        return _rows(dataset.tensors)
    if kind is Table:
        rows = _rows(dataset.columns.values())
        return lambda indices, empty: dict(zip(dataset.columns, rows(indices, empty), strict=True))
    if kind is torch.Tensor or (kind is np.ndarray and dataset.ndim > 1 and _is_numeric(dataset)):
        row = _rows([torch.as_tensor(dataset)])
        return lambda indices, empty: row(indices, empty)[0]
    return None


def draws_nothing(dataset: Any) -> bool:
    """Whether reading a sample is known to draw no random numbers."""
    if type(dataset) is Subset:
        return draws_nothing(dataset.dataset)
    return type(dataset) in (list, tuple, range, TensorDataset, Table, torch.Tensor, np.ndarray)


def _subset(inner: Select, chosen: Sequence[int], length: int) -> Select:
    def select(indices: Indices, empty: Empty | None) -> Any:
        rows = np.array([chosen[index] for index in indices.tolist()], np.int64)
        return inner(np.where(rows < 0, rows + length, rows), empty)

    return select


def _rows(columns: Iterable[torch.Tensor]) -> Callable[[Indices, Empty | None], list[torch.Tensor]]:
    columns = tuple(columns)
    near = all(column.device.type == "cpu" for column in columns)

    def rows(indices: Indices, empty: Empty | None) -> list[torch.Tensor]:
        index = torch.from_numpy(indices)
        if empty is not None:
            return [_row_into(empty, column, index) for column in columns]
        return [column.index_select(0, index if near else index.to(column.device)) for column in columns]

    return rows


def _row_into(empty: Empty, column: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
    # Autograd has no way to write into memory that is given, and other kinds of tensors have rules of their own.
    plain = type(column) is torch.Tensor and column.layout is torch.strided and not column.requires_grad
    if not plain or column.device.type != "cpu":
        return column.index_select(0, index.to(column.device))
    return torch.index_select(column, 0, index, out=empty((len(index), *column.shape[1:]), column.dtype))


def _column(name: Any, column: Any) -> torch.Tensor:
    if not isinstance(name, str):
        raise TypeError(f"a dict of columns has strings as names, got {name!r}")
    if isinstance(column, np.ndarray) and _is_numeric(column):
        column = torch.from_numpy(column)
    if not isinstance(column, torch.Tensor) or column.ndim == 0:
        raise TypeError(
            f"the column '{name}' must be a tensor or a numeric array (writable, in native byte order) with one row "
            f"for each sample, got {type(column).__name__}"
        )
    return column


def _is_numeric(array: np.ndarray) -> bool:
    """Whether torch can share the array's memory."""
    if not array.flags.writeable:
        return False
    try:
        torch.from_numpy(array[:0])
    except (TypeError, ValueError):
        return False
    return True
