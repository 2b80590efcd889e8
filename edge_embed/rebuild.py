"""The original tokenizer, rebuilt from a GGUF's keys with Hugging Face's ``tokenizers``.

llama.cpp's own tokenizers differ from the originals on Unicode normalization, on special tokens next to spaces, on
characters newer than its tables, and end the process on some texts. The vocabulary, the scores, the merges and the
names of the steps before them are all in the file, so the original is rebuilt once, when the model is loaded.

Knows ``tokenizer.ggml.*`` and our own tokenizer keys. Knows nothing of prompts, truncation, or of the special tokens
around a text.
"""

from __future__ import annotations

import base64
import json
import re
from array import array
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from edge_embed import keys
from edge_embed.errors import ModelFileError
from edge_embed.merges import merges_by_score
from edge_embed.pipelines import BYTE_LEVEL, IGNORE_MERGES, PHANTOM_SPACE, PIPELINES, Part

Span = tuple[int, int, int]
"""A token's id, the first character that it stands for, one behind the last."""


class Content:
    """Text -> ids of the text alone.

    A slice at a time where that changes nothing: the library keeps some 130 bytes for a character.

    Args:
        path: the file, for messages.
        backend: the library's tokenizer.
        cut: where a long text may be cut; None for nowhere.
        skipped: characters left out between two slices.
    """

    def __init__(self, path: str | Path, backend: Any, cut: re.Pattern[str] | None, skipped: int) -> None:
        self._path, self._backend, self._cut, self._skipped = path, backend, cut, skipped

    def __call__(self, text: str) -> Sequence[int]:
        if len(text) <= _SLICE or self._cut is None:
            return self._encode(text)
        whole = array("i")
        for part in _slices(text, self._cut, self._skipped):
            whole.extend(self._encode(part))
        return whole

    def counts(self, texts: Sequence[str]) -> list[int]:
        """How many ids each text has, on all cores; half as fast again on one."""
        if any(len(text) > _SLICE for text in texts):
            return [len(self(text)) for text in texts]
        found: list[Any] = _guarded(
            self._path, lambda: self._backend.encode_batch_fast(texts, add_special_tokens=False)
        )
        return [len(encoding) for encoding in found]

    def spans(self, text: str) -> Iterator[Span]:
        """The ids again, one after another, each with the first of the characters that it stands for and one behind
        the last.

        Several tokens may stand for one character, and a character that normalization drops is nobody's.
        """
        parts = [text] if len(text) <= _SLICE or self._cut is None else _slices(text, self._cut, self._skipped)
        start = 0
        for part in parts:
            encoded = _encoded(self._path, self._backend, part)
            yield from ((i, start + a, start + b) for i, (a, b) in zip(encoded.ids, encoded.offsets, strict=True))
            start += len(part) + self._skipped

    def _encode(self, text: str) -> Sequence[int]:
        ids: list[int] = _encoded(self._path, self._backend, text).ids
        return ids


# llama.h, enum llama_token_type
_NORMAL, _UNKNOWN, _CONTROL, _USER_DEFINED, _UNUSED = 1, 2, 3, 4, 5
_SLICE: Final = 1 << 16  # characters tokenized at a time

# Where a long text may be cut without changing an id: between a letter and a character that no word goes on with.
# The letters are letters in every version of Unicode; the punctuation is that of Chinese and Japanese.
_LETTER = "[A-Za-z\u0410-\u044f\u4e00-\u9fff\u3041-\u3096\u30a1-\u30fa\uac00-\ud7a3]"
_CUT_WORDPIECE: Final = re.compile(r"(?=\s)")
_CUT_BYTE_LEVEL: Final = re.compile(f"{_LETTER}(?=[ \n\u3001\u3002\uff01\uff0c\uff1f])")
_CUT_LINES: Final = re.compile(f"(?=\n)|{_LETTER}(?= [A-Za-z])")  # where words are split at white space first
_CUT_SENTENCEPIECE: Final = re.compile(f"{_LETTER}(?= [A-Za-z])")


