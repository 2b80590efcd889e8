"""Tokenizers of every kind that is converted, trained here on the golden texts: small, and the same on every run.

SentencePiece models are trained by the ``sentencepiece`` library and written as Hugging Face writes them, in each of
the spellings that there have been; byte-level ones by ``tokenizers``.
"""

from __future__ import annotations

import base64
import functools
import io
import json
from collections.abc import Callable
from typing import Any

from edge_embed.convert.vocab.model_file import merges_of
from edge_embed.pipelines import BYTE_LEVEL
from tests.golden_texts import TEXTS

Json = dict[str, Any]

METASPACE_OLD: Json = {"type": "Metaspace", "replacement": "▁", "add_prefix_space": True}
METASPACE_NEW: Json = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": True}
REPLACE: Json = {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}


@functools.cache
def sentencepiece_model(kind: str, **options: Any) -> bytes:
    """A ``.model`` file: ``unigram`` with Unicode's NFKC as XLM-RoBERTa has it, ``bpe`` with bytes as Llama has it."""
    from sentencepiece import SentencePieceTrainer

    usual: Json = {"vocab_size": 400, "character_coverage": 0.98}
    if kind == "bpe":
        usual = {
            "vocab_size": 700,
            "byte_fallback": True,
            "normalization_rule_name": "identity",
            "remove_extra_whitespaces": False,
            "split_digits": True,
            "character_coverage": 0.98,
        }
    file = io.BytesIO()
    SentencePieceTrainer.train(
        sentence_iterator=iter(TEXTS * 3),
        model_writer=file,
        model_type=kind,
        num_threads=1,
        minloglevel=2,
        **usual | options,
    )
    return file.getvalue()


def proto_of(model: bytes) -> Any:
    """The pieces and settings of a ``.model`` file."""
    from sentencepiece import sentencepiece_model_pb2

    proto = sentencepiece_model_pb2.ModelProto()
    proto.ParseFromString(model)
    return proto


def added(token_id: int, content: str, **flags: bool) -> Json:
    """An entry of ``added_tokens``."""
    plain = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    return {"id": token_id, "content": content, **plain, **flags}


def template(before: list[tuple[str, int]], between: list[tuple[str, int]], after: list[tuple[str, int]]) -> Json:
    """A TemplateProcessing for texts and pairs."""

    def pieces(tokens: list[tuple[str, int]]) -> list[Json]:
        return [{"SpecialToken": {"id": token, "type_id": 0}} for token, _ in tokens]

    first, second = ({"Sequence": {"id": name, "type_id": 0}} for name in "AB")
    return {
        "type": "TemplateProcessing",
        "single": [*pieces(before), first, *pieces(after)],
        "pair": [*pieces(before), first, *pieces(between), second, *pieces(after)],
        "special_tokens": {
            token: {"id": token, "ids": [i], "tokens": [token]} for token, i in before + between + after
        },
    }


def _whole(**parts: Any) -> Json:
    return {"version": "1.0", "truncation": None, "padding": None, "decoder": None, **parts}


def unigram(spelling: str) -> Json:
    """XLM-RoBERTa's layout over a unigram model, in the spelling of 2020, 2023 or 2024."""
    proto = proto_of(sentencepiece_model("unigram"))
    vocab = [["<s>", 0.0], ["<pad>", 0.0], ["</s>", 0.0], ["<unk>", 0.0]]
    vocab += [[piece.piece, piece.score] for piece in proto.pieces[3:]]
    vocab.append(["<mask>", 0.0])
    charsmap: Json = {
        "type": "Precompiled",
        "precompiled_charsmap": base64.b64encode(proto.normalizer_spec.precompiled_charsmap).decode(),
    }
    runs = {"type": "Replace", "pattern": {"Regex": " {2,}"}}
    normalizer, pre_tokenizer = {
        "2020": (charsmap, {"type": "Sequence", "pretokenizers": [{"type": "WhitespaceSplit"}, METASPACE_OLD]}),
        "2023": ({"type": "Sequence", "normalizers": [charsmap, runs | {"content": " "}]}, METASPACE_OLD),
        "2024": (
            {
                "type": "Sequence",
                "normalizers": [
                    charsmap,
                    {"type": "Strip", "strip_left": False, "strip_right": True},
                    runs | {"content": "▁"},
                ],
            },
            METASPACE_NEW,
        ),
    }[spelling]
    eos = ("</s>", 2)
    tokens = [added(i, vocab[i][0]) for i in range(4)] + [added(len(vocab) - 1, "<mask>", lstrip=True)]
    return _whole(
        added_tokens=tokens,
        normalizer=normalizer,
        pre_tokenizer=pre_tokenizer,
        post_processor=template([("<s>", 0)], [eos, eos], [eos]),
        model={"type": "Unigram", "unk_id": 3, "vocab": vocab, "byte_fallback": False},
    )


