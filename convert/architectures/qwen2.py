"""Qwen2 decoders as embedding models: gte-Qwen2, jina-code-embeddings and others tuned from Qwen2 or Qwen2.5.

Names and shapes from transformers' ``Qwen2Model`` and from llama.cpp's src/models/qwen2.cpp. Some of these models look
both ways (``is_causal`` false), which llama.cpp does where the metadata says so.
"""

from __future__ import annotations

from edge_embed.errors import UnsupportedCheckpointError

from ..checkpoint import Fields
from .decoder import (
    SKIPPED,
    TENSORS,
    attends_back_only,
    attention,
    causal_entry,
    hyper_of,
    layer,
    must_attend_fully,
    own_code_notes,
    rope_kind,
    rope_parameters,
)
from .family import Family, Hyper, must_be


def _hyper(config: Fields) -> Hyper:
    must_be(config, "hidden_act", ("silu",), "llama.cpp computes silu")
    must_be(config, "use_sliding_window", (False,), "llama.cpp's qwen2 has no sliding windows")
    rope = rope_parameters(config)
    if rope_kind(rope) != "default":
        raise UnsupportedCheckpointError(f"{rope.file} scales positions, which is not converted for qwen2")
    causal = attends_back_only(config)
    hyper = hyper_of("qwen2", config, more=causal_entry("qwen2", causal), notes=own_code_notes(config))
    must_attend_fully(config, "qwen2", hyper.n_layer)
    if hyper.sizes["q"] != hyper.n_embd:
        raise UnsupportedCheckpointError(
            f"{config.file}: the heads are {hyper.sizes['q']} wide together and hidden_size is {hyper.n_embd}; "
            "llama.cpp's qwen2 takes them for equal"
        )
    return hyper


QWEN2 = Family(
    arch="qwen2",
    model_type="qwen2",
    classes=("Qwen2Model", "Qwen2ForCausalLM"),
    refused={
        "Qwen2ForSequenceClassification": "a reranker's or classifier's head is not converted for this family",
        "Qwen2ForTokenClassification": "it labels tokens and is no embedding model",
        "Qwen2ForQuestionAnswering": "it marks spans and is no embedding model",
    },
    tokenizer="bpe",
    default_pooling=None,  # gte-Qwen2 is last, stella and KaLM are mean
    hyper=_hyper,
    prefixes=("model.",),
    own_code=r"([\w.-]+/[\w.-]+--)?modeling(_qwen2?)?\.Qwen2(Model|ForCausalLM)",
    tensors=TENSORS,
    layer=layer(attention(biases=True)),
    skipped=SKIPPED,
)
