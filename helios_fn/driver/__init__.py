"""The driver: a loop around a pure step, with checkpoints, validation, logs and clean stops."""

from .evaluate import Validator as Validator
from .evaluate import test as test
from .run import iterate as iterate
from .run import run as run
