"""What newcomers do wrong, and what they are told: what was wrong, what was got, what to do, and where in their code.

``python -m tests.unit.test_mistakes`` prints the table for reading.
"""

from __future__ import annotations

import dataclasses
import math
import tempfile
import traceback
from collections.abc import Callable
from pathlib import Path
from types import CodeType
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

import helios_fn as hf

from ..forked import Script

OURS = str(Path(hf.__file__).parent)
MOST_FRAMES = 3
X = torch.linspace(-1, 1, 40).reshape(20, 2)
DATA = TensorDataset(X, (X.sum(1) > 0).long())
MODEL, PARAMS, BUFFERS = hf.functional(lambda: nn.Sequential(nn.Linear(2, 4), nn.BatchNorm1d(4), nn.Linear(4, 2)))
ADAM = hf.optim.adamw(1e-2)


def loss_fn(params, buffers, batch, key):
    logits, buffers = MODEL(params, buffers, batch[0])
    return F.cross_entropy(logits, batch[1]), hf.Aux(buffers=buffers, weight=len(batch[1]))


def cfg(**changes: Any) -> hf.RunConfig:
    return hf.RunConfig(**{"unit": "iteration", "total": 4, "progress": False, **changes})


def state(optimizer: Any = ADAM, **keywords: Any) -> hf.TrainState:
    return hf.init_state(PARAMS, optimizer, buffers=BUFFERS, **keywords)


def train(loss: Any = None, *, step: Any = None, start: Any = None, loader: Any = None, **keywords: Any) -> hf.Result:
    """A run with one part replaced."""
    changes = {name: keywords.pop(name) for name in list(keywords) if name in CONFIG}
    step = step or hf.make_step(loss or loss_fn, ADAM)
    loader = hf.Loader(DATA, 8) if loader is None else loader
    return hf.run(step, state() if start is None else start, loader, cfg(**changes), **keywords)


CONFIG = {field.name for field in dataclasses.fields(hf.RunConfig)}


@dataclasses.dataclass(frozen=True)
class Mistake:
    """What somebody does, and what they must be told."""

    name: str
    make: Callable[[Path], Any]
    error: type[Exception]
    told: str


MISTAKES: list[Mistake] = []


def mistake(error: type[Exception], told: str) -> Callable[[Callable[..., Any]], None]:
    """Add a function of a fresh folder, or of nothing, to the table."""

    def add(make: Callable[..., Any]) -> None:
        takes = make.__code__.co_argcount
        MISTAKES.append(Mistake(make.__name__, make if takes else lambda _: make(), error, told))

    return add


# The configuration.


@mistake(ValueError, "unit must be one of 'iteration', 'epoch', got 'epochs'")
def a_unit_that_is_none():
    hf.RunConfig(unit="epochs", total=1)


@mistake(ValueError, "total must be an integer of at least 1 (or an hf.Total, or math.inf with a stop condition)")
def no_iterations():
    hf.RunConfig(unit="iteration", total=0)


@mistake(ValueError, "wrap it as hf.optim.every(4, optimizer)")
def accumulation_by_epochs():
    hf.RunConfig(unit="epoch", total=2, accumulation_steps=4)


@mistake(ValueError, "checkpoint_every needs a folder to save into: set root")
def checkpoints_without_a_folder():
    cfg(checkpoint_every=10)


@mistake(ValueError, "early_stop looks at validation metrics: set validate_every")
def early_stop_without_validation():
    cfg(early_stop=hf.EarlyStop("loss", 3))


@mistake(ValueError, "EarlyStop.mode must be one of 'min', 'max', got 'maximum'")
def a_mode_that_is_none():
    hf.EarlyStop("accuracy", 3, mode="maximum")


@mistake(ValueError, "would train for ever: set early_stop or max_time, pass should_stop, or give a total")
def a_run_without_an_end():
    train(total=math.inf)


