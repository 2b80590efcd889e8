"""What llama.cpp itself would reserve for a context: its graphs are laid out, and no weights or caches are allocated.

``llama_model_params.no_alloc`` is what llama.cpp's own ``--fit`` uses. The sizes are read from its log, to a hundredth
of a MiB: the function that returns them is C++. The vocabulary is read for real, which takes up to a second for 150,000
tokens, and the rows of results are allocated.
"""

from __future__ import annotations

import ctypes
import os
import re
from collections.abc import Sequence
from dataclasses import replace
from typing import Final

from edge_embed.engine import backends, bindings
from edge_embed.engine.memory_model import MIB
from edge_embed.engine.shape import ContextShape, has_memory
from edge_embed.errors import ModelFileError
from edge_embed.types import ModelInfo, Pooling

_POOLING_ID: Final[dict[Pooling, int]] = {"none": 0, "mean": 1, "cls": 2, "last": 3, "rank": 4}  # llama.h
_KV_TYPE_ID: Final = {"f16": 1, "q8_0": 8}  # ggml.h, enum ggml_type
_FLASH_ATTN_ENABLED: Final = 1
_NOT_MAPPED: Final = 0  # llama.h, enum llama_load_mode; a simulation of a mapped file ends the process
_BUFFER: Final = re.compile(r"(\S+) +compute buffer size = +([0-9.]+) MiB")


def reserved(
    info: ModelInfo, context: ContextShape, *, gpu_layers: int = 0, gpus: Sequence[str] = ()
) -> dict[str, int]:
    """Bytes that llama.cpp reserves for intermediate results, by kind of memory (``CPU``, ``CUDA0``, ...).

    Args:
        info: the model; its file's data are not read.
        context: the context.
        gpu_layers: layers on a GPU, the output counted; -1 for all.
        gpus: what the library calls those GPUs.

    Raises:
        ModelFileError: the library refuses the file or the context.
        EngineUnavailableError: the library is missing.
    """
    lib = bindings.load()
    c = lib.c
    params = c.llama_model_default_params()
    params.no_alloc, params.load_mode, params.n_gpu_layers = True, _NOT_MAPPED, gpu_layers
    chosen = backends.device_list(gpus)
    params.devices = ctypes.cast(chosen, ctypes.c_void_p)
    model = c.llama_model_load_from_file(os.fsencode(info.path), params)
    try:
        if not model:
            raise ModelFileError(f"the engine refused {info.path}: {bindings.last_complaint()}")
        wanted = c.llama_context_default_params()
        wanted.n_ctx = wanted.n_batch = context.n_ctx
        wanted.n_ubatch, wanted.n_seq_max = context.n_ubatch, context.n_seq_max
        wanted.n_outputs_max = context.n_outputs_max
        wanted.embeddings = context.every_token
        wanted.pooling_type = _POOLING_ID[info.pooling if context.pooled else "none"]
        wanted.type_k = wanted.type_v = _KV_TYPE_ID[context.kv_type]
        wanted.flash_attn_type, wanted.no_perf = _FLASH_ATTN_ENABLED, True
        wanted.kv_unified = has_memory(info)
        with bindings.heard() as lines:
            made = c.llama_init_from_model(model, wanted)
        if not made:
            raise ModelFileError(f"the engine refuses such a context: {bindings.last_complaint()}")
        c.llama_free(made)
    finally:
        if model:
            c.llama_model_free(model)
    found = (_BUFFER.search(line) for line in lines)
    return {match[1]: round(float(match[2]) * MIB) for match in found if match is not None}


def used(info: ModelInfo, context: ContextShape) -> int:
    """Bytes of the CPU's intermediate results that are written to, as the engine computes (see ``llama.py``).

    Where the graph is stopped before the vocabulary is multiplied by, that is what one output would need.
    """
    if not context.pooled:
        context = replace(context, n_seq_max=1, n_outputs_max=1, every_token=False)
    return reserved(info, context).get("CPU", 0)
