"""Metrics as trees: exact for any batches and any grouping, and equal to what others compute of the whole set."""

from __future__ import annotations

import math
import runpy
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import confusion_matrix, precision_recall_fscore_support

from helios_fn import metrics, tree
from helios_fn.metrics.base import results

from ..strategies import examples

CLASSES = 4
EXACT = {
    "accuracy": metrics.accuracy(),
    "padded": metrics.accuracy(ignore=0),
    "top_k": metrics.top_k(2),
    "confusion": metrics.confusion(CLASSES),
    "padded confusion": metrics.confusion(CLASSES, ignore=1),
}


@st.composite
def classified(draw, least: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Scores with ties, infinities and NaN, and labels."""
    n = draw(st.integers(least, 25))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**32)))
    values = torch.tensor([0.0, 1.0, 2.0, -1.0, 0.5, -math.inf, math.inf, math.nan])
    kinds = draw(st.sampled_from([3, 5, 8]))
    scores = values[torch.randint(0, kinds, (n, CLASSES), generator=generator)]
    return scores, torch.randint(0, CLASSES, (n,), generator=generator)


@st.composite
def splits(draw, n: int) -> list[slice]:
    """The samples cut into batches, some of them empty."""
    cuts = sorted(draw(st.lists(st.integers(0, n), max_size=6)))
    return [slice(*pair) for pair in zip([0, *cuts], [*cuts, n], strict=True)]


def merged(data: st.DataObject, parts: list[metrics.Measured]) -> metrics.Measured:
    """All parts merged, neighbours in any order."""
    parts = list(parts)
    while len(parts) > 1:
        at = data.draw(st.integers(0, len(parts) - 2))
        parts[at : at + 2] = [parts[at].merge(parts[at + 1])]
    return parts[0]


@settings(deadline=None, max_examples=examples(30))
@given(classified(), st.sampled_from(sorted(EXACT)), st.data())
def test_counts_do_not_depend_on_batches_or_grouping(samples, name, data):
    """For any split into batches and any order of merging, totals equal that of the whole set bit for bit."""
    scores, labels = samples
    metric = EXACT[name]
    whole = metric(scores, labels)
    cuts = data.draw(splits(len(labels)))
    found = merged(data, [metric(scores[cut], labels[cut]) for cut in cuts])
    assert tree.equal(found.total, whole.total)
    one_by_one = metric.init()
    for cut in cuts:
        one_by_one = metric.update(one_by_one, scores[cut], labels[cut])
    assert tree.equal(one_by_one, whole.total)
    assert tree.equal(metric.merge(metric.init(), whole.total), whole.total)


@settings(deadline=None, max_examples=examples(30))
@given(classified(least=1))
def test_the_metrics_of_classes_agree(samples):
    """Accuracy, the first of the top k, and the diagonal are one thing; the largest k takes in everything."""
    scores, labels = samples
    expected = float((scores.argmax(1) == labels).double().mean())
    confused = metrics.confusion(CLASSES)(scores, labels).compute()
    assert metrics.accuracy()(scores, labels).compute() == expected
    assert metrics.accuracy()(scores.argmax(1), labels).compute() == expected
    assert metrics.top_k(1)(scores, labels).compute() == expected
    assert confused["accuracy"] == pytest.approx(expected)
    assert metrics.top_k(CLASSES)(scores, labels).compute() == 1.0
    ordered = scores.argsort(dim=1, descending=True, stable=True)[:, :2]
    assert metrics.top_k(2)(scores, labels).compute() == float((ordered == labels[:, None]).any(1).double().mean())


@settings(deadline=None, max_examples=examples(15))
@given(classified(least=1))
def test_a_confusion_is_that_of_scikit_learn(samples):
    """The matrix, and the macro averages over the classes that occur."""
    scores, labels = samples
    predicted = scores.argmax(1)
    found = metrics.confusion(CLASSES)(scores, labels).compute()
    assert np.array_equal(found["matrix"].numpy(), confusion_matrix(labels, predicted, labels=range(CLASSES)))
    theirs = precision_recall_fscore_support(labels, predicted, average="macro", zero_division=0)
    assert [found[name] for name in ("precision", "recall", "f1")] == pytest.approx(theirs[:3])


@settings(deadline=None, max_examples=examples(25))
@given(st.data())
def test_a_histogram_is_that_of_numpy(data):
    """In any batches; values below, above and NaN are outside."""
    values = np.array(data.draw(st.lists(st.floats(-2, 3) | st.sampled_from([0.0, 0.5, 1.0, math.nan]), max_size=20)))
    bins = data.draw(st.integers(1, 7))
    metric = metrics.histogram(0.0, 1.0, bins)
    parts = [metric(torch.from_numpy(values[cut])) for cut in data.draw(splits(len(values)))]
    found = merged(data, parts).compute()
    inside = values[(values >= 0) & (values <= 1)]
    assert np.array_equal(found["counts"].numpy(), np.histogram(inside, found["edges"].numpy())[0])
    assert found["outside"] == len(values) - len(inside)


@settings(deadline=None, max_examples=examples(25))
@given(st.data())
def test_a_mean_is_that_of_the_whole_set_to_rounding(data):
    """Weighted, in any batches and any order of merging; what has no weight has no part in it."""
    pairs = st.tuples(st.floats(-10, 10), st.floats(0.125, 3)) | st.just((math.nan, 0.0))
    table = torch.tensor(data.draw(st.lists(pairs, min_size=1, max_size=20)), dtype=torch.float64).reshape(-1, 2)
    values, weights = table.unbind(1)
    parts = [metrics.mean()(values[cut], weights[cut]) for cut in data.draw(splits(len(values)))]
    counts = weights > 0
    expected = float((values * weights)[counts].sum() / weights.sum())
    assert merged(data, parts).compute() == pytest.approx(expected, nan_ok=True, abs=1e-12)
    plain = metrics.mean()(values[counts].float()).compute()
    assert plain == pytest.approx(float(values[counts].mean()), nan_ok=True, abs=1e-5)


def test_scores_of_tokens_have_any_leading_dimensions():
    """As of a language model, with padding that does not count."""
    scores, labels = torch.eye(3).expand(2, 3, 3), torch.tensor([[0, 1, -100], [0, 0, 2]])
    assert metrics.accuracy(ignore=-100)(scores, labels).compute() == 0.8
    assert int(metrics.confusion(3, ignore=-100)(scores, labels).total.sum()) == 5
    assert math.isnan(metrics.accuracy(ignore=1)(torch.eye(3)[:1], torch.tensor([1])).compute())


S, L = torch.zeros(3, 4), torch.tensor([0, 1, 2])


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: metrics.top_k(0), ValueError, "k must be an integer of at least 1, got 0"),
        (lambda: metrics.confusion(2.0), ValueError, "classes must be an integer"),
        (lambda: metrics.histogram(1.0, 1.0), ValueError, "finite range with low < high"),
        (lambda: metrics.histogram(-1e308, 1e308), ValueError, "finite range with low < high"),
        (lambda: metrics.histogram(0.0, 1.0, bins=0), ValueError, "bins must be"),
        (lambda: metrics.accuracy()(S, L.float()), TypeError, "labels must be integers"),
        (lambda: metrics.accuracy()(S[:2], L), ValueError, r"got \[2, 4\] and \[3\]"),
        (lambda: metrics.accuracy()(S, [0, 1, 2]), TypeError, r"takes tensors \(scores, labels\), got Tensor and list"),
        (lambda: metrics.accuracy()(torch.tensor(1.0), torch.tensor(1)), ValueError, "scores must have the shape"),
        (lambda: metrics.top_k(5)(S, L), ValueError, "scores of 4 classes only"),
        (lambda: metrics.top_k(2)(L, L), TypeError, "ranks floating scores"),
        (lambda: metrics.top_k(2)(S, L + 2), ValueError, "labels must be classes from 0 to 3, got 2 to 4"),
        (lambda: metrics.confusion(3)(S, L), ValueError, "got scores of 4 classes"),
        (lambda: metrics.confusion(3)(L + 1, L), ValueError, "predictions must be classes from 0 to 2, got 1 to 3"),
        (lambda: metrics.mean()(0.5), TypeError, "takes tensors of real numbers, got float"),
        (lambda: metrics.mean()(S, S[0]), ValueError, "weights must have the shape"),
        (lambda: metrics.mean()(S, S - 1), ValueError, "finite and not negative"),
        (lambda: metrics.mean()(S, S + math.inf), ValueError, "finite and not negative"),
        (lambda: metrics.confusion(4)(S, L).merge(metrics.confusion(3)(L, L)), ValueError, "not of one metric"),
        (lambda: results("m", "text"), TypeError, "metric 'm' computed str 'text'"),
    ],
)
def test_a_mistake_is_named(call, error, message):
    """Each wrong argument is refused with what was got."""
    with pytest.raises(error, match=message):
        call()


class Summed:
    """What torchmetrics' metrics look like, as far as the example needs them."""

    def __init__(self) -> None:
        self._defaults = {"right": torch.tensor(0), "all": torch.tensor(0)}
        self._reductions = dict.fromkeys(self._defaults, lambda stacked: stacked.sum(0))
        self._update_count, self.sync_on_compute = 0, True
        self.reset()

    def reset(self) -> None:
        for name, value in self._defaults.items():
            setattr(self, name, value.clone())

    def update(self, scores, labels) -> None:
        self.right += (scores.argmax(1) == labels).sum()
        self.all += len(labels)

    def compute(self):
        assert self._update_count > 0
        assert not self.sync_on_compute
        return self.right / self.all


@settings(deadline=None, max_examples=examples(10))
@given(classified(least=1), st.data())
def test_a_metric_of_torchmetrics_becomes_one_by_the_example(samples, data):
    """In place updates of a copy, as a pure function; of the package itself, where it is installed."""
    adapt = runpy.run_path(str(Path(__file__).parents[2] / "examples/torchmetrics_adapter.py"))["from_torchmetrics"]
    scores, labels = samples
    metric = adapt(Summed())
    parts = [metric(scores[cut], labels[cut]) for cut in data.draw(splits(len(labels)))]
    assert float(merged(data, parts).compute()) == pytest.approx(metrics.accuracy()(scores, labels).compute())
    assert int(metric.init()["all"]) == 0