@mistake(ValueError, "must know which metric is best: set retention or early_stop (monitor and mode)")
def best_of_what(folder):
    cfg(root=folder, resume="best")


@mistake(ValueError, "name='digits/first' cannot name files")
def a_name_with_a_slash():
    cfg(name="digits/first")


@mistake(ValueError, "Retention.best=3 must know which metric is best: set monitor (and mode)")
def keep_the_best_of_what(folder):
    cfg(root=folder, retention=hf.Retention(best=3))


@mistake(ValueError, "log_every must be an integer of at least 1, an hf.Every, or None, got 0")
def a_cadence_of_zero():
    cfg(log_every=0)


@mistake(ValueError, "max_time must be a positive, finite number of seconds, got -1")
def no_time():
    cfg(max_time=-1)


# The state and the optimiser.


@mistake(TypeError, "params holds no tensor: got Linear")
def a_module_as_params():
    hf.init_state(nn.Linear(2, 2), ADAM)


@mistake(
    TypeError, "params holds no tensor: got dict {'w': array([0., 0., 0.])}. Hand over what hf.functional returned"
)
def arrays_as_params():
    hf.init_state({"w": np.zeros(3)}, ADAM)


@mistake(
    TypeError, "params['w'] is int64[3]: only floating tensors can be optimised; keep others in buffers or state.extra"
)
def integers_as_params():
    hf.init_state({"w": torch.zeros(3, dtype=torch.int64)}, ADAM)


@mistake(TypeError, "write hf.optim.from_torch(torch.optim.AdamW, lr=...)")
def torch_s_optimiser():
    hf.make_step(loss_fn, torch.optim.AdamW([torch.zeros(1, requires_grad=True)]))


@mistake(TypeError, "got adamw: call it, as in adamw(...)")
def an_optimiser_not_called():
    hf.make_step(loss_fn, hf.optim.adamw)


@mistake(TypeError, "loss_fn must be a function of (params, buffers, batch, key), got Optimizer adamw(")
def the_arguments_swapped():
    hf.make_step(ADAM, loss_fn)


@mistake(ValueError, "lr must be finite and at least 0, got -0.001")
def a_negative_rate():
    hf.optim.adamw(-1e-3)


@mistake(ValueError, "total_steps must be above warmup_steps, got 100 and 200")
def a_warm_up_longer_than_the_run():
    hf.schedules.warmup_cosine(1e-3, warmup_steps=200, total_steps=100)


@mistake(ValueError, "the pattern 'head.*' matches no parameter; names close to it: '0.bias'")
def a_group_of_nothing():
    state(hf.optim.groups({"head.*": hf.optim.sgd(0.1)}, default=ADAM))


@mistake(ValueError, "the pattern 'backbone.*' matches no parameter; names close to it: '0.weight'")
def frozen_nothing():
    hf.freeze(MODEL, PARAMS, BUFFERS, "backbone.*")


@mistake(hf.RunFailed, "Hand hf.init_state the same optimizer")
def another_optimiser_s_state():
    train(start=state(hf.optim.sgd(0.1, momentum=0.9)))


@mistake(TypeError, "the factory must return a torch.nn.Module, got dict")
def no_module():
    hf.functional(lambda: {"w": torch.zeros(1)})


# The loss.


@mistake(hf.RunFailed, "the loss must be a 0-d tensor, got float32[8]: take its mean or sum")
def a_loss_for_each_sample():
    def loss(params, buffers, batch, key):
        logits, buffers = MODEL(params, buffers, batch[0])
        return F.cross_entropy(logits, batch[1], reduction="none"), hf.Aux(buffers=buffers)

    train(loss)


@mistake(hf.RunFailed, "a number has no gradient, so leave .item() and float() away")
def a_loss_cut_off_by_item():
    def loss(params, buffers, batch, key):
        value, aux = loss_fn(params, buffers, batch, key)
        return value.item(), aux

    train(loss)


