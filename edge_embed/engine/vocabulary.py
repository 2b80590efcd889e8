"""llama.cpp's own tokenizer for a file whose original one is not known, without loading the weights."""

from __future__ import annotations

import ctypes
import os
import threading
import weakref
from typing import Any

from edge_embed.engine import bindings
from edge_embed.errors import InvalidOptionError, ModelFileError

_TOO_LONG = -(1 << 31)


class Vocabulary:
    """The vocabulary of a file, loaded when the first text comes, in milliseconds; freed with the object.

    Args:
        path: a GGUF that ``read_model_info`` has accepted.
    """

    def __init__(self, path: str) -> None:
        self._path, self._lock = path, threading.Lock()
        self._lib: bindings.Bindings | None = None
        self._model: Any = None

    def __call__(self, text: str) -> list[int]:
        """Token ids of a text alone; special-token text in it is recognized.

        Raises:
            EngineUnavailableError: the library is missing.
            ModelFileError: it refused the file.
            InvalidOptionError: the text is too long for it.
        """
        with self._lock:
            if self._lib is None:
                self._load()
        assert self._lib is not None
        return library_ids(self._lib, self._model, text)

    def _load(self) -> None:
        lib = bindings.load()
        params = lib.c.llama_model_default_params()
        params.vocab_only = True
        bindings.last_complaint()
        model = lib.c.llama_model_load_from_file(os.fsencode(self._path), params)
        if not model:
            raise ModelFileError(
                f"the engine refused the vocabulary of {self._path}: {bindings.last_complaint() or 'no reason given'}",
                hint="convert or download the model again",
            )
        weakref.finalize(self, lib.c.llama_model_free, model)
        self._lib, self._model = lib, model


def library_ids(lib: bindings.Bindings, model: Any, text: str) -> list[int]:
    """Token ids by the library's own tokenizer, none added; special-token text in it is recognized.

    Raises:
        InvalidOptionError: the text is too long for it.
    """
    raw = text.encode()
    size = len(raw) + 2
    vocab = lib.c.llama_model_get_vocab(model)
    while True:
        ids = (ctypes.c_int32 * size)()
        n = lib.c.llama_tokenize(vocab, raw, len(raw), ids, size, False, True)
        if n >= 0:
            return ids[:n]
        if n == _TOO_LONG:
            raise InvalidOptionError("the text is too long to be tokenized", hint="split it")
        size = -n
