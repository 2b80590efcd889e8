"""The parts of a tokenizer.json that all kinds of tokenizer have: vocabulary, added tokens, steps, post-processor.

Knows the file's structure, and trusts none of it. Knows nothing of the models' own settings.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from gguf import GGUFValueType, TokenType

from edge_embed import keys
from edge_embed.errors import CheckpointError, UnsupportedCheckpointError

from ..checkpoint import Fields, short
from ..container.entries import KeyValue

TOKENIZER_FILE = "tokenizer.json"


@dataclass(frozen=True, slots=True)
class AddedToken:
    """One of ``added_tokens``, with how it is found: taking the spaces around it, as a whole word, after Unicode
    normalization.
    """

    id: int
    content: str
    special: bool
    lstrip: bool
    rstrip: bool
    single_word: bool
    normalized: bool

    @property
    def exact(self) -> bool:
        """Whether it is found just as it is spelled, whatever stands around it."""
        return not (self.lstrip or self.rstrip or self.single_word)


@dataclass(frozen=True, slots=True)
class Template:
    """What the post-processor adds.

    Attributes:
        before: ids before a text.
        after: ids after it.
        separator: ids between the two texts of a pair that is otherwise framed as one text; None for other pairs.
    """

    before: tuple[int, ...] = ()
    after: tuple[int, ...] = ()
    separator: tuple[int, ...] | None = None


def model_type(tokenizer: Fields) -> Any:
    """The type of ``model``; files of 2020 do not name it, and ``tokenizers`` tells it by the fields."""
    model = tokenizer.mapping("model").values
    if "type" in model:
        return model["type"]
    if "merges" in model:
        return "BPE"
    if "unk_id" in model:
        return "Unigram"
    return "WordPiece" if "continuing_subword_prefix" in model else None


def model_of(tokenizer: Fields, kind: str) -> Fields:
    """The object ``model``; UnsupportedCheckpointError where it is of another kind."""
    model = tokenizer.mapping("model")
    if model_type(tokenizer) != kind:
        raise unsupported("model.type", model.values.get("type"))
    return model


def vocab_of(model: Fields) -> dict[str, int]:
    """Texts and ids of the model, without added tokens; CheckpointError where the ids have gaps or repeat."""
    vocab = dict(model.mapping("vocab").values)
    if sorted(map(_as_id, vocab.values())) != list(range(len(vocab))):
        raise CheckpointError(f"{TOKENIZER_FILE}: the ids of model.vocab are not 0 to {len(vocab) - 1}, once each")
    return vocab


def _as_id(value: Any) -> int:
    return value if type(value) is int else -1


def added_tokens(tokenizer: Fields) -> list[AddedToken]:
    """The tokens that are found in a text before the model sees it."""
    entries = tokenizer.values["added_tokens"] if tokenizer.has("added_tokens") else []
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise CheckpointError(f"{TOKENIZER_FILE}: added_tokens is not a list of objects")
    result = []
    for number, entry in enumerate(entries):
        fields = Fields(entry, f"{TOKENIZER_FILE}: added_tokens {number}")
        special = fields.boolean("special", default=False)
        flags = {key: fields.boolean(key, default=False) for key in ("lstrip", "rstrip", "single_word")}
        normalized = fields.boolean("normalized", default=not special)
        result.append(
            AddedToken(fields.integer("id"), fields.string("content"), special, **flags, normalized=normalized)
        )
    return result


def added_key_values(added: Sequence[AddedToken], n_rows: int) -> list[KeyValue]:
    """How added tokens are found, where that is not just as they are spelled."""
    entries = []
    for key, flag in (
        (keys.ADDED_LSTRIP, "lstrip"),
        (keys.ADDED_RSTRIP, "rstrip"),
        (keys.ADDED_SINGLE_WORD, "single_word"),
        (keys.ADDED_NORMALIZED, "normalized"),
    ):
        ids = sorted(token.id for token in added if token.id < n_rows and getattr(token, flag))
        entries.append(KeyValue(key, ids, GGUFValueType.UINT32))
    return [entry for entry in entries if entry.value]


def token_table(
    vocab: Mapping[str, int], added: Sequence[AddedToken], n_rows: int, notes: list[str]
) -> tuple[list[str], list[int]]:
    """Texts and types by id, one for each row of the matrix; rows without a token are ``[PADn]``, unused."""
    if len(vocab) > n_rows:
        raise CheckpointError(f"{TOKENIZER_FILE}: {len(vocab)} tokens, and the embedding matrix has {n_rows} rows")
    tokens = [f"[PAD{i}]" for i in range(n_rows)]
    types = [int(TokenType.UNUSED)] * n_rows
    for token, i in vocab.items():
        tokens[i], types[i] = token, int(TokenType.NORMAL)
    beyond = []
    for entry in added:
        if entry.id >= n_rows:
            beyond.append(entry.content)
            continue
        if entry.content in vocab and vocab[entry.content] != entry.id:
            raise CheckpointError(
                f"{TOKENIZER_FILE}: {short(entry.content)} has the ids {entry.id} and {vocab[entry.content]}"
            )
        if types[entry.id] != TokenType.UNUSED and tokens[entry.id] != entry.content:
            raise CheckpointError(
                f"{TOKENIZER_FILE}: {short(entry.content)} and {short(tokens[entry.id])} have one id, {entry.id}"
            )
        tokens[entry.id] = entry.content
        types[entry.id] = int(TokenType.CONTROL if entry.special else TokenType.USER_DEFINED)
    if beyond:
        notes.append(f"added tokens without a row in the embedding matrix are left out: {short(beyond)}")
    return tokens, types


def check_distinct(tokens: Sequence[str]) -> None:
    """llama.cpp ends the process on two tokens of one spelling, and renames an empty one."""
    seen: dict[str, int] = {}
    for i, token in enumerate(tokens):
        if not token or token in seen:
            what = "empty" if not token else f"spelled like token {seen[token]}"
            raise UnsupportedCheckpointError(
                f"{TOKENIZER_FILE}: token {i} ({short(token)}) is {what} in llama.cpp's form"
            )
        seen[token] = i


def template_of(tokenizer: Fields, types: Sequence[int]) -> Template:
    """What the post-processor adds to a text and to a pair; ByteLevel alone adds nothing.

    Args:
        tokenizer: the whole file.
        types: as ``token_table`` gives them, to check that there are such tokens.
    """
    if not tokenizer.has("post_processor"):
        return Template()
    post = tokenizer.mapping("post_processor")
    parts = post.values.get("processors") if post.values.get("type") == "Sequence" else [post.values]
    found: Template | None = None
    for part in parts if isinstance(parts, list) else []:
        if not isinstance(part, Mapping):
            raise unsupported("post_processor", post.values)
        kind = part.get("type")
        if kind == "TemplateProcessing" and found is None:
            found = _template(Fields(part, f"{TOKENIZER_FILE}: post_processor"))
        elif kind in ("BertProcessing", "RobertaProcessing") and found is None:
            cls, sep = _pair_id(part.get("cls")), _pair_id(part.get("sep"))
            found = Template((cls,), (sep,), (sep,) if kind == "BertProcessing" else (sep, sep))
        elif kind != "ByteLevel":
            raise unsupported("post_processor", post.values)
    found = found or Template()
    for i in found.before + found.after + (found.separator or ()):
        if i >= len(types) or types[i] == TokenType.UNUSED:
            raise CheckpointError(f"{TOKENIZER_FILE}: post_processor adds token {i}, which is not in the vocabulary")
    return found


def _pair_id(value: Any) -> int:
    if isinstance(value, list) and len(value) == 2 and _as_id(value[1]) >= 0:
        return int(value[1])
    raise CheckpointError(f"{TOKENIZER_FILE}: post_processor: {short(value)} is not a token and its id")


def _template(template: Fields) -> Template:
    single = _stretches(template, "single")
    if len(single) != 2:
        raise unsupported("post_processor.single", template.values.get("single"))
    before, after = single
    pair = _stretches(template, "pair") if template.values.get("pair") else []
    is_framed = len(pair) == 3 and (pair[0], pair[2]) == (before, after)
    return Template(before, after, pair[1] if is_framed else None)


def _stretches(template: Fields, key: str) -> list[tuple[int, ...]]:
    """The ids before, between and after the texts of a template."""
    specials = template.mapping("special_tokens", default={})
    pieces = template.values.get(key)
    stretches: list[list[int]] = [[]]
    for piece in pieces if isinstance(pieces, list) else []:
        if isinstance(piece, dict) and "Sequence" in piece:
            stretches.append([])
        elif isinstance(piece, dict) and isinstance(piece.get("SpecialToken"), dict):
            name = piece["SpecialToken"].get("id")
            ids = specials.mapping(str(name)).values.get("ids")
            if not isinstance(ids, list) or len(ids) != 1 or _as_id(ids[0]) < 0:
                raise unsupported(f"post_processor token {short(name)}", ids)
            stretches[-1].append(ids[0])
        else:
            raise unsupported(f"post_processor.{key}", pieces)
    return [tuple(ids) for ids in stretches]


def steps_of(tokenizer: Fields) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """The normalizers and the pre-tokenizers, in the newest spelling, sequences taken apart.

    The ``tokenizers`` library reads every spelling there has been and writes the newest, so it is asked.
    """
    from tokenizers import Tokenizer

    steps = {name: tokenizer.values.get(name) for name in ("normalizer", "pre_tokenizer")}
    carrier: dict[str, Any] = {
        "version": "1.0",
        "added_tokens": [],
        "model": {"type": "WordLevel", "vocab": {"": 0}, "unk_token": ""},
        **steps,
    }
    try:
        newest = json.loads(Tokenizer.from_str(json.dumps(carrier)).to_str())
    except BaseException as error:
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise  # a panic of the Rust library, on a character map that is none, is not an Exception
        raise UnsupportedCheckpointError(
            f"{TOKENIZER_FILE}: the normalizer or pre_tokenizer is not one that is converted "
            f"({short(steps, 300)}): {error}"
        ) from None
    return _flat(newest["normalizer"], "normalizers"), _flat(newest["pre_tokenizer"], "pretokenizers")


def _flat(step: dict[str, Any] | None, key: str) -> list[dict[str, Any]]:
    if step is None:
        return []
    if step["type"] != "Sequence":
        return [step]
    return [part for inner in step[key] for part in _flat(inner, key)]


def token_text(config: Fields, key: str) -> str | None:
    """A special token of tokenizer_config.json, in either spelling: a string, or an object with ``content``."""
    value = config.values.get(key)
    if isinstance(value, dict):
        value = value.get("content")
    return value if isinstance(value, str) else None


def expect(tokenizer: Fields, key: str, expected: Mapping[str, Any]) -> None:
    """Refuse a part of the tokenizer that is not exactly this one."""
    value = tokenizer.values.get(key)
    if value != expected:
        raise unsupported(key, value)


def unsupported(what: str, found: Any) -> UnsupportedCheckpointError:
    """The error for a part of the tokenizer that is not recognized, with what was found."""
    return UnsupportedCheckpointError(f"{TOKENIZER_FILE}: {what} is not one that is converted: {short(found, 300)}")
