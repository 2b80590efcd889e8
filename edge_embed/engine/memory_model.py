"""How much memory a model and a context take, computed from shapes alone. Pure.

Everything is bytes. What a graph takes follows from the order in which llama.cpp's graphs use their tensors and from
how ggml places them in one buffer. The sums below were found by having the library place them without allocating
anything (``simulate.py``), for graphs of many widths, and say which tensors live at the same time:

* attention, before it is computed: queries and keys twice (as they come and as they are rotated), values, and the
  hidden states; where all three come of one product and nothing is cached, keys and values once more as float16;
* feed-forward: both halves and their product, the hidden states three times, and a hole that the heads left.

For qwen3 and llama they are exact to a percent, for the encoders to a tenth, for qwen2 up to a quarter too much. A test
compares them with the library.

Two things differ between main memory and a GPU's. Main memory counts when it is written to: llama.cpp reserves room for
the logits in its buffer of intermediate results, and where the graph is stopped before them, it is never touched. And a
GPU has costs that no buffer shows: see ``Device``.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final

from edge_embed.engine.shape import ROW, ContextShape
from edge_embed.model_shape import ModelShape
from edge_embed.types import KvType

MIB: Final = 1 << 20
_KV_BYTES: Final[dict[KvType, float]] = {"f16": 2.0, "q8_0": 34 / 32}  # of a value; ggml-common.h, block_q8_0
_FLOAT: Final = 4
# Python with NumPy, the tokenizers' library and llama.cpp loaded. Measured, benchmarks/LOG.md, "Memory planner".
_BASE: Final = 61 * MIB
# For each token and each merge: llama.cpp's own vocabulary, and what a tokenizer keeps; what both take while the
# tokenizer is built, before anything is computed; and the first with the file's header, while weights are read.
_PER_PIECE: Final = 330
_PER_PIECE_BUILDING: Final = 530
_PER_PIECE_READING: Final = 240
# Rows of the token embeddings are read through the mapped file, 16 pages at a time. Texts in some languages read this
# much of them, whatever they are stored as: measured, likewise.
_EMBEDDINGS_READ: Final = 32 * MIB
_PER_TRIE_TOKEN: Final = 1040  # of a unigram tokenizer, on top
# Activations are quantized for the product with quantized weights, 34 bytes for 32 values: Q8_0, ggml-common.h.
_WORK: Final = 34 / 32


@dataclass(frozen=True, slots=True)
class Need:
    """What one place, main memory or a GPU's, has to hold.

    Attributes:
        weights: tensors, and of the token embeddings what texts soon read.
        kv: keys and values.
        compute: intermediate results.
        output: the rows of results that llama.cpp keeps.
        overhead: Python, tokenizer and library; of a GPU its runtime.
        reclaimable: of ``weights``, pages of the mapped file, which the system may drop and has to read again.
        loading: all that is shown for a moment, while the model is loaded: the whole file is mapped then.
    """

    weights: int = 0
    kv: int = 0
    compute: int = 0
    output: int = 0
    overhead: int = 0
    reclaimable: int = 0
    loading: int = 0

    @property
    def firm(self) -> int:
        """What must be there."""
        return self.weights + self.kv + self.compute + self.output + self.overhead

    @property
    def total(self) -> int:
        """What is shown at most: a file's pages are, while it is loaded, though they make way for anything else."""
        return max(self.firm, self.loading)


@dataclass(frozen=True, slots=True)
class Device:
    """What a kind of GPU costs beside its buffers.

    Attributes:
        kind: the backend's name.
        runtime: memory of the GPU that its driver and libraries take.
        host: main memory that they take.
        shares_memory: whether its memory is the machine's.
    """

    kind: str
    runtime: int
    host: int
    shares_memory: bool = False


