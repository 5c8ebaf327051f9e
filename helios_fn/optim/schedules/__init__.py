"""Learning rates as pure functions of the number of updates applied so far.

Every schedule here is total (any count from 0 on gives a float), immutable, equal to another made by
the same call, and described by its ``repr``. Any other function from an ``int`` to a ``float`` serves
as well. In compiled and mapped steps the count is a 0-d tensor, and so is the rate.
"""

from __future__ import annotations

from .base import Schedule as Schedule
from .joined import cosine_restarts as cosine_restarts
from .joined import piecewise as piecewise
from .joined import warmup_cosine as warmup_cosine
from .shapes import constant as constant
from .shapes import cosine as cosine
from .shapes import exponential as exponential
from .shapes import linear as linear
from .shapes import linear_warmup as linear_warmup
from .shapes import polynomial as polynomial
from .shapes import step_decay as step_decay
from .tabulated import from_torch as from_torch
