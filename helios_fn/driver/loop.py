"""The training loop. One loop serves both units; read it from top to bottom."""

from __future__ import annotations

from collections.abc import Callable, Collection, Generator
from pathlib import Path
from typing import Any

from .. import random, schedule
from ..config import RunConfig
from ..data import Phases
from ..errors import NonFiniteError, PurityError
from ..finite import pass_over
from ..state import TrainState
from ..types import Delivery, Feed, Reason, Share, Source
from .batches import step_input
from .evaluate import Validator
from .folder import RunFolder, Start
from .guard import PurityGuard
from .outlets import Outlets
from .rows import make_row
from .signals import StopSignal
from .validation import record_validation

ShouldStop = Callable[[TrainState], bool | str]
Validate = Callable[[TrainState], Any]


class Loop:
    """One run in progress: its last complete state, and the steps from one state to the next.

    The order after each step is the same for both units: advance, log, validate, early-stop
    bookkeeping, phase predicate, checkpoint, stop test.
    """

    def __init__(
        self,
        step: PurityGuard,
        source: Source | Phases,
        cfg: RunConfig,
        share: Share,
        folder: RunFolder,
        outlets: Outlets,
        signal: StopSignal,
        *,
        validate: Validate | None = None,
        should_stop: ShouldStop | None = None,
    ) -> None:
        self.step, self.source, self.cfg, self.share = step, source, cfg, share
        self.folder, self.outlets, self.signal = folder, outlets, signal
        self.validate, self.should_stop = validate, should_stop
        self.batch: Any = None
        self.message = ""
        self.saved_at = -1
        self.last_checkpoint: Path | None = None
        self._attend = isinstance(source, Phases)
        self._passed_over: set[int] = set()
        self._metric_names: Collection[str] | None = None
        self._look = schedule.Horizon(0, 0)

    def begin(self, fresh: TrainState, start: Start) -> None:
        """Take the state to go on from; ``fresh`` is the shape that any checkpoint is restored into."""
        self.fresh, self.state = fresh, start.state
        self.saved_at = start.state.counters.iteration if start.checkpoint is not None else -1
        self.last_checkpoint = start.checkpoint
        if start.state.counters.iteration > 0 and start.state.metrics:
            self._metric_names = start.state.metrics.keys()
        self.look_ahead()

    def train(self) -> Generator[TrainState, None, Reason]:
        """Yield the state after each iteration until there is a reason to stop, and return the reason."""
        reason = self.stop_reason()
        while reason is None:
            feed = self.open_feed()
            try:
                for delivery in feed:
                    self.consume(delivery)
                    reason = self.stop_reason()
                    yield self.state
                    if reason is not None or self.state.cursor is not delivery.cursor:
                        break  # another phase, or rolled back: the data goes on elsewhere
            finally:
                feed.close()
        return reason

    def open_feed(self) -> Feed:
        """The data from the state's cursor on."""
        cursor = self.state.cursor
        source = self.source.source(cursor.phase) if isinstance(self.source, Phases) else self.source
        return source.open(cursor, key=self.state.key, share=self.share)

    def consume(self, delivery: Delivery) -> None:
        """One iteration and all that is due after it."""
        before = self.state
        self.batch = step_input(delivery, self.share.micro_batches, self.cfg.reduction, self.cfg.device)
        stepped = self.step(before.replace(metrics={}), self.batch)
        if before.counters.iteration in self._passed_over:
            stepped = pass_over(before, stepped)
        self.check_metric_names(stepped)
        counters = schedule.advance(before.counters, delivery.count)
        self.state = stepped.replace(cursor=delivery.cursor, counters=counters)
        self.batch = None
        for handler in self.outlets.on_iteration:
            handler(self.state)
        if self._attend or counters.iteration >= self._look.iteration or delivery.cursor.epoch >= self._look.epoch:
            self.react(before)

    def react(self, before: TrainState) -> None:
        """Do what is due between ``before`` and the present state."""
        due = schedule.due(before, self.state, self.cfg)
        if due.log:
            self.outlets.write(make_row("train", self.state))
        if due.validate and self.validate is not None:
            self.run_validation(self.validate)
        if isinstance(self.source, Phases) and self.source.should_advance(self.state.cursor.phase, self.state):
            self.state = self.state.replace(cursor=schedule.next_phase(self.state.cursor))
        # Asked again: a phase that ends in the middle of an epoch completes it.
        save = schedule.due(before, self.state, self.cfg).checkpoint
        look = self.state.counters.iteration % self.cfg.check_finite_every == 0
        if (save or look) and self.check_finite() and save:
            self.save()
        self.look_ahead()

    def look_ahead(self) -> None:
        """Find the next counts at which anything can be due, so that the iterations before need one comparison."""
        ahead = schedule.horizon(self.state, self.cfg)
        every = self.cfg.check_finite_every
        look = (self.state.counters.iteration // every + 1) * every
        self._look = ahead._replace(iteration=min(ahead.iteration, look))

    def check_metric_names(self, stepped: TrainState) -> None:
        """Check that the step logs the same metrics in every iteration, so that all rows have the same columns."""
        if self._metric_names is None:
            self._metric_names = stepped.metrics.keys()
        elif stepped.metrics.keys() != self._metric_names:
            raise PurityError(
                f"the step wrote metrics {sorted(stepped.metrics)} after {sorted(self._metric_names)}: "
                "write the same names in every iteration, with NaN where there is nothing to tell"
            )

    def run_validation(self, validate: Validate) -> None:
        """One validation cycle, in a keyed scope so that nothing it draws reaches training."""
        with random.scope(random.fold_in(self.state.key, "validation", self.state.counters.iteration)):
            if isinstance(validate, Validator) and self.outlets.listening("on_validation_batch"):
                metrics = validate(
                    self.state, lambda done, total: self.outlets.emit("on_validation_batch", done, total)
                )
            else:
                metrics = validate(self.state)
        found = record_validation(self.state.validation, metrics, self.cfg.early_stop)
        self.state = self.state.replace(validation=found)
        self.outlets.write(make_row("validation", self.state))
        self.outlets.emit("on_validation", self.state)

    def save(self) -> None:
        """Write the present state as a checkpoint, with the marks of the logs as they stand."""
        if not self.folder.keeps:
            return
        self.last_checkpoint = self.folder.save(self.state, self.outlets.flush())
        self.saved_at = self.state.counters.iteration
        self.step.watch_next()
        self.outlets.emit("on_checkpoint", self.last_checkpoint, self.state)

    def check_finite(self) -> bool:
        """Whether the state is free of non-finite values; otherwise the policy has been applied.

        Raises:
            NonFiniteError: the policy is to raise, or going back did not help.
        """
        bad = int(self.state.first_bad)
        if bad < 0 or self.cfg.non_finite == "stop":
            return bad < 0
        if self.cfg.non_finite == "rollback" and bad not in self._passed_over:
            self._passed_over.add(bad)
            start = self.folder.rollback(self.fresh)
            self.outlets.cut(start.marks)
            self.begin(self.fresh, start)
            return False
        again = " again, after it had been passed over" if bad in self._passed_over else ""
        raise NonFiniteError(
            f"the loss or a gradient was not finite in iteration {bad + 1}{again} (found after iteration "
            f"{self.state.counters.iteration}). Lower the learning rate, clip gradients, or choose "
            "non_finite='skip', 'stop' or 'rollback'"
        )

    def stop_reason(self) -> Reason | None:
        """The one stop test: of the configuration, the user's predicate, and signals, in this order."""
        reason = schedule.finished(self.state, self.cfg)
        if reason is None and self.should_stop is not None:
            answer = self.should_stop(self.state)
            if answer:
                reason, self.message = Reason.SHOULD_STOP, answer if isinstance(answer, str) else ""
        if reason is None and self.cfg.non_finite == "stop" and self._noticed_bad():
            return Reason.NON_FINITE
        if reason is None and self.signal.received is not None:
            reason, self.message = Reason.SIGNAL, self.signal.received.name
        if reason is not None and not self.check_finite():
            return Reason.NON_FINITE if self.cfg.non_finite == "stop" else None
        return reason

    def _noticed_bad(self) -> bool:
        # Looked at on the same fixed cadence as for the other policies.
        return self.state.counters.iteration % self.cfg.check_finite_every == 0 and int(self.state.first_bad) >= 0
