"""Experiments: files that say what a run is, what is made of them, and what is said of mistakes in them."""

from __future__ import annotations

import dataclasses
import math
import shutil

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import helios_fn as hf
from helios_fn import tree
from helios_fn.experiment import Data, Evaluation, Part, StepPart, Sweep, Update, parse_value, run_members
from helios_fn.experiment.changes import changes
from helios_fn.experiment.toml import dump, parse, value_text
from helios_fn.registry import COLLATES, DATASETS, LOSSES, MODELS, NETWORKS, OBSERVERS, ORDERS, STEPS, TRANSFORMS

from ..strategies import examples

TEXT = """
seed = 3
[run]
unit = "iteration"
total = 6
progress = false
validate_every = 3
[data]
dataset = {name = "toy", n = 10}
batch_size = 4
transforms = [{name = "noise", scale = 0.1}]
[valid]
dataset = "toy"
batch_size = 5
[model]
name = "toy"
width = 6
network = {name = "toy_tail"}
[loss]
name = "cross_entropy"
metrics = [{name = "accuracy"}, {name = "top_k", k = 2}]
[optimizer]
name = "adamw"
lr = 0.01
betas = [0.9, 0.99]
transforms = [{name = "clip_by_global_norm", max_norm = 1.0}]
[step]
average = {name = "ema", decay = 0.9}
"""
ROOTED = TEXT.replace("total = 6", 'total = 6\nroot = "ROOT"\ncheckpoint_every = 2')
SWEPT = TEXT + "[sweep]\n"


@NETWORKS.register
def toy_tail() -> nn.Module:
    return nn.Sequential(nn.ReLU(), nn.Dropout(0.2))


@MODELS.register("toy")
def toy_model(width: int = 4, network: nn.Module | None = None) -> nn.Module:
    return nn.Sequential(nn.Linear(3, width), network or nn.ReLU(), nn.Linear(width, 3))


@DATASETS.register
def toy(n: int = 9):
    return torch.utils.data.TensorDataset(torch.linspace(-1, 1, n * 3).reshape(n, 3), torch.arange(n) % 3)


@DATASETS.register
def toy_source(n: int = 9):
    return hf.Loader(toy(n), batch_size=2)


@TRANSFORMS.register
def noise(sample, rng, scale: float = 1.0):
    return sample[0] + scale * torch.from_numpy(rng.normal(size=3)).float(), sample[1]


@ORDERS.register
def backwards(key, epoch, n, skip: int = 0):
    return range(n - 1, -1, -1)


@COLLATES.register
def doubled(samples, times: int = 2):
    x, y = torch.utils.data.default_collate(samples)
    return times * x, y


@STEPS.register
def handwritten(loss_fn, optimizer, half: bool = False):
    made = hf.make_step(loss_fn, optimizer)

    def step(state, batch):
        new = made(state, batch)
        return new.replace(metrics={**new.metrics, "half": new.metrics["loss"] / 2} if half else new.metrics)

    return step


@LOSSES.register
def diverging(model, params, buffers, batch, key):
    return hf.nn.supervised.mse(model, params, buffers, (batch[0], batch[0]), key)[0] / 0


@OBSERVERS.register
class Recorder(hf.Observer):
    pass


@MODELS.register
def refusing(size: int) -> nn.Module:
    raise ValueError("no size is good")


@MODELS.register
def faulty() -> nn.Module:
    raise RuntimeError("a fault")


def edited(old: str, new: str, text: str = TEXT) -> str:
    assert text.count(old) == 1, (old, text.count(old))
    return text.replace(old, new)


def mistake(text: str, overrides=None, build: bool = False) -> str:
    def read() -> None:
        experiment = hf.Experiment.loads(text, overrides, name="e.toml")
        list(experiment.members())
        if build:
            experiment.build()

    with pytest.raises((ValueError, ImportError)) as caught:
        read()
    return str(caught.value)


