"""Modules as functions, gradients, micro-batches and averages.

`functional` splits a module into a function and its tensors; `value_and_grad` differentiates functions
of trees, and `loss_grad` a ``loss_fn``; `microsteps` is the mean over one iteration's micro-batches;
`ema` and `swa` average the parameters; `sam` seeks flat minima; `autocast` and `scaled_grad` are for lower
precision; `freeze` takes parameters out of training.
"""

from .averages import Average as Average
from .averages import ema as ema
from .averages import swa as swa
from .freezing import freeze as freeze
from .freezing import unfreeze as unfreeze
from .functional import Functional as Functional
from .functional import functional as functional
from .grad import grad as grad
from .grad import value_and_grad as value_and_grad
from .loss import LossFn as LossFn
from .loss import loss_grad as loss_grad
from .mean import Mean as Mean
from .microsteps import GradFn as GradFn
from .microsteps import mean_over as mean_over
from .microsteps import microsteps as microsteps
from .precision import Precision as Precision
from .precision import autocast as autocast
from .precision import cast_by as cast_by
from .scaling import Gradients as Gradients
from .scaling import ScaledGradFn as ScaledGradFn
from .scaling import gradients_of as gradients_of
from .scaling import scaled_grad as scaled_grad
from .sharpness import sam as sam
