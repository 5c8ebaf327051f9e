"""Names for the parts of an experiment: one registry for each kind of part.

    @MODELS.register
    class Classifier(nn.Module): ...

    create_model("Classifier", width=32)

Registering and looking up import nothing; `discover` imports the packages that it is given, so that their decorators
run. The library's own parts are in the registries by name, and are imported when they are created.
"""

from .base import Registry as Registry
from .base import closest as closest
from .discovery import check_names as check_names
from .discovery import discover as discover
from .kinds import AVERAGES as AVERAGES
from .kinds import COLLATES as COLLATES
from .kinds import DATASETS as DATASETS
from .kinds import GRADIENT_TRANSFORMS as GRADIENT_TRANSFORMS
from .kinds import LOSSES as LOSSES
from .kinds import METRICS as METRICS
from .kinds import MODELS as MODELS
from .kinds import NETWORKS as NETWORKS
from .kinds import OBSERVERS as OBSERVERS
from .kinds import OPTIMIZERS as OPTIMIZERS
from .kinds import ORDERS as ORDERS
from .kinds import REGISTRIES as REGISTRIES
from .kinds import SCHEDULES as SCHEDULES
from .kinds import SINKS as SINKS
from .kinds import STEPS as STEPS
from .kinds import TRANSFORMS as TRANSFORMS
from .kinds import create_average as create_average
from .kinds import create_collate as create_collate
from .kinds import create_dataset as create_dataset
from .kinds import create_loss as create_loss
from .kinds import create_metric as create_metric
from .kinds import create_model as create_model
from .kinds import create_network as create_network
from .kinds import create_observer as create_observer
from .kinds import create_optimizer as create_optimizer
from .kinds import create_order as create_order
from .kinds import create_schedule as create_schedule
from .kinds import create_sink as create_sink
from .kinds import create_step as create_step
from .kinds import create_transform as create_transform
