"""The laws for users: their two forms, what they refuse, what a closer look shows, and the words of a verdict."""

from __future__ import annotations

import dataclasses
import functools
import os
import struct
import sys
from time import monotonic as now

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import helios_fn as hf
from helios_fn import tree
from helios_fn.testing import (
    JobFailed,
    LawBroken,
    LawDoesNotApply,
    check_accumulation,
    check_counting,
    check_observation,
    check_order,
    check_resume,
    check_round_trip,
    check_step,
    check_validation,
    check_workers,
    round_trip,
    strategies,
)
from helios_fn.testing.__main__ import main
from helios_fn.testing.catalogue import LAWS
from helios_fn.testing.examples import for_all
from helios_fn.testing.kept import changes, kept
from helios_fn.testing.look import look
from helios_fn.testing.machine import check_machine, training_machine
from helios_fn.testing.reach import reach
from helios_fn.testing.suspects import suspects
from helios_fn.testing.values import differences

from ..jobs import Case, build
from ..laws.user_parts import OPTIMIZER, Points, evaluate, job, loss_fn, start


def parts(found):
    return found.step, found.state, found.loader, found.cfg


# The two forms

FORMS = {
    "step": lambda examples: check_step(job().step, start(), Points()[[0, 1, 2]], examples=examples),
    "resume": lambda examples: check_resume(*parts(job()), examples=examples),
    "accumulation": lambda examples: check_accumulation(*parts(job()), examples=examples),
    "counting": lambda examples: check_counting(*parts(job()), examples=examples),
    "observation": lambda examples: check_observation(*parts(job()), examples=examples),
    "order": lambda examples: check_order(job().loader, examples=examples),
    "round trip": lambda examples: check_round_trip(start(), examples=examples),
    "validation": lambda examples: check_validation(
        hf.Validator(evaluate, hf.Loader(Points(), 4)), start(), examples=examples
    ),
}


def test_workers_are_drawn_with_the_interruptions_between_them():
    """The same keyword, and the same refusal."""
    found = build(Case(total=4))
    arguments = found.step, found.state, lambda workers: build(Case(total=4), workers).loader(), found.cfg
    check_workers(*arguments, workers=(0, 1), examples=2)
    with pytest.raises(ValueError, match="examples must be"):
        check_workers(*arguments, examples=0)


@pytest.mark.parametrize("law", FORMS)
def test_each_law_has_a_form_with_generated_examples(law):
    """One keyword for all of them."""
    FORMS[law](3)


@pytest.mark.parametrize("law", FORMS)
@pytest.mark.parametrize(
    ("examples", "error"), [(0, ValueError), (-1, ValueError), (True, TypeError), ("3", TypeError)]
)
def test_a_number_of_examples_that_is_none_is_refused(law, examples, error):
    """Before anything runs."""
    with pytest.raises(error, match="examples must be"):
        FORMS[law](examples)


def test_stops_and_examples_exclude_each_other():
    """Those to try, or generated ones."""
    with pytest.raises(ValueError, match="not both"):
        check_resume(*parts(job()), stops=[1], examples=3)


def test_the_simplest_example_that_breaks_a_law_is_shown():
    """As a note of the error."""

    def law(number):
        if number >= 7:
            raise LawBroken("too many")

    with pytest.raises(LawBroken, match="too many") as caught:
        for_all(st.integers(0, 1000), law, 50)
    assert any("7" in note for note in caught.value.__notes__)


def test_what_breaks_by_chance_is_still_a_broken_law():
    """Hypothesis calls it flaky; for a law, that is the fault itself."""
    calls = []

    def law(number):
        calls.append(number)
        if len(calls) == 3:
            raise LawBroken("now and then")

    with pytest.raises(LawBroken, match="now and then") as caught:
        for_all(st.integers(0, 1000), law, 50)
    assert "gave another result" in caught.value.__notes__[-1]


def test_without_hypothesis_the_message_says_what_to_install(monkeypatch):
    """The quick forms do not need it."""
    monkeypatch.setitem(sys.modules, "hypothesis", None)
    with pytest.raises(ImportError, match=r"helios-fn\[testing\]"):
        for_all(None, None, 3)


