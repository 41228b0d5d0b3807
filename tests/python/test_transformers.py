# SPDX-License-Identifier: MIT
"""Small models with random weights: ours against transformers' eager attention."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import transformers
from torch.profiler import ProfilerActivity, profile
from transformers.masking_utils import chunked_causal_mask_function, sdpa_mask
from transformers.masking_utils import sliding_window_causal_mask_function as window_function

import mps_sdpa
from mps_sdpa.integrations.position_mask import PositionMask, mask_function

SMALL = {
    "vocab_size": 96,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 128,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 95,
}

DECODERS: dict[str, tuple[str, dict[str, Any]]] = {
    "GPT-2": (
        "GPT2",
        {
            "vocab_size": 96,
            "n_embd": 32,
            "n_layer": 2,
            "n_head": 4,
            "n_positions": 99,
            "bos_token_id": 1,
            "eos_token_id": 95,
            "pad_token_id": 0,
        },
    ),
    "Llama": ("Llama", SMALL),
    "Mistral": ("Mistral", {**SMALL, "sliding_window": 6}),
    "Gemma 2": (
        "Gemma2",
        {**SMALL, "sliding_window": 6, "query_pre_attn_scalar": 8, "attn_logit_softcapping": 5.0},
    ),
    "GPT-OSS": (
        "GptOss",
        {**SMALL, "sliding_window": 6, "num_local_experts": 2, "num_experts_per_tok": 1},
    ),
}


def _pair(name: str, options: dict[str, Any], head: str = "ForCausalLM") -> list[Any]:
    """The same weights twice: with eager attention and with ours."""
    mps_sdpa.integrations.transformers.register()
    config_class = getattr(transformers, f"{name}Config")
    model_class = getattr(transformers, name + head, None) or getattr(transformers, f"{name}Model")
    models = []
    for implementation in ("eager", "mps_sdpa"):
        torch.manual_seed(0)
        config = config_class(**options)
        config._attn_implementation = implementation
        model = model_class._from_config(config, attn_implementation=implementation)
        models.append(model.eval())
    models[1].load_state_dict(models[0].state_dict())
    return models


def _decoder(name: str, **changes: Any) -> list[Any]:
    kind, options = DECODERS[name]
    return _pair(kind, {**options, **changes}, "LMHeadModel" if kind == "GPT2" else "ForCausalLM")


def _batch() -> dict[str, torch.Tensor]:
    ids = torch.randint(2, 90, (2, 17))
    padding = torch.ones(2, 17, dtype=torch.long)
    padding[1, :5] = 0
    return {"input_ids": ids, "attention_mask": padding}


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("name", DECODERS)
def test_decoders_logits_and_gradients(name: str, padded: bool) -> None:
    eager, ours = _decoder(name)
    batch = _batch()
    if not padded:
        del batch["attention_mask"]
    visible = batch.get("attention_mask", torch.ones(2, 17)).bool()
    results = []
    for model in (eager, ours):
        logits = model(**batch).logits[visible]
        logits.square().mean().backward()
        results.append((logits, {n: p.grad for n, p in model.named_parameters()}))
    assert mps_sdpa.get_call_stats() == {"cpu": 2}
    torch.testing.assert_close(results[1][0], results[0][0], atol=1e-4, rtol=1e-4)
    for parameter, gradient in results[0][1].items():
        if gradient is not None:
            torch.testing.assert_close(results[1][1][parameter], gradient, atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("cache", ["dynamic", "static"])
@pytest.mark.parametrize("name", DECODERS)
def test_generation(name: str, cache: str) -> None:
    eager, ours = _decoder(name)
    options = {"max_new_tokens": 10, "do_sample": False, "cache_implementation": cache}
    expected = eager.generate(**_batch(), **options)
    mps_sdpa.reset_call_stats()
    torch.manual_seed(0)
    found = ours.generate(**_same_batch(expected), **options)
    assert torch.equal(found, expected)
    assert mps_sdpa.get_call_stats()["cpu"] >= 18


def _same_batch(sequences: torch.Tensor) -> dict[str, torch.Tensor]:
    padding = torch.ones(2, 17, dtype=torch.long)
    padding[1, :5] = 0
    return {"input_ids": sequences[:, :17].contiguous(), "attention_mask": padding}


ENCODERS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "BERT": (
        "Bert",
        "Model",
        {
            "vocab_size": 96,
            "hidden_size": 32,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "intermediate_size": 48,
        },
    ),
    "T5": (
        "T5",
        "ForConditionalGeneration",
        {
            "vocab_size": 96,
            "d_model": 32,
            "d_kv": 8,
            "d_ff": 48,
            "num_layers": 2,
            "num_heads": 4,
            "pad_token_id": 0,
            "decoder_start_token_id": 0,
            "eos_token_id": 95,
        },
    ),
}


def _encoder_batch(name: str) -> dict[str, torch.Tensor]:
    batch = _batch()
    if name == "T5":
        batch["decoder_input_ids"] = torch.randint(2, 90, (2, 9))
    return batch


def _compare(models: list[Any], batch: dict[str, torch.Tensor], visible: Any) -> None:
    """Outputs and the gradients of all weights."""
    results = []
    for model in models:
        model.zero_grad()
        out = model(**batch)[0][visible]
        out.square().mean().backward()
        gradients = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
        results.append((out, gradients))
    assert results[0][1].keys() == results[1][1].keys()
    torch.testing.assert_close(results[1], results[0], atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("name", ENCODERS)
def test_encoders_outputs_and_gradients(name: str) -> None:
    kind, head, options = ENCODERS[name]
    models = _pair(kind, options, head)
    batch = _encoder_batch(name)
    _compare(models, batch, batch["attention_mask"].bool() if name == "BERT" else slice(None))
    assert mps_sdpa.get_call_stats()["cpu"] >= 2


def test_t5_generation() -> None:
    eager, ours = _pair(*(ENCODERS["T5"][n] for n in (0, 2, 1)))
    batch = _batch()
    expected, found = (
        model.generate(**batch, max_new_tokens=8, do_sample=False) for model in (eager, ours)
    )
    assert torch.equal(found, expected)


WHISPER = {
    "vocab_size": 96, "d_model": 32, "encoder_layers": 2, "decoder_layers": 2,
    "encoder_attention_heads": 4, "decoder_attention_heads": 4, "encoder_ffn_dim": 48,
    "decoder_ffn_dim": 48, "num_mel_bins": 8, "max_source_positions": 20,
    "max_target_positions": 20, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 95,
    "decoder_start_token_id": 1,
}  # fmt: skip


def test_whisper_outputs_gradients_and_tokens() -> None:
    models = _pair("Whisper", WHISPER, "ForConditionalGeneration")
    sound, ids = torch.randn(2, 8, 40), torch.randint(2, 90, (2, 7))
    _compare(models, {"input_features": sound, "decoder_input_ids": ids}, slice(None))
    assert mps_sdpa.get_call_stats() == {"cpu": 6}
    options = {"max_new_tokens": 8, "do_sample": False, "suppress_tokens": None}
    expected, found = (
        model.generate(sound, begin_suppress_tokens=None, **options) for model in models
    )
    assert torch.equal(found, expected)


def test_paged_cache_is_refused() -> None:
    q = torch.randn(1, 2, 3, 8)
    with pytest.raises(ValueError, match="the paged cache of continuous batching is not supported"):
        mps_sdpa.integrations.transformers.attention_forward(
            torch.nn.Identity(), q, q, q, None, cache=object()
        )


@pytest.mark.parametrize("cache", ["Dynamic", "Static"])
@pytest.mark.parametrize("name", ["Llama", "Mistral", "Gemma 2", "GPT-OSS"])
def test_a_prompt_in_pieces(name: str, cache: str) -> None:
    """Later pieces see earlier ones: the mask is aligned lower right."""
    ids = torch.randint(2, 90, (2, 17))
    results = []
    for model in _decoder(name):
        limit = {"max_cache_len": 20} if cache == "Static" else {}
        kept = getattr(transformers, f"{cache}Cache")(config=model.config, **limit)
        with torch.no_grad():
            pieces = [
                model(input_ids=ids[:, first:last], cache=kept).logits
                for first, last in ((0, 3), (3, 8), (8, 16), (16, 17))
            ]
        results.append(torch.cat(pieces, 1))
    torch.testing.assert_close(results[1], results[0], atol=1e-4, rtol=1e-4)


GEOMETRIES = [
    {"q_length": 9, "kv_length": 9},
    {"q_length": 3, "kv_length": 9, "q_offset": 6},
    {"q_length": 3, "kv_length": 12, "q_offset": torch.tensor(6)},
    {"q_length": 4, "kv_length": 8, "q_offset": 11, "kv_offset": 7},
    {"q_length": 1, "kv_length": 9, "q_offset": 8},
    {"q_length": 1, "kv_length": 9, "q_offset": 4},
    {"q_length": 5, "kv_length": 9, "q_offset": 0},
]


@pytest.mark.parametrize("window", [None, 3, 8, 20])
@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_numbers_say_the_same_as_torchs_mask(geometry: dict[str, Any], window: int | None) -> None:
    config = transformers.MistralConfig(sliding_window=window)
    options = {"batch_size": 2, **geometry, "local_size": window, "config": config}
    if window is not None:
        options["mask_function"] = window_function(window)
    expected = sdpa_mask(**options, allow_is_causal_skip=False)
    found = mask_function(**options)
    if found is None:
        assert sdpa_mask(**options) is None
        return
    assert type(found) is PositionMask
    assert (found.shape, found.dtype, found.dim()) == (expected.shape, torch.bool, 4)
    assert torch.equal(found, expected)
    assert torch.equal(found[..., 1:], expected[..., 1:])


def test_other_masks_are_torchs() -> None:
    chunks = transformers.Llama4TextConfig(attention_chunk_size=4)
    options: dict[str, Any] = {"batch_size": 1, "q_length": 9, "kv_length": 9}
    chunked = {"mask_function": chunked_causal_mask_function(4, torch.zeros(1, dtype=torch.long))}
    padded = {"attention_mask": torch.arange(9)[None] > 1}
    edited = {"allow_is_causal_skip": False}
    for more in ({**chunked, "local_size": 4, "config": chunks}, padded, edited):
        found = mask_function(**options, **more)
        assert type(found) is torch.Tensor
        assert torch.equal(found, sdpa_mask(**options, **more))


def _largest_allocation(call: Callable[[], object]) -> int:
    """The most memory, in bytes, that any single operation of torch allocates."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        call()
    return max(event.self_cpu_memory_usage for event in profiled.events())


@pytest.mark.parametrize("name", ["Mistral", "Gemma 2", "GPT-OSS"])
def test_no_mask_is_filled_for_a_window(name: str) -> None:
    length = 1024
    _, ours = _decoder(name, max_position_embeddings=length)
    _, torchs = _decoder(name, max_position_embeddings=length)
    ids = torch.randint(2, 90, (1, length))
    with torch.no_grad():
        ours(input_ids=ids)
        assert _largest_allocation(lambda: ours(input_ids=ids)) < length**2
        transformers.AttentionMaskInterface.register("mps_sdpa", sdpa_mask)
        assert _largest_allocation(lambda: torchs(input_ids=ids)) >= length**2


def test_compiled_layers_take_a_window_as_numbers() -> None:
    _, model = _decoder("Mistral")
    ids = torch.randint(2, 90, (1, 20))
    torch._dynamo.reset()
    with torch.no_grad():
        expected = model(input_ids=ids).logits
        for layer in model.model.layers:
            layer.compile(backend="aot_eager", fullgraph=True)
        torch.testing.assert_close(model(input_ids=ids).logits, expected)
