"""Any order of events: a Hypothesis state machine that trains, saves, crashes and restores, against a plain model.

In a test file, where ``job`` is a `helios_fn.testing.Job`::

    from helios_fn.testing.machine import training_machine

    TestMyTraining = training_machine(job).TestCase

Hypothesis draws the order of the events, and shows the shortest order that goes wrong.
"""

from __future__ import annotations

import dataclasses
import signal
from collections.abc import Callable, Generator, Sequence
from pathlib import Path
from typing import Any, get_args

import torch
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from .. import driver, random
from ..config import Every
from ..errors import LaunchFailed
from ..types import Observer, Reason, Result
from .counting import batches_per_epoch
from .elastic import Ending, Errand, Passage, carry_on, sizes_to_draw
from .folders import temporary_folder
from .interrupt import Crash
from .look import closer_look
from .model import Model, Place, model_of
from .pool import Worlds
from .spec import load_job
from .strategies import cadences
from .trace import Job
from .verdicts import LawBroken
from .world import counted

_LONGEST = 4
_AMBIENT = 1000
_MOST_CHANGES = 2  # of the world in one run: each takes as long as many of the other events


def training_machine(
    job: Job | str,
    *,
    make_loader: Callable[[int], Any] | None = None,
    workers: Sequence[int] = (0, 1, 2),
    worlds: Sequence[int] = (1,),
) -> type[RuleBasedStateMachine]:
    """A state machine class for ``job``; its ``TestCase`` is what pytest and unittest collect.

    Rules: start or restart (with other cadences of logs and checkpoints, and another number of workers), train some
    iterations, crash, leave, be told to stop by a signal, run to the end. After each of them cursor, counters and bits
    must be those of the model: one run that nothing interrupted. A restart must come back to the last checkpoint,
    and a finished run must train nothing more.

    With ``worlds``, one more rule: real processes carry on the run for some iterations and then leave or crash, at most
    twice in an example. All the way each rank must be where the model is, which trained alone.

    For a small perceptron about three examples of up to twelve events run in a second, with other worlds one: choose
    their number by
    ``training_machine(job).TestCase.settings = hypothesis.settings(max_examples=..., stateful_step_count=...)``.

    Args:
        job: what `helios_fn.run` takes; ``loader`` and ``state`` may be functions. It runs once when the first
            example starts, to make the model. Or ``"module:function"``, where all processes find it.
        make_loader: ``make_loader(workers)``; without it the number of workers stays what it is. Other worlds read
            from the job's own loader.
        workers: the numbers to draw from.
        worlds: the numbers of processes to draw from; 1 is this process alone. Others need ``job`` by its name, and
            must share its work exactly, as `check_world` explains: ``cfg.micro_batches`` set to as many or more.

    Raises:
        LawBroken: (when it runs) says after which events the state is another one, and in which leaves.
        ValueError: the job cannot be shared by ``worlds``; says what to set.
    """
    sizes = sizes_to_draw(job, worlds)
    subject = load_job(job) if isinstance(job, str) else job
    numbers = list(workers) if make_loader is not None else [0]
    by_iterations = cadences(units=("iteration",))
    either = by_iterations if batches_per_epoch(subject) is None else cadences()

    class TrainingMachine(_Machine):
        _spec = job if isinstance(job, str) else ""
        _job = subject
        _worlds = Worlds()
        _make_loader = staticmethod(make_loader) if make_loader is not None else None
        _models: list[Model] = []  # noqa: RUF012 - made once for all examples

        @precondition(lambda self: self.states is None)
        @rule(log=either, checkpoint=by_iterations, workers=st.sampled_from(numbers))
        def start(self, log: Every, checkpoint: Every, workers: int) -> None:
            """Start, or go on from the newest checkpoint."""
            self.begin(log, checkpoint, workers)

        if sizes:

            @precondition(lambda self: self.states is None and self.changes < _MOST_CHANGES)
            @rule(
                processes=st.sampled_from(sizes),
                log=either,
                checkpoint=by_iterations,
                iterations=st.integers(1, _LONGEST),
                ending=st.sampled_from(get_args(Ending)),
            )
            def change_world(
                self, processes: int, log: Every, checkpoint: Every, iterations: int, ending: Ending
            ) -> None:
                """Other processes go on from the newest checkpoint."""
                self.go_to(processes, log, checkpoint, iterations, ending)

    # The processes stay from one example to the next, and end with the last.
    TrainingMachine.TestCase.tearDownClass = TrainingMachine._worlds.close  # type: ignore[method-assign]
    TrainingMachine.__name__ = TrainingMachine.__qualname__ = "TrainingMachine"
    return TrainingMachine


