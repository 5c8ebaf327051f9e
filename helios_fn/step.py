"""The usual training step, composed of small pure functions: gradients, mean, update, average."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple, TypeAlias, get_args

import torch

from . import random, tree
from .finite import mark_bad
from .finiteness import all_finite, are_found_finite
from .frames import border
from .graph import whole_graph
from .nn import Average, GradFn, Gradients, LossFn, Mean, Precision, cast_by, gradients_of, mean_over, microsteps
from .optim import Optimizer, loss_scale
from .scalars import Constants, Counts
from .state import TrainState, check_optimizer, give_away, micro_keys
from .tracing import is_traced
from .types import MicroBatches, Tree

CompileMode: TypeAlias = Literal["grad", "whole"]


@border
def make_step(
    loss_fn: LossFn,
    optimizer: Optimizer,
    *,
    average: Average | None = None,
    around_grad: Callable[[GradFn], GradFn] | None = None,
    precision: Precision | None = None,
    compile: CompileMode | None = None,
    compile_options: Mapping[str, Any] | None = None,
) -> MadeStep:
    """A pure ``step(state, batch) -> state`` from a loss and an optimiser.

    Args:
        loss_fn: ``loss_fn(params, buffers, batch, key) -> (loss, Aux)``, or just the loss when it has
            no buffers, weight or metrics to report. It runs inside a scope keyed by ``key``, so all it
            draws from torch, ``random`` or NumPy is a function of the state.
        optimizer: see `helios_fn.optim`; the one whose ``init`` made ``state.opt_state``.
        average: the average whose ``init`` made ``state.averages``, such as `helios_fn.ema`. It
            follows the updates, so it rests while ``optim.every`` only accumulates.
        around_grad: wraps the gradient function ``(params, buffers, batch, key) -> ((loss, aux), grads)``,
            as `helios_fn.sam` does.
        precision: ``"bf16"`` or ``"fp16"`` runs ``loss_fn`` by `helios_fn.autocast`; parameters stay what they are.
            ``"fp16"`` needs an optimiser with a loss scale, `optim.loss_scaled`.
        compile: ``"grad"`` compiles loss and gradient into one graph for each shape of batch and leaves the
            update to torch's fused kernels; ``"whole"`` compiles the update too (with several micro-batches: one
            graph for each, and one for all that follows their sum); ``None`` compiles nothing. Another mode has
            other bits. Where ``loss_fn`` hands its key to a model: ``functional(..., draws="keyed")``.
        compile_options: further keywords of ``torch.compile``, such as ``{"mode": "reduce-overhead"}``.

    The step logs ``loss``, the metrics of ``Aux``, and what the optimiser monitors (its learning
    rate). An iteration of total weight 0 makes no update. An iteration whose loss or gradients are
    not finite is remembered in ``state.first_bad``; but where the optimiser has a loss scale, gradients
    are taken of the scaled loss, and those that are not finite lower the scale instead.

    Raises:
        TypeError: an argument is of the wrong kind; in a step, ``loss_fn`` returns something else.
        ValueError: in a step, the loss does not depend on the params, a metric has a name that the step
            itself logs, ``optimizer`` or ``average`` are not those that made the state, or fp16 has no loss scale.
        NotTraceable: in a step, what is to be compiled cannot be; the message names the line.

    Example:
        >>> def loss_fn(params, buffers, batch, key):
        ...     return (params["w"] - batch).square().mean()
        ...
        >>> optimizer = hf.optim.sgd(0.5)
        >>> step = hf.make_step(loss_fn, optimizer)
        >>> state = step(hf.init_state({"w": torch.tensor(0.0)}, optimizer), torch.tensor([3.0]))
        >>> state.params["w"].item(), state.metrics["loss"].item()
        (3.0, 9.0)
    """
    gradients = gradients_of(cast_by(loss_fn, precision), around_grad)
    check_optimizer(optimizer)
    if not isinstance(average, Average | None):
        raise TypeError(f"average must be an average such as hf.ema(0.999), or None, got {tree.describe(average)}")
    if compile not in (None, *get_args(CompileMode)):
        raise ValueError(f"compile must be 'grad', 'whole' or None, got {compile!r}")
    if compile is None and compile_options:
        raise ValueError("compile_options are given but nothing is compiled: set compile='grad' or 'whole'")
    if precision == "fp16":
        gradients = gradients._replace(plain=_refuse_unscaled)
    if compile == "grad":
        gradients = _compiled(gradients, compile_options)
    return MadeStep(Recipe(gradients, optimizer, average), compile, compile_options)


def _refuse_unscaled(*_: Any) -> Any:
    raise ValueError(
        "precision='fp16' needs a loss scale, else small gradients become zero: hand make_step and init_state "
        "hf.optim.loss_scaled(optimizer), or take 'bf16', which needs none"
    )


def _compiled(gradients: Gradients, options: Mapping[str, Any] | None) -> Gradients:
    return Gradients(whole_graph(gradients.plain, options), whole_graph(gradients.scaled, options))


class Recipe(NamedTuple):
    """What a step is made of."""

    gradients: Gradients
    optimizer: Optimizer
    average: Average | None


class Parts(NamedTuple):
    """The fields of a state that a step renews, and the iterations that were completed before."""

    params: Tree
    buffers: Tree
    opt_state: Tree
    averages: Tree
    first_bad: torch.Tensor
    iteration: int | torch.Tensor


class MadeStep:
    """What `make_step` returns: call it as ``step(state, batch)``.

    ``step.donating(state, batch)`` returns the same bits but may write them into the memory of ``state``, which is
    given away: using its parameters afterwards raises `StateDonated`. The driver calls it for states that nobody
    else can hold. If the gradient raises, the state is still whole; if the update itself does, it is not.
    """

    def __init__(self, recipe: Recipe, compile: CompileMode | None, options: Mapping[str, Any] | None) -> None:
        self._recipe = recipe
        self.compile = compile
        self._flatten = tree.Flattener()
        self._regions: dict[bool, random.Seeded] = {}
        self._endings: dict[bool, Callable[..., Any]] = {}
        self._gradients = recipe.gradients
        if compile == "whole":
            self._regions = {donate: random.Seeded(_region(recipe, donate, options)) for donate in (False, True)}
            self._endings = {donate: _ending(recipe, donate, options) for donate in (False, True)}
            self._gradients = _compiled(recipe.gradients, options)

    @property
    def optimizer(self) -> Optimizer:
        """The optimiser that it was made with."""
        return self._recipe.optimizer

    def __call__(self, state: TrainState, batch: Any) -> TrainState:
        """The next state; ``state`` stays as it is."""
        return self._run(state, batch, donate=False)

    def donating(self, state: TrainState, batch: Any) -> TrainState:
        """The next state; ``state`` is given away."""
        return self._run(state, batch, donate=True)

    def gradients(self, state: TrainState, batch: Any) -> Mean:
        """What the update will follow: the mean over the iteration's micro-batches, see `helios_fn.microsteps`."""
        return microsteps(_grad_fn(self._gradients, state.opt_state), state, batch)

    def __repr__(self) -> str:
        average = "" if self._recipe.average is None else ", average=..."
        compiled = "" if self.compile is None else f", compile={self.compile!r}"
        return f"make_step(..., {self.optimizer!r}{average}{compiled})"

    def _run(self, state: TrainState, batch: Any, *, donate: bool) -> TrainState:
        old = Parts(
            state.params, state.buffers, state.opt_state, state.averages, state.first_bad, state.counters.iteration
        )
        whole = self._regions and not is_traced()
        if whole and not isinstance(batch, MicroBatches):
            new, metrics = self._run_region(state, old, batch, donate)
        else:
            mean = self.gradients(state, batch)
            if donate:
                give_away(state)
            if whole:
                weight = torch.as_tensor(mean.weight, dtype=torch.float64)
                new, metrics = self._endings[donate](_with_tensors(old), mean._replace(weight=weight))
            else:
                new, metrics = _next(self._recipe, old, mean, donate)
        return state.replace(
            params=new.params,
            buffers=new.buffers,
            opt_state=new.opt_state,
            averages=new.averages,
            first_bad=new.first_bad,
            metrics=metrics,
        )

    def _run_region(
        self, state: TrainState, old: Parts, batch: Any, donate: bool
    ) -> tuple[Parts, dict[str, torch.Tensor]]:
        keys = micro_keys(state, batch)
        leaves, _ = self._flatten(batch)
        if donate:
            give_away(state)
        # A scope cannot be opened inside, but compiled draws are seeded from torch's generators.
        return self._regions[donate](keys[0], leaves, _with_tensors(old), batch, keys, consumes=donate)


