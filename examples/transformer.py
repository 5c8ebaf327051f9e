"""A character-level transformer on real text: the sources of Python's own standard library.

    python examples/transformer.py --root runs/transformer

The text is a stream with a position of its own: the run can be killed anywhere and goes on at the same
character. Training counts iterations, and each adds up the gradients of four micro-batches.
"""

from __future__ import annotations

import argparse
import sysconfig
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional as F

import helios_fn as hf

CONTEXT, WIDTH, HEADS, LAYERS, VOCABULARY = 64, 64, 4, 2, 128


def corpus(files: int = 60) -> torch.Tensor:
    """The first modules of the standard library in alphabetical order, as ASCII codes."""
    paths = sorted(Path(sysconfig.get_path("stdlib")).glob("*.py"))[:files]
    text = "".join(path.read_text(encoding="utf-8", errors="ignore") for path in paths)
    codes = torch.tensor(list(text.encode("ascii", "ignore")), dtype=torch.uint8)
    return codes.long()


class Block(nn.Module):
    """Attention and a feed-forward layer, each behind a normalisation and around a shortcut."""

    def __init__(self) -> None:
        super().__init__()
        self.norms = nn.ModuleList([nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)])
        self.qkv, self.out = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.forward_layer = nn.Sequential(nn.Linear(WIDTH, 4 * WIDTH), nn.GELU(), nn.Linear(4 * WIDTH, WIDTH))
        self.dropout = nn.Dropout(0.1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        batch, time, _ = x.shape
        parts = self.qkv(self.norms[0](x)).view(batch, time, 3, HEADS, WIDTH // HEADS).permute(2, 0, 3, 1, 4)
        attended = F.scaled_dot_product_attention(*parts, is_causal=True).transpose(1, 2).reshape(batch, time, WIDTH)
        x = x + self.dropout(self.out(attended))
        return x + self.dropout(self.forward_layer(self.norms[1](x)))


class Transformer(nn.Module):
    """Predicts the next character; input and output share their embedding."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(VOCABULARY, WIDTH)
        nn.init.normal_(self.embedding.weight, std=0.02)
        self.position = nn.Parameter(0.02 * torch.randn(CONTEXT, WIDTH))
        self.blocks = nn.Sequential(*(Block() for _ in range(LAYERS)))
        self.head = nn.Linear(WIDTH, VOCABULARY, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, codes: torch.Tensor) -> torch.Tensor:
        return self.head(self.blocks(self.embedding(codes) + self.position[: codes.shape[1]]))


def windows(text: torch.Tensor):
    """A stream of windows; its position is the number of windows read. Where each begins is drawn from its key."""

    def open_stream(position: int | None, key: torch.Tensor):
        at = position or 0
        while True:
            start = int(hf.random.randint(hf.random.fold_in(key, at), high=len(text) - CONTEXT - 1))
            at += 1
            yield text[start : start + CONTEXT + 1], at

    return open_stream


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", default="runs/transformer", help="the folder of the run")
    parser.add_argument("--iterations", type=int, default=200)
    options = parser.parse_args()
    torch.set_num_threads(1)  # another number of threads may give other bits
    text = corpus()
    held_out = text[-20_000:].unfold(0, CONTEXT + 1, CONTEXT)
    model, params, buffers = hf.functional(Transformer)

    def loss_fn(params, buffers, batch, key, call=model):
        logits, buffers = call(params, buffers, batch[:, :-1])
        loss = F.cross_entropy(logits.flatten(0, 1), batch[:, 1:].flatten())
        return loss, hf.Aux(buffers=buffers, weight=batch[:, 1:].numel(), metrics={"bits_per_character": loss / 0.6931})

    rate = hf.schedules.warmup_cosine(3e-3, warmup_steps=options.iterations // 10, total_steps=options.iterations)
    optimizer = hf.optim.chain(hf.optim.clip_by_global_norm(1.0), hf.optim.adamw(rate, weight_decay=0.1))
    test_set = hf.Loader(held_out, batch_size=64, shuffle=False)

    def evaluate(params, buffers, batch):
        return loss_fn(params, buffers, batch, None, model.eval)[1]

    cfg = hf.RunConfig(
        unit="iteration", total=options.iterations, accumulation_steps=4, validate_every=50, checkpoint_every=50,
        root=options.root, name="transformer",
    )  # fmt: skip
    state = hf.init_state(params, optimizer, buffers=buffers)
    stream = hf.Stream(windows(text[:-20_000]), batch_size=8)
    sinks = [hf.sinks.JsonLines(), hf.sinks.TensorBoard()]
    validate = hf.Validator(evaluate, test_set)
    result = hf.run(hf.make_step(loss_fn, optimizer), state, stream, cfg, validate=validate, sinks=sinks)
    bits = hf.test(evaluate, result.state, test_set)["bits_per_character"]
    print(f"{result.reason.value}: {bits:.3f} bits per character on text not trained on")
    print(hf.tree.digest(result.state))


if __name__ == "__main__":
    main()
