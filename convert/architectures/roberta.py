"""RoBERTa, XLM-RoBERTa and CamemBERT encoders, such as bge-m3 and multilingual-e5, and cross-encoders of the first two.

Names and shapes from transformers' ``XLMRobertaModel``; llama.cpp runs them as ``bert``. The layers are BERT's. What
differs is where positions begin: a text's first token has the position behind the padding token's id, so the rows
before it are never used and the file leaves them out. (A text that spells the padding token out is the exception:
there the original skips a position, and llama.cpp does not.)
"""

from __future__ import annotations

from dataclasses import replace

from ..checkpoint import Fields
from .bert import BERT, encoder_hyper
from .family import Hyper, linear
from .heads import with_score


def _hyper(config: Fields) -> Hyper:
    return encoder_hyper(config, first_position=1 + config.integer("pad_token_id", high=2**16, default=1))


def _cross_hyper(config: Fields) -> Hyper:
    return with_score(config, _hyper(config), "bert")


XLM_ROBERTA = replace(
    BERT,
    model_type="xlm-roberta",
    classes=("XLMRobertaModel", "XLMRobertaForMaskedLM"),
    refused={
        "XLMRobertaForTokenClassification": "it labels tokens and is no embedding model",
        "XLMRobertaForQuestionAnswering": "it marks spans and is no embedding model",
        "XLMRobertaForCausalLM": "a decoder attends differently",
    },
    tokenizer="unigram",
    hyper=_hyper,
    prefixes=("roberta.",),
    renames=(),
    skipped=(
        (r"embeddings\.position_ids", "the numbers 0, 1, 2, ..., not a weight"),
        (r"embeddings\.token_type_ids", "zeros, not a weight"),
        (r"pooler\.dense\.(weight|bias)", "an unused pooler; embeddings are pooled from the last layer"),
        (r"lm_head\..*", "the pre-training head; embeddings do not use it"),
    ),
)

XLM_ROBERTA_CROSS = replace(
    XLM_ROBERTA,
    classes=("XLMRobertaForSequenceClassification",),
    refused={},
    default_pooling="rank",
    hyper=_cross_hyper,
    tensors=(
        *XLM_ROBERTA.tensors,
        *linear("classifier.dense", "cls", "embd", "embd"),
        *linear("classifier.out_proj", "cls.output", "labels", "embd"),
    ),
    skipped=XLM_ROBERTA.skipped[:3],
)

ROBERTA = replace(
    XLM_ROBERTA,
    model_type="roberta",
    classes=("RobertaModel", "RobertaForMaskedLM"),
    refused={
        "RobertaForTokenClassification": "it labels tokens and is no embedding model",
        "RobertaForQuestionAnswering": "it marks spans and is no embedding model",
        "RobertaForCausalLM": "a decoder attends differently",
    },
    tokenizer="bpe",
)

CAMEMBERT = replace(
    XLM_ROBERTA,
    model_type="camembert",
    classes=("CamembertModel", "CamembertForMaskedLM"),
    refused={"CamembertForSequenceClassification": "its scores have not been compared with the original's"},
)

ROBERTA_CROSS = replace(
    XLM_ROBERTA_CROSS,
    model_type="roberta",
    classes=("RobertaForSequenceClassification",),
    tokenizer="bpe",
)