def _with_tensors(old: Parts) -> Parts:
    """What the compiler would else take for a constant, as a tensor."""
    known = old.iteration
    iteration = known.long() if isinstance(known, torch.Tensor) else _counts.tensor(known)
    return Parts(old.params, old.buffers, old.opt_state, old.averages, old.first_bad, iteration)


def _region(recipe: Recipe, donate: bool, options: Mapping[str, Any] | None) -> Callable[..., Any]:
    """The whole step of one batch as one graph, over everything that changes along a run."""

    def step(old: Parts, batch: Any, keys: list[torch.Tensor]) -> tuple[Parts, dict[str, torch.Tensor]]:
        mean = mean_over(_grad_fn(recipe.gradients, old.opt_state), old.params, old.buffers, batch, keys)
        return _next(recipe, old, mean, donate)

    return whole_graph(step, options)


def _ending(recipe: Recipe, donate: bool, options: Mapping[str, Any] | None) -> Callable[..., Any]:
    """What follows the sum over micro-batches as one graph.

    The sum itself stays outside: the bits of each term are then those of one graph, whatever the number of processes.
    """

    def end(old: Parts, mean: Mean) -> tuple[Parts, dict[str, torch.Tensor]]:
        return _next(recipe, old, mean, donate)

    return whole_graph(end, options)


