"""What the ranks of a pool do in the tests of agreement, replicas and starts. A module of its own, to be imported."""

from __future__ import annotations

import dataclasses
import os
import signal

import torch

import helios_fn as hf
from helios_fn.driver import agreement

from ..jobs import Case, build
from .troubled import CASE


def rank() -> int:
    return int(os.environ["RANK"])


class After:
    """An observer that does something after an iteration."""

    def __init__(self, iteration: int, action) -> None:
        self._iteration, self._action = iteration, action

    def on_iteration(self, state) -> None:
        if state.counters.iteration == self._iteration:
            self._action()


def told(call) -> tuple:
    """Digest, reason, iterations and message of a run; or the type, the message and the cause's type of its error."""
    agreement.PAUSE = 0.0
    try:
        result = call()
    except Exception as error:
        return type(error).__name__, str(error), type(error.__cause__).__name__
    return hf.tree.digest(result.state), result.reason.name, result.state.counters.iteration, result.message


def train(
    root=None, *, case: Case = CASE, step=None, observers=(), initial=None, clock=None, should_stop=None, **changes
):
    job = build(case)
    every = {} if root is not None else {"checkpoint_every": None, "retention": None}
    cfg = dataclasses.replace(job.cfg, root=root, collective_timeout=5.0, **{**every, **changes})
    keywords = {**job.keywords, **({} if clock is None else {"clock": clock})}
    state = job.state if initial is None else initial(job.state)
    return told(
        lambda: hf.run(
            (step or (lambda inner: inner))(job.step),
            state,
            job.new_loader(),
            cfg,
            observers=list(observers),
            should_stop=should_stop,
            **keywords,
        )
    )


def signalled(root, who, name, iteration):
    number = getattr(signal, name)
    return train(root, observers=[After(iteration, lambda: signal.raise_signal(number))] if rank() == who else [])


def signalled_twice(root, who):
    """The second signal comes before the others know of the first."""

    def both():
        signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGINT)

    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        return train(root, observers=[After(3, both)] if rank() == who else [])
    except KeyboardInterrupt:
        return ("KeyboardInterrupt",)
    finally:
        signal.signal(signal.SIGINT, before)


class Clock:
    """Time passes at one rank only."""

    def __init__(self, runs: bool) -> None:
        self._runs, self._now = runs, 0.0

    def __call__(self) -> float:
        self._now += 10.0 if self._runs else 0.0
        return self._now


def timed(root, who):
    return train(root, max_time=50.0, clock=Clock(rank() == who))


def stopped_by_predicate(root):
    return train(root, should_stop=lambda state: "enough" if state.counters.iteration >= 4 else False)


def stopped_early(root):
    case = dataclasses.replace(CASE, validate_every=hf.Every(1, "iteration"), early_stop=1, total=9)
    stop = hf.EarlyStop("loss", cycles=2, improved=lambda best, new: False)
    return train(root, case=case, early_stop=stop)


def non_finite(root, policy, index):
    """One micro-batch of iteration 4 is NaN, which one rank has."""

    def poisoned(inner):
        def step(state, batch):
            if state.counters.iteration == 3:
                items = tuple(
                    (x * float("nan"), y) if at == index else (x, y)
                    for at, (x, y) in enumerate(batch.items, start=batch.start)
                )
                batch = batch._replace(items=items)
            return inner(state, batch)

        return step

    return train(root, step=poisoned, non_finite=policy, check_finite_every=2)


def diverging(root, how, at, **changes):
    """From iteration ``at`` on rank 1 does something of its own to the state."""

    def wrapped(inner):
        def step(state, batch):
            new = inner(state, batch)
            if rank() != 1 or state.counters.iteration + 1 < at:
                return new
            if how == "flip" and state.counters.iteration + 1 > at:
                return new
            name = "last.bias"
            bits = new.params[name].clone().view(torch.int32)
            bits[0] ^= 1 << 20
            return new.replace(params={**new.params, name: bits.view(torch.float32)})

        return step

    return train(root, step=wrapped, **changes)


def own_gradients(root):
    """A step that leaves `hf.microsteps` out: the gradients of this process alone."""

    def wrapped(inner):
        def step(state, batch):
            grads = hf.tree.map(torch.zeros_like, state.params)
            for x, _ in batch.items:
                grads["first.weight"] = grads["first.weight"] + x.sum()
            params = {name: leaf - 0.01 * grads[name] for name, leaf in state.params.items()}
            return state.replace(params=params)

        return step

    return train(root, step=wrapped)


def from_different_states(root):
    """Each rank makes another initial state."""

    def moved(state):
        return state.replace(params={name: leaf + rank() for name, leaf in state.params.items()})

    return train(root, initial=moved)


def in_roots(roots, **changes):
    return train(roots[rank()], **changes)
