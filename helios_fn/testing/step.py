"""The unit test of a training step: pure, deterministic, finite, and connected to every parameter."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch

from .. import random, tree
from ..driver.guard import PurityGuard
from ..errors import PurityError
from ..finiteness import all_finite
from ..nn import LossFn, gradients_of, microsteps
from ..optim import loss_scale
from ..random.ambient import seed
from ..state import TrainState
from ..step import MadeStep
from .examples import check_count, for_all, needed_hypothesis
from .verdicts import LawBroken

if TYPE_CHECKING:
    from hypothesis.strategies import SearchStrategy

    from .drawn import Trial

_SHOWN = 8
_REFUSAL = " does not have a deterministic implementation"


def check_step(
    step: Callable[[Any, Any], Any],
    state: TrainState,
    batch: Any,
    *,
    expect_gradients: bool = False,
    loss_fn: LossFn | None = None,
    expect_updates: bool = False,
    except_for: Sequence[str] = (),
    non_negative: Sequence[str] = (),
    deterministic_kernels: bool = True,
    examples: int | None = None,
    batches: SearchStrategy[Any] | None = None,
    states: SearchStrategy[TrainState] | None = None,
) -> TrainState:
    """Check a step on one batch, and return the state it gives.

    The law of purity: ``step`` twice on the same input gives the same bits, leaves the input untouched, draws from
    no global generator, and keeps structure, shapes and dtypes. Between the two calls the global generators of
    torch, Python and NumPy are moved to other places. The loss and, where the step watches them
    (``state.first_bad``), the gradients are finite. No kernel of the step is one that torch calls non-deterministic.

    Args:
        step: as for `helios_fn.run`.
        state: any state to start from.
        batch: what the step receives: a batch, or `helios_fn.MicroBatches`.
        expect_gradients: also check that the gradient by each parameter is finite and not zero, which finds layers
            that are not connected to the loss. A step of `helios_fn.make_step` knows its gradients; for one
            written by hand, hand over ``loss_fn``.
        loss_fn: ``loss_fn(params, buffers, batch, key)`` as `helios_fn.make_step` takes it, whose gradients a
            hand-written step follows. Asks for ``expect_gradients``.
        expect_updates: also check that the step changes each parameter. Weight decay moves those too that the loss
            does not reach: rather expect gradients, or switch it off here. A rate that warms up from 0, and
            `helios_fn.optim.every`, change nothing in the first step: hand over a later state.
        except_for: names of parameters whose gradient may be zero and that may stay as they are, as ``state.params``
            has them.
        non_negative: names of metrics that promise to be at least 0, such as ``["loss"]``.
        deterministic_kernels: look for kernels that give other bits from time to time on the same input, by
            ``torch.use_deterministic_algorithms``. A compiled step is left out: it would be compiled once more.
        examples: ``None`` for this batch alone; a number for as many examples by Hypothesis besides (about a
            hundred in a second for a small model), of other batches on other states. There the step must not fail, must
            be pure and deterministic, give finite values and the same metrics, and keep the promises of
            ``non_negative``. What gradients and updates are expected is asked of the given batch alone.
        batches: where those batches come from. Default: `strategies.batches_like` of ``batch``, which makes them of its
            samples, in other numbers and with other values. For batches from a spec there is `strategies.batches`.
        states: where those states come from. Default: ``state`` after up to three iterations, also with other keys.

    Raises:
        PurityError, TypeError: the step breaks its contract; names the leaf and the remedy.
        LawBroken: two calls differ, a kernel is not deterministic, a loss or gradient is not finite, a metric is
            negative, or parameters have no gradient or did not change; names the leaf, the metric or the kernel.
        ValueError: a name is not known, gradients are expected of a hand-written step without ``loss_fn``, or the batch
            cannot be made into others.

    Example:
        >>> from helios_fn.testing import check_step
        >>> def step(state, batch):
        ...     state.params["w"].add_(batch.sum())
        ...     return state
        ...
        >>> check_step(step, hf.init_state({"w": torch.zeros(1)}), torch.ones(2))
        Traceback (most recent call last):
            ...
        helios_fn.errors.PurityError: the step wrote to its input at params['w']: it must return...
    """
    check_count(examples)
    if examples is None and (batches is not None or states is not None):
        raise ValueError("batches and states are where examples come from: say how many, by examples=")
    names = _checked_names(state.params, except_for)
    expected = [name for name in names if name not in except_for]
    gradients = _gradients(step, loss_fn) if expect_gradients or loss_fn is not None else None
    with random.preserved_globals():
        results = _two_calls(step, state, batch)
        if deterministic_kernels and getattr(step, "compile", None) is None:
            _check_kernels(step, state, batch)
        grads = None if gradients is None else gradients(state, batch)
    _check_same(*results)
    after = results[0]
    _check_metrics(after, non_negative)
    _check_finite(state, after, grads, names)
    if grads is not None:
        _check_gradients(dict(zip(names, tree.leaves(grads), strict=True)), expected)
    if expect_updates:
        _check_updates(dict(zip(names, _pairs(state, after), strict=True)), expected)
    if examples is None:
        return after

    def holds(other: TrainState, batch: Any) -> None:
        one, two = _two_calls(step, other, batch)
        _check_same(one, two)
        _check_names(after, one)
        _check_metrics(one, non_negative)
        _check_finite(other, one, None if gradients is None else gradients(other, batch), names)

    _check_drawn(holds, step, state, batch, batches, states, examples)
    return after


def _check_drawn(
    holds: Callable[[TrainState, Any], None],
    step: Callable[[Any, Any], Any],
    state: TrainState,
    batch: Any,
    batches: SearchStrategy[Any] | None,
    states: SearchStrategy[TrainState] | None,
    examples: int,
) -> None:
    """The law on other batches and states."""
    needed_hypothesis()
    from .trials import trials

    def tried(trial: Trial) -> None:
        try:
            with random.preserved_globals():
                holds(trial.state(step), trial.batch)
        except LawBroken as error:
            raise LawBroken(f"on {trial}: {error}") from error.__cause__
        except PurityError:
            raise
        except Exception as error:
            raise LawBroken(
                f"the step fails on {trial}; on the batch that was handed over it does not: {type(error).__name__}: "
                f"{error}\nA loader may deliver such a batch: its last one has fewer samples, and values vary. Where "
                "yours never does, hand over batches= that it does deliver"
            ) from error

    for_all(trials(state, batch, batches, states), tried, examples)


def _checked_names(params: Any, except_for: Sequence[str]) -> list[str]:
    names = [path.removeprefix("['").removesuffix("']") for path in tree.paths(params)]
    unknown = [name for name in except_for if name not in names]
    if unknown:
        raise ValueError(f"except_for names {unknown}, but the parameters are {names}")
    return names


def _gradients(step: Any, loss_fn: LossFn | None) -> Callable[[Any, Any], Any]:
    """A function of state and batch that gives the mean gradient of the iteration."""
    if loss_fn is not None:
        grad_fn = gradients_of(loss_fn, None).plain
        return lambda state, batch: microsteps(grad_fn, state, batch).grads
    if isinstance(step, MadeStep):
        return lambda state, batch: step.gradients(state, batch).grads
    raise ValueError("a step written by hand does not tell its gradients: hand over the loss too, as loss_fn=")


def _two_calls(step: Callable[[Any, Any], Any], state: TrainState, batch: Any) -> list[TrainState]:
    """The step's results, with the global generators at another place for each call."""
    guard = PurityGuard(step, full_checks=2)
    results = []
    for ambient in (1, 2):
        seed((ambient, 0))
        results.append(guard(state, batch))
    return results


