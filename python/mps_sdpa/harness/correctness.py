# SPDX-License-Identifier: MIT
"""Runs cases through a back end and compares values and gradients with double precision."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field
from typing import Any

import torch

from mps_sdpa.harness import calls, reference
from mps_sdpa.harness.cases import Case
from mps_sdpa.harness.data import Inputs, make_inputs
from mps_sdpa.harness.errors import Comparison, compare, tolerance

_SEED = 17
_SOFT = {"value"}


@dataclass(slots=True)
class Outcome:
    """What one case came to; the first nine fields are those that scripts read."""

    case_id: str
    backend: str
    passed: bool = True
    failure_class: str | None = None
    max_abs_err: float | None = None
    max_rel_err: float | None = None
    shape_mismatch: bool = False
    nan_inf_leak: bool = False
    error: str | None = None
    failure_kind: str | None = None
    refused: str | None = None
    worst: str | None = None
    reproduce: str | None = None
    tensors: list[dict[str, Any]] = field(default_factory=list)

    def fail(self, kind: str, text: str) -> None:
        self.passed = False
        self.failure_kind = kind
        self.failure_class = "soft" if kind in _SOFT else "hard"
        self.shape_mismatch = kind in ("shape", "dtype")
        self.nan_inf_leak = kind == "nan"
        self.error = text


def check(case: Case, backend: str, *, device: str = "cpu", gradients: bool = True) -> Outcome:
    """One case; never raises for what the back end does."""
    outcome = Outcome(case_id=case.name, backend=backend)
    inputs = make_inputs(case, seed=_SEED, device=device)
    outcome.refused = calls.refusal(case, inputs, backend, gradients=gradients)
    if outcome.refused is not None:
        return outcome
    try:
        actual = _run(case, inputs, backend, gradients=gradients)
    except Exception as error:  # whatever a back end raises is that case's failure
        outcome.fail("exception", f"{type(error).__name__}: {error}")
        return _with_command(outcome, case)
    for comparison in _compare(case, inputs, actual, gradients=gradients):
        _note(outcome, comparison)
    if actual["out"].dtype is not case.torch_dtype:
        outcome.fail("dtype", f"the output is {actual['out'].dtype}, not {case.torch_dtype}")
    return outcome if outcome.passed else _with_command(outcome, case)


def _run(case: Case, inputs: Inputs, backend: str, *, gradients: bool) -> dict[str, torch.Tensor]:
    """Every result by name: out, lse and the gradients."""
    with_lse = backend != "stock" or case.grad_lse
    if gradients:
        inputs.require_grad()
    if with_lse:
        out, lse = calls.attention(case, inputs, backend, seed=_SEED, with_lse=True)
        results = {"out": out, "lse": lse}
    else:
        results = {"out": calls.forward_call(case, inputs, backend)()}
    if gradients:
        named = inputs.leaves()
        outputs, from_outputs = [results["out"]], [inputs.grad_out]
        if inputs.grad_lse is not None:
            outputs.append(results["lse"])
            from_outputs.append(inputs.grad_lse)
        found = torch.autograd.grad(outputs, list(named.values()), from_outputs)
        results |= {f"grad_{name}": grad for name, grad in zip(named, found, strict=True)}
    return results


def _compare(
    case: Case, inputs: Inputs, actual: dict[str, torch.Tensor], *, gradients: bool
) -> Iterator[Comparison]:
    run = reference.backward if gradients else reference.forward
    expected = run(case, inputs, seed=_SEED)
    yield compare("out", actual["out"], expected.out, tolerance(case.torch_dtype))
    if "lse" in actual:
        # The log-sum-exp is float32, but its scores come from products in the case's dtype.
        yield compare("lse", actual["lse"], expected.lse, tolerance(case.torch_dtype))
    for name, gradient in expected.gradients.items():
        found = actual[f"grad_{name}"]
        # The gradient of a mask is rounded to the mask's own dtype, which may be the coarser one.
        coarser = max(found.dtype, case.torch_dtype, key=lambda dtype: torch.finfo(dtype).eps)
        yield compare(f"grad_{name}", found, gradient, tolerance(coarser, gradient=True))


def _note(outcome: Outcome, comparison: Comparison) -> None:
    outcome.tensors.append(asdict(comparison))
    outcome.max_abs_err = max(outcome.max_abs_err or 0.0, comparison.max_abs_err)
    outcome.max_rel_err = max(outcome.max_rel_err or 0.0, comparison.max_rel_err)
    if comparison.failure is not None and outcome.passed:
        outcome.worst = comparison.sentence()
        outcome.fail(comparison.failure, outcome.worst)


def _with_command(outcome: Outcome, case: Case) -> Outcome:
    words = ["mps-sdpa", "correctness", "--suite", case.suite, "--backend", outcome.backend]
    outcome.reproduce = shlex.join([*words, "--case", case.name])
    return outcome


def summary(outcomes: Iterable[Outcome]) -> dict[str, Any]:
    """The counts, over those cases that the back end did not refuse."""
    every = list(outcomes)
    tried = [outcome for outcome in every if outcome.refused is None]
    failed = [outcome for outcome in tried if not outcome.passed]
    kinds: dict[str, int] = {}
    for outcome in failed:
        kinds[str(outcome.failure_kind)] = kinds.get(str(outcome.failure_kind), 0) + 1
    refusals: dict[str, int] = {}
    for outcome in every:
        if outcome.refused is not None:
            refusals[outcome.refused] = refusals.get(outcome.refused, 0) + 1
    return {
        "n": len(tried),
        "n_pass": len(tried) - len(failed),
        "n_hard": sum(outcome.failure_class == "hard" for outcome in failed),
        "n_soft": sum(outcome.failure_class == "soft" for outcome in failed),
        "failures_by_kind": kinds,
        "n_refused": len(every) - len(tried),
        "refused": refusals,
    }