def test_generated_examples_find_what_the_quick_form_does_not_meet():
    """A mean that is right under one order of reduction only."""
    plain = hf.make_step(loss_fn, OPTIMIZER)

    def step(state, batch):
        if batch.reduction == "fold" and batch.count == 2:
            batch = batch._replace(items=batch.items[:1], count=1)
        return plain(state, batch)

    found = job(step, cfg={"accumulation_steps": 3})
    check_accumulation(*parts(found))
    with pytest.raises(LawBroken, match="2 micro-batches"):
        check_accumulation(*parts(found), examples=60)


# Accumulation


def test_a_union_may_be_made_by_a_function_of_ones_own():
    """For batches that are no arrays of samples."""
    found = job(loss=lambda params, buffers, batch, key: loss_fn(params, buffers, batch[0], key))
    loader = hf.Loader(Points(), 4, collate=lambda samples: (torch.utils.data.default_collate(samples), "text"))
    with pytest.raises(ValueError, match=r"\[1\].*Hand over join="):
        check_accumulation(found.step, found.state, loader, found.cfg)

    def join(items):
        return {name: torch.cat([item[0][name] for item in items]) for name in ("x", "y")}, "text"

    check_accumulation(found.step, found.state, loader, found.cfg, join=join)


def test_a_step_that_fails_is_told_from_one_that_takes_no_micro_batches():
    """The first is a job that failed, the second is outside of the law."""

    def fails(state, batch):
        raise KeyError("no such column")

    def single(state, batch):
        return state.replace(params=tree.map(lambda p: p - batch["x"].mean(), state.params))

    with pytest.raises(JobFailed, match="no such column"):
        check_accumulation(*parts(job(fails)))
    with pytest.raises(LawDoesNotApply, match=r"hf\.microsteps"):
        check_accumulation(*parts(job(single)))


def test_a_step_that_is_bound_to_float32_is_compared_in_float32():
    """With the tolerance of that precision; a plain mean shows all the same."""
    scale = torch.eye(3)

    def bound(params, buffers, batch, key):
        return loss_fn(params, buffers, {**batch, "x": (batch["x"] @ scale)}, key)

    check_accumulation(*parts(job(loss=bound)))
    with pytest.raises(LawBroken, match=r"tolerance 0\.01"):
        check_accumulation(*parts(job(loss=lambda *arguments: bound(*arguments)[0])))


@pytest.mark.parametrize("faulty", ["sum", "last"])
def test_a_coupled_loss_must_still_be_accumulated_as_a_mean(faulty):
    """Equal terms have one of them as their mean, and their order does not matter."""
    grad_fn = hf.value_and_grad(loss_fn, has_aux=True)

    def step(state, batch):
        grads = [grad_fn(state.params, None, item, None)[1] for item in batch.items]
        total = grads[-1] if faulty == "last" else tree.map(lambda *parts: sum(parts), *grads)
        params, opt_state = OPTIMIZER.update(total, state.opt_state, state.params)
        return state.replace(params=params, opt_state=opt_state)

    with pytest.raises(LawBroken, match="micro-batch"):
        check_accumulation(*parts(job(step)), coupled=True)


# Counting, order, observation, round trip


@pytest.mark.parametrize("source", ["stream", "phases"])
def test_counting_holds_for_sources_without_epochs_and_with_phases(source):
    """A stream's position is its own, and a phase ends when it says."""
    found = build(Case(source=source, accumulation=2))
    check_counting(*parts(found), **found.keywords)


def test_training_that_reads_what_validation_found_keeps_its_cadence():
    """Early stop makes validation a part of training; all else may still change."""
    found = build(Case(validate_every=hf.Every(1, "iteration"), early_stop=2, total=9))
    check_observation(*parts(found), **found.keywords)


def test_an_order_that_repeats_on_purpose_is_not_followed():
    """Its batches must be functions of their position all the same."""
    loader = hf.Loader(Points(), 4, order=lambda key, epoch, n: [0] * n)
    with pytest.raises(LawBroken, match="more than once"):
        check_order(loader, workers=(0,))
    check_order(loader, each_once=False, workers=(0,))


