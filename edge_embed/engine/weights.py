"""From a file to llama.cpp's model on the devices that it was placed on, and whether it is what the metadata says."""

from __future__ import annotations

import ctypes
import os
from typing import Any, Final

from edge_embed.engine import backends, bindings
from edge_embed.engine.loading import PageDropper
from edge_embed.engine.placement import Placement, no_room
from edge_embed.errors import EngineMemoryError, ModelFileError
from edge_embed.types import ModelInfo

# llama.h
_LOAD_MODE_NONE: Final = 0  # neither mapped nor locked


def load_weights(
    lib: bindings.Bindings, info: ModelInfo, placed: Placement, *, use_extra_bufts: bool, mmap: bool = True
) -> Any:
    """A ``llama_model *``; the caller frees it.

    Args:
        lib: the bindings.
        info: the model.
        placed: its devices, and how many layers they have.
        use_extra_bufts: repack weights for AMX and the like.
        mmap: False reads the file into memory of its own instead of mapping it.

    Raises:
        ModelFileError: the library refuses the file, or finds something else in it than its metadata says.
        EngineMemoryError: a GPU has no room for its layers.
        EngineUnavailableError: a device is gone.
    """
    c = lib.c
    params = c.llama_model_default_params()
    params.use_extra_bufts = use_extra_bufts
    if not mmap:
        params.load_mode = _LOAD_MODE_NONE
    dropper = PageDropper(c, info.path)
    params.progress_callback = dropper.callback
    chosen = backends.device_list([gpu.name for gpu in placed.gpus])
    params.devices, params.n_gpu_layers = ctypes.cast(chosen, ctypes.c_void_p), placed.gpu_layers
    bindings.last_complaint()
    model = c.llama_model_load_from_file(os.fsencode(info.path), params)
    if not model:
        raise _refusal(info, placed, bindings.last_complaint() or "no reason given")
    try:
        _check(c, info, model)
    except ModelFileError:
        c.llama_model_free(model)
        raise
    return model


def _refusal(info: ModelInfo, placed: Placement, reason: str) -> EngineMemoryError | ModelFileError:
    if placed.gpus and "alloc" in reason:
        return no_room(f"{placed.device} has no room for {info.name}: {reason}", placed.wanted.said)
    return ModelFileError(f"the engine refused {info.path}: {reason}", hint="convert or download the model again")


def _check(c: Any, info: ModelInfo, model: Any) -> None:
    """Raises ModelFileError where the library sees other sizes than the metadata says."""
    found = (c.llama_model_n_embd_out(model), c.llama_vocab_n_tokens(c.llama_model_get_vocab(model)))
    if found != (info.n_hidden, info.n_vocab):
        raise ModelFileError(
            f"{info.path}: the engine sees vectors of {found[0]} and {found[1]} tokens, "
            f"the metadata says {info.n_hidden} and {info.n_vocab}"
        )
    if info.rerank is not None and c.llama_model_n_cls_out(model) != len(info.rerank.labels):
        raise ModelFileError(
            f"{info.path}: the engine sees a head of {c.llama_model_n_cls_out(model)} outputs, "
            f"the metadata says {len(info.rerank.labels)}"
        )
