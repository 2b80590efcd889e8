"""The checkpoint's own tokenizer, run by the library that its authors used: what ``verify`` holds token ids against.

Knows tokenizer.json and the ``tokenizers`` library. Knows nothing of the GGUF and of the runtime's tokenizers.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass

from edge_embed.errors import CheckpointError

from ..checkpoint import Checkpoint
from ..plan import Plan
from ..vocab import read_tokenizer
from ..vocab.tokenizer_json import TOKENIZER_FILE


@dataclass(frozen=True, slots=True)
class Ids:
    """Token ids and token types of one text, or of a pair."""

    ids: list[int]
    types: list[int]
    is_pair: bool = False


class OriginalTokenizer:
    """Texts to ids as transformers would give them, special tokens and truncation included.

    Attributes:
        pairs: whether the model reads pairs of texts.
    """

    def __init__(self, plan: Plan) -> None:
        from tokenizers import Tokenizer

        path = plan.checkpoint.folder / TOKENIZER_FILE
        try:
            if path.exists():
                self._tokenizer = Tokenizer.from_file(str(path))
            else:  # only a SentencePiece model
                self._tokenizer = Tokenizer.from_str(json.dumps(dict(read_tokenizer(plan.checkpoint).values)))
        except Exception as error:  # the library raises bare Exception
            raise CheckpointError(f"{TOKENIZER_FILE} cannot be loaded: {error}") from error
        self._tokenizer.no_padding()
        self._plan = plan
        self._eds, self._max_tokens = plan.vocabulary.eds_token_id, plan.settings.max_tokens
        self._apply_overrides(plan.checkpoint)
        self.pairs = plan.settings.pooling == "rank"

    def encode(self, text: str) -> Ids:
        """The ids of one text, of which those in front are kept where it is too long."""
        self._tokenizer.enable_truncation(self._max_tokens)
        ids: list[int] = self._tokenizer.encode(text).ids
        if self._eds is not None and ids[-1:] != [self._eds]:
            ids = [*ids[: self._max_tokens - 1], self._eds]  # the post-processor adds none, and the converter says so
        return Ids(ids, [0] * len(ids))

    def encode_pair(self, query: str, document: str) -> Ids:
        """The ids of a pair, however long: in the template of a causal reranker, or joined by the post-processor."""
        self._tokenizer.no_truncation()
        head = self._plan.head
        if head is not None:
            before, _, behind = head.template.partition("{document}")
            before = before.replace("{instruction}", head.instruction or "", 1)
            start, _, middle = before.partition("{query}")
            text = start + query + middle + document + behind
            ids: list[int] = self._tokenizer.encode(text, add_special_tokens=False).ids
            return Ids(ids, [0] * len(ids), is_pair=True)
        found = self._tokenizer.encode(query, document)
        # RoBERTa, XLM-R and ModernBERT have no token types, whatever their post-processors say.
        has_types = self._plan.checkpoint.config.values.get("model_type") == "bert"
        return Ids(found.ids, found.type_ids if has_types else [0] * len(found.ids), is_pair=True)

    def shown(self, ids: Sequence[int], at: int) -> str:
        """The token at that place, for a message."""
        return f"{self._tokenizer.id_to_token(ids[at])!r} ({ids[at]})" if at < len(ids) else "nothing"

    def _apply_overrides(self, checkpoint: Checkpoint) -> None:
        """transformers' BertTokenizer rebuilds the normalizer from tokenizer_config.json where the two differ."""
        from tokenizers import normalizers

        normalizer = self._tokenizer.normalizer
        if not isinstance(normalizer, normalizers.BertNormalizer) or not checkpoint.has("tokenizer_config.json"):
            return
        config = checkpoint.json("tokenizer_config.json").values
        if config.get("tokenizer_class") not in ("BertTokenizer", "BertTokenizerFast"):
            return
        switches = {
            ours: getattr(normalizer, ours) if config.get(theirs) is None else config[theirs]
            for ours, theirs in (
                ("lowercase", "do_lower_case"),
                ("strip_accents", "strip_accents"),
                ("handle_chinese_chars", "tokenize_chinese_chars"),
            )
        }
        self._tokenizer.normalizer = normalizers.BertNormalizer(clean_text=normalizer.clean_text, **switches)