def test_workers_that_read_something_else_are_found():
    """What a worker knows of itself must not enter a sample."""

    def transform(sample, rng):
        return {**sample, "y": sample["y"] + (torch.utils.data.get_worker_info() is not None)}

    with pytest.raises(LawBroken, match="read by 1 workers instead of 0"):
        check_order(hf.Loader(Points(), 4, transform=transform), workers=(0, 1))


@pytest.mark.parametrize(
    ("lose", "words"),
    [
        (lambda leaf: leaf.contiguous(), "has strides"),
        (lambda leaf: leaf.clone(memory_format=torch.preserve_format), "share memory"),
        (lambda leaf: leaf + 0, "saved and loaded differs"),
    ],
)
def test_what_a_round_trip_loses_is_named(lose, words, monkeypatch):
    """Strides, sharing, and bits that compare equal."""
    base = torch.zeros(2, 3)
    tree_of_a_user = {"a": base.t(), "b": base, "zero": torch.tensor(-0.0)}
    check_round_trip(tree_of_a_user)
    load = round_trip.Store.load

    def losing(self, *arguments, **keywords):
        loaded = load(self, *arguments, **keywords)
        return loaded.replace(extra=tree.map(lose, loaded.extra))

    monkeypatch.setattr(round_trip.Store, "load", losing)
    with pytest.raises(LawBroken, match=words):
        check_round_trip(tree_of_a_user)


# Strategies


@settings(max_examples=20)
@given(
    strategies.batches(
        {
            "x": strategies.Leaf(3),
            "more": (strategies.Leaf(dtype=torch.int64, below=2), strategies.Leaf(dtype=torch.bool)),
        }
    )
)
def test_batches_are_of_their_spec(batch):
    """One number of samples, and the dtypes and ranges that were asked for."""
    x, (classes, flags) = batch["x"], batch["more"]
    assert x.shape == (len(classes), 3) == (len(flags), 3)
    assert (classes.dtype, flags.dtype) == (torch.int64, torch.bool)
    assert x.isfinite().all()
    assert ((classes >= 0) & (classes < 2)).all()


@settings(max_examples=20)
@given(strategies.states(start(hf.optim.adamw(0.1), extra={"count": 3, "name": "a"})))
def test_generated_states_keep_their_structure(state):
    """Structure, shapes and dtypes are those of the example."""
    like = start(hf.optim.adamw(0.1), extra={"count": 3, "name": "a"})
    assert tree.structure(state) == tree.structure(like)
    for new, old in zip(tree.leaves(state), tree.leaves(like), strict=True):
        assert type(new) is type(old)
        if isinstance(new, torch.Tensor):
            assert (new.shape, new.dtype) == (old.shape, old.dtype)


# What a closer look shows


def test_values_that_look_alike_are_told_apart():
    """Neighbours, zeros of two signs and NaN of two patterns have their bits in the line."""
    nan, other = (torch.tensor(struct.unpack("<f", struct.pack("<I", bits))[0]) for bits in (0x7FC00000, 0x7FC00001))
    pairs = {
        "1 units": (torch.tensor(1.0), torch.nextafter(torch.tensor(1.0), torch.tensor(2.0))),
        "bits 0x0 and 0x80000000": (torch.tensor(0.0), torch.tensor(-0.0)),
        "0x7fc00000": (nan, other),
    }
    for words, (left, right) in pairs.items():
        (line,) = differences({"leaf": left}, {"leaf": right})
        assert "['leaf']" in line
        assert words in line
    (line,) = differences({"leaf": torch.tensor(1.0)}, {"leaf": torch.tensor(2.0)})
    assert "bits" not in line


def names(function) -> set[str]:
    return {f"{suspect.name}" for suspect in suspects(reach({"it": function}))}


