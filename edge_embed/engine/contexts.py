"""A context of llama.cpp: what is asked for, from the shape that was planned."""

from __future__ import annotations

from typing import Any, Final

from edge_embed.engine import adapter, bindings
from edge_embed.engine.owner import AbortFlag, Handles
from edge_embed.engine.shape import ContextShape, has_memory
from edge_embed.errors import EngineMemoryError
from edge_embed.types import KvType, Lora, ModelInfo

# llama.h
_POOLING_ID: Final = {"none": 0, "mean": 1, "cls": 2, "last": 3, "rank": 4}
_FLASH_ATTN_ENABLED, _FLASH_ATTN_AUTO = 1, -1
_KV_TYPE_ID: Final[dict[KvType, int]] = {"f16": 1, "q8_0": 8}  # ggml.h, enum ggml_type


def make_context(
    lib: bindings.Bindings,
    info: ModelInfo,
    handles: Handles,
    shape: ContextShape,
    abort: AbortFlag,
    *,
    n_threads: int,
    lora: Lora | None = None,
    callback: Any = None,
) -> Any:
    """A context over a loaded model; the caller frees it.

    Args:
        lib: the bindings.
        info: the model.
        handles: its C objects; the adapter among them is applied.
        shape: of the context.
        abort: stops what it computes.
        n_threads: CPU threads.
        lora: what the adapter is.
        callback: asked about every node of the graph; it must outlive the context.

    Raises:
        EngineMemoryError: there is no memory for it.
    """
    c = lib.c
    params = c.llama_context_default_params()
    # llama.cpp pools, and looks ahead, within one ubatch only.
    params.n_ctx = params.n_batch = shape.n_ctx
    params.n_ubatch = shape.n_ubatch
    params.n_seq_max = shape.n_seq_max
    params.n_threads = params.n_threads_batch = n_threads
    params.no_perf = True
    params.embeddings = shape.every_token  # makes every token an output
    params.pooling_type = _POOLING_ID[info.pooling if shape.pooled else "none"]
    params.type_k = params.type_v = _KV_TYPE_ID[shape.kv_type]
    params.abort_callback, params.abort_callback_data = abort.callback, abort.data
    if has_memory(info):
        params.kv_unified = True
    if shape.n_outputs_max:
        params.n_outputs_max = shape.n_outputs_max
    if callback is not None:
        params.cb_eval = callback
    for flash in (_FLASH_ATTN_ENABLED, _FLASH_ATTN_AUTO):
        params.flash_attn_type = flash
        bindings.last_complaint()
        context = c.llama_init_from_model(handles.model, params)
        if context:
            try:
                if lora is not None:
                    adapter.apply(lib, context, handles.adapter, lora)
            except BaseException:
                c.llama_free(context)
                raise
            return context
    raise EngineMemoryError(
        f"no memory for a context of {shape.n_ctx} tokens: {bindings.last_complaint() or 'no reason given'}",
        hint="lower n_batch (--batch-tokens) or max_tokens, shorten the texts, or use a smaller model",
    )