READING = [
    (("total = 6", "totl = 6"), "e.toml:5: [run] has no key 'totl'; did you mean 'total'? It has unit, total,"),
    (("[model]", "[modle]"), "e.toml:15: an experiment has no key 'modle'; did you mean 'model'? It has run, data,"),
    (("batch_size = 4", "batchsize = 4"), "e.toml:10: [data] has no key 'batchsize'; did you mean 'batch_size'"),
    (("seed = 3", "params = 3"), "e.toml:2: an experiment has no key 'params'. It has run,"),
    (("total = 6", 'total = "6"'), "e.toml:5: run.total must be a number or a table with n, unit, got '6'"),
    (("total = 6", "total = 0"), "e.toml:3: [run] total must be an integer of at least 1"),
    (("total = 6", ""), "e.toml:3: [run] total is missing: a number"),
    (('"iteration"', '"iterations"'), "e.toml:4: run.unit must be one of 'iteration', 'epoch', got 'iterations'"),
    (("validate_every = 3", "validate_every = {n = 2}"), "e.toml:7: [run.validate_every] unit is missing"),
    (("validate_every = 3", "validate_every = true"), "must be an integer, a table with n, unit or false for none"),
    (("progress = false", "progress = 0"), "e.toml:6: run.progress must be true or false, got 0"),
    (("progress = false", "donate = 3"), "run.donate must be true or false or one of 'auto', got 3"),
    (("progress = false", "early_stop = {monitor = 'l', cycles = 1, improved = 1}"), "improved"),
    (("progress = false", "resume = {lift = ['seed']}"), "e.toml:6: [run.resume] checkpoint is missing"),
    (("progress = false", "resume = {checkpoint = 'x', lift = 3}"), "run.resume.lift must be a list, each item a text"),
    (("progress = false", "resume = {checkpoint = ''}"), "[run.resume] checkpoint names no folder"),
    (("progress = false", "resume = 3"), "must be a text, a table with checkpoint, lift, override, note or false for"),
    (("seed = 3", "seed = 1.5"), "e.toml:2: seed must be an integer, got 1.5"),
    (("seed = 3", "seed = true"), "e.toml:2: seed must be an integer, got True"),
    (("seed = 3", "seed = = 3"), "e.toml is not TOML: Invalid value (at line 2, column 8)"),
    (("seed = 3", 'sinks = "jsonl"'), "e.toml:2: sinks must be a list, each item a name, or a table with a name"),
    (("seed = 3", "sinks = [3]"), "e.toml:2: sinks.0 must be a name, or a table with a name and options, got 3"),
    (("seed = 3", 'discover = "x"'), "e.toml:2: discover must be a list, each item a text, got 'x'"),
    (("seed = 3", 'discover = ["a b"]'), "'a b' is not the name of a package"),
    (('name = "toy", n', "n"), "e.toml:9: [data.dataset] name is missing"),
    (
        ('[valid]\ndataset = "toy"\nbatch_size = 5', ""),
        "run.validate_every is set, but there is nothing to validate on",
    ),
    (('dataset = "toy"\n', 'dataset = "toy"\nparams = "ema"\n'), "valid.params must be one of 'params', 'averages'"),
]
SECTIONS = [
    ("[run]", "there is no section [run]; it needs unit and total"),
    ("[loss]", "there is no section [loss]; it needs name"),
]
BUILDING = [
    (('name = "toy"\nwidth', 'name = "tyo"\nwidth'), "e.toml:16: there is no model 'tyo'; did you mean 'toy'?"),
    (
        ("width = 6", "widht = 6"),
        "got an unexpected keyword argument 'widht'; did you mean 'width'? It is toy(width: int",
    ),
    (("toy_tail", "toytail"), "e.toml:18: there is no network 'toytail'; did you mean 'toy_tail'?"),
    (('"top_k"', '"topk"'), "e.toml:21: there is no metric 'topk'; did you mean 'top_k'?"),
    (
        ('"clip_by_global_norm"', '"clip_global_norm"'),
        "there is no gradient transform 'clip_global_norm'; did you mean",
    ),
    (("lr = 0.01", "lr = -1.0"), "e.toml:22: optimizer 'adamw' (helios_fn.optim): lr must be finite and at least 0"),
    (("lr = 0.01", 'lr = "x"'), "e.toml:22: optimizer 'adamw' (helios_fn.optim): lr must be a number or a schedule"),
    (("lr = 0.01", 'lr = {name = "cosin"}'), "e.toml:24: there is no schedule 'cosin'; did you mean 'cosine'?"),
    (("batch_size = 4", "batch_size = 0"), "e.toml:8: [data] batch_size must be an integer of at least 1, got 0"),
    (
        ('{name = "toy", n = 10}', '"toy_source"'),
        "data.batch_size has no effect: dataset 'toy_source' makes the batches",
    ),
    (("seed = 3", 'sinks = ["jsnl"]'), "e.toml:2: there is no sink 'jsnl'; did you mean 'jsonl'?"),
    (("seed = 3", 'discover = ["not_there"]'), "there is no package 'not_there' to discover"),
    (("average = ", 'compile = "gard"\naverage = '), "compile must be 'grad', 'whole' or None, got 'gard'"),
    (("average = ", "optimizer = 1\naverage = "), "optimizer"),
    (
        ('name = "toy"\nwidth = 6\nnetwork = {name = "toy_tail"}', 'name = "refusing"\nsize = 1'),
        "model 'refusing' (tests.unit.test_experiment:",
    ),
]
OVERRIDES = [
    ({"run.totl": 3}, "the override of run.totl: [run] has no key 'totl'; did you mean 'total'?"),
    ({"run.total": "x"}, "the override of run.total: run.total must be a number or a table with n, unit, got 'x'"),
    ({"optimizer.lr.x": 1}, "the override of optimizer.lr.x: optimizer.lr is 0.01, and has no keys"),
    (
        {"optimizer.transforms.3.max_norm": 1},
        "optimizer.transforms is a list of 1, and '3' is none of its items 0 to 0",
    ),
    ({"": 1}, "'' names no key: write it with dots, such as optimizer.lr"),
    ({"model.widht": 1}, "e.toml:15, with the override of model.widht: model 'toy' cannot be made so"),
]
SWEEPS = [
    ("", "e.toml:29: [sweep] a sweep needs a list of values"),
    ("seed = 3", "[sweep] seed must be a list of the values to try, got 3"),
    ("seed = []", "[sweep] seed must be a list of the values to try, got []"),
    ('discover = ["a"]', "discover is the same for all members"),
    ("seed = [1, 2]\noptimizer.lr = [1.0]\nmode = 'zip'", "lists of one length, but seed has 2, optimizer.lr has 1"),
    ("sead = [1, 2]", "the sweep over sead: an experiment has no key 'sead'; did you mean 'seed'?"),
    ("seed = [1, 2]", "a sweep is many runs: build each of experiment.members(), or set sweep.together"),
    ("together = true\nmodel.width = [1, 2]", "e.toml:30: members are trained together where they differ in seed"),
    ("together = true\noptimizer.lr = [1, 2]", "write 1.0 for 1, or set together = false"),
]


