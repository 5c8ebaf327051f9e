"""Making the compiler show function modes every random function, as eager code does."""

from __future__ import annotations

from .portable import table


def show_all_functions() -> bool:
    """Called while the compiler is tracing, and run by it rather than traced.

    Dynamo hands a function mode only what is in a list of its own, which lacks some random functions
    (``torch.rand_like`` and ``torch.normal`` among them, in 2.13): their draws would silently not be keyed.
    """
    from torch._dynamo.variables import torch as dynamo  # loaded by now, being at work

    dynamo.get_overridable_functions().update([*table.STAND_INS, *table.UNUSUAL])
    return True


# What torch.compiler.assume_constant_result does, which would load the compiler with this module.
show_all_functions._dynamo_marked_constant = True  # type: ignore[attr-defined]
