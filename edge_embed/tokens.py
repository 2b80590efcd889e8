"""The tokens that a model would see of a text, to look at and to count, without loading its weights.

The same steps as in ``embedder.py`` and ``reranker.py`` up to the ids: prompt or template, tokenizer, truncation.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from edge_embed import prompts
from edge_embed.errors import EngineClosedError, InvalidOptionError, TextTooLongError
from edge_embed.gguf_header import read_header
from edge_embed.model_info import read_model_info, require_scores
from edge_embed.pipelines import PHANTOM_SPACE
from edge_embed.provision import locate
from edge_embed.reranker import Reranker
from edge_embed.tokenizer import tokenizer_of
from edge_embed.types import Batch, Encoding, EngineLimits, Float32Array, ModelInfo, Pooling, Truncate

# llama.h, enum llama_token_type
_UNKNOWN, _CONTROL, _USER_DEFINED, _BYTE = 2, 3, 4, 6


@dataclass(frozen=True, slots=True)
class Piece:
    """One token.

    Attributes:
        token_id: its id.
        token: as the original vocabulary spells it: ``Ġcat``, ``##ing``, ``▁the``.
        shown: what it stands for, in double quotes, with escapes for what is not visible: ``" cat"``, ``"\\xe7\\x8c"``.
        special: whether it is a control token, and no piece of a text.
        raw: what it stands for; a character may be spread over several tokens. A piece of a word in WordPiece has the
            ## in front that marks it.
    """

    token_id: int
    token: str
    shown: str
    special: bool
    raw: bytes


class Vocabulary:
    """What the ids of a model stand for.

    Args:
        metadata: the key-values of its file.
    """

    def __init__(self, metadata: Mapping[str, Any]) -> None:
        self.tokens: list[str] = metadata["tokenizer.ggml.tokens"]
        self._kinds: list[int] = metadata.get("tokenizer.ggml.token_type", [1] * len(self.tokens))
        self._model: str = metadata["tokenizer.ggml.model"]
        self._spaced = self._model != "gpt2" and bool(metadata.get("tokenizer.ggml.add_space_prefix", True))

    def __len__(self) -> int:
        return len(self.tokens)

    def piece(self, token_id: int, special: Collection[int] = ()) -> Piece:
        """What one id stands for.

        Args:
            token_id: 0 to the size of the vocabulary - 1.
            special: ids that are special tokens whatever the file calls them.
        """
        token, is_special = self.tokens[token_id], self.is_special(token_id) or token_id in special
        raw = self._raw(token_id, is_special)
        if self._model == "bert" and not self._is_whole(token_id, is_special):
            token = raw.decode()
        return Piece(token_id, token, _quoted(raw), is_special, raw)

    def is_special(self, token_id: int) -> bool:
        """Whether an id is a control token."""
        return self._kinds[token_id] == _CONTROL

    def text(self, ids: Sequence[int], *, skip_special: bool = True) -> str:
        """The text that ids stand for, as near as a vocabulary can tell: one in lower case stays so.

        Args:
            ids: each 0 to the size of the vocabulary - 1.
            skip_special: whether control tokens are left out.
        """
        kept = [i for i in ids if not (skip_special and self.is_special(i))]
        if self._model == "bert":
            from tokenizers import decoders

            found: str = decoders.WordPiece().decode([self.piece(i).token for i in kept])
            return found
        whole = b"".join(self._raw(i, self.is_special(i)) for i in kept).decode(errors="replace")
        return whole.removeprefix(" ") if self._spaced else whole

    def _is_whole(self, token_id: int, special: bool) -> bool:
        """Whether a token is written in the vocabulary as it is in a text."""
        return special or self._kinds[token_id] in (_UNKNOWN, _USER_DEFINED)

    def _raw(self, token_id: int, special: bool) -> bytes:
        token = self.tokens[token_id]
        if self._is_whole(token_id, special):
            return token.encode(errors="replace")
        if self._model == "bert":
            return (token[1:] if token.startswith(PHANTOM_SPACE) else "##" + token).encode(errors="replace")
        return _bytes_of(token, self._model, self._kinds[token_id])


class Tokens:
    """Tokenizes for one model, without loading it.

    Only the header of its file is read; where the original tokenizer is not known, the native library loads the
    vocabulary as well.

    Args:
        model: a GGUF file or a name from ``edge-embed list``; the bundled one by default.
        pooling: overrides the file, see ``Embedder``; last-token pooling ends each text with the EDS token.
        max_tokens: most tokens of a text or a pair; the model's own limit by default.
        download: whether a known model that is not here may be downloaded; see ``Embedder``.

    Raises:
        ModelMissingError, HubError: a known model that is not here; its download.
        ModelNotFoundError, ModelFileError, UnsupportedModelError: the model.
        InvalidOptionError: an argument.
    """

    def __init__(
        self,
        model: str | Path | None = None,
        *,
        pooling: Pooling | None = None,
        max_tokens: int | None = None,
        download: bool | None = None,
    ) -> None:
        header = read_header(locate(model, download=download, show_progress_bar=True))
        self.info = read_model_info(header, pooling=pooling, max_tokens=max_tokens)
        self.vocabulary = Vocabulary(header.metadata)
        self._tokenizer = tokenizer_of(self.info, header.metadata, _library(self.info.path))
        self._reranker: Reranker | None = None
        if self.info.rerank is not None:
            self._reranker = Reranker.from_parts(self.info, _NoEngine(self.info), self._tokenizer)
        self._special = {*self._tokenizer.prefix, *self._tokenizer.suffix}

    def prefix(
        self,
        *,
        prompt: str | None = None,
        prompt_name: str | None = None,
        instruction: str | None = None,
        role: prompts.Role | None = None,
    ) -> str:
        """What stands before each text; arguments as for ``Embedder.embed``.

        Raises:
            InvalidOptionError, UnknownPromptError: as there.
        """
        return prompts.resolve(
            self.info.prompts,
            prompt=prompt,
            prompt_name=prompt_name,
            instruction=instruction,
            role=role,
            default_prompt_name=self.info.default_prompt_name,
            instruction_template=self.info.instruction_template,
        )

    def encode(self, text: str, *, prefix: str = "", truncate: Truncate = "right", index: int = 0) -> Encoding:
        """One text as an embedding model sees it.

        Args:
            text: any string.
            prefix: from ``prefix()``.
            truncate: as for ``Embedder.embed``.
            index: the text's position, for messages.

        Raises:
            InvalidTextError, TextTooLongError: the text.
            InvalidOptionError: an argument, or the model is a reranker.
        """
        self._require_texts()
        return self._tokenizer.encode(text, prompt=prefix, truncate=truncate, index=index)

    def encode_pair(
        self,
        query: str,
        document: str,
        *,
        instruction: str | None = None,
        truncate: Truncate = "right",
        index: int = 0,
    ) -> Encoding:
        """A query and a document as a reranker sees them; arguments as for ``Reranker.score``.

        Raises:
            InvalidTextError, TextTooLongError: the pair.
            InvalidOptionError: an argument, or a query that leaves no room for a document.
            UnsupportedModelError: the model is no reranker.
        """
        require_scores(self.info)
        assert self._reranker is not None
        try:
            return self._reranker.tokenize(query, document, instruction=instruction, truncate=truncate)
        except TextTooLongError as error:
            raise TextTooLongError(index, error.n_tokens, error.limit) from None

    def count(self, texts: Sequence[str], *, prefix: str = "", first: int = 0) -> list[int]:
        """Tokens of each text, nothing cut: special tokens and prompt included. Faster than ``encode``.

        Args:
            texts: any strings.
            prefix: from ``prefix()``.
            first: the position of the first of them, for messages.

        Raises:
            InvalidTextError: a text.
            InvalidOptionError: the model is a reranker.
        """
        self._require_texts()
        return self._tokenizer.count(texts, prompt=prefix, first=first)

    def pieces(self, encoding: Encoding) -> Iterator[Piece]:
        """What the ids of an encoding stand for, in order."""
        return (self.vocabulary.piece(token_id, self._special) for token_id in encoding.token_ids.tolist())

    def _require_texts(self) -> None:
        if self.info.rerank is not None:
            raise InvalidOptionError(
                f"{self.info.path} is a reranker: it reads each text together with a query",
                hint="give the query: encode_pair(query, document), `--pair-with QUERY`",
            )


def _library(path: str) -> Any:
    from edge_embed.engine.vocabulary import Vocabulary

    return Vocabulary(path)


def _byte_of() -> dict[str, int]:
    """The printable characters by which GPT-2's vocabularies, and all byte-level ones since, write bytes."""
    printable = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + n): byte for n, byte in enumerate(others)}