def wordpiece(path: str | Path, metadata: Mapping[str, Any], unknown: int, around: Iterable[int]) -> Content:
    """The WordPiece tokenizer of a BERT file.

    Args:
        path: the file, for messages.
        metadata: its key-values.
        unknown: the id of unknown words.
        around: the ids put around a text.

    Raises:
        ModelFileError: a setting of the wrong type.
    """
    from tokenizers import AddedToken, Tokenizer, normalizers, pre_tokenizers
    from tokenizers.models import WordPiece

    tokens: list[str] = metadata["tokenizer.ggml.tokens"]
    # Files of early converters have no token types, and damaged ones have wrong ones.
    special = {i for i, kind in enumerate(_kinds(metadata)) if kind == _CONTROL} | {unknown, *around}
    vocab = {_original_form(token, i in special): i for i, token in enumerate(tokens)}
    words = (token.removeprefix(PHANTOM_SPACE) for i, token in enumerate(tokens) if i not in special)
    uncased = not any(word.lower() != word for word in words if word.isascii() and word[:1] != "[")

    def setting(key: str, default: Any) -> Any:
        value = metadata.get(key, default)
        if type(value) is not type(default) or (type(value) is int and value < 1):
            raise ModelFileError(f"{path}: {key} is {value!r}, expected {type(default).__name__}")
        return value

    lowercase = setting(keys.WORDPIECE_LOWERCASE, uncased)
    backend = Tokenizer(
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
    return _content(path, backend, (), _CUT_WORDPIECE)


def _original_form(token: str, special: bool) -> str:
    """llama.cpp marks the pieces that begin a word, where WordPiece marks the others with ##."""
    if special:
        return token
    return token[1:] if token.startswith(PHANTOM_SPACE) else "##" + token


def rebuilt(path: str | Path, metadata: Mapping[str, Any], normalization: str) -> Content | None:
    """The original tokenizer of a file, or None where nothing says what it was.

    Args:
        path: the file, for messages.
        metadata: its key-values.
        normalization: ``none``, ``NFC`` or ``NFKC``.

    Raises:
        ModelFileError: the keys contradict each other.
    """
    kind = metadata["tokenizer.ggml.model"]
    if kind == "gpt2":
        return _byte_level(path, metadata, normalization)
    if kind == "t5":
        return _unigram(path, metadata, normalization)
    if kind == "llama":
        return _sentencepiece(path, metadata, normalization)
    return None


def _byte_level(path: str | Path, metadata: Mapping[str, Any], normalization: str) -> Content | None:
    from tokenizers import Tokenizer
    from tokenizers.models import BPE

    pre = metadata.get("tokenizer.ggml.pre", "default")
    if pre not in BYTE_LEVEL:
        return None
    vocab = {token: i for i, token in enumerate(_texts(metadata))}
    merges = [pair.partition(" ")[::2] for pair in _listed(path, metadata, "tokenizer.ggml.merges", str)]
    try:
        backend = Tokenizer(BPE(vocab, merges, ignore_merges=pre in IGNORE_MERGES))
    except Exception as error:
        raise ModelFileError(f"{path}: tokenizer.ggml.merges: {error}", hint="convert the model again") from None
    before = () if normalization == "none" else ({"type": normalization},)
    _set_steps(path, backend, before, BYTE_LEVEL[pre])
    return _content(path, backend, _add_tokens(backend, metadata), _CUT_BYTE_LEVEL)


def _unigram(path: str | Path, metadata: Mapping[str, Any], normalization: str) -> Content:
    from tokenizers import Tokenizer
    from tokenizers.models import Unigram

    texts = _texts(metadata)
    key = keys.UNIGRAM_SCORES if keys.UNIGRAM_SCORES in metadata else "tokenizer.ggml.scores"
    scores = _listed(path, metadata, key, float)
    unknown = metadata.get("tokenizer.ggml.unknown_token_id", 2)
    if len(scores) != len(texts):
        raise ModelFileError(f"{path}: the vocabulary has {len(texts)} tokens and {len(scores)} scores")
    # A padding row must not lower the lowest score, from which the unknown token's is computed.
    kinds = _kinds(metadata)
    scored = [(text, 0.0 if kind == _UNUSED else score) for text, score, kind in zip(texts, scores, kinds, strict=True)]
    try:
        backend = Tokenizer(Unigram(scored, unk_id=unknown, byte_fallback=False))
    except Exception as error:
        raise ModelFileError(f"{path}: tokenizer.ggml.tokens: {error}", hint="convert the model again") from None
    name = metadata.get(keys.TOKENIZER_PIPELINE, "split-words-always")
    _set_pipeline(path, backend, metadata, normalization, name)
    cut = _CUT_LINES if name.startswith("split-words") else _CUT_SENTENCEPIECE
    return _content(path, backend, _add_tokens(backend, metadata), cut)


def _listed(path: str | Path, metadata: Mapping[str, Any], key: str, kind: type) -> list[Any]:
    """An array of the metadata whose items are of this type; empty where it is missing."""
    items = metadata.get(key, [])
    if not isinstance(items, list) or not all(type(item) is kind for item in items):
        raise ModelFileError(f"{path}: {key} is not a list of {kind.__name__}", hint="convert the model again")
    return items


def _sentencepiece(path: str | Path, metadata: Mapping[str, Any], normalization: str) -> Content:
    from tokenizers import Tokenizer
    from tokenizers.models import BPE

    texts = _texts(metadata)
    vocab = {text: i for i, text in enumerate(texts)}
    recorded = _listed(path, metadata, "tokenizer.ggml.merges", str)
    merges = [pair.partition(" ")[::2] for pair in recorded] if recorded else _merges_by_score(path, metadata)
    try:
        backend = Tokenizer(BPE(vocab, merges, byte_fallback=True, fuse_unk=True))
    except Exception as error:
        raise ModelFileError(f"{path}: tokenizer.ggml.merges: {error}", hint="convert the model again") from None
    # Files of other converters: the first spelling that Llama and Mistral had, which is llama.cpp's way as well.
    usual = "prepend" if metadata.get("tokenizer.ggml.add_space_prefix", True) else "replace"
    name = metadata.get(keys.TOKENIZER_PIPELINE, usual)
    _set_pipeline(path, backend, metadata, normalization, name)
    inside = re.compile(_LETTER + PHANTOM_SPACE)
    if any(inside.search(text) for text in texts):
        return _content(path, backend, _add_tokens(backend, metadata), None)
    # Every stretch has a space put in front by "prepend": the slice begins behind its own.
    skipped = 1 if name == "prepend" else 0
    return _content(path, backend, _add_tokens(backend, metadata), _CUT_SENTENCEPIECE, skipped)


def _merges_by_score(path: str | Path, metadata: Mapping[str, Any]) -> list[tuple[str, str]]:
    """The merges that a file's scores stand for."""
    tokens, kinds = metadata["tokenizer.ggml.tokens"], _kinds(metadata)
    scores = _listed(path, metadata, "tokenizer.ggml.scores", float) or [0.0] * len(tokens)
    ids = {token: i for i, token in enumerate(tokens) if kinds[i] in (_NORMAL, _USER_DEFINED)}
    return merges_by_score(ids, scores)


def _set_pipeline(path: str | Path, backend: Any, metadata: Mapping[str, Any], normalization: str, name: Any) -> None:
    if not isinstance(name, str) or name not in PIPELINES:
        raise ModelFileError(
            f"{path}: {keys.TOKENIZER_PIPELINE} is {name!r}, expected one of {', '.join(sorted(PIPELINES))}"
        )
    before: list[Part] = [] if normalization == "none" else [{"type": normalization}]
    charsmap = _listed(path, metadata, "tokenizer.ggml.precompiled_charsmap", int)
    if charsmap:
        raw = bytes(byte & 255 for byte in charsmap)
        before.append({"type": "Precompiled", "precompiled_charsmap": base64.b64encode(raw).decode()})
    pipeline = PIPELINES[name]
    _set_steps(path, backend, [*before, *pipeline.normalizers], pipeline.pre_tokenizers)


def _set_steps(path: str | Path, backend: Any, before: Iterable[Part], pre_tokenizers: Iterable[Part]) -> None:
    """Give the tokenizer its normalizers and pre-tokenizers, read from JSON as the library does it."""
    from tokenizers import Tokenizer

    steps = {
        "version": "1.0",
        "added_tokens": [],
        "normalizer": {"type": "Sequence", "normalizers": list(before)},
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": list(pre_tokenizers)},
        "model": {"type": "WordLevel", "vocab": {"": 0}, "unk_token": ""},
    }
    try:
        carrier = _guarded(path, lambda: Tokenizer.from_str(json.dumps(steps)))
    except ModelFileError:
        raise
    except Exception as error:
        raise ModelFileError(f"{path}: tokenizer.ggml.precompiled_charsmap: {error}") from None
    backend.normalizer, backend.pre_tokenizer = carrier.normalizer, carrier.pre_tokenizer


def _texts(metadata: Mapping[str, Any]) -> list[str]:
    """The tokens; those of padding rows with a space in front, which no text has when it comes to the model."""
    tokens: list[str] = metadata["tokenizer.ggml.tokens"]
    return [" " + token if kind == _UNUSED else token for token, kind in zip(tokens, _kinds(metadata), strict=True)]


def _kinds(metadata: Mapping[str, Any]) -> list[int]:
    kinds: list[int] = metadata.get("tokenizer.ggml.token_type", [_NORMAL] * len(metadata["tokenizer.ggml.tokens"]))
    return kinds


def _add_tokens(backend: Any, metadata: Mapping[str, Any]) -> list[str]:
    """Tell the tokenizer which tokens are found in a text before all else; returns their spellings."""
    from tokenizers import AddedToken

    left, right, words, normalized = (
        set(metadata.get(key, ()))
        for key in (keys.ADDED_LSTRIP, keys.ADDED_RSTRIP, keys.ADDED_SINGLE_WORD, keys.ADDED_NORMALIZED)
    )
    added = []
    for i, (token, kind) in enumerate(zip(metadata["tokenizer.ggml.tokens"], _kinds(metadata), strict=True)):
        if kind in (_UNKNOWN, _CONTROL, _USER_DEFINED):
            added.append(
                AddedToken(
                    token,
                    lstrip=i in left,
                    rstrip=i in right,
                    single_word=i in words,
                    normalized=i in normalized,
                    special=kind != _USER_DEFINED,
                )
            )
    backend.add_tokens(added)
    return [token.content for token in added]


def _content(
    path: str | Path, backend: Any, added: Iterable[str], cut: re.Pattern[str] | None, skipped: int = 0
) -> Content:
    """The tokenizer, which cuts long texts unless one of its added tokens could be cut, too."""
    if cut is not None and any(cut.search(token) for token in added):
        cut = None
    return Content(path, backend, cut, skipped)


def _slices(text: str, cut: re.Pattern[str], skipped: int) -> Iterator[str]:
    """Parts of about ``_SLICE`` characters; ``skipped`` of them are left out between two parts."""
    start = 0
    while start < len(text):
        found = cut.search(text, start + _SLICE)
        end = found.end() if found else len(text)
        yield text[start:end]
        start = end + skipped


def _encoded(path: str | Path, backend: Any, text: str) -> Any:
    return _guarded(path, lambda: backend.encode(text, add_special_tokens=False))


def _guarded(path: str | Path, call: Callable[[], Any]) -> Any:
    """The call's result; a panic of the Rust library, which is no Exception, becomes one that names the file."""
    try:
        return call()
    except BaseException as error:
        if type(error).__name__ != "PanicException":
            raise
        raise ModelFileError(
            f"{path}: its vocabulary breaks the tokenizer: {error}", hint="convert the model again"
        ) from None