class TestMistakes:
    @pytest.mark.parametrize(("change", "message"), READING, ids=lambda each: str(each)[:40])
    def test_a_mistake_in_a_file_is_told_with_its_line(self, change, message):
        """When the file is read; nothing has been imported or built."""
        assert message in mistake(edited(*change))

    @pytest.mark.parametrize(("section", "message"), SECTIONS)
    def test_a_missing_section_is_told_with_what_it_needs(self, section, message):
        """Whatever else there is."""
        start = TEXT.index(section)
        assert message in mistake(TEXT[:start] + TEXT[TEXT.index("\n[", start + 1) :])

    @pytest.mark.parametrize(("change", "message"), BUILDING, ids=lambda each: str(each)[:40])
    def test_a_part_that_cannot_be_made_is_told_with_its_place(self, change, message):
        """Names, arguments and values, when it is built."""
        assert message in mistake(edited(*change), build=True)

    @pytest.mark.parametrize(("overrides", "message"), OVERRIDES, ids=str)
    def test_a_wrong_override_is_told_as_one(self, overrides, message):
        """By its key, not by a line of the file."""
        assert message in mistake(TEXT, overrides, build=True)

    @pytest.mark.parametrize(("sweep", "message"), SWEEPS, ids=str)
    def test_a_sweep_that_cannot_be_run_says_why(self, sweep, message):
        """Before its first member is trained."""
        assert message in mistake(SWEPT + sweep, build=True)

    def test_a_learning_rate_given_twice_is_refused(self):
        """By [schedule] and by the option."""
        assert "both give the learning rate" in mistake(TEXT + '[schedule]\nname = "constant"\nvalue = 1.0')

    def test_averages_that_no_step_keeps_are_refused(self):
        """With what to write."""
        text = edited("average = ", "#", edited('dataset = "toy"\n', 'dataset = "toy"\nparams = "averages"\n'))
        assert "set step.average" in mistake(text)

    def test_a_fault_of_the_users_part_keeps_its_type_and_gets_a_note(self):
        """The traceback leads to it, and the note to the file."""
        text = edited('name = "toy"\nwidth = 6\nnetwork = {name = "toy_tail"}', 'name = "faulty"')
        with pytest.raises(RuntimeError, match="a fault") as caught:
            hf.Experiment.loads(text, name="e.toml").build()
        assert caught.value.__notes__[0].startswith("while making model 'faulty' (tests.unit.test_experiment:")

    def test_what_toml_cannot_say_is_refused(self):
        """A function in the configuration of a run."""
        run = hf.RunConfig("epoch", 3, validate_every=1, early_stop=hf.EarlyStop("l", 1, improved=max))
        experiment = dataclasses.replace(hf.Experiment.loads(TEXT), run=run)
        with pytest.raises(TypeError, match="improved is a function"):
            experiment.dumps()

    def test_hostile_nesting_is_an_error_like_any_other(self):
        """Not an exhausted stack."""
        with pytest.raises(ValueError, match=r"nested too deeply|is not TOML"):
            hf.Experiment.loads(TEXT + "x = " + "[" * 20_000)


