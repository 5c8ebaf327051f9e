"""A metric of torchmetrics as one of helios_fn: four pure functions over its states.

torchmetrics adds to tensors that an object holds. Copied before each update, such an object is a pure function of its
states, and evaluation then is exact over ragged batches and over processes: the states of whole numbers are summed
without rounding, whoever counted them.

    f1 = from_torchmetrics(torchmetrics.classification.MulticlassF1Score(num_classes=10, average="macro"))

    def eval_fn(params, buffers, batch):
        logits, _ = model.eval(params, buffers, batch[0])
        return hf.Aux(weight=len(batch[1]), metrics={"f1": f1(logits, batch[1])})
"""

from __future__ import annotations

import copy

import torch

import helios_fn as hf


def from_torchmetrics(metric) -> hf.metrics.Metric:
    """Any metric whose states are tensors that are summed (or of which the largest or smallest is kept)."""

    def at(total):
        own = copy.deepcopy(metric)
        own.reset()
        own.sync_on_compute = False  # helios_fn has merged the processes' totals already
        for name, value in total.items():
            setattr(own, name, value.clone())
        own._update_count = 1
        return own

    def states(own):
        return {name: getattr(own, name) for name in metric._defaults}

    def update(total, *values):
        own = at(total)
        own.update(*values)
        return states(own)

    def merge(left, right):
        return {name: metric._reductions[name](torch.stack([left[name], right[name]])) for name in left}

    return hf.metrics.Metric(lambda: states(at({})), update, merge, lambda total: at(total).compute())


def main() -> None:
    try:
        from torchmetrics.classification import MulticlassF1Score
    except ImportError:
        print("torchmetrics is not installed: pip install torchmetrics")
        return
    generator = torch.Generator().manual_seed(0)
    scores, labels = torch.randn(100, 3, generator=generator), torch.randint(0, 3, (100,), generator=generator)
    f1 = from_torchmetrics(MulticlassF1Score(num_classes=3, average="macro"))
    ours = hf.metrics.confusion(3)

    def eval_fn(params, buffers, batch):
        return hf.Aux(weight=len(batch[1]), metrics={"theirs": f1(*batch), "ours": ours(*batch)})

    state = hf.init_state({"none": torch.zeros(())})
    data = torch.utils.data.TensorDataset(scores, labels)
    found = hf.test(eval_fn, state, hf.Loader(data, 7, shuffle=False))
    print(f"macro F1 by torchmetrics {found['theirs']:.6f}, by helios_fn {found['ours/f1']:.6f}")


if __name__ == "__main__":
    main()
