"""Donation: the same bits in the memory of the state before, and never in memory that somebody may hold."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

import helios_fn as hf
from helios_fn import tree


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3))

    def forward(self, x):
        return self.layers(x)


def job(optimizer=None, average=None):
    """A step, its first state and its data."""
    model, params, buffers = hf.functional(Net, seed=0)

    def loss_fn(params, buffers, batch, key):
        x, y = batch
        logits, buffers = model(params, buffers, x)
        return nn.functional.cross_entropy(logits, y), hf.Aux(buffers=buffers, weight=len(y))

    optimizer = optimizer or hf.optim.adamw(0.01)
    step = hf.make_step(loss_fn, optimizer, average=average)
    x = torch.randn(22, 4, generator=torch.Generator().manual_seed(0))
    loader = hf.Loader(torch.utils.data.TensorDataset(x, (x.sum(1) > 0).long()), batch_size=4)
    return step, hf.init_state(params, optimizer, buffers=buffers, average=average), loader


def config(**changes) -> hf.RunConfig:
    return hf.RunConfig(**{"unit": "iteration", "total": 9, "progress": False, "log_every": None, **changes})


def memory(state) -> set[int]:
    return {leaf.data_ptr() for leaf in tree.leaves((state.params, state.opt_state)) if leaf.dim()}


class Watch(hf.Observer):
    """Notes where each state lies and what it is, without keeping it."""

    def __init__(self):
        self.places, self.digests = [], []

    def on_iteration(self, state):
        self.places.append(memory(state))
        self.digests.append(tree.digest(state.replace(metrics={})))


class TestStep:
    def test_a_donated_step_gives_the_same_bits(self):
        step, state, loader = job(average=hf.ema(0.9))
        pure = donated = state
        donated = tree.map(lambda leaf: leaf.clone() if isinstance(leaf, torch.Tensor) else leaf, state)
        batch = next(iter(loader.epoch(state.key)))
        for _ in range(5):
            pure, donated = step(pure, batch), step.donating(donated, batch)
        assert tree.equal(pure, donated)

    def test_it_writes_into_the_memory_it_was_given(self):
        step, state, loader = job()
        mine = step(state, next(iter(loader.epoch(state.key))))
        before = memory(mine)
        assert memory(step.donating(mine, next(iter(loader.epoch(state.key))))) == before

    def test_a_state_that_was_given_away_says_so(self):
        step, state, loader = job()
        batch = next(iter(loader.epoch(state.key)))
        mine = step(state, batch)
        step.donating(mine, batch)
        for use in (lambda: mine.params["x"], lambda: step(mine, batch), lambda: mine.opt_state.count):
            with pytest.raises(hf.StateDonated, match="donate=False"):
                use()

    def test_a_failing_gradient_leaves_the_state_whole(self):
        step, state, loader = job()
        x, y = next(iter(loader.epoch(state.key)))
        mine = step(state, (x, y))
        before = tree.digest(mine)
        with pytest.raises(RuntimeError):
            step.donating(mine, (x[:, :2], y))
        assert tree.digest(mine) == before


class TestDriver:
    @pytest.mark.parametrize("donate", [True, "auto", False])
    @pytest.mark.parametrize("policy", ["raise", "skip", "stop"])
    def test_donation_changes_no_bit(self, donate, policy):
        step, state, loader = job(average=hf.ema(0.9))
        plain = hf.run(step, state, loader, config(donate=False)).state
        assert tree.equal(hf.run(step, state, loader, config(donate=donate, non_finite=policy)).state, plain)

    @pytest.mark.parametrize("which", ["adamw", "every", "frozen", "tunable", "lookahead"])
    @pytest.mark.parametrize("every", [None, 1, 4])
    def test_no_state_that_somebody_holds_is_overwritten(self, tmp_path: Path, which, every):
        """Nor what it shares with later states: parameters while gradients are only collected, frozen ones, rates."""

        class Slow(hf.Observer):
            def __init__(self):
                self.kept = []

            def on_checkpoint(self, path, state):
                self.kept.append((state.params, state.opt_state, tree.digest((state.params, state.opt_state))))

        step, state, loader = job(optimizer=OPTIMIZERS[which]())
        slow = Slow()
        whole = hf.run(step, state, loader, config(donate=False)).state
        before = tree.digest(state)
        root = None if every is None else tmp_path
        cfg = config(donate=True, purity_checks=0, root=root, checkpoint_every=every)
        assert tree.equal(hf.run(step, state, loader, cfg, observers=[slow]).state, whole)
        assert tree.digest(state) == before
        assert all(tree.digest((params, opt_state)) == digest for params, opt_state, digest in slow.kept)

    def test_states_that_nobody_holds_share_their_memory(self):
        """Told to donate, all iterations after the first write into one place."""
        step, state, loader = job()
        watch = Watch()
        hf.run(step, state, loader, config(donate=True, purity_checks=0), observers=[watch])
        assert len({frozenset(place) for place in watch.places}) == 1

    def test_auto_keeps_states_that_are_shown(self):
        """Whoever collects the states of ``iterate``, or in an observer, finds them as they were."""

        class Collect(hf.Observer):
            def __init__(self):
                self.kept = []

            def on_iteration(self, state):
                self.kept.append((state, tree.digest(state)))

        step, state, loader = job()
        collect = Collect()
        hf.run(step, state, loader, config(), observers=[collect])
        collect.kept += [(each, tree.digest(each)) for each in hf.iterate(step, state, loader.replace(), config())]
        assert len(collect.kept) == 18
        assert all(tree.digest(kept) == digest for kept, digest in collect.kept)

    def test_auto_donates_where_nothing_is_due(self, monkeypatch):
        step, state, loader = job()
        donated = []
        donating = type(step).donating

        def note(self, state, batch):
            donated.append(state.counters.iteration)
            return donating(self, state, batch)

        monkeypatch.setattr(type(step), "donating", note)
        cfg = config(log_every=4, checkpoint_every=None, purity_checks=1)
        hf.run(step, state, loader, cfg)
        # From iteration 0 (the user's state) never; 4 and 8 log; 9 is the end.
        assert donated == [1, 2, 4, 5, 6]

    @pytest.mark.parametrize("donate", [True, "auto"])
    @pytest.mark.parametrize("every", [1, 2, 3])
    def test_a_saved_state_stays_as_it_was_saved(self, tmp_path: Path, donate, every):
        """Whoever still reads a state while it is being saved reads the bits that were saved, however late."""

        class Slow(hf.Observer):
            def __init__(self):
                self.saved = []

            def on_checkpoint(self, path, state):
                self.saved.append((state, tree.digest(state), path))

        step, state, loader = job()
        slow = Slow()
        cfg = config(donate=donate, root=tmp_path, checkpoint_every=every, purity_checks=0)
        hf.run(step, state, loader, cfg, observers=[slow])
        assert len(slow.saved) >= 9 // every
        for kept, digest, path in slow.saved:
            assert tree.digest(kept) == digest
            branch = hf.RunConfig(
                unit="iteration", total=kept.counters.iteration or 1, progress=False, root=tmp_path / f"b{path.name}",
                resume=path, log_every=None,
            )  # fmt: skip
            if kept.counters.iteration:
                assert tree.digest(hf.run(step, state, loader.replace(), branch).state) == digest

    def test_a_failure_in_the_update_saves_nothing_and_says_so(self, tmp_path: Path):
        """Half an update is worse than none: the run goes on from the checkpoint before, to the same end."""
        step, state, loader = job(optimizer=Failing.at(None))
        whole = hf.run(step, state, loader, config()).state
        step, state, loader = job(optimizer=Failing.at(5))
        cfg = config(donate=True, root=tmp_path, checkpoint_every=4)
        with pytest.raises(hf.RunFailed, match=r"given away.*newest checkpoint is .*iter_4") as caught:
            hf.run(step, state, loader, cfg)
        assert caught.value.checkpoint is None
        step, state, loader = job(optimizer=Failing.at(None))
        assert tree.equal(hf.run(step, state, loader, cfg).state, whole)

    def test_a_failure_before_the_update_is_saved_as_always(self, tmp_path: Path):
        step, state, loader = job()

        class Breaking(type(step)):
            def donating(self, state, batch):
                if state.counters.iteration == 6:
                    raise RuntimeError("before anything was written")
                return super().donating(state, batch)

        step.__class__ = Breaking
        with pytest.raises(hf.RunFailed) as caught:
            hf.run(step, state, loader, config(donate=True, root=tmp_path))
        assert caught.value.checkpoint is not None
        assert caught.value.iteration == 6

    def test_donate_is_checked(self):
        with pytest.raises(ValueError, match="donate must be"):
            config(donate="always")


OPTIMIZERS = {
    "adamw": lambda: hf.optim.adamw(0.01),
    "every": lambda: hf.optim.every(3, hf.optim.adamw(0.01)),
    "frozen": lambda: hf.optim.groups({"layers.0.*": None}, default=hf.optim.adamw(0.01)),
    "tunable": lambda: hf.optim.tunable(hf.optim.adamw, lr=0.01),
    "lookahead": lambda: hf.optim.lookahead(hf.optim.sgd(0.05, momentum=0.9), k=3),
}


class Failing:
    """SGD that writes half of its update and then fails, once."""

    @staticmethod
    def at(count: int | None) -> hf.optim.Optimizer:
        inner = hf.optim.sgd(0.05, momentum=0.9)

        def update(grads, opt_state, params, *, weight=1.0, donate=False):
            if count is not None and donate and inner.count(opt_state) == count:
                next(iter(params.values())).add_(1.0)
                raise RuntimeError("the machine is on fire")
            return inner.update(grads, opt_state, params, weight=weight, donate=donate)

        return inner._replace(update=update)