@functools.cache
def _trained_unigram() -> str:
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizers.NFKC()
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    specials = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    trainer = trainers.UnigramTrainer(vocab_size=1000, special_tokens=specials, unk_token="<unk>", show_progress=False)
    tokenizer.train_from_iterator(TEXTS, trainer)
    return tokenizer.to_str()


def unigram_trained_by_tokenizers() -> Json:
    """Scores that need 64 bits, NFKC instead of a character map."""
    whole: Json = json.loads(_trained_unigram())
    whole["post_processor"] = template([("<s>", 0)], [("</s>", 2)] * 2, [("</s>", 2)])
    return whole


def sentencepiece_bpe(spelling: str) -> Json:
    """Llama's layout in its two spellings (``prepend``, ``metaspace``), or Gemma's, over a BPE model with bytes."""
    proto = proto_of(sentencepiece_model("bpe"))
    ids = {piece.piece: i for i, piece in enumerate(proto.pieces)}
    metaspace = METASPACE_NEW | {"prepend_scheme": "first", "split": False}
    normalizer, pre_tokenizer = {
        "prepend": (
            {"type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": "▁"}, REPLACE]},
            None,
        ),
        "metaspace": (None, metaspace),
        "gemma": (
            REPLACE,
            {"type": "Split", "pattern": {"String": " "}, "behavior": "MergedWithPrevious", "invert": False},
        ),
    }[spelling]
    more = [] if spelling != "gemma" else [added(len(ids), "<unused0>", special=False), added(len(ids) + 1, "\n\n")]
    return _whole(
        added_tokens=[added(i, token) for i, token in enumerate(("<unk>", "<s>", "</s>"))] + more,
        normalizer=normalizer,
        pre_tokenizer=pre_tokenizer,
        post_processor=template([("<s>", 1)], [], [("</s>", 2)]),
        model={
            "type": "BPE",
            "dropout": None,
            "unk_token": "<unk>",
            "fuse_unk": True,
            "byte_fallback": True,
            "vocab": ids,
            "merges": merges_of(proto),
        },
    )


@functools.cache
def _trained_bpe(pre: str) -> str:
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    steps = {"type": "Sequence", "pretokenizers": list(BYTE_LEVEL[pre])}
    empty = _whole(
        added_tokens=[],
        normalizer=None,
        pre_tokenizer=steps,
        post_processor=None,
        model=json.loads(Tokenizer(models.BPE()).to_str())["model"],
    )
    tokenizer = Tokenizer.from_str(json.dumps(empty))
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=600, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(TEXTS, trainer)
    return tokenizer.to_str()


def byte_level(kind: str) -> Json:
    """``qwen``, ``roberta``, ``modernbert``, ``llama3`` or ``smollm``: each with its own steps and special tokens."""
    pre = {"qwen": "qwen2", "llama3": "llama-bpe", "smollm": "smollm"}.get(kind, "gpt-2")
    whole: Json = json.loads(_trained_bpe(pre))
    n = len(whole["model"]["vocab"])
    if kind == "roberta":
        names = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
        whole["added_tokens"] = [added(n + i, name, lstrip=name == "<mask>") for i, name in enumerate(names)]
        whole["post_processor"] = {
            "type": "RobertaProcessing", "sep": ["</s>", n + 2], "cls": ["<s>", n], "trim_offsets": True,
            "add_prefix_space": False,
        }  # fmt: skip
        whole["pre_tokenizer"] = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}
    elif kind == "modernbert":
        whole["normalizer"] = {"type": "NFC"}
        plain = ["|||IP_ADDRESS|||", *(" " * k for k in range(24, 1, -1)), "[unused0]"]
        names = [*plain, "[UNK]", "[CLS]", "[SEP]", "[PAD]", "[MASK]"]
        whole["added_tokens"] = [
            added(n + i, name, special=name not in plain, normalized=name in plain, lstrip=name == "[MASK]")
            for i, name in enumerate(names)
        ]
        cls, sep = ("[CLS]", n + names.index("[CLS]")), ("[SEP]", n + names.index("[SEP]"))
        whole["post_processor"] = template([cls], [sep], [sep])
    else:
        whole["added_tokens"] = [added(n, "<|begin_of_text|>"), added(n + 1, "<|endoftext|>"), added(n + 2, "<think>")]
        whole["normalizer"] = {"type": "NFC"} if kind == "qwen" else None
        bos = [("<|begin_of_text|>", n)] if kind == "llama3" else []
        whole["post_processor"] = template(bos, [], [("<|endoftext|>", n + 1)])
        whole["model"]["ignore_merges"] = kind == "llama3"
    return whole


ALL: dict[str, Callable[[], Json]] = {
    **{f"unigram {year}": functools.partial(unigram, year) for year in ("2020", "2023", "2024")},
    "unigram of tokenizers": unigram_trained_by_tokenizers,
    **{f"bpe {name}": functools.partial(sentencepiece_bpe, name) for name in ("prepend", "metaspace", "gemma")},
    **{name: functools.partial(byte_level, name) for name in ("qwen", "roberta", "modernbert", "llama3", "smollm")},
}
