"""The law of accumulation: micro-batches are what one batch of their union would have been."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeAlias, get_args

import torch

from .. import random, schedule, tree
from ..config import RunConfig
from ..data import Phases
from ..driver.batches import one_source, to_device
from ..types import Cursor, MicroBatches, ReductionName, Share
from .examples import check_count, for_all
from .trace import Job
from .unions import cut, joined, rows, widened
from .verdicts import JobFailed, LawBroken, LawDoesNotApply

Join: TypeAlias = Callable[[Sequence[Any]], Any]
_USUAL = 3
_TOLERANCE = {torch.float64: 1e-6, torch.float32: 1e-2}
_FIELDS = ("params", "opt_state", "averages", "extra")
_WEIGHTS = """Micro-batches of one size agree with their union, so it is the weights of those that are shorter:
  - a plain mean over micro-batches, such as sum(grads) / len(batch.items): weight each by its samples
  - a loss_fn that does not say how many samples its mean is over, or another number: return hf.Aux(weight=len(y), ...)
Use hf.microsteps in a step of your own: it returns the weighted mean over all of them."""
_SUMMED = """The update of {count} micro-batches is {count} times that of their union: their gradients are summed.
Divide the weighted sum by the sum of the weights, as hf.microsteps does; a loss that is a sum itself, and no mean,
has that sum in its gradients: the law is about means."""
_OTHERWISE = """Micro-batches of one size differ from their union too, so it is not the weights alone:
  - only some of the micro-batches are used, such as the last one's gradients
  - something is applied to each micro-batch that belongs after their mean: clipping, an update, a norm
  - the loss couples the samples of a batch (a contrastive loss, statistics of the batch, an inner update): then
    accumulation does change what is trained. If that is meant, say so: coupled=True checks what holds all the same"""
_COUPLED = """The mean of equal terms is one of them, and their order does not matter, so look at how the step makes one
update of several micro-batches: hf.microsteps returns their weighted mean."""


def check_accumulation(
    step: Callable[[Any, Any], Any],
    state: Any,
    loader: Any,
    cfg: RunConfig,
    *,
    coupled: bool = False,
    join: Join | None = None,
    examples: int | None = None,
) -> None:
    """Check that an iteration of several micro-batches makes the update of one batch of their union, to rounding.

    The micro-batches are the first ones of ``loader``, the last of them cut to half its samples, so that a plain mean
    over micro-batches shows. The step is called in float64 where it can be (else in its own precision), and the
    parameters, optimiser memory, averages and ``extra`` that it returns are compared: each floating leaf may differ by
    10^-6 of its own change in this iteration in float64, and by 10^-2 of it in float32.

    The law is about losses that are means over their samples, and says nothing where a step draws noise or uses
    statistics of its batch (BatchNorm). Such a step is recognised, and `LawDoesNotApply` raised: hand over the same
    step without them, such as one made with ``model.eval``, leave this check out, or say ``coupled=True``.

    Args:
        step: as for `helios_fn.run`; it is called with `helios_fn.MicroBatches`.
        state: the state to start from, or a function that makes it.
        loader: where the micro-batches come from, or a function that makes it.
        cfg: gives the number of micro-batches (three, if iterations have only one) and the reduction.
        coupled: the loss is no mean over samples, but of the batch as a whole: a contrastive loss, statistics of the
            batch, an inner update. Checked is then what is left of the law: several times the same micro-batch
            make the update of one, and their order does not matter. Noise is not allowed here either.
        join: ``join(micro_batches) -> batch`` makes the union. By default each leaf is concatenated along its first
            dimension; with a function of your own the micro-batches stay as the loader makes them, and the last
            one must be shorter by itself.
        examples: ``None`` for this quick form; a number for as many examples by Hypothesis (about 150 in a
            second for a small model), with other numbers and lengths of micro-batches and both reductions.

    Raises:
        LawBroken: the updates differ; names the leaf, both values, and the likely cause.
        LawDoesNotApply: the step draws noise, uses batch statistics, or takes no micro-batches.
        JobFailed: the loader or the step fails.
        ValueError: the micro-batches cannot be joined; names the leaf.
    """
    check_count(examples)
    job = Job(step, state, loader, cfg)
    count = schedule.share_of(cfg).micro_batches
    items = _micro_batches(job, count if count > 1 else _USUAL)
    if coupled:
        _check_coupled(_Trial(job, join or joined), items, cfg.reduction)
        return
    if join is not None:
        _check(_Trial(job, join), items, cfg.reduction)
        return
    trial = _Trial(job, joined)
    if examples is None:
        length = rows(items[-1])
        # One sample alone is too few for some steps, and no law asks for it.
        _check(trial, [*items[:-1], cut(items[-1], max(min(2, length), length // 2))], cfg.reduction)
    else:
        _check_examples(trial, items, examples)


def _check_examples(trial: _Trial, items: list[Any], examples: int) -> None:
    from hypothesis import strategies as st

    most = max(map(rows, items))
    lengths = st.lists(st.integers(min(2, most), most), min_size=2, max_size=len(items))
    reductions: tuple[ReductionName, ...] = get_args(ReductionName)
    for_all(
        st.tuples(lengths, st.sampled_from(reductions)),
        lambda drawn: _check(trial, [cut(item, n) for item, n in zip(items, drawn[0], strict=False)], drawn[1]),
        examples,
    )


class _Gap(NamedTuple):
    """The leaf whose update differs most: where, both values of the element, and the difference by the change."""

    path: str
    left: float
    right: float
    ratio: float


class _Trial:
    """A step from one state, in the precision in which it can be called."""

    def __init__(self, job: Job, join: Join) -> None:
        self.step, self.join = job.step, join
        self.state = job.initial_state()
        self.dtype = torch.float32

    def prepare(self, items: list[Any], reduction: ReductionName) -> list[Any]:
        """The micro-batches in float64, if the step takes them so."""
        wide, batches = self._wide(self.state), [widened(item) for item in items]
        try:
            self.after(wide, batches, reduction)
        except Exception:
            self._try_plainly(items, reduction)
            return items
        self.state, self.dtype = wide, torch.float64
        return batches

    def after(self, state: Any, items: Sequence[Any], reduction: ReductionName) -> Any:
        """The state after one iteration; random draws outside of scopes are nobody's."""
        with random.preserved_globals():
            torch.manual_seed(1)
            return self.step(state, MicroBatches(tuple(items), 0, len(items), reduction))

    def gap(self, items: Sequence[Any], reduction: ReductionName) -> _Gap | None:
        """How the iteration of ``items`` differs most from that of their union, if by more than rounding."""
        union = self.after(self.state, [self.join(items)], reduction)
        return self.between(self.after(self.state, items, reduction), union)

    def between(self, left: Any, right: Any) -> _Gap | None:
        """The largest difference between two states, if it is more than rounding."""
        gaps = [_gap(self.dtype, *found) for found in _floating(left, right, self.state)]
        return max((gap for gap in gaps if gap is not None), key=lambda gap: gap.ratio, default=None)

    def _try_plainly(self, items: list[Any], reduction: ReductionName) -> None:
        try:
            self.after(self.state, items, reduction)
        except Exception as error:
            if self._takes(MicroBatches((items[0],), 0, 1, reduction)) or not self._takes(items[0]):
                raise JobFailed(f"the step itself fails: {type(error).__name__}: {error}") from error
            raise LawDoesNotApply(
                "the step takes one batch, but no hf.MicroBatches, so it does not accumulate: "
                f"{type(error).__name__}: {error}. Let it call hf.microsteps(grad_fn, state, batch), or leave this "
                "check out"
            ) from error

    def _takes(self, batch: Any) -> bool:
        try:
            self.step(self.state, batch)
        except Exception:
            return False
        return True

    def _wide(self, state: Any) -> Any:
        return state.replace(**{name: widened(getattr(state, name)) for name in (*_FIELDS, "buffers")})


