"""A SentencePiece ``.model`` file as the tokenizer.json that Hugging Face would make of it.

For checkpoints of the time before tokenizer.json. Read by the ``sentencepiece`` library, which is asked for only here.
What Hugging Face adds is in no file but in the tokenizer's class, so only classes that are known are taken.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from importlib import import_module
from typing import Any

from edge_embed.errors import CheckpointError, UnsupportedCheckpointError
from edge_embed.merges import merges_by_score
from edge_embed.pipelines import PIPELINES

from ..checkpoint import Checkpoint, Fields, short
from .tokenizer_json import TOKENIZER_FILE, token_text

MODEL_FILES = ("sentencepiece.bpe.model", "tokenizer.model")
_UNIGRAM, _BPE = 1, 2  # sentencepiece_model.proto, TrainerSpec.ModelType
_NORMAL, _UNKNOWN, _CONTROL, _USER_DEFINED = 1, 2, 3, 4  # ModelProto.SentencePiece.Type


def tokenizer_of_model_file(checkpoint: Checkpoint, config: Fields) -> Fields | None:
    """The tokenizer.json that stands for the folder's ``.model`` file; None where it has none.

    Raises:
        CheckpointError: the file is damaged.
        UnsupportedCheckpointError: the ``sentencepiece`` library is not installed, or the class is not known.
    """
    name = next((name for name in MODEL_FILES if checkpoint.has(name)), None)
    if name is None:
        return None
    proto = _parse(checkpoint, name)
    kind = proto.trainer_spec.model_type
    owner = str(config.values.get("tokenizer_class") or "").removesuffix("Fast")
    if kind == _UNIGRAM and owner == "XLMRobertaTokenizer":
        values = _xlm_roberta(proto)
    elif kind == _BPE and owner in ("LlamaTokenizer", "GemmaTokenizer"):
        values = _llama(proto, config, name, owner)
    else:
        raise UnsupportedCheckpointError(
            f"{name}: a SentencePiece model of type {kind} with tokenizer_class {short(owner)} is not one that is "
            f"converted without {TOKENIZER_FILE}",
            hint="make that file: AutoTokenizer.from_pretrained(folder).save_pretrained(folder)",
        )
    return Fields({"version": "1.0", "truncation": None, "padding": None, "decoder": None, **values}, name)


def _parse(checkpoint: Checkpoint, name: str) -> Any:
    try:
        library: Any = import_module("sentencepiece.sentencepiece_model_pb2")  # it has no types
    except ImportError as error:
        raise UnsupportedCheckpointError(
            f"{checkpoint.folder.name} has {name} and no {TOKENIZER_FILE}, and the library that reads it is missing: "
            f"{error}",
            hint='pip install "edge-embed[sentencepiece]"',
        ) from None
    proto = library.ModelProto()
    try:
        proto.ParseFromString((checkpoint.folder / name).read_bytes())
    except Exception as error:
        raise CheckpointError(f"{name} is not a SentencePiece model: {error}") from None
    if not proto.pieces:
        raise CheckpointError(f"{name} is not a SentencePiece model: it has no pieces")
    return proto


def _xlm_roberta(proto: Any) -> dict[str, Any]:
    """fairseq's order of the special tokens, and a mask token behind all others."""
    vocab = [("<s>", 0.0), ("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0)]
    vocab += [(piece.piece, piece.score) for piece in proto.pieces[3:]]
    vocab.append(("<mask>", 0.0))
    added = [_added(i, vocab[i][0]) for i in range(4)] + [_added(len(vocab) - 1, "<mask>", lstrip=True)]
    charsmap = base64.b64encode(proto.normalizer_spec.precompiled_charsmap).decode()
    return {
        "added_tokens": added,
        "normalizer": {"type": "Precompiled", "precompiled_charsmap": charsmap} if charsmap else None,
        "pre_tokenizer": _sequence("pretokenizers", PIPELINES["split-words-always"].pre_tokenizers),
        "post_processor": _template(("<s>", 0), ("</s>", 2), 2),
        "model": {"type": "Unigram", "unk_id": 3, "vocab": [list(entry) for entry in vocab]},
    }


def _llama(proto: Any, config: Fields, name: str, owner: str) -> dict[str, Any]:
    spec = proto.normalizer_spec
    if spec.precompiled_charsmap or spec.remove_extra_whitespaces:
        raise UnsupportedCheckpointError(f"{name}: it normalizes texts, which {owner} does not")
    ids: dict[str, int] = {}
    for i, piece in enumerate(proto.pieces):
        if ids.setdefault(piece.piece, i) != i:
            raise CheckpointError(f"{name}: {short(piece.piece)} has the ids {ids[piece.piece]} and {i}")
    if owner == "GemmaTokenizer":
        pipeline = "replace-split"
    else:
        pipeline = "prepend" if config.boolean("legacy", default=True) else "metaspace-first"
    steps = PIPELINES[pipeline]
    special = (_UNKNOWN, _CONTROL)
    added = [
        _added(i, piece.piece, special=piece.type in special)
        for i, piece in enumerate(proto.pieces)
        if piece.type in (*special, _USER_DEFINED)
    ]
    bos = _flagged(config, ids, "bos", default=True)
    eos = _flagged(config, ids, "eos", default=False)
    unknown = next((piece.piece for piece in proto.pieces if piece.type == _UNKNOWN), None)
    return {
        "added_tokens": added,
        "normalizer": _sequence("normalizers", steps.normalizers),
        "pre_tokenizer": _sequence("pretokenizers", steps.pre_tokenizers),
        "post_processor": _template(bos, eos, 0),
        "model": {
            "type": "BPE",
            "unk_token": unknown,
            "fuse_unk": True,
            "byte_fallback": True,
            "vocab": ids,
            "merges": merges_of(proto),
        },
    }


def merges_of(proto: Any) -> list[list[str]]:
    """The merges that the pieces' scores stand for."""
    pieces = {piece.piece: i for i, piece in enumerate(proto.pieces) if piece.type in (_NORMAL, _USER_DEFINED)}
    return [list(pair) for pair in merges_by_score(pieces, [piece.score for piece in proto.pieces])]


def _flagged(config: Fields, ids: Mapping[str, int], name: str, default: bool) -> tuple[str, int] | None:
    """A special token that tokenizer_config.json says is added, with its id."""
    if not config.boolean(f"add_{name}_token", default=default):
        return None
    text = token_text(config, f"{name}_token")
    if text is None or text not in ids:
        raise CheckpointError(f"{config.file}: add_{name}_token is set, and {name}_token is {short(text)}")
    return text, ids[text]


def _added(token_id: int, content: str, *, special: bool = True, lstrip: bool = False) -> dict[str, Any]:
    flags = {"single_word": False, "lstrip": lstrip, "rstrip": False, "normalized": False, "special": special}
    return {"id": token_id, "content": content, **flags}


def _sequence(key: str, parts: Sequence[Mapping[str, Any]]) -> dict[str, Any] | None:
    return {"type": "Sequence", key: [dict(part) for part in parts]} if parts else None


def _template(before: tuple[str, int] | None, after: tuple[str, int] | None, n_between: int) -> dict[str, Any] | None:
    """A TemplateProcessing; between the texts of a pair stands what ends a text, so many times."""
    if before is None and after is None:
        return None

    def piece(token: tuple[str, int] | None) -> list[dict[str, Any]]:
        return [] if token is None else [{"SpecialToken": {"id": token[0], "type_id": 0}}]

    first, second = ([{"Sequence": {"id": name, "type_id": 0}}] for name in "AB")
    return {
        "type": "TemplateProcessing",
        "single": [*piece(before), *first, *piece(after)],
        "pair": [*piece(before), *first, *piece(after) * n_between, *second, *piece(after)],
        "special_tokens": {
            text: {"id": text, "ids": [i], "tokens": [text]} for text, i in filter(None, (before, after))
        },
    }