class _Machine(RuleBasedStateMachine):
    """The events, whatever the job; the class made for a job adds what depends on it."""

    _spec: str
    _job: Job
    _worlds: Worlds
    _make_loader: Callable[[int], Any] | None
    _models: list[Model]

    def __init__(self) -> None:
        super().__init__()
        if not self._models:
            self._models.append(model_of(self._job))
        self.model = self._models[0]
        self._folder = temporary_folder()
        self._globals = random.preserved_globals()
        self._globals.__enter__()
        self.states: Generator[Any, None, Result] | None = None
        self.at: Any = None
        self.saved = -1
        self.legs = 0
        self.world = 1
        self.changes = 0
        self.change = ""
        self._root = Path(self._folder.name, "root")

    def begin(self, log: Every, checkpoint: Every, workers: int) -> None:
        """Start the run, or resume it."""
        self.enter(1)
        placed = self._job.in_root(self._root)
        cfg = dataclasses.replace(placed.cfg, log_every=log, checkpoint_every=checkpoint)
        self.legs += 1
        torch.manual_seed(_AMBIENT + self.legs)  # a step that secretly draws from it differs in each leg
        loader = placed.new_loader() if self._make_loader is None else self._make_loader(workers)
        keywords = {**placed.keywords, "observers": [*placed.keywords.get("observers", ()), _Watching(self)]}
        self.states = driver.iterate(placed.step, placed.initial_state(), loader, cfg, **keywords)
        self.step_on(1)

    def enter(self, processes: int) -> None:
        """Take note of a world of another size, for it is the first thing to be told when anything is wrong there."""
        if processes != self.world:
            since = 0 if self.at is None else self.at.counters.iteration
            self.change = f"the world was changed from {self.world} to {counted(processes)} after iteration {since}: "
        self.world = processes

    def go_to(self, processes: int, log: Every, checkpoint: Every, iterations: int, ending: Ending) -> None:
        """Train in another world, and leave it."""
        self.enter(processes)
        self.changes += 1
        self.legs += 1
        errand = Errand(self._spec, str(self._root), log, checkpoint, iterations, ending, _AMBIENT + self.legs)
        try:
            passages: list[Passage] = self._worlds(carry_on, errand, processes=processes)
        except LaunchFailed as error:
            raise LawBroken(f"{self.change}the run fails there; without interruptions it does not:\n{error}") from error
        for rank, passage in enumerate(passages):
            self.check_passage(passage, f"{self.change}on rank {rank}, ")
        first = passages[0]
        self.saved = max(self.saved, first.saved)
        self.at = first.places[-1]

    def check_passage(self, passage: Passage, where: str) -> None:
        """All places of a rank, and the end, are those of the model."""
        if passage.impure is not None:
            raise LawBroken(f"{self.change}{passage.impure}")
        self.check_restart(passage.places[0])
        for place in passage.places:
            self.model.check(place, where)
        if passage.reason is not None and passage.reason.finished:
            self.check_end(passage.reason, passage.places[-1].counters.iteration)

    def check_restart(self, at: Any) -> None:
        """A run goes on from its last checkpoint that is complete, or from a later one that was on its way."""
        iteration = at.counters.iteration
        if iteration < max(self.saved, 0) or iteration > self.model.last:
            raise LawBroken(
                f"{self.change}the run was restarted in iteration {iteration}; a checkpoint of iteration {self.saved} "
                "was complete"
            )

    def step_on(self, iterations: int) -> None:
        """Train, and notice the end."""
        assert self.states is not None
        try:
            for _ in range(iterations):
                self.at = next(self.states)
        except StopIteration as end:
            self.states = None
            self.at = end.value.state
            if end.value.reason.finished:
                self.check_end(end.value.reason, self.at.counters.iteration)

    def check_end(self, reason: Reason, iteration: int) -> None:
        """The end is that of the model, also where a finished run was started again."""
        if reason is not self.model.reason or iteration != self.model.last:
            raise LawBroken(
                f"{self.change}the run ended after iteration {iteration} ({reason.value}); without interruptions after "
                f"iteration {self.model.last} ({self.model.reason.value})"
            )

    @precondition(lambda self: self.states is not None)
    @rule(iterations=st.integers(1, _LONGEST))
    def train(self, iterations: int) -> None:
        """Some iterations."""
        self.step_on(iterations)

    @precondition(lambda self: self.states is not None)
    @rule()
    def crash(self) -> None:
        """End at once; what is not on the disk is lost."""
        assert self.states is not None
        states, self.states = self.states, None
        try:
            states.throw(Crash())
        except Crash:
            return

    @precondition(lambda self: self.states is not None)
    @rule()
    def leave(self) -> None:
        """Break out of the loop; the last state is saved."""
        assert self.states is not None
        states, self.states = self.states, None
        states.close()
        self.saved = self.at.counters.iteration

    @precondition(lambda self: self.states is not None)
    @rule()
    def be_told_to_stop(self) -> None:
        """A signal: one more iteration, a save, and the end of this leg."""
        signal.raise_signal(signal.SIGTERM)
        self.step_on(self.model.last)

    @precondition(lambda self: self.states is not None)
    @rule()
    def run_to_the_end(self) -> None:
        """All iterations that are left."""
        self.step_on(self.model.last + 1)

    @invariant()
    def agrees_with_the_model(self) -> None:
        """Place and bits are those of the run that nothing interrupted."""
        if self.at is not None:
            self.model.check(self.at if isinstance(self.at, Place) else Place.of(self.at), self.change)

    def teardown(self) -> None:
        """End what still runs, and leave nothing behind."""
        try:
            if self.states is not None:
                self.crash()
        finally:
            self._folder.cleanup()
            self._globals.__exit__(None, None, None)


