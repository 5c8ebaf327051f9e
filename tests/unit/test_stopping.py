"""Ready-made predicates say when to stop, and why, from the state alone."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import helios_fn as hf
from helios_fn import stopping


def state_with(iteration=1, validation=None, **metrics):
    state = hf.init_state({"w": torch.zeros(2)}, hf.optim.sgd(0.1))
    found = hf.Validation(
        {name: torch.tensor(value) for name, value in (validation or {}).items()}, int(bool(validation))
    )
    return state.replace(
        metrics={name: torch.tensor(value) for name, value in metrics.items()},
        counters=hf.Counters(iteration, iteration),
        validation=found,
    )


class TestMetric:
    """`stopping.metric`."""

    @given(value=st.floats(width=32), bound=st.floats(allow_nan=False, width=32))
    def test_it_stops_at_the_bound_and_beyond_and_nan_reaches_nothing(self, value, bound):
        """`at_least` is >=, `at_most` is <=, and a NaN is neither."""
        state = state_with(loss=value)
        assert bool(stopping.metric("loss", at_least=bound)(state)) == (value >= bound)
        assert bool(stopping.metric("loss", at_most=bound)(state)) == (value <= bound)

    def test_the_reason_is_told_in_words(self):
        """The answer says what was reached."""
        answer = stopping.metric("validation/accuracy", at_least=0.5)(state_with(validation={"accuracy": 0.75}))
        assert answer == "validation/accuracy is 0.75, at least 0.5"

    def test_before_the_first_validation_there_is_nothing_to_reach(self):
        """A validation's metric that is not there yet is no mistake."""
        assert stopping.metric("validation/accuracy", at_least=-math.inf)(state_with(loss=1.0)) is False

    @given(every=st.integers(1, 7), iteration=st.integers(1, 50))
    def test_it_looks_only_as_often_as_it_is_told(self, every, iteration):
        """`every` counts iterations, whatever was trained in this launch."""
        answer = stopping.metric("loss", at_most=1.0, every=every)(state_with(iteration, loss=0.5))
        assert bool(answer) == (iteration % every == 0)

    def test_a_misspelt_name_is_answered_with_the_closest(self):
        """Both for the step's metrics and for the validation's."""
        with pytest.raises(ValueError, match="no metric 'los' to stop by; close to it: 'loss'"):
            stopping.metric("los", at_most=0.1)(state_with(loss=1.0))
        with pytest.raises(ValueError, match="no metric 'acuracy' to stop by; close to it: 'accuracy'"):
            stopping.metric("validation/acuracy", at_least=0.1)(state_with(validation={"accuracy": 1.0}))

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ({}, "Set at_least or at_most"),
            ({"at_least": 2.0, "at_most": 1.0}, "no value is at least 2.0 and at most 1.0"),
            ({"at_most": math.nan}, "no value is"),
            ({"at_most": 1.0, "every": 0}, "every must be an integer of at least 1"),
        ],
    )
    def test_what_nothing_can_reach_is_refused(self, arguments, message):
        """At the border, not in the run."""
        with pytest.raises(ValueError, match=message):
            stopping.metric("loss", **arguments)


@given(answers=st.lists(st.sampled_from([False, True, "a", "b"]), min_size=1, max_size=4))
def test_any_and_all_mean_what_they_say(answers):
    """`any_of` stops if one does, in the first one's words; `all_of` if all do, in the words of all."""
    predicates = [lambda state, answer=answer: answer for answer in answers]
    said = [answer for answer in answers if answer]
    assert stopping.any_of(*predicates)(None) == (said[0] if said else False)
    words = "; ".join(answer for answer in answers if isinstance(answer, str))
    assert stopping.all_of(*predicates)(None) == ((words or True) if all(answers) else False)


def test_nothing_and_no_function_are_refused():
    """Instead of a run that never stops."""
    with pytest.raises(ValueError, match="at least one predicate"):
        stopping.any_of()
    with pytest.raises(TypeError, match=r"a function of the state, got 0\.5"):
        stopping.all_of(0.5)


def test_a_run_ends_with_the_predicate_s_words_and_stays_ended():
    """As `should_stop` of a real run: it ends there, and a second launch trains nothing."""
    data = torch.utils.data.TensorDataset(torch.ones(8, 1))

    def loss_fn(params, buffers, batch, key):
        return (params["w"] * batch[0]).pow(2).mean(), hf.Aux(weight=len(batch[0]))

    optimizer = hf.optim.sgd(0.1)
    step, state = hf.make_step(loss_fn, optimizer), hf.init_state({"w": torch.ones(1)}, optimizer)
    cfg = hf.RunConfig(unit="iteration", total=math.inf, progress=False)
    stop = stopping.metric("loss", at_most=0.5)
    result = hf.run(step, state, hf.Loader(data, 4), cfg, should_stop=stop)
    assert result.reason is hf.Reason.SHOULD_STOP
    assert result.message.endswith("at most 0.5")
    assert 1 < result.state.counters.iteration < 10
    again = hf.run(step, result.state, hf.Loader(data, 4), cfg, should_stop=stop)
    assert hf.tree.equal(again.state, result.state)