# Not measured (no GPU was at hand): llama.cpp itself leaves 1024 MiB of a GPU free when it fits a model (common/fit.cpp
# and the default of --fit-target), for its runtime and for everything else; half of that here, and the scratch memory
# of quantized products and of attention is counted by itself in ``gpu_need``.
DEVICES: Final = {
    "CUDA": Device("CUDA", 512 * MIB, 256 * MIB),
    "ROCm": Device("ROCm", 512 * MIB, 256 * MIB),
    "Vulkan": Device("Vulkan", 256 * MIB, 128 * MIB),
    "Metal": Device("Metal", 128 * MIB, 0, shares_memory=True),
}
UNKNOWN: Final = Device("GPU", 512 * MIB, 256 * MIB)
# Buffers of a GPU are aligned, and inputs are copied to it: by so much its graph is taken to be larger.
_GPU_MARGIN: Final = 1.15


def kv_bytes(model: ModelShape, n_ctx: int, kv_type: KvType, n_layers: int | None = None) -> int:
    """Keys and values of ``n_ctx`` cells, written when a context is made. Source: llama-kv-cache.cpp."""
    cells = -(-n_ctx // ROW) * ROW
    values = model.n_head_kv * (model.key_length + model.value_length)
    return round(cells * values * _KV_BYTES[kv_type]) * (model.n_layer if n_layers is None else n_layers)


def output_bytes(model: ModelShape, context: ContextShape) -> int:
    """Rows of logits, and of embeddings where these are asked for; cleared, so written. Source: output_reserve.

    llama.cpp keeps a row of the whole vocabulary for every output, also of models that have no output matrix.
    """
    width = model.n_vocab + (model.n_embd if context.every_token else 0)
    return (context.n_outputs_max or context.n_ctx) * width * _FLOAT


def graph_bytes(model: ModelShape, context: ContextShape, *, cached: bool) -> int:
    """Intermediate results of one layer at their most, and the inputs of the graph, without logits.

    Args:
        model: the model.
        context: the context.
        cached: whether keys and values are kept (decoders); else attention is over the tokens of the ubatch.
    """
    tokens = context.n_ubatch
    heads, keys = model.n_head * model.key_length, model.n_head_kv * model.key_length
    attention = 2 * heads + 3 * keys + model.n_embd
    if cached:
        feed_forward = 3 * model.n_ff + 3 * model.n_embd + heads
    else:
        attention += 3 * keys // 2 if model.gated else 0
        feed_forward = (3 if model.gated else 1) * model.n_ff + 3 * model.n_embd
    cells = -(-context.n_ctx // ROW) * ROW if cached else tokens
    mask = 2 * cells * tokens * (2 if model.windowed else 1)
    pooling = _FLOAT * tokens * context.n_seq_max if context.pooled else 0
    return _FLOAT * tokens * max(attention, feed_forward) + mask + pooling


def logits_bytes(model: ModelShape, context: ContextShape, *, cached: bool) -> int:
    """Intermediate results where the vocabulary is multiplied by; encoders have no such product."""
    if not cached:
        return 0
    tokens = context.n_ubatch
    outputs = min(tokens, context.n_outputs_max or tokens)
    mask = 2 * (-(-context.n_ctx // ROW) * ROW) * tokens
    return _FLOAT * outputs * (model.n_vocab + 3 * model.n_embd) + mask


def reserved_bytes(model: ModelShape, context: ContextShape, *, cached: bool) -> int:
    """The buffer of intermediate results as llama.cpp reserves it: for as many tokens of each sequence."""
    tokens = -(-context.n_ubatch // context.n_seq_max) * context.n_seq_max
    context = replace(context, n_ubatch=tokens)
    return max(graph_bytes(model, context, cached=cached), logits_bytes(model, context, cached=cached))


def cpu_compute_bytes(model: ModelShape, context: ContextShape, *, cached: bool) -> int:
    """What of that buffer is written to, what products work in, and the rows that are copied out of it."""
    used = graph_bytes(model, context, cached=cached)
    if context.pooled:
        used = max(used, logits_bytes(model, context, cached=cached))
    rows = 2 * _FLOAT * context.n_ctx * model.n_embd if context.every_token else 0
    return used + rows + round(_WORK * context.n_ubatch * max(model.n_ff, model.n_embd))


def overhead_bytes(model: ModelShape, per_piece: int = _PER_PIECE) -> int:
    """Python, NumPy, libraries and the vocabulary, which llama.cpp and the tokenizer hold once each."""
    trie = _PER_TRIE_TOKEN * model.n_vocab if model.trie else 0
    return _BASE + trie + per_piece * (model.n_vocab + model.n_merges)


def host_need(
    model: ModelShape,
    context: ContextShape,
    *,
    cached: bool,
    gpu_layers: int = 0,
    device: Device | None = None,
    repacked: float = 0.0,
    gives_back: bool = True,
    n_tokens: int | None = None,
) -> Need:
    """What main memory has to hold.

    Args:
        model: the model.
        context: the context.
        cached: whether it keeps keys and values.
        gpu_layers: layers on a GPU as llama.cpp counts them, the output being the first of them.
        device: that GPU; its runtime takes main memory, too.
        repacked: share of the layers' weights that the CPU's kernels copy into an order of their own.
        gives_back: whether pages of the file that were copied are given back (``loading.py``), as on Linux.
        n_tokens: tokens of the largest batch, where that is less than the context holds.
    """
    n_cpu = model.n_layer - min(model.n_layer, max(0, gpu_layers - 1))
    layers = sum(model.layer_bytes[:n_cpu])
    copies = round(repacked * layers)
    pages = layers - copies + min(model.input_bytes, _EMBEDDINGS_READ)
    kv = kv_bytes(model, context.n_ctx, context.kv_type, n_cpu) if cached else 0
    if n_tokens is not None and context.every_token:
        context = replace(context, n_ctx=n_tokens, n_ubatch=min(n_tokens, context.n_ubatch))
    if gpu_layers > model.n_layer:
        compute = _FLOAT * context.n_ubatch * model.n_embd  # the embeddings of the tokens
    else:
        compute = cpu_compute_bytes(model, context, cached=cached)
    output = output_bytes(model, context)
    runtime = device.host if device is not None and gpu_layers else 0
    overhead = overhead_bytes(model) + runtime
    reading = model.file_bytes + overhead_bytes(model, _PER_PIECE_READING) + runtime
    building = copies + kv + output + overhead_bytes(model, _PER_PIECE_BUILDING) + runtime
    if not gives_back:
        building += model.file_bytes
    return Need(
        weights=copies + pages,
        kv=kv,
        compute=compute,
        output=output,
        overhead=overhead,
        reclaimable=pages,
        loading=max(reading, building),
    )


def gpu_need(
    model: ModelShape, context: ContextShape, *, cached: bool, gpu_layers: int, device: Device, n_gpus: int = 1
) -> Need:
    """What GPUs have to hold together; nothing without layers there.

    llama.cpp puts the output on a GPU before any layer, and copies it there where it is the token embeddings. Products
    of a GPU work in scratch memory: rows of a quantized activation, and at most one matrix and one layer's keys and
    values as float16.
    """
    if gpu_layers == 0:
        return Need()
    on_gpu = min(model.n_layer, gpu_layers - 1)
    output = model.output_bytes
    if model.tied:
        output += next((m.n_bytes for m in model.matrices if m.n_out == model.n_vocab), model.input_bytes)
    largest = max((2 * m.n_in * m.n_out for m in model.matrices if m.n_out != model.n_vocab), default=0)
    one_layer = kv_bytes(model, context.n_ctx, "f16", 1) if cached and context.kv_type != "f16" else 0
    scratch = largest + one_layer + round(_WORK * context.n_ubatch * model.n_ff)
    compute = round(_GPU_MARGIN * reserved_bytes(model, context, cached=cached)) + scratch
    return Need(
        weights=output + sum(model.layer_bytes[model.n_layer - on_gpu :]),
        kv=kv_bytes(model, context.n_ctx, context.kv_type, on_gpu) if cached else 0,
        compute=compute * n_gpus,
        overhead=device.runtime * n_gpus,
    )
