"""Metrics of classifiers, as counts in int64: exact for any batches, grouping and number of processes."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch

from ..types import Tree
from .base import Metric, added


def accuracy(*, ignore: int | None = None) -> Metric:
    """The fraction of samples whose class is predicted: ``accuracy()(scores, labels)``.

    >>> metric = hf.metrics.accuracy()
    >>> batches = [metric(torch.eye(3), torch.tensor([0, 1, 1])), metric(torch.eye(1), torch.tensor([0]))]
    >>> batches[0].merge(batches[1]).compute()
    0.75

    Args:
        ignore: samples with this label do not count, such as the -100 of padding.

    ``scores`` are floating, ``[..., classes]``, and predict the class with the largest (of equal ones the first, NaN
    being larger than all, as in ``torch.argmax``); or integers, ``[...]``, the predicted classes. ``labels`` are
    integers, ``[...]``. The result is NaN where no sample counts.

    Raises:
        TypeError: (when called) the labels are no integers.
        ValueError: (when called) the shapes do not fit.
    """
    made = _Hits(1, ignore)
    return Metric(made.init, made.update, added, made.compute)


def top_k(k: int, *, ignore: int | None = None) -> Metric:
    """The fraction of samples whose class is among the ``k`` with the largest scores: ``top_k(5)(scores, labels)``.

    Arguments and errors are those of `accuracy`, which is ``top_k(1)``; scores must be floating, and labels classes.

    Raises:
        ValueError: ``k`` is no integer of at least 1; (when called) there are fewer classes, or labels beyond them.
    """
    if type(k) is not int or k < 1:
        raise ValueError(f"k must be an integer of at least 1, got {k!r}")
    made = _Hits(k, ignore)
    return Metric(made.init, made.update, added, made.compute)


def confusion(classes: int, *, ignore: int | None = None) -> Metric:
    """How often each class was taken for which: ``confusion(10)(scores, labels)``.

    >>> metric = hf.metrics.confusion(2)
    >>> metric(torch.tensor([0, 1, 1, 1]), torch.tensor([0, 0, 1, 1])).compute()["matrix"].tolist()
    [[1, 1], [0, 2]]

    Scores, labels and ``ignore`` are those of `accuracy`. The results:

    - ``matrix``: int64 of shape ``[classes, classes]``; rows are the true classes, columns the predicted ones.
    - ``accuracy``: the fraction of samples on the diagonal.
    - ``precision``, ``recall``, ``f1``: the means over the classes that occur in labels or predictions ("macro"), with
      0 where a class was never predicted or never true.

    Raises:
        ValueError: ``classes`` is no integer of at least 1; (when called) a label or prediction is none of them.
    """
    if type(classes) is not int or classes < 1:
        raise ValueError(f"classes must be an integer of at least 1, got {classes!r}")
    made = _Confusion(classes, ignore)
    return Metric(made.init, made.update, added, made.compute)


@dataclasses.dataclass(frozen=True)
class _Hits:
    k: int
    ignore: int | None

    def init(self) -> Tree:
        return {"hits": torch.zeros((), dtype=torch.int64), "samples": torch.zeros((), dtype=torch.int64)}

    def update(self, total: Tree, scores: Any, labels: Any) -> Tree:
        scores, labels = _counted(scores, labels, self.ignore)
        if scores.is_floating_point():
            hit = _rank(scores, labels, self.k) < self.k
        elif self.k == 1:
            hit = scores == labels
        else:
            raise TypeError(f"top_k({self.k}) ranks floating scores, got {scores.dtype}")
        return {"hits": total["hits"] + hit.sum().cpu(), "samples": total["samples"] + labels.numel()}

    def compute(self, total: Tree) -> float:
        samples = int(total["samples"])
        return int(total["hits"]) / samples if samples else float("nan")


@dataclasses.dataclass(frozen=True)
class _Confusion:
    classes: int
    ignore: int | None

    def init(self) -> Tree:
        return torch.zeros((self.classes, self.classes), dtype=torch.int64)

    def update(self, total: Tree, scores: Any, labels: Any) -> Tree:
        scores, labels = _counted(scores, labels, self.ignore)
        if scores.is_floating_point() and scores.shape[-1] != self.classes:
            raise ValueError(f"confusion({self.classes}) got scores of {scores.shape[-1]} classes")
        predicted = scores.argmax(-1) if scores.is_floating_point() else scores
        for name, found in (("label", labels), ("prediction", predicted)):
            _check_classes(name, found, self.classes)
        places = labels.long() * self.classes + predicted.long()
        counts = torch.bincount(places, minlength=self.classes**2).reshape(self.classes, self.classes)
        return total + counts.cpu()

    def compute(self, total: Tree) -> dict[str, Any]:
        matrix = total.double()
        right, true, predicted = matrix.diagonal(), matrix.sum(1), matrix.sum(0)
        occurs = true + predicted > 0
        ratios = {
            "precision": right / predicted.clamp(min=1),
            "recall": right / true.clamp(min=1),
            "f1": 2 * right / (true + predicted).clamp(min=1),
        }
        # A mean of nothing is NaN, as is 0 / 0.
        macro = {name: float(ratio[occurs].mean()) for name, ratio in ratios.items()}
        return {"matrix": total, "accuracy": float(right.sum() / matrix.sum()), **macro}


def _counted(scores: Any, labels: Any, ignore: int | None) -> tuple[torch.Tensor, torch.Tensor]:
    """Scores ``[n, classes]`` (or predictions ``[n]``) and labels ``[n]`` of the samples that count."""
    if not isinstance(scores, torch.Tensor) or not isinstance(labels, torch.Tensor):
        raise TypeError(
            "a metric of classes takes tensors (scores, labels), got "
            f"{type(scores).__name__} and {type(labels).__name__}"
        )
    if labels.is_floating_point() or labels.is_complex():
        raise TypeError(f"labels must be integers, the classes, got {labels.dtype}")
    ranked = scores.is_floating_point()
    leading = scores.shape[:-1] if ranked else scores.shape
    if leading != labels.shape or (ranked and not scores.dim()):
        wanted = "the shape [..., classes] for labels [...]" if ranked else "the shape of the labels"
        raise ValueError(f"scores must have {wanted}, got {list(scores.shape)} and {list(labels.shape)}")
    labels = labels.reshape(-1)
    scores = scores.reshape(len(labels), scores.shape[-1]) if ranked else scores.reshape(-1)
    if ignore is None:
        return scores, labels
    counts = labels != ignore
    return scores[counts], labels[counts]


def _rank(scores: torch.Tensor, labels: torch.Tensor, k: int) -> torch.Tensor:
    """How many classes come before the true one, in the order of ``torch.argmax``: int64 ``[n]``."""
    classes = scores.shape[-1]
    if k > classes:
        raise ValueError(f"top_k({k}) got scores of {classes} classes only")
    _check_classes("label", labels, classes)
    own = scores.gather(1, labels.long()[:, None])
    larger = (scores > own) | (scores.isnan() & ~own.isnan())
    equal = (scores == own) | (scores.isnan() & own.isnan())
    first = torch.arange(classes, device=scores.device) < labels[:, None]
    return (larger | (equal & first)).sum(1)


def _check_classes(what: str, found: torch.Tensor, classes: int) -> None:
    if found.numel() and (int(found.min()) < 0 or int(found.max()) >= classes):
        raise ValueError(
            f"{what}s must be classes from 0 to {classes - 1}, got {int(found.min())} to {int(found.max())}"
        )
