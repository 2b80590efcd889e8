"""Qwen3 decoders as embedding models and as rerankers: Qwen3-Embedding, Qwen3-Reranker and models tuned from them.

A reranker has a head beside what the sheets below list; ``convert/reranker.py`` makes it.

Names and shapes from transformers' ``Qwen3Model`` and from llama.cpp's src/models/qwen3.cpp.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Final

from edge_embed.errors import UnsupportedCheckpointError

from ..checkpoint import Fields, short
from .decoder import (
    SKIPPED,
    TENSORS,
    attends_back_only,
    attention,
    causal_entry,
    hyper_of,
    layer,
    must_attend_fully,
    rope_kind,
    rope_parameters,
)
from .family import Family, Hyper, must_be

# What the model card of Qwen3-Reranker puts a pair in, and the task that it names where a user names none.
RERANK_INSTRUCTION: Final = "Given a web search query, retrieve relevant passages that answer the query"
RERANK_TEMPLATE: Final = (
    "<|im_start|>system\nJudge whether the Document meets the requirements based on the Query and the Instruct "
    'provided. Note that the answer can only be "yes" or "no".<|im_end|>\n<|im_start|>user\n'
    "<Instruct>: {instruction}\n<Query>: {query}\n<Document>: {document}<|im_end|>\n"
    "<|im_start|>assistant\n<think>\n\n</think>\n\n"
)


def _hyper(config: Fields) -> Hyper:
    must_be(config, "hidden_act", ("silu",), "llama.cpp computes silu")
    must_be(config, "attention_bias", (False,), "llama.cpp's qwen3 has no attention biases")
    must_be(config, "use_sliding_window", (False,), "sliding windows are not converted")
    rope = rope_parameters(config)
    if rope_kind(rope) != "default":
        raise UnsupportedCheckpointError(
            f"{rope.file} is {short(dict(rope.values))}, and only one of rope_type default is converted"
        )
    # transformers' Qwen3Config has 128 where the field is missing, whatever hidden_size and heads are.
    causal = attends_back_only(config)
    hyper = hyper_of("qwen3", config, head_dim=128, more=causal_entry("qwen3", causal))
    must_attend_fully(config, "qwen3", hyper.n_layer)
    return hyper


QWEN3 = Family(
    arch="qwen3",
    model_type="qwen3",
    classes=("Qwen3Model", "Qwen3ForCausalLM"),
    refused={
        "Qwen3ForTokenClassification": "it labels tokens and is no embedding model",
        "Qwen3ForQuestionAnswering": "it marks spans and is no embedding model",
    },
    tokenizer="bpe",
    default_pooling="last",
    hyper=_hyper,
    prefixes=("model.",),
    tensors=TENSORS,
    layer=layer(attention(norms=0.0)),
    skipped=SKIPPED,
)

QWEN3_CROSS = replace(
    QWEN3,
    classes=("Qwen3ForSequenceClassification",),
    refused={},
    default_pooling="rank",
    skipped=(*SKIPPED, (r"score\.weight", "the head, see convert/reranker.py")),
)