_BYTE_OF: Final = _byte_of()


def _bytes_of(token: str, model: str, kind: int) -> bytes:
    """The bytes that an ordinary token stands for."""
    if model == "gpt2":
        return b"".join(bytes([_BYTE_OF[c]]) if c in _BYTE_OF else c.encode(errors="replace") for c in token)
    if kind == _BYTE and len(token) == 6:
        return bytes([int(token[3:5], 16)])
    return token.replace(PHANTOM_SPACE, " ").encode(errors="replace")


def _quoted(raw: bytes) -> str:
    """Text in double quotes; what is no character, or none that can be seen, is escaped."""
    shown = []
    for character in raw.decode(errors="surrogateescape"):
        if "\udc80" <= character <= "\udcff":
            shown.append(f"\\x{ord(character) - 0xDC00:02x}")
        elif character in '"\\':
            shown.append("\\" + character)
        elif character == " " or not (character.isspace() or unicodedata.category(character)[0] in "CZ"):
            shown.append(character)
        else:
            shown.append(character.encode("unicode_escape").decode())
    return f'"{"".join(shown)}"'


class _NoEngine:
    """Stands where a Reranker has its engine, and computes nothing."""

    closed = False

    def __init__(self, info: ModelInfo) -> None:
        self.limits = EngineLimits(n_batch=1, n_seq_max=1, n_ctx_max=info.n_ctx_train, n_vocab=info.n_vocab)
        self.n_embd = info.n_hidden

    def decode(self, batch: Batch, stop: Any = None) -> Float32Array:
        del batch, stop
        raise EngineClosedError("the model's weights were not loaded", hint="use an Embedder or a Reranker")

    decode_tokens = decode

    def forget(self) -> None:
        """There is nothing to forget."""

    def close(self) -> None:
        """Nothing is open."""
