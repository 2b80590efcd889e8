"""Llama and Mistral decoders as embedding models: e5-mistral, Linq-Embed-Mistral, SFR-Embedding and their like.

Names and shapes from transformers' ``LlamaModel`` and ``MistralModel`` and from llama.cpp's src/models/llama.cpp, which
rotates neighbouring values where the checkpoint rotates value i with value i + size/2: the rows of queries and keys
are reordered. Llama 3's scaling of long contexts is a tensor of its own there.
"""

from __future__ import annotations

from dataclasses import replace

from ..checkpoint import Fields
from ..container.entries import uint
from .decoder import (
    SKIPPED,
    TENSORS,
    attends_back_only,
    attention,
    causal_entry,
    hyper_of,
    layer,
    own_code_notes,
    rope_factors,
)
from .family import Family, Hyper, must_be


def _hyper(config: Fields) -> Hyper:
    must_be(config, "attention_bias", (False,), "biases of attention are not converted for llama")
    must_be(config, "mlp_bias", (False,), "biases of the feed-forward layers are not converted for llama")
    must_be(config, "use_sliding_window", (False,), "llama.cpp's llama has no sliding windows")
    return _common(config, None, own_code_notes(config))


def _mistral_hyper(config: Fields) -> Hyper:
    """llama.cpp's llama has no sliding windows, and a text that fits into one does not need any."""
    notes: tuple[str, ...] = ()
    window = None
    if config.has("sliding_window"):
        window = config.integer("sliding_window", low=4)
        if window < config.integer("max_position_embeddings", low=1):
            notes = (f"texts end at {window} tokens, the sliding window, behind which llama.cpp would see too much",)
    return _common(config, window, own_code_notes(config) + notes)


def _common(config: Fields, window: int | None, notes: tuple[str, ...]) -> Hyper:
    must_be(config, "hidden_act", ("silu",), "llama.cpp computes silu")
    causal = attends_back_only(config)
    hyper = hyper_of("llama", config, max_positions=window, more=causal_entry("llama", causal), notes=notes)
    factors = rope_factors(config, hyper.sizes["head"])
    return replace(
        hyper,
        key_values=(*hyper.key_values, uint("llama.rope.dimension_count", hyper.sizes["head"])),
        computed={} if factors is None else {"rope_freqs.weight": factors},
    )


LLAMA = Family(
    arch="llama",
    model_type="llama",
    classes=("LlamaModel", "LlamaForCausalLM"),
    refused={
        "LlamaForSequenceClassification": "a reranker's or classifier's head is not converted for this family",
        "LlamaForTokenClassification": "it labels tokens and is no embedding model",
        "LlamaForQuestionAnswering": "it marks spans and is no embedding model",
    },
    tokenizer=("bpe", "sentencepiece"),  # Llama 3, and Llama 2 and Mistral
    default_pooling=None,
    hyper=_hyper,
    prefixes=("model.",),
    tensors=TENSORS,
    layer=layer(attention(reordered=True)),
    skipped=SKIPPED,
)

MISTRAL = replace(
    LLAMA,
    model_type="mistral",
    classes=("MistralModel", "MistralForCausalLM"),
    refused={
        "MistralForSequenceClassification": "a reranker's or classifier's head is not converted for this family",
        "MistralForTokenClassification": "it labels tokens and is no embedding model",
        "MistralForQuestionAnswering": "it marks spans and is no embedding model",
    },
    default_pooling="last",
    hyper=_mistral_hyper,
)
