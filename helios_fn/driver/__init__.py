"""The driver: a loop around a pure step, with checkpoints, validation, logs and clean stops."""

from typing import TYPE_CHECKING

from .evaluate import Validator as Validator
from .evaluate import test as test
from .predict import predict as predict
from .predict import predict_batches as predict_batches
from .run import iterate as iterate
from .run import run as run

# Imported when it is first used.
if TYPE_CHECKING:
    from .dev import dev_run as dev_run
    from .refresh import refresh_batch_norm as refresh_batch_norm
else:
    from ..later import later as _later

    __getattr__, __dir__ = _later(
        __name__,
        names={
            "dev": "dev_run",
            "refresh": "refresh_batch_norm",
        },
    )