class _Watching(Observer):
    """Tells a machine where its run starts and what is on the disk."""

    def __init__(self, machine: _Machine) -> None:
        self._machine = machine

    def on_start(self, info: Any, state: Any) -> None:
        self._machine.at = state
        self._machine.check_restart(state)

    def on_checkpoint(self, path: Path, state: Any) -> None:
        self._machine.saved = state.counters.iteration


def check_machine(
    job: Job | str,
    *,
    make_loader: Callable[[int], Any] | None = None,
    workers: Sequence[int] = (0, 1, 2),
    worlds: Sequence[int] = (1,),
    examples: int = 20,
    events: int = 12,
) -> None:
    """Run `training_machine` at once, as one more law, with ``examples`` orders of up to ``events`` events each.

    Raises:
        LawBroken: with what a closer look at the job shows, and the shortest order of events as a note.
        JobFailed: the job fails without any interruption.
        ValueError: the job cannot be shared by ``worlds``; says what to set.
    """
    from hypothesis import HealthCheck, settings
    from hypothesis.stateful import run_state_machine_as_test

    chosen = settings(
        max_examples=examples,
        stateful_step_count=events,
        deadline=None,
        suppress_health_check=list(HealthCheck),
        report_multiple_bugs=False,  # a group of verdicts would be no LawBroken
    )
    machine = training_machine(job, make_loader=make_loader, workers=workers, worlds=worlds)
    try:
        with closer_look(load_job(job) if isinstance(job, str) else job):
            run_state_machine_as_test(machine, settings=chosen)
    finally:
        machine.TestCase.tearDownClass()
