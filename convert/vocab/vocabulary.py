"""What every kind of tokenizer becomes, and the keys that several kinds have in common."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from gguf import GGUFValueType

from edge_embed import keys
from edge_embed.errors import CheckpointError
from edge_embed.pipelines import PIPELINES, Pipeline

from ..architectures.family import TokenizerKind
from ..checkpoint import Fields
from ..container.entries import KeyValue, flag, uint
from .tokenizer_json import AddedToken, Template, model_type, steps_of, template_of, token_text, unsupported

ENDS_TEXTS = "ends every text"
"""How a note ends that names an EDS token which the post-processor does not append."""


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """The tokenizer's part of the metadata.

    Attributes:
        key_values: ``tokenizer.ggml.*`` and ``edge_embed.*`` entries.
        n_tokens: tokens, padding rows included.
        lowercase: whether the tokenizer lowercases; None where it has no such step.
        eds_token_id: the id that ends every text, or None.
        notes: what was decided without the checkpoint saying so, one sentence each.
        assumed_eds: whether no file of the checkpoint says so of that id; only last pooling needs such a token.
    """

    key_values: tuple[KeyValue, ...]
    n_tokens: int
    lowercase: bool | None
    eds_token_id: int | None
    notes: tuple[str, ...]
    assumed_eds: bool = False

    def without_eds(self) -> Vocabulary:
        """The same, of a tokenizer that puts nothing behind a text."""
        key_values = tuple(
            KeyValue(entry.key, False, entry.kind) if entry.key == "tokenizer.ggml.add_eos_token" else entry
            for entry in self.key_values
            if entry.key != keys.EDS_TOKEN_ID
        )
        notes = tuple(note for note in self.notes if not note.endswith(ENDS_TEXTS))
        return replace(self, key_values=key_values, eds_token_id=None, notes=notes, assumed_eds=False)


def kind_of(tokenizer: Fields) -> TokenizerKind | None:
    """The kind of a tokenizer.json, by its content; None for one that is not converted."""
    kind = model_type(tokenizer)
    if kind == "BPE":
        return "sentencepiece" if tokenizer.mapping("model").values.get("byte_fallback") is True else "bpe"
    kinds: dict[Any, TokenizerKind] = {"WordPiece": "wordpiece", "Unigram": "unigram"}
    return kinds.get(kind) if isinstance(kind, str) else None


@dataclass(frozen=True, slots=True)
class Steps:
    """What comes before SentencePiece's algorithm.

    Attributes:
        normalization: ``none``, ``NFC`` or ``NFKC``.
        charsmap: the character map in base64, or None.
        pipeline: name of the rest, in ``pipelines.PIPELINES``.
    """

    normalization: str
    charsmap: str | None
    pipeline: str


def sentencepiece_steps(tokenizer: Fields) -> Steps:
    """Find a tokenizer's steps among those that are known."""
    normalizers, pre_tokenizers = steps_of(tokenizer)
    normalization, charsmap = "none", None
    if normalizers and normalizers[0]["type"] in ("NFC", "NFKC"):
        normalization = normalizers.pop(0)["type"]
    if normalizers and normalizers[0]["type"] == "Precompiled":
        charsmap = normalizers.pop(0)["precompiled_charsmap"]
    found = Pipeline(tuple(normalizers), tuple(pre_tokenizers))
    for name, pipeline in PIPELINES.items():
        if pipeline == found:
            return Steps(normalization, charsmap, name)
    known = [pipeline.normalizers for pipeline in PIPELINES.values()]
    part = "pre_tokenizer" if found.normalizers in known else "normalizer"
    raise unsupported(part, tokenizer.values.get(part))


def special_ids(config: Fields, by_text: Mapping[str, int], template: Template) -> list[KeyValue]:
    """The standard's keys for special tokens: those around a text by the post-processor, others by their names."""
    before, after = template.before, template.after

    def named(name: str) -> int | None:
        return by_text.get(token_text(config, name) or "")

    ids = {
        "bos": before[0] if before else named("bos_token"),
        "eos": after[0] if after else named("eos_token"),
        "seperator": named("sep_token"),  # the standard's spelling
        "padding": named("pad_token"),
        "cls": named("cls_token"),
        "mask": named("mask_token"),
    }
    return [
        *(uint(f"tokenizer.ggml.{name}_token_id", i) for name, i in ids.items() if i is not None),
        flag("tokenizer.ggml.add_bos_token", bool(before)),
        flag("tokenizer.ggml.add_eos_token", bool(after)),
        *pair_separator(template.separator),
    ]


def special_ids_by_text(
    config: Fields, vocab: Mapping[str, int], added: Sequence[AddedToken], n_rows: int
) -> dict[str, int]:
    """Ids of the added tokens that have a row, and of what tokenizer_config.json spells as special."""
    special = _special_texts(config)
    return {token.content: token.id for token in added if token.id < n_rows} | {
        token: i for token, i in vocab.items() if token in special
    }


def template_with_end(
    tokenizer: Fields, config: Fields, by_text: Mapping[str, int], types: Sequence[int], notes: list[str]
) -> tuple[Template, int | None]:
    """What stands around a text, one token at most on each side; and the last one where ``add_eos_token`` adds it."""
    template = template_of(tokenizer, types)
    asked = _asked_end(config, by_text, template, notes)
    if asked is not None:
        template = replace(template, after=(asked,))
    if len(template.before) > 1 or len(template.after) > 1:
        raise unsupported("post_processor", tokenizer.values.get("post_processor"))
    return template, asked


def _asked_end(config: Fields, by_text: Mapping[str, int], template: Template, notes: list[str]) -> int | None:
    """The token that ``add_eos_token`` of tokenizer_config.json has appended where the post-processor does not.

    The tokenizers of transformers 4 (Llama, Mistral) and gte-Qwen2's own rebuild the post-processor from that flag,
    which tokenizer.json need not show; transformers 5 no longer does.
    """
    if template.after or config.values.get("add_eos_token") is not True:
        return None
    spelled = token_text(config, "eos_token")
    eos = by_text.get(spelled or "")
    if eos is None:
        raise CheckpointError(f"{config.file}: add_eos_token is set, and eos_token {spelled!r} is no token")
    notes.append(
        f"the post-processor appends nothing: by add_eos_token of {config.file}, {spelled} ({eos}) {ENDS_TEXTS}"
    )
    return eos


def _special_texts(config: Fields) -> set[str]:
    """How tokenizer_config.json spells its special tokens."""
    names = ("bos", "eos", "unk", "sep", "pad", "cls", "mask")
    return {found for name in names if (found := token_text(config, f"{name}_token")) is not None}


def pair_separator(separator: Sequence[int] | None) -> list[KeyValue]:
    """Our key for what stands between two texts, where that is known."""
    return [KeyValue(keys.PAIR_SEPARATOR, list(separator), GGUFValueType.UINT32)] if separator else []