def _grad_fn(gradients: Gradients, opt_state: Tree) -> GradFn:
    """The gradient function with the loss scale that the optimiser keeps, if it does."""
    found = loss_scale(opt_state)
    return gradients.plain if found is None else gradients.at(found.scale)


def _next(recipe: Recipe, old: Parts, mean: Mean, donate: bool) -> tuple[Parts, dict[str, torch.Tensor]]:
    """Everything after the gradients. The update is the last that can raise."""
    traced = is_traced()
    update = _updated_traced if traced else _updated
    try:
        params, opt_state, averages = update(recipe, old, mean, donate)
        monitored = recipe.optimizer.monitor(opt_state)
    except (AttributeError, TypeError, ValueError, LookupError) as error:
        if traced:
            raise
        misfit = _misfit(recipe.optimizer, old)  # not looked for before: it costs as much as a new state
        if misfit:
            raise ValueError(misfit) from error
        raise
    first_bad = _first_bad(old, mean, opt_state, traced)
    new = Parts(params, mean.buffers, opt_state, averages, first_bad, old.iteration)
    return new, _metrics(mean, monitored, traced)


def _first_bad(old: Parts, mean: Mean, opt_state: Tree, traced: bool) -> torch.Tensor:
    """The sticky leaf, as it is after the iteration."""
    if not traced and _is_plainly_finite(mean):
        return old.first_bad
    scaled = loss_scale(opt_state)
    if scaled is not None:
        # An overflow is no fault while a smaller scale may help.
        return mark_bad(old.first_bad, all_finite([mean.loss]) & scaled.is_usable(), old.iteration)
    return mark_bad(old.first_bad, all_finite([mean.loss, *tree.leaves(mean.grads)]), old.iteration)


