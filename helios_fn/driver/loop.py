"""The training loop. One loop serves both units; read it from top to bottom."""

from __future__ import annotations

from collections.abc import Callable, Generator
from typing import Any, NamedTuple

from .. import random, schedule
from ..config import RunConfig
from ..data import Phases
from ..distributed import World
from ..errors import NonFiniteError, PurityError
from ..finite import pass_over
from ..state import TrainState, give_away, is_given_away, renewed
from ..types import Delivery, Feed, Reason, Share, Source
from .agreement import Agreement
from .batches import step_input
from .donation import Donation
from .evaluate import Validator
from .fingerprints import Fingerprints
from .folder import RunFolder, Start
from .guard import PurityGuard, check_kinds, check_unwritten, kinds, versions
from .outlets import Outlets
from .replicas import Replicas
from .rows import make_row
from .saving import Saving
from .sharded import ShardedFolder
from .signals import StopSignal
from .stopwatch import Stopwatch, accelerator_of
from .timer import Timer
from .together import SharedFolder
from .validation import record_validation

ShouldStop = Callable[[TrainState], bool | str]
Validate = Callable[[TrainState], Any]
Doing = tuple[str, int]
"""What the loop is at, in words, and by how much the iteration it belongs to is ahead of the last complete one."""
TRYING: Doing = ("validation, which is tried out before", 1)
_FETCHING: Doing = ("fetching the data of", 1)
_STEPPING: Doing = ("the step of", 1)
_REACTING: Doing = ("what is due after", 1)
_OBSERVED: Doing = ("an observer after", 0)
_SAVING: Doing = ("the checkpoint after", 0)
_ASKING: Doing = ("the stop test after", 0)
_HEARING: Doing = ("a save that had ended by", 0)


class Surroundings(NamedTuple):
    """What a loop works with: everything but the state."""

    step: PurityGuard
    donation: Donation
    source: Source | Phases
    cfg: RunConfig
    share: Share
    folder: RunFolder | SharedFolder | ShardedFolder
    outlets: Outlets
    world: World
    signal: StopSignal
    timer: Timer
    validate: Validate | None
    should_stop: ShouldStop | None


