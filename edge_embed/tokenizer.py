"""Text to token ids as the original tokenizer would give them: normalization, special tokens, truncation.

Truncation takes from the text's own tokens, never from the special ones around it: the first and the last token
(``[CLS]``/``[SEP]``, the EDS token) are what the vector is read from. A prompt stays too: a text is cut behind it.

The text between the special tokens is tokenized by the original tokenizer, rebuilt from the GGUF's own keys
(``rebuild``), or by llama.cpp's, where nothing says what the original was and llama.cpp's is sound.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple, cast

import numpy as np
import numpy.typing as npt

from edge_embed import keys, rebuild
from edge_embed.errors import (
    InvalidOptionError,
    InvalidTextError,
    ModelFileError,
    TextTooLongError,
    UnsupportedModelError,
)
from edge_embed.metadata import bos_token
from edge_embed.types import TRUNCATIONS, Encoding, ModelInfo, Truncate, is_one_of

Int64Array = npt.NDArray[np.int64]
Text = str | tuple[int, ...]
"""A text, or the ids of one."""


class Token(NamedTuple):
    """One token of a text.

    Attributes:
        token_id: its id.
        text: the characters that it stands for; None for a special token, and where they are not known.
        start: where these begin, in bytes of UTF-8; None likewise.
    """

    token_id: int
    text: str | None
    start: int | None

    @property
    def stop(self) -> int | None:
        """One behind the last byte."""
        return None if self.text is None or self.start is None else self.start + len(self.text.encode())


@dataclass(frozen=True)
class Tokenizer:
    """Turns texts into encodings.

    Attributes:
        content: text -> ids of the text alone, no special tokens added.
        prefix: ids put before every text.
        suffix: ids put after every text.
        max_tokens: most tokens of an encoding, special ones included.
        normalization: ``none``, ``NFC`` or ``NFKC``.
        separator: ids put between the two texts of a pair; None where it is not known what the original puts there.
        counts: texts -> how many ids each has, faster than ``content`` for many; None where there is no such way.
        spans: text -> its ids and the characters that each stands for; None where that is not known.
    """

    content: Callable[[str], Sequence[int]]
    prefix: tuple[int, ...]
    suffix: tuple[int, ...]
    max_tokens: int
    normalization: str = "none"
    separator: tuple[int, ...] | None = None
    counts: Callable[[Sequence[str]], list[int]] | None = None
    spans: Callable[[str], Iterator[rebuild.Span]] | None = None

    def ids(self, text: str) -> Sequence[int]:
        """The ids of the text alone: normalized, nothing added, nothing cut."""
        return self.content(self._normalized(text))

    def count(self, texts: Sequence[str], *, prompt: str = "", first: int = 0) -> list[int]:
        """Tokens of each text, special ones and the prompt included, nothing cut.

        Args:
            texts: any strings.
            prompt: put before each; both are tokenized as one string.
            first: the position of the first of them in the call, for messages.

        Raises:
            InvalidTextError: not a string, or not encodable as UTF-8.
        """
        framed = [prompt + check_text(text, index) for index, text in enumerate(texts, first)]
        n_special = len(self.prefix) + len(self.suffix)
        if self.counts is None:
            return [len(self.ids(text)) + n_special for text in framed]
        return [n + n_special for n in self.counts([self._normalized(text) for text in framed])]

    def located(self, text: str, *, prompt: str = "", special: bool = True, index: int = 0) -> Iterator[Token]:
        """The tokens of one text, nothing cut, and what of it each stands for. A long text is read as they are taken.

        Args:
            text: any string.
            prompt: put before it; both are tokenized as one string, and places count from its beginning.
            special: whether the special tokens around it are among them.
            index: the text's position in the call, for messages.

        Raises:
            InvalidTextError: not a string, or not encodable as UTF-8.
        """
        whole = prompt + check_text(text, index)
        if special:
            yield from (Token(i, None, None) for i in self.prefix)
        if self.spans is None or self._normalized(whole) != whole:
            yield from (Token(int(i), None, None) for i in self.ids(whole))
        else:
            place = _bytes_before(whole)
            yield from (Token(i, whole[a:b], int(place[a])) for i, a, b in self.spans(whole))
        if special:
            yield from (Token(i, None, None) for i in self.suffix)

    def encode(
        self,
        text: Text,
        *,
        prompt: str = "",
        truncate: Truncate = "right",
        index: int = 0,
        max_tokens: int | None = None,
    ) -> Encoding:
        """Encode one text.

        Args:
            text: any string, or the ids of one, with or without the special tokens around it.
            prompt: put before it; both are tokenized as one string, as the original tokenizer would see them.
            truncate: ``right`` drops tokens from the end of the text, ``left`` from its beginning (behind the prompt),
                ``error`` refuses.
            index: the text's position in the call, for messages.
            max_tokens: a lower limit than the model's.

        Raises:
            InvalidTextError: not a string, not encodable as UTF-8, or without any token.
            TextTooLongError: too long, with ``truncate="error"``.
            InvalidOptionError: ``truncate`` or ``max_tokens`` is not one of what is possible, or the text is too long
                and the prompt leaves no room for any of it.
        """
        if not is_one_of(truncate, TRUNCATIONS):
            raise InvalidOptionError(f"truncate is {truncate!r}", hint=f"one of {', '.join(TRUNCATIONS)}")
        limit = self._limit(max_tokens)
        ids = self._framed(prompt, text, index)
        n_special = len(self.prefix) + len(self.suffix)
        n_original = len(ids) + n_special
        if n_original == 0:
            raise InvalidTextError(
                f"text {index} has no tokens", hint="this model adds none of its own: leave empty texts out"
            )
        if n_original > limit:
            if truncate == "error":
                raise TextTooLongError(index, n_original, limit)
            head, n_prompt = self._prompt_ids(prompt, ids, truncate)
            keep = limit - n_special
            if n_prompt >= keep:
                raise self._no_room(index, n_prompt, keep)
            rest = len(ids) - (keep - n_prompt)  # where the end of the text begins that is kept
            ids = ids[:keep] if truncate == "right" else [*head, *ids[rest:]]
        return Encoding(np.array([*self.prefix, *ids, *self.suffix], dtype=np.int32), n_original)

    def windows(
        self,
        text: Text,
        *,
        prompt: str = "",
        overlap: int | None = None,
        index: int = 0,
        max_tokens: int | None = None,
    ) -> list[Encoding]:
        """Encode one text as windows that overlap, each with the prompt and the special tokens; one where it fits.

        They are of one length and evenly spread, so that the last is not a short one that counts as much as the others.

        Args:
            text: any string, or the ids of one.
            prompt: put before it.
            overlap: tokens that neighbouring windows have in common, at least; an eighth of a window by default.
            index: the text's position in the call, for messages.
            max_tokens: a lower limit of a window than the model's.

        Raises:
            InvalidTextError: not a string, not encodable as UTF-8, or without any token.
            InvalidOptionError: ``overlap`` or ``max_tokens`` outside what is possible, or the prompt leaves no room.
        """
        limit = self._limit(max_tokens)
        ids = self._framed(prompt, text, index)
        n_special = len(self.prefix) + len(self.suffix)
        n_original = len(ids) + n_special
        head, n_prompt = self._prompt_ids(prompt, ids, "left")
        room = limit - n_special - len(head)
        if overlap is not None and (type(overlap) is not int or not 0 <= overlap < room):
            raise InvalidOptionError(f"overlap is {overlap!r}", hint=f"give 0 to {max(room - 1, 0)} tokens")
        if n_original <= limit:
            return [self.encode(text, prompt=prompt, index=index, max_tokens=max_tokens)]
        if room < 1:
            raise self._no_room(index, len(head), limit - n_special)
        body = ids[n_prompt:]
        stride = room - (room // 8 if overlap is None else overlap)
        steps = -(-(len(body) - room) // stride)
        return [
            Encoding(
                np.array([*self.prefix, *head, *body[start : start + room], *self.suffix], dtype=np.int32), n_original
            )
            for start in ((len(body) - room) * step // steps for step in range(steps + 1))
        ]

    def encode_pair(
        self,
        query: str,
        document: str,
        *,
        truncate: Truncate = "right",
        index: int = 0,
        max_tokens: int | None = None,
    ) -> Encoding:
        """Encode a query and a document as one sequence, as a cross-encoder reads them.

        That is ``[CLS] query [SEP] document [SEP]`` or ``<s> query </s></s> document </s>``. The original's second
        token type begins where the document does (``n_first``).

        Args:
            query: kept whole.
            document: what is cut where the pair is too long.
            truncate: ``right`` drops tokens from the end of the document, ``left`` from its beginning, ``error``
                refuses.
            index: the pair's position in the call, for messages.
            max_tokens: a lower limit than the model's.

        Raises:
            InvalidTextError: one of them is not a string, or not encodable as UTF-8.
            TextTooLongError: too long, with ``truncate="error"``.
            InvalidOptionError: ``truncate`` or ``max_tokens`` is not one of what is possible, or the query leaves no
                room for any of the document.
            UnsupportedModelError: it is not known how this tokenizer joins two texts.
        """
        if self.separator is None:
            raise UnsupportedModelError(
                "the file does not say how its tokenizer joins two texts", hint="convert the model again"
            )
        if not is_one_of(truncate, TRUNCATIONS):
            raise InvalidOptionError(f"truncate is {truncate!r}", hint=f"one of {', '.join(TRUNCATIONS)}")
        limit = self._limit(max_tokens)
        first, second = self.ids(check_text(query, index)), self.ids(check_text(document, index))
        n_around = len(self.prefix) + len(first) + len(self.separator) + len(self.suffix)
        n_original = n_around + len(second)
        if n_original > limit:
            if truncate == "error":
                raise TextTooLongError(index, n_original, limit)
            keep = limit - n_around
            if keep < 1:
                raise InvalidOptionError(
                    f"the query has {len(first)} tokens and leaves no room for document {index}: {limit} fit",
                    hint="shorten the query, or raise max_tokens",
                )
            second = second[:keep] if truncate == "right" else second[len(second) - keep :]
        before = [*self.prefix, *first, *self.separator]
        return Encoding(np.array([*before, *second, *self.suffix], dtype=np.int32), n_original, n_first=len(before))

    def _framed(self, prompt: str, text: Text, index: int) -> Sequence[int]:
        """The ids of a text behind its prompt, without special tokens around them."""
        if not isinstance(text, tuple):
            return self.ids(prompt + check_text(text, index))
        ids = text
        if self.prefix and ids[: len(self.prefix)] == self.prefix:
            ids = ids[len(self.prefix) :]
        if self.suffix and ids[-len(self.suffix) :] == self.suffix:
            ids = ids[: -len(self.suffix)]
        return [*self.ids(prompt), *ids] if prompt else ids

    @staticmethod
    def _no_room(index: int, n_prompt: int, keep: int) -> InvalidOptionError:
        return InvalidOptionError(
            f"what stands before text {index} has {n_prompt} tokens and leaves no room for it: {max(keep, 0)} fit",
            hint="shorten the prompt, the instruction or the query, or raise max_tokens",
        )

    def _prompt_ids(self, prompt: str, ids: Sequence[int], truncate: Truncate) -> tuple[Sequence[int], int]:
        """The prompt's ids, with which a text that is cut begins, and how many they are.

        A prompt's last token may be one with the text's first: a space, or the colon of ``Query:`` before a letter.
        Where the text loses its end, it stays one. Where the text loses its beginning, the prompt gets the token that
        it has by itself; a space at its end is left out, since the words inside a text bring their own.
        """
        own = self.ids(prompt) if prompt else ()
        n_common = _n_common(own, ids)
        if truncate == "right" or n_common == len(own):
            return ids[:n_common], n_common
        head = self.ids(prompt.rstrip(" "))
        return head, len(head)

    def _limit(self, max_tokens: int | None) -> int:
        if max_tokens is None:
            return self.max_tokens
        smallest = len(self.prefix) + len(self.suffix) + 1
        if type(max_tokens) is not int or not smallest <= max_tokens <= self.max_tokens:
            raise InvalidOptionError(f"max_tokens is {max_tokens!r}", hint=f"give {smallest} to {self.max_tokens}")
        return max_tokens

    def _normalized(self, text: str) -> str:
        if self.normalization == "none":
            return text
        return unicodedata.normalize(cast(Literal["NFC", "NFKC"], self.normalization), text)


def _bytes_before(text: str) -> Int64Array:
    """Bytes of UTF-8 before each character and behind the last, int64 ``[n + 1]``."""
    if text.isascii():
        return np.arange(len(text) + 1, dtype=np.int64)
    codes = np.frombuffer(text.encode("utf-32-le"), dtype="<u4")
    lengths = 1 + (codes >= 0x80) + (codes >= 0x800) + (codes >= 0x10000)
    return np.concatenate(([0], np.cumsum(lengths, dtype=np.int64)))


def _n_common(a: Sequence[int], b: Sequence[int]) -> int:
    """How many ids two sequences begin with alike."""
    return next((n for n, (left, right) in enumerate(zip(a, b, strict=False)) if left != right), min(len(a), len(b)))


def check_text(text: object, index: int) -> str:
    """The text itself, if it is one.

    Raises:
        InvalidTextError: not a string, or not encodable as UTF-8.
    """
    if not isinstance(text, str):
        raise InvalidTextError(
            f"text {index} is {type(text).__name__}, not a string", hint="decode or convert it before embedding"
        )
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise InvalidTextError(
            f"text {index} holds a lone surrogate at character {error.start}, which no encoding can carry",
            hint='decode the input properly, or clean it: text.encode("utf-8", "replace").decode()',
        ) from None
    return text


def tokenizer_of(info: ModelInfo, metadata: Mapping[str, Any], library: Callable[[str], Sequence[int]]) -> Tokenizer:
    """The tokenizer of a file: the original one where the keys say what it was, else llama.cpp's.

    Args:
        info: the model.
        metadata: the file's key-values.
        library: the engine's ``tokenize``.

    Raises:
        ModelFileError: the keys contradict each other, or lack what the tokenizer needs.
    """
    if metadata["tokenizer.ggml.model"] == "bert":
        return wordpiece(info, metadata)
    content = rebuild.rebuilt(info.path, metadata, info.unicode_normalization)
    if content is None:
        return from_library(info, metadata, library)
    found = from_library(info, metadata, content)
    # The original one normalizes itself.
    return replace(found, normalization="none", counts=content.counts, spans=content.spans)


def wordpiece(info: ModelInfo, metadata: Mapping[str, Any]) -> Tokenizer:
    """The tokenizer of a BERT file, rebuilt from its vocabulary.

    Args:
        info: the model.
        metadata: the file's key-values (``tokenizer.ggml.*`` and ``edge_embed.wordpiece.*``).

    Raises:
        ModelFileError: the vocabulary lacks what WordPiece needs.
    """
    ids = {token: i for i, token in enumerate(metadata["tokenizer.ggml.tokens"])}
    unknown = metadata.get("tokenizer.ggml.unknown_token_id", ids.get("[UNK]", -1))
    cls = metadata.get("tokenizer.ggml.cls_token_id", metadata.get("tokenizer.ggml.bos_token_id", ids.get("[CLS]", -1)))
    sep = metadata.get("tokenizer.ggml.seperator_token_id", ids.get("[SEP]", -1))
    if min(unknown, cls, sep) < 0:
        raise ModelFileError(f"{info.path}: the vocabulary has no [UNK], [CLS] or [SEP]")
    content = rebuild.wordpiece(info.path, metadata, unknown, (cls, sep))
    normalization = info.unicode_normalization
    return Tokenizer(
        content, (cls,), (sep,), info.max_tokens, normalization, (sep,), counts=content.counts, spans=content.spans
    )


def from_library(info: ModelInfo, metadata: Mapping[str, Any], content: Callable[[str], Sequence[int]]) -> Tokenizer:
    """A tokenizer around ``content``, with the special tokens added here: first what the file says begins a text,
    last the EDS token, whatever its flags say.

    Args:
        info: the model; ``eds_token_id`` ends every text where it is set.
        metadata: the file's key-values.
        content: text -> ids of the text alone.
    """
    bos = bos_token(metadata, info.eds_token_id)
    prefix = () if bos is None else (bos,)
    suffix = () if info.eds_token_id is None else (info.eds_token_id,)
    separator = _separator(metadata)
    return Tokenizer(content, prefix, suffix, info.max_tokens, info.unicode_normalization, separator)


def _separator(metadata: Mapping[str, Any]) -> tuple[int, ...] | None:
    """What the original puts between two texts, by our key, or as the kinds of tokenizer that have pairs do it."""
    recorded = metadata.get(keys.PAIR_SEPARATOR)
    if recorded is not None:
        return tuple(recorded)
    eos = metadata.get("tokenizer.ggml.eos_token_id")
    sep = metadata.get("tokenizer.ggml.seperator_token_id", eos)
    pre = metadata.get("tokenizer.ggml.pre", "default")
    if metadata.get("tokenizer.ggml.model") == "t5" or pre in ("roberta-bpe", "jina-v1-en", "jina-v2-code"):
        return None if eos is None or sep is None else (eos, sep)
    if pre == "modern-bert":
        return None if sep is None else (sep,)
    return None