def test_names_that_lead_out_of_the_state_are_found_by_what_they_are():
    """However they are imported or called, also in functions that are called and inside of others."""

    def helper():
        from datetime import datetime

        return [datetime.now(), os.environ]

    class Callable:
        def __call__(self, batch):
            def inner():
                return {1, 2}, id(batch)

            return helper() + [now(), inner()]

    assert names(Callable()) == {"now", "datetime.now", "os.environ", "id", "a set"}


def test_harmless_names_are_not_suspected():
    """A name counts by what it is, not by how it is spelled."""

    def step(state, id, time):
        set = time.time(id)
        return set(state, torch.set_grad_enabled)

    assert names(step) == set()


class Counter:
    total = 0

    def __init__(self) -> None:
        self.own = [0]

    def __call__(self, batch, history=[]):  # noqa: B006 - the subject of the test
        self.own[0] += 1
        Counter.total += 1
        history.append(batch)


def test_what_is_written_to_is_found_wherever_it_is_kept():
    """In objects behind partials and methods, in classes, and in default arguments."""
    counter = Counter()
    function = functools.partial(counter.__call__, 1)
    before = kept(reach({"it": function}))
    assert changes(before, kept(reach({"it": function}))) == []
    function()
    found = " ".join(changes(before, kept(reach({"it": function}))))
    for words in ("attribute 'own' of Counter", "class attribute 'total' of Counter", "a default argument of"):
        assert words in found


def test_a_closer_look_never_fails():
    """What is wrong with a job may be in the way of looking at it."""

    def loader():
        raise OSError("no such disk")

    assert look(job(loader=loader)) == []
    assert not torch.are_deterministic_algorithms_enabled()


# The state machine

MACHINE = build(Case(accumulation=2, total=5, dropout=True, validate_every=hf.Every(2, "iteration")))
TestTraining = training_machine(
    MACHINE, make_loader=lambda workers: build(Case(accumulation=2), workers).loader(), workers=(0,)
).TestCase
TestTraining.settings = settings(max_examples=5, stateful_step_count=8)


def test_the_machine_finds_what_a_process_keeps():
    """With the shortest order of events, and where it is kept."""
    plain, calls = hf.make_step(loss_fn, OPTIMIZER), []

    def step(state, batch):
        calls.append(1)
        return plain(state, {**batch, "y": batch["y"] + len(calls)})

    with pytest.raises(LawBroken, match="is not that of the run without interruptions") as caught:
        check_machine(job(step, cfg={"total": 2}), examples=3, events=3)
    assert "closure variable 'calls' of step" in str(caught.value)


# The command

MODULE = """
    import torch
    from tests.laws.user_parts import job as plain

    torch.set_num_threads(1)


    def job():
        return plain(cfg={"total": 3})
"""


@pytest.fixture
def spec(tmp_path, monkeypatch):
    import textwrap

    name = f"laws_{tmp_path.name}"
    (tmp_path / f"{name}.py").write_text(textwrap.dedent(MODULE))
    monkeypatch.syspath_prepend(tmp_path)
    return f"{name}:job"


def test_the_command_checks_all_laws(spec, capsys):
    """Those that say nothing about the job are no failures."""
    within = [name for name in LAWS if name not in ("processes", "workers", "machine")]  # these take long
    assert main([spec, "--laws", ",".join(within)]) == 0
    told = capsys.readouterr().out
    assert told.count(": holds") == 7
    assert "validation: does not apply\nthe job has no validate" in told
    assert "world: does not apply" in told
    assert main([spec, "--laws", "machine", "--examples", "1"]) == 0


def test_the_command_takes_a_number_of_examples(spec, capsys):
    """For all laws alike."""
    assert main([spec, "--laws", "step,order,round_trip,resume", "--examples", "2"]) == 0
    assert capsys.readouterr().out.count(": holds") == 4
    with pytest.raises(SystemExit):
        main([spec, "--examples", "none"])
    assert "write a number of examples" in capsys.readouterr().err


def test_a_job_keeps_its_own_root_untouched(tmp_path):
    """Whatever is checked, runs are in folders of their own."""
    found = job(cfg={"root": tmp_path / "root"})
    check_counting(*parts(found))
    check_observation(*parts(dataclasses.replace(found)))
    assert not (tmp_path / "root").exists()
