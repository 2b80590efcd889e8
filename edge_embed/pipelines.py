"""What known tokenizers do to a text before their own algorithm runs, under the names that a GGUF has for it.

The parts are written as in a tokenizer.json, in the newest spelling of Hugging Face's ``tokenizers``. The converter
looks a checkpoint's parts up here and writes the name; the runtime reads the name and builds these parts, so that no
file brings a regular expression of its own. Knows no vocabulary and builds nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

Part = Mapping[str, Any]
"""A normalizer or pre-tokenizer as a JSON object."""

PHANTOM_SPACE: Final = "▁"  # SentencePiece writes a space so

# trim_offsets tells where a token lies and not which it is: the converter takes either value for this one.
_BYTES: Final[Part] = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
_GPT2: Final[Part] = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
_DIGITS: Final[Part] = {"type": "Digits", "individual_digits": True}


def _split(regex: str) -> tuple[Part, ...]:
    return {"type": "Split", "pattern": {"Regex": regex}, "behavior": "Isolated", "invert": False}, _BYTES


_QWEN2: Final = _split(
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)
_LLAMA3: Final = _split(
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)

# Byte-level BPE: ``tokenizer.ggml.pre`` -> pre-tokenizers. Several names mean the same one. Source: llama.cpp's
# src/llama-vocab.cpp, llm_tokenizer_bpe; only those that were compared with an original are listed.
BYTE_LEVEL: Final[Mapping[str, tuple[Part, ...]]] = {
    "qwen2": _QWEN2,
    "deepseek-r1-qwen": _QWEN2,
    "llama-bpe": _LLAMA3,
    "llama3": _LLAMA3,
    "llama-v3": _LLAMA3,
    "gpt-2": (_GPT2,),
    "roberta-bpe": (_GPT2,),
    "modern-bert": (_GPT2,),
    "jina-v1-en": (_GPT2,),
    "jina-v2-code": (_GPT2,),
    "jina-v2-de": (_GPT2,),
    "jina-v2-es": (_GPT2,),
    "olmo": (_GPT2,),
    "smollm": (_DIGITS, _GPT2),
}
# Those that take a word which is in the vocabulary whole, whatever the merges make of it.
IGNORE_MERGES: Final = frozenset({"llama-bpe", "llama3", "llama-v3"})


@dataclass(frozen=True, slots=True)
class Pipeline:
    """What is done to a text before SentencePiece's unigram or BPE, Unicode normalization and character map apart.

    Attributes:
        normalizers: in order, behind those of Unicode.
        pre_tokenizers: in order.
    """

    normalizers: tuple[Part, ...]
    pre_tokenizers: tuple[Part, ...]


def _metaspace(scheme: str, split: bool) -> Part:
    return {"type": "Metaspace", "replacement": PHANTOM_SPACE, "prepend_scheme": scheme, "split": split}


_REPLACE: Final[Part] = {"type": "Replace", "pattern": {"String": " "}, "content": PHANTOM_SPACE}
_PREPEND: Final[Part] = {"type": "Prepend", "prepend": PHANTOM_SPACE}
_STRIP: Final[Part] = {"type": "Strip", "strip_left": False, "strip_right": True}


def _collapse(to: str) -> Part:
    return {"type": "Replace", "pattern": {"Regex": " {2,}"}, "content": to}


def _named() -> dict[str, Pipeline]:
    """One line for each way to treat white space that transformers has written over the years."""
    found = {
        # Llama 2 and Mistral, first spelling: a prefix for every stretch of text between special tokens
        "prepend": Pipeline((_PREPEND, _REPLACE), ()),
        "replace": Pipeline((_REPLACE,), ()),
        # Gemma; the split finds no space any more
        "replace-split": Pipeline(
            (_REPLACE,), ({"type": "Split", "pattern": {"String": " "}, "behavior": "MergedWithPrevious",
                           "invert": False},)
        ),
    }  # fmt: skip
    for scheme in ("always", "first", "never"):
        words, whole = _metaspace(scheme, True), _metaspace(scheme, False)
        found |= {
            f"metaspace-{scheme}": Pipeline((), (whole,)),
            f"words-{scheme}": Pipeline((), (words,)),
            f"split-words-{scheme}": Pipeline((), ({"type": "WhitespaceSplit"}, words)),
            f"collapse-words-{scheme}": Pipeline((_collapse(" "),), (words,)),
            f"strip-words-{scheme}": Pipeline((_STRIP, _collapse(PHANTOM_SPACE)), (words,)),
        }
    return found


PIPELINES: Final[Mapping[str, Pipeline]] = _named()
"""SentencePiece: the value of ``edge_embed.tokenizer.pipeline`` -> what it stands for."""
