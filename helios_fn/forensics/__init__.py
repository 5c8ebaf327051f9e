"""Finding out where two runs part, which of them was disturbed, and what one iteration did.

From the command line::

    python -m helios_fn compare RUN_A RUN_B
    python -m helios_fn bisect RUN_A RUN_B --job my_project.train:job
    python -m helios_fn replay RUN --iteration 137 --job my_project.train:job

and as functions of the same names. `compare` reads what two runs have left: log rows, fingerprints
(``RunConfig.fingerprint_every``) and checkpoints. The others also execute the job again, from one of its checkpoints:
a `helios_fn.testing.Job`, its name as ``module:function``, or, of a run that was started from an experiment's file,
nothing at all. No folder of a run is written to.
"""

from .bisection import Bisection as Bisection
from .bisection import bisect as bisect
from .comparison import Comparison as Comparison
from .comparison import compare as compare
from .evidence import Evidence as Evidence
from .evidence import gather as gather
from .replaying import Replay as Replay
from .replaying import replay as replay
