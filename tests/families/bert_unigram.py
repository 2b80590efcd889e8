"""A BERT with XLM-RoBERTa's tokenizer, as multilingual-e5-small: positions from 0, two token types, mean pooling."""

from __future__ import annotations

from pathlib import Path

from tests.families import Arrays
from tests.families._encoders import (
    bert_config,
    bert_weights,
    in_temporary_folder,
    recorded,
    write_checkpoint,
    write_sentence_transformers,
)
from tests.families.xlm_roberta import PROMPTS, tokenizer_config, tokenizer_json
from tests.golden_texts import TEXTS

NAME = "bert_unigram"
MAX_TOKENS = 512
PADDING = 35  # multilingual-e5-small has 250,002 tokens and 250,037 rows


def build(folder: Path, *, hidden: int = 64, layers: int = 2, heads: int = 4, act: str = "gelu") -> Path:
    """The checkpoint."""
    tokenizer = tokenizer_json()
    rows = len(tokenizer["model"]["vocab"]) + PADDING
    sizes = {"rows": rows, "positions": MAX_TOKENS, "types": 2, "hidden": hidden, "layers": layers}
    weights = bert_weights(**sizes)
    weights.linear("pooler.dense", hidden, hidden)
    write_checkpoint(
        folder,
        weights,
        bert_config(
            **sizes,
            heads=heads,
            head=False,
            architectures=["BertModel"],
            model_type="bert",
            hidden_act=act,
            layer_norm_eps=1e-12,
            pad_token_id=0,
            tokenizer_class="XLMRobertaTokenizer",
        ),
        tokenizer,
        tokenizer_config(MAX_TOKENS),
    )
    write_sentence_transformers(folder, hidden=hidden, pooling="mean", prompts=PROMPTS)
    return folder


def record() -> Arrays:
    """Vectors and ids of the original, and some vectors with the tanh approximation of GELU."""
    whole = in_temporary_folder(build, lambda folder: recorded(folder, pooling="mean", max_tokens=MAX_TOKENS))
    some = in_temporary_folder(
        lambda folder: build(folder, act="gelu_new"),
        lambda folder: recorded(folder, pooling="mean", max_tokens=MAX_TOKENS, texts=TEXTS[::6]),
    )
    return {**whole, "gelu_new": some["vectors"]}
