"""Many runs as one: K states stacked into one, and a step that advances all of them at once.

`stack` makes one `TrainState` of K, `unstack` and `member` take it apart, `ensemble` maps a step over the
members, and `evaluate_members` maps an evaluation.
"""

from .evaluate import evaluate_members as evaluate_members
from .members import Members as Members
from .members import all_stopped as all_stopped
from .members import member as member
from .members import stack as stack
from .members import unstack as unstack
from .step import EnsembleStep as EnsembleStep
from .step import ensemble as ensemble