@mistake(hf.RunFailed, "the loss does not depend on params: was it detached")
def a_loss_cut_off_by_detach():
    def loss(params, buffers, batch, key):
        value, aux = loss_fn(params, buffers, batch, key)
        return value.detach(), aux

    train(loss)


@mistake(TypeError, "but it has the signature (params, buffers, batch)")
def a_loss_that_takes_no_key():
    train(lambda params, buffers, batch: loss_fn(params, buffers, batch, None))


@mistake(hf.RunFailed, "metric 'hits' must be a 0-d tensor, got bool[8]: take its mean")
def a_metric_for_each_sample():
    def loss(params, buffers, batch, key):
        value, aux = loss_fn(params, buffers, batch, key)
        return value, aux._replace(metrics={"hits": batch[1] == 1})

    train(loss)


@mistake(hf.RunFailed, "the weight of micro-batch 0 must be finite and not negative, got -1")
def a_weight_of_nothing():
    def loss(params, buffers, batch, key):
        value, aux = loss_fn(params, buffers, batch, key)
        return value, aux._replace(weight=-1)

    train(loss, accumulation_steps=2)


@mistake(hf.RunFailed, "in the step of iteration 1 (epoch 0, batch 0) on batch [0] float32[8, 2], [1] int64[8]")
def shapes_that_do_not_fit():
    def loss(params, buffers, batch, key):
        return loss_fn(params, buffers, (batch[0].reshape(-1, 5), batch[1]), key)

    train(loss)


@mistake(hf.RunFailed, "the loss or a gradient was not finite in iteration 1")
def a_rate_that_explodes():
    def loss(params, buffers, batch, key):
        value, aux = loss_fn(params, buffers, batch, key)
        return value / 0 - value / 0, aux

    train(loss)


@mistake(hf.RunFailed, "the step wrote to its input at params['0.bias']")
def parameters_changed_in_place():
    def loss(params, buffers, batch, key):
        with torch.no_grad():
            params["0.bias"].add_(1)
        return loss_fn(params, buffers, batch, key)

    train(loss)


# A step by hand.


@mistake(hf.RunFailed, "the step must return a TrainState, got NoneType: did it forget to return?")
def a_step_that_returns_nothing():
    train(step=lambda state, batch: None)


@mistake(hf.RunFailed, "Draw inside `with hf.random.scope(hf.step_key(state, 'name')):`")
def a_step_that_draws_without_a_key():
    train(step=lambda state, batch: state.replace(metrics={"loss": torch.randn(())}))


@mistake(hf.RunFailed, "Replace in-place operations")
def a_step_that_writes_to_its_state():
    def step(state, batch):
        state.params["0.bias"].add_(1)
        return state

    train(step=step)


@mistake(hf.RunFailed, "must be there from the start, with the same shape and dtype: hf.init_state(..., extra=...)")
def a_step_that_adds_a_leaf():
    train(step=lambda state, batch: state.replace(extra={"mean": batch[0].mean()}))


@mistake(hf.RunFailed, "params['0.bias']: float32[4] became float64[4]")
def a_step_that_changes_a_dtype():
    train(step=lambda state, batch: state.replace(params=hf.tree.map(torch.Tensor.double, state.params)))


@mistake(hf.RunFailed, "write the same names in every iteration, with NaN where there is nothing to tell")
def a_step_with_other_metrics_each_time():
    def step(state, batch):
        return state.replace(metrics={f"loss_{state.counters.iteration}": torch.zeros(())})

    train(step=step)


@mistake(TypeError, "TrainState has no field 'parameters', only params, buffers")
def a_field_that_is_none():
    state().replace(parameters=PARAMS)


# Data.


@mistake(ValueError, "batch_size must be an integer of at least 1, got 0")
def an_empty_batch():
    hf.Loader(DATA, 0)


@mistake(ValueError, "the dataset (TensorDataset) is empty")
def an_empty_dataset():
    hf.Loader(TensorDataset(torch.zeros(0, 2)), 8)