def _check(trial: _Trial, items: list[Any], reduction: ReductionName) -> None:
    items = trial.prepare(items, reduction)
    gap = trial.gap(items, reduction)
    if gap is None:
        return
    _refuse_noise(trial, items, reduction)
    even = None
    if trial.join is joined:
        shortest = min(map(rows, items))
        even = trial.gap([cut(item, shortest) for item in items], reduction)
    if even is not None:
        _refuse_statistics(trial, items, reduction)
    told = _OTHERWISE if even is not None or trial.join is not joined else _WEIGHTS
    if _is_summed(trial, items, reduction):
        told = _SUMMED.format(count=len(items))
    sizes = ", ".join(str(rows(item)) for item in items) if trial.join is joined else "your own"
    raise LawBroken(
        f"{len(items)} micro-batches (samples: {sizes}) do not make the update of one batch of their union: "
        f"{gap.path} becomes {gap.left!r} instead of {gap.right!r}, which is {gap.ratio:.2g} of its change in this "
        f"iteration (tolerance {_TOLERANCE[trial.dtype]:g})\n{told}"
    )


def _check_coupled(trial: _Trial, items: list[Any], reduction: ReductionName) -> None:
    items = trial.prepare(items, reduction)
    pairs = {
        f"{len(items)} times the same micro-batch do not make the update of one": ([items[0]] * len(items), items[:1]),
        "the same micro-batches in another order make another update": (items, items[::-1]),
    }
    for what, (left, right) in pairs.items():
        gap = trial.between(*(trial.after(trial.state, each, reduction) for each in (left, right)))
        if gap is not None:
            _refuse_noise(trial, items, reduction)
            raise LawBroken(f"{what}: {gap.path} becomes {gap.left!r} instead of {gap.right!r}\n{_COUPLED}")


