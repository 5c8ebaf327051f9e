"""What validation does to torch's flags, and that it puts them back."""

from __future__ import annotations

import pytest
import torch

import helios_fn as hf


@pytest.mark.parametrize("wanted", [True, False])
@pytest.mark.parametrize("fails", [True, False])
def test_cudnn_does_not_search_during_an_evaluation(monkeypatch, wanted, fails):
    """The search for the fastest kernel is off while batches are evaluated, and then as it was, whatever happens."""
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", wanted)
    seen = []

    def eval_fn(params, buffers, batch):
        seen.append(torch.backends.cudnn.benchmark)
        if fails:
            raise OSError("no more data")
        return hf.Aux(metrics={"mean": batch.float().mean()}, weight=len(batch))

    validate = hf.Validator(eval_fn, hf.Loader(torch.arange(10), 4, shuffle=False))
    state = hf.init_state({"w": torch.zeros(1)})
    if fails:
        with pytest.raises(OSError, match="no more data"):
            validate(state)
    else:
        assert validate(state) == {"mean": 4.5}
    assert set(seen) == {False}
    assert torch.backends.cudnn.benchmark is wanted
