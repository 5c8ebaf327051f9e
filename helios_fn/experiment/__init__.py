"""Experiments: runs described by a TOML file and the parts that `helios_fn.registry` knows."""

from .build import Built as Built
from .parts import Data as Data
from .parts import Evaluation as Evaluation
from .parts import Part as Part
from .parts import StepPart as StepPart
from .parts import Sweep as Sweep
from .parts import Update as Update
from .reload import load_run as load_run
from .spec import Experiment as Experiment
from .sweeps import Outcome as Outcome
from .sweeps import by_member as by_member
from .sweeps import run_members as run_members
from .toml import parse_value as parse_value
