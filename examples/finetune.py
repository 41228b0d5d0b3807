# SPDX-License-Identifier: MIT
"""Fine-tunes a small GPT-2 on real text, with torch's attention and with ours, and plots both.

    pip install transformers 'mps-sdpa[report]' && python examples/finetune.py --plot losses.svg

The texts come with Python, as bytes: the language reference to begin with, and the source of a
standard module to fine-tune on. The model has GPT-2's architecture and random weights, and is first
trained on the reference. Both fine-tunings start from that checkpoint and see the same batches, so
that their losses can be laid one over the other.
"""

from __future__ import annotations

import argparse
import copy
import inspect
import time
from collections.abc import Iterator
from pathlib import Path
from pydoc_data.topics import topics

import torch
from torch import Tensor
from transformers import GPT2Config, GPT2LMHeadModel

import mps_sdpa

CONTEXT = 256


def make_model(implementation: str) -> GPT2LMHeadModel:
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=256, n_positions=CONTEXT, n_embd=128, n_layer=3, n_head=4,
        bos_token_id=0, eos_token_id=0, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0,
    )  # fmt: skip
    return GPT2LMHeadModel._from_config(config, attn_implementation=implementation)


def to_bytes(text: str) -> Tensor:
    return torch.tensor(list(text.encode()), dtype=torch.long)


def batches(text: Tensor, steps: int, seed: int) -> Iterator[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        starts = torch.randint(len(text) - CONTEXT, (4,), generator=generator)
        yield torch.stack([text[start : start + CONTEXT] for start in starts])


def train(model: GPT2LMHeadModel, text: Tensor, steps: int, rate: float, seed: int) -> list[float]:
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate)
    losses = []
    for ids in batches(text, steps, seed):
        optimizer.zero_grad()
        loss = model(input_ids=ids, labels=ids).loss
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def plot(path: Path, losses: dict[str, list[float]]) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 3.5), layout="constrained")
    axes = figure.subplots()
    for (name, values), style in zip(losses.items(), ("-", "--"), strict=True):
        axes.plot(values, style, label=f'attn_implementation="{name}"', linewidth=1.2)
    axes.set(xlabel="fine-tuning step", ylabel="loss (nats a byte)")
    axes.legend()
    figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--text", type=Path, help="a text file to fine-tune on instead")
    parser.add_argument("--steps", type=int, default=150, help="of fine-tuning; twice that before")
    parser.add_argument("--plot", type=Path, help="where to draw the losses (.svg, .png)")
    options = parser.parse_args()
    mps_sdpa.integrations.transformers.register()

    reference = to_bytes("".join(topics[name] for name in sorted(topics)))
    library = to_bytes(options.text.read_text() if options.text else inspect.getsource(argparse))
    base = make_model("sdpa")
    first = train(base, reference, 2 * options.steps, 1e-3, seed=1)
    print(f"trained on {len(reference)} bytes: loss {first[0]:.3f} -> {first[-1]:.3f}")
    checkpoint = copy.deepcopy(base.state_dict())

    losses = {}
    for name in ("sdpa", "mps_sdpa"):
        model = make_model(name)
        model.load_state_dict(checkpoint)
        began = time.perf_counter()
        losses[name] = train(model, library, options.steps, 3e-4, seed=2)
        seconds = time.perf_counter() - began
        print(f"{name}: loss {losses[name][0]:.4f} -> {losses[name][-1]:.4f} in {seconds:.1f} s")
    apart = max(abs(a - b) for a, b in zip(*losses.values(), strict=True))
    print(f"largest difference of the losses at a step: {apart:.1e}")
    if options.plot:
        plot(options.plot, losses)


if __name__ == "__main__":
    main()