@mistake(ValueError, "use a smaller batch_size or drop_last=False")
def nothing_is_left():
    hf.Loader(DATA, 64, drop_last=True)


@mistake(ValueError, "workers must be an integer of at least 0, got -1")
def fewer_than_no_workers():
    hf.Loader(DATA, 8, workers=-1)


@mistake(TypeError, "becomes a loader by hf.Loader(data, batch_size)")
def a_list_of_batches():
    train(loader=[(X, torch.zeros(20))])


@mistake(TypeError, "got TensorDataset. A dataset, also a list of samples, becomes a loader by hf.Loader")
def a_dataset_as_loader():
    train(loader=DATA)


class Endless(IterableDataset):
    def __iter__(self):
        yield X[0]


@mistake(TypeError, "say how to open it at a position with hf.Stream(open, batch_size)")
def a_dataset_without_positions():
    train(loader=DataLoader(Endless(), batch_size=2))


class Missing(Dataset):
    def __len__(self):
        return 20

    def __getitem__(self, index):
        raise FileNotFoundError(f"images/{index}.png")


@mistake(hf.RunFailed, "could not be read (FileNotFoundError: images/")
def a_file_that_is_missing():
    train(loader=hf.Loader(Missing(), 8))


@mistake(hf.RunFailed, "takes 1 positional argument but 2 were given")
def a_transform_without_generator():
    train(loader=hf.Loader(DATA, 8, transform=lambda sample: sample))


# The run.


@mistake(hf.RunFailed, "validate must return a mapping of names to scalars, got float")
def validation_that_returns_a_number():
    train(validate=lambda state: 0.5, validate_every=1)


@mistake(hf.RunFailed, "early_stop watches 'acc', but validate returned accuracy")
def early_stop_by_a_metric_that_is_not_there():
    stop = hf.EarlyStop("acc", 2, mode="max")
    train(validate=lambda state: {"accuracy": 0.5}, validate_every=1, early_stop=stop)


@mistake(ValueError, "validate is given but would never be called: set validate_every")
def validation_that_is_never_asked():
    train(validate=lambda state: {"accuracy": 0.5})


@mistake(ValueError, "there is nothing to call: pass validate, such as hf.Validator")
def validation_that_is_missing():
    train(validate_every=1)


@mistake(TypeError, "sinks and observers are lists: write sinks=[hf.sinks.JsonLines()]")
def a_sink_outside_a_list(folder):
    train(root=folder, sinks=hf.sinks.JsonLines())


@mistake(TypeError, "observers takes instances, got the class Observer: write Observer()")
def an_observer_s_class():
    train(observers=[hf.Observer])


@mistake(ValueError, "two sinks are named 'metrics': give one of them another name=")
def two_sinks_of_one_name(folder):
    train(root=folder, sinks=[hf.sinks.JsonLines(), hf.sinks.JsonLines()])


@mistake(ValueError, "give it a path, or give the run a root")
def a_log_without_a_place():
    train(sinks=[hf.sinks.JsonLines()])


@mistake(hf.ResumeRefused, "data.batch_size: saved 8, now 4")
def another_batch_size(folder):
    train(root=folder)
    train(root=folder, total=8, loader=hf.Loader(DATA, 4))


@mistake(hf.ResumeRefused, "(hand hf.init_state the same seed)")
def another_seed(folder):
    train(root=folder)
    train(root=folder, total=8, start=state(seed=1))


@mistake(hf.ResumeRefused, "build the model, the optimiser and the state as they were when it was saved")
def another_model(folder):
    train(root=folder)
    params = hf.functional(lambda: nn.Linear(2, 2))[1]
    train(root=folder, total=8, start=hf.init_state(params, ADAM))


@mistake(hf.CheckpointError, "choose another root or name, or remove them yourself")
def a_fresh_start_over_an_old_run(folder):
    train(root=folder)
    train(root=folder, resume=None)


