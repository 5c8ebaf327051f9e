"""Metrics that are gathered exactly over batches and processes: small trees, and pure functions of them.

    def eval_fn(params, buffers, batch):
        x, y = batch
        logits, _ = model.eval(params, buffers, x)
        loss = F.cross_entropy(logits, y)
        return hf.Aux(weight=len(y), metrics={"loss": loss, "top5": top5(logits, y), "of": confusion(logits, y)})

    top5, confusion = hf.metrics.top_k(5), hf.metrics.confusion(10)
    hf.test(eval_fn, state, loader)  # {"loss": 0.31, "of/accuracy": 0.91, ..., "of/matrix": tensor(...), "top5": 0.99}

A metric called on a batch is a `Measured`, to be put among the metrics of `Aux` beside plain scalars.
"""

from typing import TYPE_CHECKING

from .base import Measured as Measured
from .base import Metric as Metric

# Imported when it is first used.
if TYPE_CHECKING:
    from .classes import accuracy as accuracy
    from .classes import confusion as confusion
    from .classes import top_k as top_k
    from .values import histogram as histogram
    from .values import mean as mean
else:
    from ..later import later as _later

    __getattr__, __dir__ = _later(
        __name__,
        names={
            "classes": "accuracy confusion top_k",
            "values": "histogram mean",
        },
    )