class Loop:
    """One run in progress: its state, and the steps from one state to the next.

    The order after each step is the same for both units: advance, log, validate, early-stop
    bookkeeping, phase predicate, checkpoint, stop test. An iteration is complete when all of this
    but the checkpoint and the stop test has been done; ``complete`` is the last such state.
    """

    def __init__(self, around: Surroundings, start: Start) -> None:
        self.step, self.source, self.cfg, self.share = around.step, around.source, around.cfg, around.share
        self.donation = around.donation
        self.folder, self.outlets = around.folder, around.outlets
        self.signal, self.timer, self.world = around.signal, around.timer, around.world
        self.agreement = Agreement(self.world, self.signal, self.timer)
        self.saving = Saving(self.folder, self.outlets)
        self.validate, self.should_stop = around.validate, around.should_stop
        self.batch: Any = None
        self.ended = False
        self.doing: Doing = ("the start before", 1)
        self._phased = isinstance(self.source, Phases)
        self._skips = self.cfg.non_finite == "skip"
        self._quiet = False
        self._passed_over: set[int] = set()
        self._metric_names: frozenset[str] | None = None
        self._kinds = kinds(start.state)
        self._launched_at = start.state.counters.iteration
        self.watch = Stopwatch(accelerator_of(start.state.params))
        self.replicas = Replicas(self.world, self.cfg.check_replicas_every, self._launched_at)
        self.fingerprints = Fingerprints(self.world)
        self.begin(start)

    def begin(self, start: Start) -> None:
        """Go on from a state: the first one, or after a rollback."""
        self.state = self.complete = start.state
        self.donation.keep(start.state)
        self.saving.begin(start)
        self.watch.restart(start.state.counters.micro_step)
        self.message = ""
        if start.state.counters.iteration > 0 and start.state.metrics:
            self._metric_names = frozenset(start.state.metrics)
        self.look_ahead()

    def train(self) -> Generator[TrainState, None, Reason]:
        """Yield the state after each iteration until there is a reason to stop, and return the reason."""
        reason = self.stop_reason()
        self.watch.restart(self.state.counters.micro_step)
        while reason is None:
            feed, delivered = self.open_feed(), False
            try:
                for delivery in feed:
                    delivered = True
                    self.consume(delivery)
                    self.doing = _ASKING
                    if self.agreement.asked_to_stop() or not self._quiet:
                        reason = self.stop_reason()
                    self.signal.waiting = True
                    yield self.state
                    self.signal.waiting = False
                    if reason is not None or self.state.cursor is not delivery.cursor:
                        break  # another phase, or rolled back: the data goes on elsewhere
                    self.doing = _FETCHING
                    self.watch.waits()
            finally:
                feed.close()
            if not delivered:
                raise ValueError(f"the source delivered nothing from {self.state.cursor} on: a feed never ends empty")
        return reason

    def open_feed(self) -> Feed:
        """The data from the state's cursor on."""
        self.doing = _FETCHING
        self.watch.waits()
        cursor = self.state.cursor
        source = self.source.source(cursor.phase) if isinstance(self.source, Phases) else self.source
        return source.open(cursor, key=self.state.key, share=self.share)

    def consume(self, delivery: Delivery) -> None:
        """One iteration and all that is due after it."""
        before = self.complete
        self.doing = _STEPPING
        self.watch.received(delivery)
        self.world.iteration = before.counters.iteration + 1
        self.batch = step_input(delivery, self.share.micro_batches, self.cfg.reduction, self.cfg.device)
        iteration, epoch = before.counters.iteration + 1, delivery.cursor.epoch
        reacts = self._phased or iteration >= self._look.iteration or epoch >= self._look.epoch
        if reacts:
            self.note_batch(before, delivery)
        stepped = self.stepped(before, delivery)
        self.watch.stepped()
        self.check_metric_names(stepped)
        self.state = self.advanced(before, stepped, delivery)
        self.batch, self.doing = None, _REACTING
        if not reacts:
            # Nothing is left that could fail and would have to be done again.
            self.complete, self.doing = self.state, _OBSERVED
        for handler in self.outlets.on_iteration:
            handler(self.state)
        if reacts:
            self.react(before)
        if self.saving.news:
            self.watch.timed("checkpoint", self.hear)
        if self.timer.running:
            self.heed_clock()
        self._quiet = not reacts and self.should_stop is None

    def note_batch(self, before: TrainState, delivery: Delivery) -> None:
        """Digest the batch where a fingerprint is due after its step, which might write to it."""
        after = schedule.Point(delivery.cursor, schedule.advance(before.counters, delivery.count))
        if self.outlets.keeps_fingerprints and schedule.due(before, after, self.cfg).fingerprint:
            self.fingerprints.receive(self.batch)

    def stepped(self, before: TrainState, delivery: Delivery) -> TrainState:
        """What the step makes of ``before``, which it is given if nobody needs it any more."""
        given = renewed(before, {"metrics": {}})
        donate = self.donation.allows(before, delivery.cursor, self._look)
        if donate and before.counters.iteration not in self._passed_over:
            given = self.donation.private(given, again=self.saving.writing)
            try:
                return self.step.donating(given, self.batch)
            finally:
                if is_given_away(given):
                    give_away(before)
        return self.step(given, self.batch)

    def advanced(self, before: TrainState, stepped: TrainState, delivery: Delivery) -> TrainState:
        """What the step returned, with the fields that only the driver writes, unless its update is passed over."""
        iteration = before.counters.iteration
        if (self._skips and int(stepped.first_bad) >= 0) or iteration in self._passed_over:
            stepped = pass_over(before, stepped)
        written = {
            "cursor": delivery.cursor,
            "counters": schedule.advance(before.counters, delivery.count),
            "validation": before.validation,
            "key": before.key,
        }
        return renewed(stepped, written)

    def react(self, before: TrainState) -> None:
        """Do what is due between ``before`` and the present state."""
        due = schedule.due(before, self.state, self.cfg)
        if due.log:
            self.outlets.write(make_row("train", self.state, self.watch))
        if due.validate and self.validate is not None:
            self.watch.timed("validation", self.run_validation, self.validate)
        if isinstance(self.source, Phases) and self.source.should_advance(self.state.cursor.phase, self.state):
            self.state = self.state.replace(cursor=schedule.next_phase(self.state.cursor))
        self.replicas.compare(self.state)
        if due.fingerprint and self.outlets.keeps_fingerprints:
            self.outlets.write_fingerprint(self.fingerprints.of(self.state))
        shown = self.outlets.commit(before, self.state)
        self.complete, self.doing = self.state, _SAVING
        if self._phased or due.validate or shown:
            self.donation.keep(self.state)
        # Asked again: a phase that ends in the middle of an epoch completes it.
        save = schedule.due(before, self.state, self.cfg).checkpoint
        look = self.state.counters.iteration % self.cfg.check_finite_every == 0
        if (save or look) and self.heed_first_bad() and save:
            self.watch.timed("checkpoint", self.save)
        self.look_ahead()

    def look_ahead(self) -> None:
        """Find the next counts at which anything can be due, so that the iterations before need one comparison."""
        ahead = schedule.horizon(self.state, self.cfg, self.outlets.cadences)
        every = self.cfg.check_finite_every
        iteration = self.state.counters.iteration
        look = min((iteration // every + 1) * every, self.replicas.after(iteration))
        self._look = ahead._replace(iteration=min(ahead.iteration, look))

    def check_metric_names(self, stepped: TrainState) -> None:
        """Check that the step logs the same metrics in every iteration, so that all rows have the same columns."""
        if self._metric_names is None:
            self._metric_names = frozenset(stepped.metrics)
        elif stepped.metrics.keys() != self._metric_names:
            raise PurityError(
                f"the step wrote metrics {sorted(stepped.metrics)} after {sorted(self._metric_names)}: "
                "write the same names in every iteration, with NaN where there is nothing to tell"
            )

    def run_validation(self, validate: Validate) -> None:
        """One validation cycle, in a keyed scope so that nothing it draws reaches training."""
        before, self.doing = versions(self.state), ("validation after", 1)
        with random.scope(random.fold_in(self.state.key, "validation", self.state.counters.iteration)):
            if isinstance(validate, Validator):
                metrics: Any = validate(self.state, self._told_of_batches())
            else:
                metrics = validate(self.state)
        check_unwritten("validate", self.state, before)
        found = record_validation(self.state.validation, metrics, self.cfg.early_stop, self.cfg.retention)
        self.state = self.state.replace(validation=found)
        self.doing = _REACTING
        self.outlets.write(make_row("validation", self.state))
        self.outlets.emit("on_validation", self.state)

    def _told_of_batches(self) -> Callable[[int, int | None], None] | None:
        if not self.outlets.listening("on_validation_batch"):
            return None
        return lambda done, total: self.outlets.emit("on_validation_batch", done, total)

    def save(self, *, lenient: bool = False) -> None:
        """Begin to write the last complete state as a checkpoint, with the marks of the logs as they stand.

        With ``lenient``, what is not needed to go on (metadata, a sink that fails) cannot prevent it.
        """
        if not self.folder.keeps:
            return
        self.hear()  # a disk that is too slow slows training down
        check_kinds(self._kinds, self.complete)
        self.donation.keep(self.complete)
        self.saving.submit(self.complete, self.outlets.flush(lenient=lenient), metadata=not lenient)
        self.timer.saved()
        self.step.watch_next()
        if not self.cfg.async_save:
            self.saving.hear()

    def hear(self) -> None:
        """Wait for the save on its way, if there is one: its failure is a failure of the run."""
        doing, self.doing = self.doing, _HEARING
        self.saving.hear()
        self.doing = doing

    def heed_clock(self) -> None:
        """Save by the clock. A state that went bad is left to the looks that come at fixed iterations."""
        begun = self.saving.begun_at == self.complete.counters.iteration
        if self.folder.keeps and self.timer.save_is_due() and not begun and int(self.complete.first_bad) < 0:
            self.doing = _SAVING
            self.watch.timed("checkpoint", self.save)

    def heed_first_bad(self) -> bool:
        """Whether all iterations were finite; otherwise the policy has been applied.

        Raises:
            NonFiniteError: the policy is to raise, or going back did not help.
        """
        bad = int(self.state.first_bad)
        if bad < 0 or self.cfg.non_finite == "stop":
            return bad < 0
        if self.cfg.non_finite == "rollback" and bad not in self._passed_over:
            self._passed_over.add(bad)
            self.hear()  # it may be the very one to go back to
            start = self.folder.rollback(self.state)
            self.outlets.cut(start.marks)
            self.begin(start)
            return False
        again = " again, after it had been passed over" if bad in self._passed_over else ""
        raise NonFiniteError(
            f"the loss or a gradient was not finite in iteration {bad + 1}{again} (found after iteration "
            f"{self.state.counters.iteration}). Lower the learning rate, clip gradients, or choose "
            "non_finite='skip', 'stop' or 'rollback'"
        )

    def stop_reason(self) -> Reason | None:
        """The one stop test: of the configuration, the user's predicate, signals, and the clock, in this order."""
        self.doing = _ASKING
        reason = schedule.finished(self.state, self.cfg)
        # A fresh state has no metrics that the predicate could look at.
        if reason is None and self.should_stop is not None and self.state.counters.iteration > 0:
            answer = self.should_stop(self.state)
            if answer:
                reason, self.message = Reason.SHOULD_STOP, answer if isinstance(answer, str) else ""
        if reason is None and self.cfg.non_finite == "stop" and self._noticed_bad():
            return Reason.NON_FINITE
        if reason is None and self.agreement.received is not None:
            reason, self.message = Reason.SIGNAL, self.agreement.received.name
        # A launch that only just manages to load its state gets one iteration further all the same.
        if reason is None and self.state.counters.iteration > self._launched_at and self.agreement.is_over:
            reason, self.message = Reason.TIME, f"max_time={self.cfg.max_time}"
        if reason is not None and not self.heed_first_bad():
            return Reason.NON_FINITE if self.cfg.non_finite == "stop" else None
        return reason

    def _noticed_bad(self) -> bool:
        # Looked at on the same fixed cadence as for the other policies.
        return self.state.counters.iteration % self.cfg.check_finite_every == 0 and int(self.state.first_bad) >= 0
