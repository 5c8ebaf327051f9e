"""The driver: a loop around a pure step, with checkpoints, validation, logs and clean stops."""

from .dev import dev_run as dev_run
from .evaluate import Validator as Validator
from .evaluate import test as test
from .predict import predict as predict
from .predict import predict_batches as predict_batches
from .refresh import refresh_batch_norm as refresh_batch_norm
from .run import iterate as iterate
from .run import run as run