def _check_same(one: TrainState, other: TrainState) -> None:
    differences = tree.diff(one, other)
    if differences:
        shown = "\n".join(f"  {difference}" for difference in differences[:_SHOWN])
        counted = f"{len(differences)} leaves" if len(differences) > 1 else "1 leaf"
        raise LawBroken(
            f"two calls of the step on the same input differ in {counted}:\n{shown}\nThe step keeps "
            "something outside the TrainState (an attribute, a global, a closure), or draws from the clock or a "
            "generator of its own: put it into state.extra, or draw by hf.step_key(state, 'name')"
        )


def _check_names(first: TrainState, other: TrainState) -> None:
    if {*first.metrics} != {*other.metrics}:
        raise LawBroken(
            f"the step gives the metrics {[*other.metrics]}, and {[*first.metrics]} on the batch that was handed over: "
            "their names may not change during a run"
        )


def _check_kernels(step: Callable[[Any, Any], Any], state: TrainState, batch: Any) -> None:
    """Call the step once more and collect the kernels that torch would refuse in deterministic mode."""
    mode = torch.get_deterministic_debug_mode()
    torch.set_deterministic_debug_mode("warn")  # torch.use_deterministic_algorithms imports the compiler too
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            step(state, batch)
    finally:
        torch.set_deterministic_debug_mode(mode)
    told = [str(warning.message) for warning in caught]
    kernels = dict.fromkeys(text.split(_REFUSAL)[0] for text in told if _REFUSAL in text)
    if kernels:
        raise LawBroken(
            f"the step uses kernels that torch calls non-deterministic: {', '.join(kernels)}. The same input may give "
            "other bits in another run: use an operation that has a deterministic kernel, or, where you know that "
            "yours always gives the same bits, set deterministic_kernels=False"
        )
    if any("CUBLAS_WORKSPACE_CONFIG" in text for text in told):
        raise LawBroken(
            "matrix products on CUDA may give other bits in another run: set the environment variable "
            "CUBLAS_WORKSPACE_CONFIG=:4096:8 before the program starts"
        )