WORDS = st.text(st.characters(exclude_categories=["Cs"]), max_size=4)
KEYS = WORDS.filter(lambda key: key not in ("name", "transforms", "average"))
VALUES = st.recursive(
    st.booleans() | st.integers() | st.floats(allow_nan=False) | WORDS | st.dates() | st.datetimes(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(WORDS, inner, max_size=3),
    max_leaves=3,
)
OPTIONS = st.dictionaries(KEYS, VALUES, max_size=2)
PARTS = st.builds(Part, WORDS, OPTIONS)
CADENCES = st.sampled_from([None, 1, 7, hf.Every(2, "epoch"), hf.Every(3, "iteration")])
DATA = {
    "dataset": PARTS,
    "batch_size": st.none() | st.integers(1, 9),
    "shuffle": st.none() | st.booleans(),
    "order": st.none() | PARTS,
    "transforms": st.lists(PARTS, max_size=2).map(tuple),
    "workers": st.integers(0, 3),
    "batches": st.none() | st.integers(1, 9) | st.floats(0.1, 1.0),
}
BRANCHES = st.builds(
    hf.branch,
    st.just("other/checkpoints/run_iter_4"),
    lift=st.lists(st.sampled_from(["data.*", "seed"]), max_size=2),
    override=st.dictionaries(st.sampled_from(["opt_state.hyper.lr", "params['a.b']"]), st.floats(0, 1), max_size=2),
    note=WORDS,
)


@st.composite
def experiments(draw) -> hf.Experiment:
    validate = draw(CADENCES)
    root = draw(st.none() | st.just("runs/x"))
    run = hf.RunConfig(
        unit=draw(st.sampled_from(["iteration", "epoch"])),
        total=draw(st.integers(1, 9) | st.just(math.inf)),
        log_every=draw(CADENCES),
        validate_every=validate,
        root=root,
        checkpoint_every=None if root is None else draw(CADENCES),
        retention=None if root is None else draw(st.none() | st.builds(hf.Retention, last=st.integers(1, 3))),
        early_stop=None if validate is None else draw(st.none() | st.builds(hf.EarlyStop, WORDS, st.integers(1, 3))),
        resume=draw(st.sampled_from(["auto", "last", None, "a/path"]) | BRANCHES),
        max_time=draw(st.none() | st.integers(1, 9) | st.floats(0.1, 9.0)),
        donate=draw(st.sampled_from(["auto", True, False])),
    )
    sweep = st.builds(
        Sweep,
        together=st.booleans(),
        values=st.dictionaries(st.sampled_from(["seed", "a.b"]), st.lists(VALUES, min_size=1, max_size=2), min_size=1),
    )
    return hf.Experiment(
        run=run,
        data=draw(st.builds(Data, **DATA)),
        model=draw(PARTS),
        loss=draw(PARTS),
        optimizer=draw(st.builds(Update, WORDS, OPTIONS, st.lists(PARTS, max_size=2).map(tuple))),
        step=draw(st.builds(StepPart, WORDS, OPTIONS) | st.just(StepPart())),
        valid=draw(st.builds(Evaluation, **DATA)) if validate is not None else None,
        sinks=draw(st.lists(PARTS, max_size=2).map(tuple)),
        seed=draw(st.integers(0, 2**40)),
        discover=draw(st.lists(st.just("my_project.nets"), max_size=1).map(tuple)),
        sweep=draw(st.none() | sweep),
    )


class TestLaws:
    @settings(deadline=None, max_examples=examples(25))
    @given(experiments())
    def test_an_experiment_is_what_its_text_says(self, experiment):
        """loads(dumps(x)) == x, and dumps is the same text again."""
        text = experiment.dumps()
        again = hf.Experiment.loads(text)
        assert again == experiment
        assert again.dumps() == text

    @settings(deadline=None, max_examples=examples(15))
    @given(experiments(), VALUES, st.integers(1, 99), st.integers(1, 9))
    def test_an_override_is_an_edit_of_the_file(self, experiment, option, total, size):
        """For a field, an option, one in a table that is not there yet, and one of a part given by name."""
        text = experiment.dumps()
        table = parse(text, "e")
        overrides = {"run.total": total, "data.batch_size": size, "model.fresh": option, "optimizer.new.deep": option}
        table["run"]["total"], table["data"]["batch_size"] = total, size
        for section, keys in (("model", ["fresh"]), ("optimizer", ["new", "deep"])):
            node = table[section] = {"name": table[section]} if isinstance(table[section], str) else table[section]
            for key in keys[:-1]:
                node = node.setdefault(key, {})
            node[keys[-1]] = option
        expected = hf.Experiment.loads(dump(table))
        assert hf.Experiment.loads(text, overrides) == expected == experiment.replace(overrides)

    @settings(deadline=None, max_examples=examples(100))
    @given(VALUES)
    def test_a_value_is_what_its_text_says(self, value):
        """As it is given to --set."""
        assert parse_value(value_text(value)) == value

    @pytest.mark.parametrize(
        ("text", "value"),
        [
            ("1e-3", 1e-3),
            ("cnn", "cnn"),
            ("runs/x.y", "runs/x.y"),
            ("true", True),
            ("[1, 2]", [1, 2]),
            ("inf", math.inf),
        ],
    )
    def test_plain_words_go_without_quotes(self, text, value):
        """Everything else is TOML."""
        assert parse_value(text) == value

    @pytest.mark.parametrize(
        ("text", "hint"),
        [
            ("True", "write true"),
            ("None", "write false"),
            ("[1,", "no TOML value"),
            ("a b", "quotes"),
            ("1\nb = 2", "no TOML"),
        ],
    )
    def test_a_value_that_is_none_says_what_to_write(self, text, hint):
        """Python's words above all."""
        with pytest.raises(ValueError, match=hint):
            parse_value(text)


def digest(state: hf.TrainState) -> str:
    return tree.digest(state)


class TestBuilt:
    def test_it_is_the_run_that_a_script_would_make(self):
        """The same bits as by functional, make_step, init_state, Loader and run."""
        built = hf.Experiment.loads(TEXT).build()
        model, params, buffers = hf.functional(lambda: toy_model(6, toy_tail()), seed=3)

        def loss_fn(params, buffers, batch, key):
            logits, buffers = model(params, buffers, batch[0], key=key)
            loss = nn.functional.cross_entropy(logits, batch[1])
            return loss, hf.Aux(buffers, len(batch[1]), {"accuracy": (logits.argmax(1) == batch[1]).float().mean()})

        optimizer = hf.optim.chain(hf.optim.clip_by_global_norm(1.0), hf.optim.adamw(0.01, betas=(0.9, 0.99)))
        average = hf.ema(0.9)
        result = hf.run(
            hf.make_step(loss_fn, optimizer, average=average),
            hf.init_state(params, optimizer, buffers=buffers, seed=3, average=average),
            hf.Loader(toy(10), batch_size=4, transform=lambda sample, rng: noise(sample, rng, 0.1)),
            hf.RunConfig("iteration", 6, progress=False),
        )
        state = built.run().state
        assert tree.digest(state.params) == tree.digest(result.state.params)
        assert tree.digest(state.averages) == tree.digest(result.state.averages)
        assert set(state.metrics) == {"loss", "accuracy", "top_k", "learning_rate"}

    def test_a_branch_is_a_table_of_the_file(self, trained, tmp_path):
        """The same bits as of the branch that a script asks for, and its own root goes on from its own checkpoints."""
        origin = next((trained[0] / "checkpoints").glob("*_iter_4"))
        text = ROOTED.replace("ROOT", str(tmp_path / "by_file")).replace("batch_size = 4", "batch_size = 3")
        table = f'{{checkpoint = "{origin}", lift = ["data.*"], note = "smaller"}}'
        experiment = hf.Experiment.loads(text, {"run.resume": parse_value(table)})
        result = experiment.build().run()
        built = hf.Experiment.loads(text).build()
        cfg = dataclasses.replace(
            built.config, root=tmp_path / "by_script", resume=hf.branch(origin, lift="data.*", note="smaller")
        )
        scripted = hf.run(built.step, built.state, built.loader, cfg, validate=built.validate)
        assert digest(result.state) == digest(scripted.state)
        assert digest(experiment.build().run().state) == digest(result.state)

    def test_metrics_may_be_named_alone(self):
        """As transforms and sinks may be."""
        plain = TEXT.replace('{name = "accuracy"}', '"accuracy"')
        found, expected = (hf.Experiment.loads(text).build().run().state for text in (plain, TEXT))
        assert tree.equal(found.metrics, expected.metrics)

    def test_validation_is_the_loss_in_eval_form(self):
        """With its metrics, over [valid], and equal to a test of the same data."""
        built = hf.Experiment.loads(TEXT).build()
        state = built.run().state
        metrics = {name: float(value) for name, value in state.validation.metrics.items()}
        assert set(metrics) == {"loss", "accuracy", "top_k"}
        assert built.test(state) == pytest.approx(metrics)
        x, y = toy().tensors
        logits, _ = built.model.eval(state.params, state.buffers, x)
        assert metrics["loss"] == pytest.approx(float(nn.functional.cross_entropy(logits, y)), rel=1e-5)

    def test_orders_and_sources_of_ones_own_are_used(self):
        """An order is known to checkpoints by its name and options."""
        text = edited("batch_size = 4", 'batch_size = 4\norder = {name = "backwards", skip = 1}')
        assert hf.Experiment.loads(text).build().loader.describe()["order"] == "backwards(skip=1)"
        source = edited(
            '{name = "toy", n = 10}\nbatch_size = 4\ntransforms = [{name = "noise", scale = 0.1}]', '"toy_source"'
        )
        assert hf.Experiment.loads(source).build().loader.batch_size == 2

    def test_steps_and_collates_of_ones_own_are_used(self):
        """A step is made of the loss and the optimiser; a collate function gets its options."""
        text = edited("batch_size = 4", 'batch_size = 4\ncollate = {name = "doubled", times = 3}')
        text = edited('average = {name = "ema", decay = 0.9}', 'name = "handwritten"\nhalf = true', text)
        built = hf.Experiment.loads(text).build()
        x, _ = toy(10).tensors
        batch = next(iter(built.loader.replace(transform=None, shuffle=False).epoch(hf.random.key(0))))
        assert torch.equal(batch[0], 3 * x[:4])
        assert "half" in built.run().state.metrics

    def test_a_schedule_is_the_optimisers_rate(self):
        """As a section, or as the option lr."""
        schedule = 'name = "cosine"\nstart = 0.5\nsteps = 10'
        section = hf.Experiment.loads(edited("lr = 0.01\n", "") + f"[schedule]\n{schedule}").build()
        option = hf.Experiment.loads(edited("lr = 0.01", 'lr = {name = "cosine", start = 0.5, steps = 10}')).build()
        assert [float(built.run().state.metrics["learning_rate"]) for built in (section, option)] == [
            hf.schedules.cosine(0.5, 10)(5)
        ] * 2

    def test_a_dev_run_needs_no_validation(self):
        """[valid] may stay when run.validate_every is switched off."""
        built = hf.Experiment.loads(TEXT, {"run.validate_every": False, "observers": ["Recorder"]}).build()
        assert built.validate is None
        assert isinstance(built.observers[0], Recorder)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The root of a run, not to be changed, and its final state."""
    root = tmp_path_factory.mktemp("run")
    return root, hf.Experiment.loads(ROOTED.replace("ROOT", str(root))).build().run().state


class TestLoadRun:
    def test_a_folder_gives_back_step_state_loader_and_config(self, trained):
        """The state's bits, and the same evaluation; running a finished one trains nothing."""
        root, state = trained
        built = hf.load_run(root)
        assert digest(built.state) == digest(state)
        assert built.test() == pytest.approx({name: float(v) for name, v in state.validation.metrics.items()})
        assert digest(built.run().state) == digest(state)
        assert repr(built).endswith(f", root={str(root)!r}, state={built.state!r})")
        assert len(repr(built)) < 300 + len(str(root))

    def test_the_step_of_a_folder_makes_the_same_bits(self, trained, tmp_path):
        """From its first checkpoint, in memory, three iterations are those of the run."""
        root, _ = trained
        first, third = (hf.load_run(next((root / "checkpoints").glob(f"*_iter_{n}"))) for n in (0, 4))
        cfg = hf.RunConfig("iteration", 4, progress=False, validate_every=3)
        result = hf.run(first.step, first.state, first.loader, cfg, validate=first.validate)
        assert digest(result.state) == digest(third.state)

    def test_a_named_checkpoint_is_the_one_to_go_on_from(self, trained, tmp_path):
        """Also in a folder that has been moved: the newer ones are put aside, and made again."""
        root, state = trained
        moved = tmp_path / "moved"
        shutil.copytree(root, moved)
        built = hf.load_run(next((moved / "checkpoints").glob("*_iter_2")))
        assert built.state.counters.iteration == 2
        assert digest(built.run().state) == digest(state)
        assert (moved / "superseded").is_dir()

    def test_a_checkpoint_does_not_import_what_it_names(self, tmp_path):
        """Unless told to; with what to write."""
        name = "not_imported_unasked"
        text = edited("seed = 3", f'discover = ["{name}"]', ROOTED.replace("ROOT", str(tmp_path)))
        hf.Experiment.loads(text).build(discover=False).run()
        with pytest.raises(ValueError, match=rf"names the package {name}, .*discover=\['{name}'\] .*discover=True"):
            hf.load_run(tmp_path)
        for discover in (True, [name]):
            with pytest.raises(ImportError, match=f"no package '{name}'"):
                hf.load_run(tmp_path, discover=discover)

    def test_a_checkpoint_does_not_choose_where_to_write(self, trained, tmp_path):
        """A sink with a path of its own is refused."""
        root, elsewhere = tmp_path / "root", tmp_path / "elsewhere.jsonl"
        text = edited(
            "seed = 3", f'sinks = [{{name = "jsonl", path = "{elsewhere}"}}]', ROOTED.replace("ROOT", str(root))
        )
        hf.Experiment.loads(text).build().run()
        with pytest.raises(ValueError, match=r"has the sink 'jsonl' write to .*elsewhere.jsonl"):
            hf.load_run(root)
        assert hf.load_run(root, discover=True).sinks

    def test_other_folders_are_told_from_runs(self, trained, tmp_path):
        """None there, no checkpoint, no experiment, a run of another name."""
        built = hf.Experiment.loads(TEXT).build()
        cfg = dataclasses.replace(built.config, root=tmp_path / "script")
        hf.run(built.step, built.state, built.loader, cfg, validate=built.validate)
        (tmp_path / "empty" / "checkpoints").mkdir(parents=True)
        for path, message in (
            (tmp_path / "none", "does not exist"),
            (tmp_path / "empty", "there is no checkpoint in"),
            (tmp_path / "script", "was not written by an experiment"),
        ):
            with pytest.raises(hf.CheckpointError, match=message):
                hf.load_run(path)
        with pytest.raises(hf.CheckpointError, match="no checkpoint of run 'b', but of run"):
            hf.load_run(trained[0], name="b")

    @pytest.mark.parametrize(
        ("record", "message"),
        [
            ({"config": 1}, "which are the run's; got 'config'"),
            ({"x": {1}}, "cannot be stored as JSON"),
            ([], "must map"),
        ],
    )
    def test_a_record_is_plain_and_does_not_replace_the_runs_own(self, record, message):
        """Checked before anything is written."""
        with pytest.raises((TypeError, ValueError), match=message):
            hf.Experiment.loads(TEXT).build().run(record=record)


class TestChanges:
    @pytest.mark.parametrize(
        ("overrides", "told"),
        [
            ({"optimizer.lr": 0.02}, "optimizer.lr was 0.01 when run_epoch_2_iter_6 was written and is 0.02 now"),
            ({"model.extra": {"a": 1}}, "model.extra.a was not set when run_epoch_2_iter_6 was written and is 1 now"),
            ({"run.total": 9, "data.workers": 2, "valid.batch_size": 3, "observers": ["Recorder"]}, ""),
        ],
        ids=str,
    )
    def test_what_decides_bits_and_has_been_changed_is_told(self, trained, overrides, told):
        """All else may change between two starts of a run."""
        experiment = hf.load_run(trained[0]).experiment.replace(overrides)
        assert changes(experiment) == ([told] if told else [])

    def test_it_is_told_when_the_run_goes_on(self, trained, caplog):
        """As a warning."""
        hf.load_run(trained[0]).experiment.replace({"optimizer.lr": 0.02}).build().run()
        assert "optimizer.lr was 0.01 when" in caplog.text


class TestSweeps:
    def test_members_are_named_by_what_differs(self):
        """The last word of the key where it says enough; values in characters that any disk takes."""
        swept = SWEPT + "optimizer.lr = [0.1, 0.2]\nseed = [1, 2]"
        assert list(hf.Experiment.loads(swept).members()) == [
            f"lr={lr},seed={seed}" for lr in (0.1, 0.2) for seed in (1, 2)
        ]
        names = SWEPT + 'mode = "zip"\nmodel.name = ["toy", "a/b c"]\nseed = [1, 2]'
        assert list(hf.Experiment.loads(names).members()) == [
            "model.name=toy,seed=1",
            "model.name=a-b-c,seed=2",
        ]
        networks = SWEPT + 'model.network = [{name = "toy_tail"}, {name = "toy_tail", x = 1}]'
        assert list(hf.Experiment.loads(networks).members()) == ["network=toy_tail", "member-1"]

    def test_one_after_another_each_in_its_folder(self, tmp_path):
        """Equal to the experiment with these values; a member that fails lets the others be trained."""
        swept = edited("seed = 3", "", ROOTED.replace("ROOT", str(tmp_path))) + "[sweep]\nmode = 'zip'\n"
        swept += 'seed = [1, 2]\nloss.name = ["cross_entropy", "diverging"]\n'
        swept = swept.replace('metrics = [{name = "accuracy"}, {name = "top_k", k = 2}]\n', "")
        good, bad = run_members(hf.Experiment.loads(swept))
        assert good.reason is hf.Reason.TOTAL
        assert set(good.metrics) == {"loss"}
        assert bad.reason is None
        assert "not finite" in bad.failure
        folders = sorted(path.name for path in tmp_path.iterdir())
        assert folders == ["seed=1,loss.name=cross_entropy", "seed=2,loss.name=diverging"]
        alone = hf.load_run(tmp_path / folders[0])
        assert alone.experiment.seed == 1
        assert alone.experiment.sweep is None

    def test_together_is_one_run_whose_members_are_those_alone(self, tmp_path):
        """To rounding, where they differ in numbers of the optimiser: the first member's data and noise are all's."""
        text = edited('network = {name = "toy_tail"}\n', "", ROOTED.replace("ROOT", str(tmp_path)))
        swept = hf.Experiment.loads(text + "[sweep]\noptimizer.lr = [0.001, 0.1]\n")
        alone = run_members(swept)
        together = run_members(swept.replace({"sweep.together": True, "run.root": str(tmp_path / "all")}))
        for one, other in zip(alone, together, strict=True):
            assert one.name == other.name
            assert other.metrics == pytest.approx(one.metrics, rel=1e-4)
        again = hf.load_run(tmp_path / "all")
        assert again.state.counters.iteration == 6
        assert again.test()["loss/1"] == pytest.approx(together[1].metrics["loss"])

    def test_a_member_that_diverges_is_told_of(self):
        """The others go on."""
        swept = edited("total = 6", "total = 6\ncheck_finite_every = 1", SWEPT)
        swept = edited('name = "adamw"\nlr = 0.01\nbetas = [0.9, 0.99]', 'name = "sgd"', swept)
        swept = edited('transforms = [{name = "clip_by_global_norm", max_norm = 1.0}]\n', "", swept)
        swept += "together = true\noptimizer.lr = [0.01, 1e38]"
        good, bad = run_members(hf.Experiment.loads(swept))
        assert good.reason is hf.Reason.TOTAL
        assert (bad.reason, bad.failure[:33]) == (None, "the loss or a gradient was not fi")
