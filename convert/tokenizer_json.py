"""The parts of a tokenizer.json that both kinds of tokenizer have: vocabulary, added tokens, post-processor.

Knows the file's structure, and trusts none of it. Knows nothing of the two models' own settings.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from gguf import TokenType

from edge_embed.errors import CheckpointError, UnsupportedCheckpointError

from .checkpoint import Fields, short

TOKENIZER_FILE = "tokenizer.json"


@dataclass(frozen=True, slots=True)
class AddedToken:
    """One of ``added_tokens``; ``exact`` where it is found just as it is spelled, whatever stands around it."""

    id: int
    content: str
    special: bool
    exact: bool


def model_of(tokenizer: Fields, kind: str) -> Fields:
    """The object ``model``; UnsupportedCheckpointError where it is of another kind."""
    model = tokenizer.mapping("model")
    if model.values.get("type") != kind:
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
        exact = not any(fields.boolean(key, default=False) for key in ("single_word", "lstrip", "rstrip"))
        result.append(AddedToken(fields.integer("id"), fields.string("content"), special, exact))
    return result


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


def post_processor_ids(tokenizer: Fields, types: Sequence[int]) -> tuple[list[int], list[int]]:
    """Ids that the post-processor puts before and after a single text; ByteLevel alone puts none.

    Args:
        tokenizer: the whole file.
        types: as ``token_table`` gives them, to check that there are such tokens.
    """
    if not tokenizer.has("post_processor"):
        return [], []
    post = tokenizer.mapping("post_processor")
    parts = post.values.get("processors") if post.values.get("type") == "Sequence" else [post.values]
    before: list[int] = []
    after: list[int] = []
    for part in parts if isinstance(parts, list) else []:
        if not isinstance(part, Mapping):
            raise unsupported("post_processor", post.values)
        kind = part.get("type")
        if kind == "TemplateProcessing" and not before and not after:
            before, after = _template_ids(Fields(part, f"{TOKENIZER_FILE}: post_processor"))
        elif kind == "BertProcessing" and not before and not after:
            before, after = [_pair_id(part.get("cls"))], [_pair_id(part.get("sep"))]
        elif kind != "ByteLevel":
            raise unsupported("post_processor", post.values)
    for i in before + after:
        if i >= len(types) or types[i] == TokenType.UNUSED:
            raise CheckpointError(f"{TOKENIZER_FILE}: post_processor adds token {i}, which is not in the vocabulary")
    return before, after


def _pair_id(value: Any) -> int:
    if isinstance(value, list) and len(value) == 2 and _as_id(value[1]) >= 0:
        return int(value[1])
    raise CheckpointError(f"{TOKENIZER_FILE}: post_processor: {short(value)} is not a token and its id")


def _template_ids(template: Fields) -> tuple[list[int], list[int]]:
    specials = template.mapping("special_tokens", default={})
    pieces = template.values.get("single")
    sides: tuple[list[int], list[int]] = ([], [])
    n_texts = 0
    for piece in pieces if isinstance(pieces, list) else []:
        if isinstance(piece, dict) and "Sequence" in piece:
            n_texts += 1
        elif isinstance(piece, dict) and isinstance(piece.get("SpecialToken"), dict):
            name = piece["SpecialToken"].get("id")
            ids = specials.mapping(str(name)).values.get("ids")
            if not isinstance(ids, list) or len(ids) != 1 or _as_id(ids[0]) < 0:
                raise unsupported(f"post_processor token {short(name)}", ids)
            sides[min(n_texts, 1)].append(ids[0])
        else:
            raise unsupported("post_processor.single", pieces)
    if n_texts != 1:
        raise unsupported("post_processor.single", pieces)
    return sides


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