def _check_metrics(after: TrainState, non_negative: Sequence[str]) -> None:
    unknown = [name for name in non_negative if name not in after.metrics]
    if unknown:
        raise ValueError(f"non_negative names {unknown}, but the step's metrics are {sorted(after.metrics)}")
    for name, value in after.metrics.items():
        if name.endswith("loss") and value.is_floating_point() and not bool(value.isfinite()):
            raise LawBroken(f"metrics[{name!r}] is {value.item()} after one step")
        if name in non_negative and not bool(value >= 0):
            raise LawBroken(f"metrics[{name!r}] is {value.item()} after one step, but it promises to be at least 0")


def _check_finite(state: TrainState, after: TrainState, grads: Any, names: list[str]) -> None:
    """No gradient is NaN or infinite; where there is a loss scale, finding one that overflows is its business."""
    if grads is not None and loss_scale(state.opt_state) is None:
        bad = [name for name, leaf in zip(names, tree.leaves(grads), strict=True) if not all_finite([leaf])]
        if bad:
            raise LawBroken(f"the loss is finite, but the gradient is not, by {_some(bad)}: is it sqrt, log or x / x?")
    if int(state.first_bad) < 0 <= int(after.first_bad):
        raise LawBroken("the loss is finite, but a gradient or a new parameter is not: is it sqrt, log or x / x at 0?")


def _check_gradients(grads: dict[str, torch.Tensor], expected: list[str]) -> None:
    zero = [name for name in expected if not bool(grads[name].any())]
    if zero:
        raise LawBroken(
            f"the gradient is zero by {len(zero)} of {len(grads)} parameters: {_some(zero)}. Is the loss independent "
            "of them, was something detached on the way, or is an activation dead? If it is meant to be, name them in "
            "except_for"
        )


def _pairs(before: TrainState, after: TrainState) -> list[tuple[Any, Any]]:
    return list(zip(tree.leaves(before.params), tree.leaves(after.params), strict=True))


def _check_updates(pairs: dict[str, tuple[Any, Any]], expected: list[str]) -> None:
    still = [name for name in expected if tree.equal(*pairs[name])]
    if still and len(still) == len(pairs):
        raise LawBroken("the step changed no parameter: is the learning rate 0, or the first update still to come?")
    if still:
        raise LawBroken(
            f"the step did not change {len(still)} of {len(pairs)} parameters: {_some(still)}. Is the loss "
            "independent of them? If they are meant to stay as they are, name them in except_for"
        )


def _some(names: list[str]) -> str:
    more = [f"and {len(names) - _SHOWN} more"] if len(names) > _SHOWN else []
    return ", ".join([*names[:_SHOWN], *more])
