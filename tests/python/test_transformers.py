# SPDX-License-Identifier: MIT
"""Small models with random weights: ours against transformers' eager attention."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers

import mps_sdpa

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


def _decoder(name: str) -> list[Any]:
    kind, options = DECODERS[name]
    return _pair(kind, options, "LMHeadModel" if kind == "GPT2" else "ForCausalLM")


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