def _is_plainly_finite(mean: Mean) -> bool:
    """Whether loss and gradients, which are nobody else's, are seen to be finite at once: dicts need no flattening."""
    return type(mean.grads) is dict and are_found_finite(mean.loss, [*mean.grads.values()])


def _updated(recipe: Recipe, old: Parts, mean: Mean, donate: bool) -> tuple[Tree, Tree, Tree]:
    if bool(mean.weight == 0):
        return old.params, old.opt_state, old.averages
    optimizer, average = recipe.optimizer, recipe.average
    _check_average(average, old)
    before = None if average is None else optimizer.count(old.opt_state)
    given = {"donate": True} if donate else {}  # those written elsewhere need not know the keyword
    params, opt_state = optimizer.update(mean.grads, old.opt_state, old.params, weight=mean.weight, **given)
    if average is None:
        return params, opt_state, old.averages
    count = optimizer.count(opt_state)
    if count == before:
        return params, opt_state, old.averages
    return params, opt_state, average.update(old.averages, params, count, **given)


def _updated_traced(recipe: Recipe, old: Parts, mean: Mean, donate: bool) -> tuple[Tree, Tree, Tree]:
    """The same by selection: in a traced region no branch can depend on a value."""
    optimizer, average = recipe.optimizer, recipe.average
    _check_average(average, old)
    if not isinstance(mean.weight, torch.Tensor) and mean.weight == 0:
        return old.params, old.opt_state, old.averages
    params, opt_state = optimizer.update(mean.grads, old.opt_state, old.params, weight=mean.weight)
    averages = old.averages
    if average is not None:
        count = optimizer.count(opt_state)
        moved = average.update(old.averages, params, count)
        averages = tree.select(count == optimizer.count(old.opt_state), averages, moved)
    kept, new = (old.params, old.opt_state, old.averages), (params, opt_state, averages)
    if isinstance(mean.weight, torch.Tensor):
        new = tree.select(mean.weight == 0, kept, new)
    return tree.stored(new, kept, donate=donate)


def _check_average(average: Average | None, old: Parts) -> None:
    if average is None and old.averages is not None:
        raise ValueError("state.averages would never be updated: hand make_step the average that made them")
    if average is not None and old.averages is None:
        raise ValueError("make_step has an average but state.averages is None: hand the same average to hf.init_state")


def _misfit(optimizer: Optimizer, old: Parts) -> str:
    """How the state's optimiser memory differs in structure from the optimiser's, in words; empty if it does not."""
    expected, found = optimizer.init(old.params), old.opt_state
    if tree.structure(expected) == tree.structure(found):
        return ""
    if found is None:
        return "state.opt_state is None: make the state by hf.init_state(params, optimizer)"
    wanted, got = set(tree.paths(expected)), set(tree.paths(found))
    missing, unknown = wanted - got, got - wanted
    difference = f"has {min(unknown)!r} too" if unknown else "has other containers"
    if missing:
        difference = f"has no {min(missing)!r}"
    return (
        f"state.opt_state (a {type(found).__name__}) was not made by {optimizer!r} for state.params: it {difference}. "
        "Hand hf.init_state the same optimizer"
    )


def _metrics(mean: Mean, monitored: Mapping[str, Any], traced: bool) -> dict[str, torch.Tensor]:
    taken = mean.metrics and [name for name in mean.metrics if name == "loss" or name in monitored]
    if taken:
        raise ValueError(f"Aux.metrics may not have {taken[0]!r}, which make_step logs itself: choose another name")
    metrics = {"loss": mean.loss, **mean.metrics}
    for name, value in monitored.items():
        if not isinstance(value, torch.Tensor):
            value = torch.as_tensor(value, dtype=torch.float64) if traced else _constants.tensor(name, value)
        metrics[name] = value
    return metrics


_constants, _counts = Constants(), Counts(torch.int64)
