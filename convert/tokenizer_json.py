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
    id: int
    content: str
    special: bool


def model_of(tokenizer: Fields, kind: str) -> Fields:
    model = tokenizer.mapping("model")
    if model.values.get("type") != kind:
        raise unsupported("model.type", model.values.get("type"))
    return model


def vocab_of(model: Fields) -> dict[str, int]:
    vocab = dict(model.mapping("vocab").values)
    if sorted(map(_as_id, vocab.values())) != list(range(len(vocab))):
        raise CheckpointError(f"{TOKENIZER_FILE}: the ids of model.vocab are not 0 to {len(vocab) - 1}, once each")
    return vocab


def _as_id(value: Any) -> int:
    return value if type(value) is int else -1


def added_tokens(tokenizer: Fields) -> list[AddedToken]:
    entries = tokenizer.values.get("added_tokens") or []
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise CheckpointError(f"{TOKENIZER_FILE}: added_tokens is not a list of objects")
    result = []
    for number, entry in enumerate(entries):
        fields = Fields(entry, f"{TOKENIZER_FILE}: added_tokens {number}")
        result.append(
            AddedToken(fields.integer("id"), fields.string("content"), fields.boolean("special", default=False))
        )
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
                f"{TOKENIZER_FILE}: {entry.content!r} has the ids {entry.id} and {vocab[entry.content]}"
            )
        tokens[entry.id] = entry.content
        types[entry.id] = int(TokenType.CONTROL if entry.special else TokenType.USER_DEFINED)
    if beyond:
        notes.append(f"added tokens without a row in the embedding matrix are left out: {', '.join(beyond)}")
    return tokens, types


def check_distinct(tokens: Sequence[str]) -> None:
    """llama.cpp ends the process on two tokens of one spelling, and renames an empty one."""
    seen: dict[str, int] = {}
    for i, token in enumerate(tokens):
        if not token or token in seen:
            what = "empty" if not token else f"spelled like token {seen[token]}"
            raise UnsupportedCheckpointError(f"{TOKENIZER_FILE}: token {i} ({token!r}) is {what} in llama.cpp's form")
        seen[token] = i


def post_processor_ids(tokenizer: Fields) -> tuple[list[int], list[int]]:
    """Ids that the post-processor puts before and after a single text; ByteLevel alone puts none."""
    if not tokenizer.has("post_processor"):
        return [], []
    post = tokenizer.mapping("post_processor")
    parts = post.values.get("processors") if post.values.get("type") == "Sequence" else [post.values]
    before: list[int] = []
    after: list[int] = []
    for part in parts if isinstance(parts, list) else [None]:
        kind = part.get("type") if isinstance(part, dict) else None
        if kind == "TemplateProcessing" and not before and not after:
            before, after = _template_ids(Fields(part, f"{TOKENIZER_FILE}: post_processor"))
        elif kind == "BertProcessing" and not before and not after:
            before, after = [_pair_id(part.get("cls"))], [_pair_id(part.get("sep"))]
        elif kind != "ByteLevel":
            raise unsupported("post_processor", post.values)
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
                raise unsupported(f"post_processor token {name!r}", ids)
            sides[min(n_texts, 1)].append(ids[0])
    if n_texts != 1:
        raise unsupported("post_processor.single", pieces)
    return sides


def token_text(config: Fields, key: str) -> str | None:
    value = config.values.get(key)
    if isinstance(value, dict):
        value = value.get("content")
    return value if isinstance(value, str) else None


def expect(tokenizer: Fields, key: str, expected: Mapping[str, Any]) -> None:
    value = tokenizer.values.get(key)
    if value != expected:
        raise unsupported(key, value)


def unsupported(what: str, found: Any) -> UnsupportedCheckpointError:
    return UnsupportedCheckpointError(f"{TOKENIZER_FILE}: {what} is not one that is converted: {short(found, 300)}")
