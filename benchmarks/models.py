# SPDX-License-Identifier: MIT
"""Times a whole model with our attention against torch's, in interleaved pairs.

    python benchmarks/models.py                     prefill, decode and training, both dtypes
    python benchmarks/models.py --case decode       a part
    python benchmarks/models.py --write             and write benchmarks/results

The model is Llama-like with random weights: hidden 512, 6 layers, 16 heads on 4 of 64, in
transformers with attn_implementation="sdpa" and with "mps_sdpa". The rest of the model costs the
same on both sides, so a ratio here is what a user sees, not what the kernel alone gains. The
model is also timed with next to nothing in the place of attention: no attention, however fast,
could gain more than that.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import result_file
import torch
import transformers
from torch import Tensor
from transformers import AttentionInterface, DynamicCache, LlamaConfig, LlamaForCausalLM

import mps_sdpa
from mps_sdpa.harness import environment, timing

RESULTS = Path(__file__).parent / "results"
IMPLEMENTATIONS = ("mps_sdpa", "sdpa", "none")
CASES = ("prefill", "decode", "train")
PREFILL = TRAIN = 2048
CACHED = 6144
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}

Step = Callable[[], Any]


def no_attention(
    module: torch.nn.Module, query: Tensor, key: Tensor, value: Tensor, *_: Any, **__: Any
) -> tuple[Tensor, None]:
    """Stands in for attention: uses one key and value, so that their layers are trained too."""
    last = (key[:, :, -1:] + value[:, :, -1:]).repeat_interleave(query.size(1) // key.size(1), 1)
    return (query + last).transpose(1, 2).contiguous(), None


def make_model(implementation: str, dtype: torch.dtype) -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=1024,
        hidden_size=512,
        intermediate_size=1408,
        num_hidden_layers=6,
        num_attention_heads=16,
        num_key_value_heads=4,
        head_dim=64,
        max_position_embeddings=8192,
    )
    model = LlamaForCausalLM._from_config(config, attn_implementation=implementation)
    return model.to(dtype)


def prefill_step(model: LlamaForCausalLM) -> Step:
    ids = torch.randint(0, 1024, (1, PREFILL))

    def step() -> Any:
        with torch.inference_mode():
            return model(input_ids=ids, logits_to_keep=1).logits

    return step


def decode_step(model: LlamaForCausalLM) -> Step:
    """One token on a cache of CACHED, which is cut off again afterwards."""
    ids = torch.randint(0, 1024, (1, 1))
    cache = DynamicCache(config=model.config)
    shape = (1, 4, CACHED, 64)
    for layer in range(model.config.num_hidden_layers):
        cache.update(*(torch.randn(shape).to(model.dtype) for _ in range(2)), layer)

    def step() -> Any:
        with torch.inference_mode():
            logits = model(input_ids=ids, cache=cache, use_cache=True).logits
            cache.crop(-1)
            return logits

    return step


def train_step(model: LlamaForCausalLM) -> Step:
    ids = torch.randint(0, 1024, (1, TRAIN))
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)

    def step() -> Any:
        optimizer.zero_grad()
        loss = model(input_ids=ids, labels=ids).loss
        loss.backward()
        optimizer.step()
        return loss.detach()

    return step


STEPS = {"prefill": prefill_step, "decode": decode_step, "train": train_step}


def check(first: Any, second: Any, dtype: torch.dtype) -> None:
    """Both sides compute the same before they are timed."""
    tolerance = 1e-3 if dtype == torch.float32 else 0.1
    torch.testing.assert_close(first, second, atol=tolerance, rtol=tolerance)


def measure(case: str, name: str, pairs: int | None, seconds: float) -> dict[str, Any]:
    models = [make_model(each, DTYPES[name]) for each in IMPLEMENTATIONS]
    steps = []
    for model in models:
        torch.manual_seed(1)
        steps.append(STEPS[case](model))
    ours, theirs, none = steps
    check(ours(), theirs(), DTYPES[name])
    timed = timing.paired(ours, theirs, pairs=pairs, budget=seconds)
    bound = timing.paired(none, theirs, pairs=pairs, budget=seconds / 3)
    return {
        "case": case,
        "dtype": name,
        "ours_ms": median_ms(timed.candidate),
        "torch_ms": median_ms(timed.baseline),
        "speedup": interval(timed),
        "without_attention_ms": median_ms(bound.candidate),
        "bound": interval(bound),
        "pairs": len(timed.ratios),
        "notes": timed.notes(),
    }


def median_ms(times: timing.Floats) -> float:
    return float(np.median(times)) * 1e3


def interval(timed: timing.Paired) -> list[float]:
    speedup = timed.speedup()
    return [speedup.value, speedup.low, speedup.high]


HEADINGS = ("case", "dtype", "ours ms", "torch ms", "torch / ours [95 %]")
HEADINGS += ("no attention ms", "torch / none [95 %]")
HEAD = [f"| {' | '.join(HEADINGS)} |", "|---" * len(HEADINGS) + "|"]


def line(row: dict[str, Any]) -> str:
    times = [f"{row[name]:.1f}" for name in ("ours_ms", "torch_ms", "without_attention_ms")]
    ratios = ["{:.2f} [{:.2f}, {:.2f}]".format(*row[name]) for name in ("speedup", "bound")]
    cells = (row["case"], row["dtype"], *times[:2], ratios[0], times[2], ratios[1])
    return f"| {' | '.join(cells)} |"


def document() -> dict[str, Any]:
    """The machine and versions, to which the rows come."""
    return {**environment.describe_machine(), "transformers": transformers.__version__}


def write(machine: dict[str, Any], rows: list[dict[str, Any]]) -> None:
    path = result_file.path_for(RESULTS, machine, "-models")
    old = json.loads(path.read_text())["rows"] if path.exists() else []
    new = {(row["case"], row["dtype"]): row for row in [*old, *rows]}
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps({"machine": machine, "rows": [*new.values()]}, indent=1) + "\n")
    lines = [*HEAD, *map(line, new.values())]
    about = ", ".join(f"{name} {value}" for name, value in machine.items())
    title = f"# A Llama-like model: our attention against torch's\n\n{about}\n"
    path.with_suffix(".md").write_text("\n".join([title, *lines, ""]))
    print(f"wrote {path} and {path.with_suffix('.md').name}")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--case", choices=CASES, action="append")
    parser.add_argument("--dtype", choices=DTYPES, action="append")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--pairs", type=int, help="pairs a row; default: what the seconds allow")
    parser.add_argument("--seconds", type=float, default=8.0, help="a row")
    parser.add_argument("--write", action="store_true", help="write benchmarks/results")
    return parser.parse_args()


def main() -> None:
    options = parse()
    torch.set_num_threads(options.threads)
    mps_sdpa.integrations.transformers.register()
    AttentionInterface.register("none", no_attention)
    machine = document()
    print("\n".join(HEAD))
    rows = []
    for case in options.case or CASES:
        for dtype in options.dtype or DTYPES:
            rows.append(measure(case, dtype, options.pairs, options.seconds))
            print(line(rows[-1]), flush=True)
    if options.write:
        write(machine, rows)


if __name__ == "__main__":
    main()
