"""helios_fn: exact, functional training for PyTorch.

A training run is a pure ``step(state, batch) -> state`` over an immutable `TrainState` that holds
everything which can influence the future, and a thin driver, `run`. A run that is killed anywhere and
started again ends in the same bits. This file is the index; nothing is defined here.
"""

from typing import TYPE_CHECKING

# Modules to be used by name: hf.optim.adamw, hf.random.fold_in, hf.tree.digest, ...
from . import data as data
from . import distributed as distributed
from . import metrics as metrics
from . import optim as optim
from . import random as random
from . import sinks as sinks
from . import stopping as stopping
from . import tree as tree

# Another run's checkpoint, with changes.
from .branching import Branch as Branch
from .branching import branch as branch

# Compilation.
from .compiled import compile as compile

# Configuration: what a run does, and when.
from .config import EarlyStop as EarlyStop
from .config import Every as Every
from .config import Retention as Retention
from .config import RunConfig as RunConfig
from .config import Total as Total

# Data: batches as a function of (key, position).
from .data import Loader as Loader
from .data import Phases as Phases

# Several processes.
from .distributed import launch as launch

# The driver.
from .driver import Validator as Validator
from .driver import iterate as iterate
from .driver import predict as predict
from .driver import predict_batches as predict_batches
from .driver import run as run
from .driver import test as test

# Many runs as one.
from .ensemble import all_stopped as all_stopped
from .ensemble import ensemble as ensemble
from .ensemble import evaluate_members as evaluate_members
from .ensemble import member as member
from .ensemble import stack as stack
from .ensemble import unstack as unstack

# Errors that somebody may want to catch.
from .errors import CheckpointError as CheckpointError
from .errors import LaunchFailed as LaunchFailed
from .errors import NonFiniteError as NonFiniteError
from .errors import NotTraceable as NotTraceable
from .errors import PeerLost as PeerLost
from .errors import PurityError as PurityError
from .errors import ResumeRefused as ResumeRefused
from .errors import RootLocked as RootLocked
from .errors import RunFailed as RunFailed
from .errors import StateDonated as StateDonated

# Hand-written steps: gradients, their mean over micro-batches, keys, non-finite values.
from .finite import guard_finite as guard_finite
from .nn import autocast as autocast
from .nn import ema as ema
from .nn import freeze as freeze
from .nn import functional as functional
from .nn import grad as grad
from .nn import microsteps as microsteps
from .nn import sam as sam
from .nn import scaled_grad as scaled_grad
from .nn import swa as swa
from .nn import unfreeze as unfreeze
from .nn import value_and_grad as value_and_grad
from .overriding import override as override

# The state.
from .state import TrainState as TrainState
from .state import init_state as init_state
from .state import micro_keys as micro_keys
from .state import step_key as step_key

# The usual step.
from .step import make_step as make_step
from .summary import summary as summary
from .types import Aux as Aux
from .types import Counters as Counters
from .types import Cursor as Cursor
from .types import Fingerprint as Fingerprint
from .types import MicroBatches as MicroBatches
from .types import Observer as Observer
from .types import Reason as Reason
from .types import Result as Result
from .types import Row as Row
from .types import RunInfo as RunInfo
from .types import Sink as Sink
from .types import Validation as Validation

# Gradients through training.
from .unroll import unroll as unroll

# What many programs never use is imported when they ask for it: the names for type checkers, then for Python.
if TYPE_CHECKING:
    from . import observers as observers
    from . import registry as registry
    from .checkpoint import restore as restore
    from .data import Stream as Stream
    from .driver import dev_run as dev_run
    from .driver import refresh_batch_norm as refresh_batch_norm
    from .driver.rates import find_learning_rate as find_learning_rate
    from .experiment import Experiment as Experiment
    from .experiment import load_run as load_run
    from .optim import schedules as schedules
else:
    from .later import later as _later

    __getattr__, __dir__ = _later(
        __name__,
        "observers",
        "registry",
        names={
            "checkpoint": "restore",
            "data": "Stream",
            "driver": "dev_run refresh_batch_norm",
            "driver.rates": "find_learning_rate",
            "experiment": "Experiment load_run",
            "optim": "schedules",
        },
    )

__version__ = "0.1.0"