@mistake(hf.CheckpointError, "is neither 'auto', 'last', 'best' or None nor a folder that exists")
def a_checkpoint_that_is_not_there(folder):
    train(root=folder, resume=folder / "checkpoints" / "run_epoch_9_iter_99")


@mistake(hf.CheckpointError, "resume='last' found no checkpoint of run 'run'")
def the_last_of_none(folder):
    train(root=folder, resume="last")


@mistake(ValueError, "there is no model 'restnet'")
def a_model_that_nobody_registered():
    hf.registry.create_model("restnet")


# Checking and printing the table.


def told_by(case: Mistake, folder: Path) -> Exception | None:
    try:
        case.make(folder)
    except Exception as error:
        return error
    return None


def frames(error: BaseException) -> int:
    """How many lines of this package a user reads before the message."""
    return sum(link.filename.startswith(OURS) for link in traceback.extract_tb(error.__traceback__))


@pytest.mark.parametrize("case", MISTAKES, ids=lambda case: case.name)
def test_a_mistake_is_answered_with_what_was_wrong_and_what_to_do(case, tmp_path):
    """The kind of error, its words, and a traceback in which the user's own code is found."""
    error = told_by(case, tmp_path)
    assert type(error) is case.error
    assert case.told in str(error)
    while error is not None:
        assert frames(error) <= MOST_FRAMES
        error = error.__cause__


def test_the_table_is_long_enough():
    """At least forty."""
    assert len({case.name for case in MISTAKES}) >= 40


def test_the_traceback_of_a_loss_begins_in_it(tmp_path):
    """And ends in it: nothing of ours lies between the run and the line that is wrong."""
    error = told_by(next(case for case in MISTAKES if case.name == "shapes_that_do_not_fit"), tmp_path)
    own = traceback.extract_tb(error.__cause__.__traceback__)
    assert [link.name for link in own] == ["loss"]
    assert own[0].line == "return loss_fn(params, buffers, (batch[0].reshape(-1, 5), batch[1]), key)"


def test_everything_can_be_shown(tmp_path, monkeypatch):
    """For whoever looks for a fault of ours."""
    monkeypatch.setenv("HELIOS_FN_TRACEBACK", "full")
    error = told_by(next(case for case in MISTAKES if case.name == "shapes_that_do_not_fit"), tmp_path)
    assert frames(error.__cause__) > 10


def test_a_fault_of_ours_is_shown_in_full(monkeypatch):
    """Where no frame is the user's and nothing was refused on purpose, no frame is left out."""
    monkeypatch.setattr("helios_fn.driver.loop.make_row", lambda kind, state: state.no_such_field)
    monkeypatch.setattr("helios_fn.driver.loop.make_row.__code__", compiled_inside("helios_fn/driver/rows.py"))
    with pytest.raises(hf.RunFailed) as caught:
        train(log_every=1)
    assert frames(caught.value.__cause__) >= 5


def compiled_inside(name: str) -> CodeType:
    """The code of a function that lies, as it seems, in our package, and has a fault."""
    code = compile("def made(kind, state):\n    return state.no_such_field\n", str(Path(OURS).parent / name), "exec")
    return next(each for each in code.co_consts if isinstance(each, CodeType))


def test_a_script_with_a_mistake_ends_with_status_one(tmp_path):
    """As any failing program, so that a shell or a scheduler notices."""
    for mistake in ("hf.RunConfig(unit='epochs', total=1)", "hf.run(1, 2, 3, 4)"):
        (tmp_path / "script.py").write_text(f"import helios_fn as hf\n{mistake}\n")
        script = Script(tmp_path / "script.py", cwd=tmp_path)
        script.process.join(300)
        assert script.process.exitcode == 1


if __name__ == "__main__":
    torch.set_num_threads(1)
    for each in MISTAKES:
        with tempfile.TemporaryDirectory() as place:
            found = told_by(each, Path(place))
            print(f"\n{each.name.replace('_', ' ')}\n    {type(found).__name__}: {str(found).replace(place, 'ROOT')}")
