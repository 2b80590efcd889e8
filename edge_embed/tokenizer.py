"""Text to token ids as the original tokenizer would give them: normalization, special tokens, truncation.

Truncation takes from the text's own tokens, never from the special ones around it: the first and the last token
(``[CLS]``/``[SEP]``, the EDS token) are what the vector is read from. A prompt stays too: a text is cut behind it.

WordPiece models are tokenized by Hugging Face's ``tokenizers`` with the vocabulary from the GGUF, because llama.cpp's
own WordPiece differs on accents, long words and several scripts. Others use llama.cpp's tokenizer.
"""

from __future__ import annotations

import unicodedata
from array import array
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, cast

import numpy as np

from edge_embed import keys
from edge_embed.errors import InvalidOptionError, InvalidTextError, ModelFileError, TextTooLongError
from edge_embed.types import TRUNCATIONS, Encoding, ModelInfo, Truncate, is_one_of

_PHANTOM_SPACE = "\u2581"  # llama.cpp marks the beginning of a word with it, where WordPiece marks the continuation
_SLICE = 1 << 16  # characters tokenized at a time
_CONTROL = 3  # llama.h: LLAMA_TOKEN_TYPE_CONTROL


@dataclass(frozen=True)
class Tokenizer:
    """Turns texts into encodings.

    Attributes:
        content: text -> ids of the text alone, no special tokens added.
        prefix: ids put before every text.
        suffix: ids put after every text.
        max_tokens: most tokens of an encoding, special ones included.
        normalization: ``none``, ``NFC`` or ``NFKC``.
    """

    content: Callable[[str], Sequence[int]]
    prefix: tuple[int, ...]
    suffix: tuple[int, ...]
    max_tokens: int
    normalization: str = "none"

    def encode(
        self,
        text: str,
        *,
        prompt: str = "",
        truncate: Truncate = "right",
        index: int = 0,
        max_tokens: int | None = None,
    ) -> Encoding:
        """Encode one text.

        Args:
            text: any string.
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
        ids = self.content(self._normalized(prompt + check_text(text, index)))
        n_special = len(self.prefix) + len(self.suffix)
        n_original = len(ids) + n_special
        if n_original == 0:
            raise InvalidTextError(
                f"text {index} has no tokens", hint="this model adds none of its own: leave empty texts out"
            )
        if n_original > limit:
            if truncate == "error":
                raise TextTooLongError(index, n_original, limit)
            n_prompt = len(self.content(self._normalized(prompt))) if prompt else 0
            keep = limit - n_special
            if n_prompt >= keep:
                raise InvalidOptionError(
                    f"the prompt has {n_prompt} tokens and leaves no room for text {index}: {keep} fit",
                    hint="shorten the prompt or the instruction, or raise max_tokens",
                )
            rest = len(ids) - (keep - n_prompt)  # where the end of the text begins that is kept
            ids = ids[:keep] if truncate == "right" else [*ids[:n_prompt], *ids[rest:]]
        return Encoding(np.array([*self.prefix, *ids, *self.suffix], dtype=np.int32), n_original)

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


def wordpiece(info: ModelInfo, metadata: dict[str, Any]) -> Tokenizer:
    """The tokenizer of a BERT file, rebuilt from its vocabulary.

    Args:
        info: the model.
        metadata: the file's key-values (``tokenizer.ggml.*`` and ``edge_embed.wordpiece.*``).

    Raises:
        ModelFileError: the vocabulary lacks what WordPiece needs.
    """
    from tokenizers import AddedToken, normalizers, pre_tokenizers
    from tokenizers import Tokenizer as Backend
    from tokenizers.models import WordPiece

    tokens: list[str] = metadata["tokenizer.ggml.tokens"]
    kinds: list[int] = metadata.get("tokenizer.ggml.token_type", [1] * len(tokens))
    ids = {token: i for i, token in enumerate(tokens)}
    unknown = metadata.get("tokenizer.ggml.unknown_token_id", ids.get("[UNK]", -1))
    cls = metadata.get("tokenizer.ggml.cls_token_id", metadata.get("tokenizer.ggml.bos_token_id", ids.get("[CLS]", -1)))
    sep = metadata.get("tokenizer.ggml.seperator_token_id", ids.get("[SEP]", -1))
    if min(unknown, cls, sep) < 0:
        raise ModelFileError(f"{info.path}: the vocabulary has no [UNK], [CLS] or [SEP]")
    # Files of early converters have no token types, and damaged ones have wrong ones.
    special = {i for i, kind in enumerate(kinds) if kind == _CONTROL} | {unknown, cls, sep}
    vocab = {_original_form(token, i in special): i for i, token in enumerate(tokens)}
    words = (token.removeprefix(_PHANTOM_SPACE) for i, token in enumerate(tokens) if i not in special)
    uncased = not any(word.lower() != word for word in words if word.isascii() and word[:1] != "[")

    def setting(key: str, default: Any) -> Any:
        value = metadata.get(key, default)
        if type(value) is not type(default) or (type(value) is int and value < 1):
            raise ModelFileError(f"{info.path}: {key} is {value!r}, expected {type(default).__name__}")
        return value

    lowercase = setting(keys.WORDPIECE_LOWERCASE, uncased)
    backend = Backend(
        WordPiece(
            vocab,
            unk_token=tokens[unknown],
            max_input_chars_per_word=setting(keys.WORDPIECE_MAX_WORD_CHARS, 100),
        )
    )
    backend.normalizer = normalizers.BertNormalizer(
        clean_text=setting(keys.WORDPIECE_CLEAN_TEXT, True),
        handle_chinese_chars=setting(keys.WORDPIECE_CHINESE_CHARS, True),
        strip_accents=setting(keys.WORDPIECE_STRIP_ACCENTS, lowercase),
        lowercase=lowercase,
    )
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.add_special_tokens([AddedToken(tokens[i], normalized=False, special=True) for i in sorted(special)])

    def content(text: str) -> Sequence[int]:
        if len(text) <= _SLICE:
            ids: list[int] = backend.encode(text, add_special_tokens=False).ids
            return ids
        whole = array("i")
        for part in _slices(text):
            whole.extend(backend.encode(part, add_special_tokens=False).ids)
        return whole

    return Tokenizer(content, (cls,), (sep,), info.max_tokens, info.unicode_normalization)


def _slices(text: str) -> Iterator[str]:
    """Parts of about ``_SLICE`` characters, cut at white space, across which WordPiece never looks.

    The library keeps some 130 bytes for each character of a text until it is done.
    """
    start = 0
    while start < len(text):
        end = start + _SLICE
        while end < len(text) and not text[end].isspace():
            end += 1
        yield text[start:end]
        start = end


def _original_form(token: str, special: bool) -> str:
    if special:
        return token
    return token[1:] if token.startswith(_PHANTOM_SPACE) else "##" + token


def from_library(info: ModelInfo, metadata: dict[str, Any], content: Callable[[str], Sequence[int]]) -> Tokenizer:
    """The tokenizer of any other file: llama.cpp's, with the EDS token added here, whatever its flags say.

    Args:
        info: the model; ``eds_token_id`` ends every text where it is set.
        metadata: the file's key-values.
        content: the engine's ``tokenize``.
    """
    bos = metadata.get("tokenizer.ggml.bos_token_id")
    prefix = (bos,) if metadata.get("tokenizer.ggml.add_bos_token") is True and bos is not None else ()
    suffix = () if info.eds_token_id is None else (info.eds_token_id,)
    return Tokenizer(content, prefix, suffix, info.max_tokens, info.unicode_normalization)