def _refuse_noise(trial: _Trial, items: list[Any], reduction: ReductionName) -> None:
    other = trial.state.replace(key=random.fold_in(trial.state.key, "other noise"))
    one, another = (trial.after(state, items, reduction) for state in (trial.state, other))
    if trial.between(one, another.replace(key=one.key)) is not None:
        raise LawDoesNotApply(
            "the step draws noise: with another key the same batch gives another update, so micro-batches, which have "
            "keys of their own, cannot agree with their union. Hand over a step without dropout and other noise (a "
            "loss_fn that calls model.eval, p=0), or leave this check out"
        )


def _refuse_statistics(trial: _Trial, items: list[Any], reduction: ReductionName) -> None:
    after = trial.after(trial.state, items, reduction)
    for path, new, old in _pairs(after.buffers, trial.state.buffers):
        if new.is_floating_point() and not tree.equal(new, old):
            raise LawDoesNotApply(
                f"the step uses statistics of its batch: it changes buffers{path}. A micro-batch has other statistics "
                "than the union, so the updates differ. Hand over a step without them (a loss_fn that calls "
                "model.eval, or another norm), or say coupled=True to check what holds all the same"
            )


def _is_summed(trial: _Trial, items: list[Any], reduction: ReductionName) -> bool:
    """Whether parameters move as many times as far as there are micro-batches."""
    shortest = min(map(rows, items)) if trial.join is joined else 0
    even = [cut(item, shortest) for item in items] if shortest else items
    parts = trial.after(trial.state, even, reduction)
    union = trial.after(trial.state, [trial.join(even)], reduction)
    moved = [
        (left - start, len(even) * (right - start)) for _, left, right, start in _floating(parts, union, trial.state)
        if left.numel() and not torch.equal(right, start)
    ]  # fmt: skip
    return bool(moved) and all(torch.allclose(left, right, rtol=1e-3, atol=0) for left, right in moved)


def _micro_batches(job: Job, count: int) -> list[Any]:
    try:
        loader = job.new_loader()
        source = one_source(loader.source(0) if isinstance(loader, Phases) else loader)
        feed = source.open(Cursor(), key=job.initial_state().key, share=Share("iteration", count))
        try:
            with random.preserved_globals():
                return [to_device(item, job.cfg.device) for item in next(iter(feed)).items]
        finally:
            feed.close()
            source.close()
    except Exception as error:
        raise JobFailed(f"the job itself failed, before its first step: {error}") from error


def _floating(left: Any, right: Any, start: Any) -> list[tuple[str, torch.Tensor, torch.Tensor, torch.Tensor]]:
    """The floating leaves of three states that training moves, with their paths."""
    parts = [{name: getattr(state, name) for name in _FIELDS} for state in (left, right, start)]
    found = zip(tree.items(parts[0]), *map(tree.leaves, parts[1:]), strict=True)
    return [
        (path.removeprefix("['").replace("']", "", 1), one, other, first)
        for (path, one), other, first in found
        if isinstance(one, torch.Tensor) and one.is_floating_point()
    ]


def _pairs(left: Any, right: Any) -> list[tuple[str, torch.Tensor, torch.Tensor]]:
    found = zip(tree.items(left), tree.leaves(right), strict=True)
    return [(path, one, other) for (path, one), other in found if isinstance(one, torch.Tensor)]


def _gap(dtype: torch.dtype, path: str, left: torch.Tensor, right: torch.Tensor, start: torch.Tensor) -> _Gap | None:
    if not left.numel():
        return None
    one, other, first = (side.detach().to("cpu", torch.float64) for side in (left, right, start))
    apart = (one - other).abs()
    change = float(torch.maximum((one - first).abs(), (other - first).abs()).max())
    rounding = 4 * torch.finfo(dtype).eps * float(first.abs().max())
    at = int(apart.argmax())
    worst = float(apart.reshape(-1)[at])
    if not worst > _TOLERANCE[dtype] * change + rounding:
        return None
    return _Gap(path, float(one.reshape(-1)[at]), float(other.reshape(-1)[at]), worst / change)
