# SPDX-License-Identifier: MIT
"""Times our forward pass against other engines of this processor, in interleaved pairs.

    python benchmarks/peers.py [--case causal] [--threads 1]

ONNX Runtime (its MultiHeadAttention, float32), OpenVINO (float32 and bfloat16) and torch with its
compiled flex_attention. Each peer's result is compared with ours before it is timed.
"""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import flex
import measurement
import numpy as np
import onnxruntime
import openvino
import result_file
import torch
from measurement import Budget, Setting
from onnx import TensorProto, helper
from openvino import opset13

from mps_sdpa.harness import calls, cases, environment
from mps_sdpa.harness.cases import Case
from mps_sdpa.harness.data import Inputs, make_inputs

_OPSETS = [helper.make_opsetid("", 23), helper.make_opsetid("com.microsoft", 1)]
_TOLERANCE = {"float32": 1e-4, "bfloat16": 5e-2}


def onnx_runtime(case: Case, inputs: Inputs) -> calls.Forward:
    """Its queries, keys and values are [batch, length, heads x dim]."""
    tensors = {
        name: tensor.transpose(1, 2).flatten(2).contiguous().numpy()
        for name, tensor in zip("qkv", (inputs.query, inputs.key, inputs.value), strict=True)
    }
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(
        _onnx_model(case, tensors), options, providers=["CPUExecutionProvider"]
    )

    def call() -> torch.Tensor:
        (out,) = session.run(None, tensors)
        return torch.from_numpy(out).unflatten(2, (case.q_heads, -1)).transpose(1, 2)

    return call


def _onnx_model(case: Case, tensors: dict[str, np.ndarray[Any, Any]]) -> bytes:
    node = helper.make_node(
        "MultiHeadAttention",
        ["q", "k", "v"],
        ["o"],
        domain="com.microsoft",
        num_heads=case.q_heads,
        unidirectional=int(case.causal != "none"),
    )

    def value(name: str, like: str) -> Any:
        return helper.make_tensor_value_info(name, TensorProto.FLOAT, tensors[like].shape)

    graph = helper.make_graph([node], "attention", [value(n, n) for n in "qkv"], [value("o", "q")])
    return helper.make_model(graph, opset_imports=_OPSETS, ir_version=10).SerializeToString()


def open_vino(case: Case, inputs: Inputs) -> calls.Forward:
    """Reads and writes the case's own dtype, without copies."""
    is_half = case.dtype == "bfloat16"
    element = openvino.Type.bf16 if is_half else openvino.Type.f32
    tensors = [
        openvino.Tensor(_words(tensor), tensor.shape, element)
        for tensor in (inputs.query, inputs.key, inputs.value)
    ]
    parameters = [opset13.parameter(tensor.shape, element) for tensor in tensors]
    attend = opset13.scaled_dot_product_attention(*parameters, causal=case.causal != "none")
    hints = {
        "INFERENCE_NUM_THREADS": torch.get_num_threads(),
        "INFERENCE_PRECISION_HINT": "bf16" if is_half else "f32",
    }
    model = openvino.compile_model(openvino.Model([attend], parameters), "CPU", hints)
    request = model.create_infer_request()
    for index, tensor in enumerate(tensors):
        request.set_input_tensor(index, tensor)

    def call() -> torch.Tensor:
        request.infer()
        words = torch.from_numpy(request.get_output_tensor().data.view(np.uint8))
        return words.view(case.torch_dtype)

    return call


def _words(tensor: torch.Tensor) -> np.ndarray[Any, Any]:
    return (tensor.view(torch.int16) if tensor.dtype is torch.bfloat16 else tensor).numpy()


Peer = tuple[Callable[[Case], bool], Callable[[Case, Inputs], calls.Forward]]


def _is_plain(case: Case) -> bool:
    return (
        case.mask is None
        and case.window == (-1, -1)
        and case.softcap == case.dropout == 0
        and not case.sinks
        and case.q_heads == case.kv_heads
        and case.dtype != "float16"
    )


PEERS: dict[str, Peer] = {
    "onnxruntime": (lambda case: _is_plain(case) and case.dtype == "float32", onnx_runtime),
    "openvino": (_is_plain, open_vino),
    "torch": (_is_plain, measurement.BASELINES["torch"]),
    "flex": (lambda case: _is_plain(case) or flex.can_express(case), flex.forward_call),
}


def peer_cases() -> list[Case]:
    """The long cases of the speed table, and bfloat16 of head dimension 128 without causality."""
    found = []
    for case in cases.suite("speed"):
        if case.q_len > 512:
            found.append(case)
        if case.name == "bf16 D128 L2048 causal":
            found.append(dataclasses.replace(case, name="bf16 D128 L2048", causal="none"))
    return found


def check(case: Case, name: str) -> None:
    """Stops where a peer computes something else."""
    inputs = make_inputs(case)
    with torch.no_grad():
        actual = PEERS[name][1](case, inputs)().float()
        difference = (actual - calls.attention(case, inputs, "cpu").float()).abs().max().item()
    if not difference < _TOLERANCE[case.dtype]:
        raise SystemExit(f"{name} differs from us by {difference:g} on {case.name}")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--case", action="append", help="only cases whose name contains this")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--pairs", type=int, help="pairs a row; default: what fits three seconds")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    measurement.BASELINES.update({name: peer[1] for name, peer in PEERS.items()})
    machine = {**environment.describe_machine(), "notes": environment.load_notes()}
    rows = []
    for case in peer_cases():
        if options.case and not any(part in case.name for part in options.case):
            continue
        for name in (name for name, (accepts, _) in PEERS.items() if accepts(case)):
            check(case, name)
            setting = Setting("forward", options.threads, name)
            rows.append(measurement.measure(case, setting, Budget(options.pairs)))
            print(result_file.line(rows[-1]), flush=True)
    path = result_file.path_for(options.out, machine, "-peers")
    result_file.write(path, result_file.merge(path, machine, rows, []))
    print(f"wrote {path} and {path.with_suffix('.md').name}")


if __name__ == "__main__":
    main()
