"""One loaded model and its contexts, over llama.cpp's low-level API: packed batches in, raw pooled vectors out.

Three ways lead to a vector, or to the logits of a reranker:

* **rows**: for encoders. llama.cpp hands out the last hidden states of all tokens, and ``pooling.py`` does the rest. A
  text must fit into one ubatch, so the context grows to the longest text seen.
* **pooled**: llama.cpp pools by itself, where a head or Dense layers stand behind the pooling in its graph.
* **hidden**: for decoders, rerankers among them, whose head is in ``head.py``. A ``cb_eval`` callback copies the tensor
  ``result_norm`` (the hidden states after the final norm) and stops the graph there, so the vocabulary projection
  never runs. With last-token pooling only the last token of each text is marked as output, otherwise every token is,
  and the pooling is done here. Where that tensor does not appear, the pooled way is taken instead.

Where tokens look back alone, what several texts of a batch begin with is computed once: its cells in the context's
memory belong to all of their sequences. Beginnings stay there from one batch to the next (``prefixes.py``).

llama.cpp ends the process when a limit is broken, so every limit is checked before the C call (``checks.py``). One
thread owns each context (``owner.py``): calls from any thread are handed to it in order. The context that is made here
is the engine's own; an encoder on the CPU may have further ones over the same weights (``lanes.py``).
"""

from __future__ import annotations

import contextlib
import ctypes
import weakref
from collections.abc import Callable
from dataclasses import replace
from typing import Final

import numpy as np

from edge_embed.batching import alone, sequences
from edge_embed.cancellation import Cancellation
from edge_embed.engine import adapter, bindings
from edge_embed.engine.checks import check_batch
from edge_embed.engine.contexts import make_context
from edge_embed.engine.devices import default_threads
from edge_embed.engine.fits import check_fits
from edge_embed.engine.graph import CBatch, HiddenRows, output_rows, run
from edge_embed.engine.head import logits, read_head
from edge_embed.engine.lane_plan import plan_lanes
from edge_embed.engine.lanes import Lane, Lanes
from edge_embed.engine.loading import return_large_blocks
from edge_embed.engine.memory import Memory
from edge_embed.engine.observe import GraphObserver
from edge_embed.engine.owner import AbortFlag, Handles, Owner, shutdown
from edge_embed.engine.placement import Placement, here, place, say, wanted
from edge_embed.engine.pooling import in_company, pooled
from edge_embed.engine.shape import (
    SEQ_CEILING,
    ContextShape,
    check_kv_type,
    context_shape,
    has_memory,
    shares_prefixes,
    sizes,
    takes_rows,
)
from edge_embed.engine.token_types import PairEmbeddings
from edge_embed.engine.vocabulary import library_ids
from edge_embed.engine.weights import load_weights
from edge_embed.errors import (
    CallCancelledError,
    ComputeError,
    EdgeEmbedError,
    EngineMemoryError,
    InvalidOptionError,
    ModelFileError,
)
from edge_embed.gguf_header import read_header
from edge_embed.types import (
    Batch,
    EngineLimits,
    Float32Array,
    KvType,
    Lora,
    ModelInfo,
)

_LARGEST_BATCH: Final = 4096
# A context that a long text has made this many times larger than what comes now is made small again.
_TOO_LARGE: Final = 8


class LlamaEngine:
    """A model in memory that turns batches into raw pooled vectors.

    Args:
        info: what the model file says of itself; ``info.path`` is loaded.
        n_threads: CPU threads; the usable physical cores by default.
        n_batch: preferred tokens per batch. Above what a further lane may take there is only one (``lane_plan.py``).
        n_ubatch: tokens that the graph is computed for at a time, of a model whose tokens look back alone.
        n_seq_max: most texts per batch, 1 to 252.
        use_extra_bufts: repack weights for AMX and the like; the probe decides this.
        device: where it computes, see ``placement.py``; what EDGE_EMBED_DEVICE says, or ``auto``, by default.
        gpu_layers: layers put on a GPU, the output counted as one; as many as fit, by default.
        low_memory: weights stay pages of the file, which the system may drop and read again; small batches, one lane.
        hidden: False takes the pooled way for causal models too.
        lora: an adapter that is added while the model computes.
        observer: asked about every node of the graph, see ``observe.py``; slower.
        mmap: False reads the file into memory of its own instead of mapping it.
        kv_type: type of the keys and values in the context's memory: ``f16``, or ``q8_0`` in half the memory.
        share_prefixes: whether what texts begin with is computed once, where the model allows it.
        deterministic: each text is computed by itself, so that its vector is the same, bit for bit, whatever else is
            in the call; slower, and needed for models and libraries that do not do so anyway (``pooling.py``).

    Raises:
        EngineUnavailableError: the library is missing or does not fit.
        ModelFileError: the library refused the file.
        EngineMemoryError: the model or its context does not fit, or could not be allocated.
        InvalidOptionError: an option outside its range.
    """

    def __init__(
        self,
        info: ModelInfo,
        *,
        n_threads: int | None = None,
        n_batch: int | None = None,
        n_ubatch: int | None = None,
        n_seq_max: int | None = None,
        use_extra_bufts: bool = True,
        device: str | None = None,
        gpu_layers: int | None = None,
        low_memory: bool = False,
        hidden: bool = True,
        lora: Lora | None = None,
        observer: GraphObserver | None = None,
        mmap: bool = True,
        kv_type: KvType = "f16",
        share_prefixes: bool = True,
        deterministic: bool = False,
    ) -> None:
        usual = sizes(info, low_memory=low_memory)
        self.n_threads = _in_range("n_threads", default_threads() if n_threads is None else n_threads, 1, 512)
        largest = max(info.n_ctx_train, _LARGEST_BATCH)  # attention and outputs grow with it
        n_batch = _in_range("n_batch", usual.n_batch if n_batch is None else n_batch, 1, largest)
        if gpu_layers is not None:
            _in_range("gpu_layers", gpu_layers, -1, 1 << 20)
        self._n_ubatch = _in_range("n_ubatch", usual.n_ubatch if n_ubatch is None else n_ubatch, 1, largest)
        n_seq_max = _in_range("n_seq_max", usual.n_seq_max if n_seq_max is None else n_seq_max, 1, SEQ_CEILING)
        n_seq_max = 1 if deterministic else n_seq_max
        if kv_type != "f16":
            check_kv_type(read_header(info.path), info, kv_type)
        self._kv_type: KvType = kv_type
        if lora is not None:
            adapter.check(lora, read_header(info.path))
        self._info, self._lora, self._observer = info, lora, observer
        self._repacks, self._mmap = use_extra_bufts and not low_memory, mmap
        self._lib = bindings.load()
        self._abort = AbortFlag(self._lib.c)
        self._owner = Owner(self._abort)
        self._capacity = self._made_for = 0
        self._n_threads_now = self.n_threads  # of the batch under way
        self._tokens = False  # whether the context is one for the vectors of tokens
        self._head = read_head(info) if info.causal else None
        types = info.rerank.token_types if info.rerank is not None else None
        self._pair_embeddings = None if types is None else PairEmbeddings(info, types)
        self._has_memory = has_memory(info)
        self.hidden = hidden and self._has_memory and (info.rerank is None or self._head is not None)
        self._every_token = info.pooling in ("mean", "cls")
        self._takes_rows = takes_rows(info)
        self._width = info.n_hidden if info.rerank is None else len(info.rerank.labels)
        # An observer is to see every text whole.
        shares = share_prefixes and usual.share and not deterministic and observer is None
        self._room_to_share = usual.share
        # The second one stays as it is: batches may be on their way.
        self._shares = self._takes_shared = shares and shares_prefixes(info, hidden=self.hidden)
        self._memory = Memory(self._lib.c, n_seq_max)
        self._limits = EngineLimits(
            n_batch=n_batch,
            n_seq_max=n_seq_max,
            n_ctx_max=info.n_ctx_train,
            n_vocab=info.n_vocab,
            shares_prefixes=self._shares,
        )
        self._handles = Handles(self._lib.c)
        self._lanes = Lanes(self.n_threads)
        self._finalizer = weakref.finalize(self, shutdown, self._owner, self._handles, self._lanes.further)
        try:
            asked = wanted(device, gpu_layers, here())
            first = self._shape(n_batch)
            self.placement = place(info, first, asked, gpu_layers)
            self._owner.call(lambda: self._load(first))
        except BaseException:
            self._finalizer()
            raise
        say(self.placement.note)
        if not (self.placement.gpus or low_memory or deterministic or observer is not None):
            plan = plan_lanes(info, n_threads=self.n_threads, n_batch=n_batch, n_seq_max=n_seq_max)
            self._lanes.open(plan, lambda: Lane(self._lib, info, self._handles, lora, n_seq_max))
            self._limits = replace(self._limits, lanes=plan.n)

    # Public

    @property
    def closed(self) -> bool:
        """Whether ``close()`` was called."""
        return not self._finalizer.alive

    @property
    def limits(self) -> EngineLimits:
        """What one batch may carry."""
        return self._limits

    @property
    def device(self) -> str:
        """Where it computes: ``cpu``, or the GPUs that have layers, as users call them."""
        return self.placement.device

    @property
    def gpu_layers(self) -> int:
        """Layers on GPUs, the output counted as one; -1 for all, 0 for none."""
        return self.placement.gpu_layers

    @property
    def n_embd(self) -> int:
        """Size of the vectors, before any Dense layers."""
        return self._info.n_hidden

    def decode(self, batch: Batch, stop: Cancellation | None = None) -> Float32Array:
        """Raw pooled vectors of a batch, float32 ``[n_seqs, n_embd]``, in the batch's order.

        Of a reranker the logits of its outputs, ``[n_seqs, n_labels]``, up to a constant for each pair where there
        are two.

        A text whose values overflow poisons its neighbours and, through stale KV cells, later calls. So non-finite
        rows are looked for, the memory is cleared with its data, and the batch's members run alone: only the guilty
        text's row is NaN in the result.

        Args:
            batch: the texts.
            stop: ends the computation from another thread, or after a while. An interrupt (Ctrl-C) ends it, too.

        Raises:
            InvalidOptionError: the batch breaks a limit.
            EngineMemoryError, ComputeError: the library failed. Where that was a GPU which the CPU may replace, the CPU
                tries first, computes what comes after, too, and a ``DeviceWarning`` says so.
            CallCancelledError, DeadlineExceededError: ``stop`` ended it.
            EngineClosedError: after ``close()``.
        """
        check_batch(batch, self._limits, takes_shared=self._takes_shared)
        with self._lanes.turn(batch) as (lane, n_threads):
            if lane is not None:
                with contextlib.suppress(EngineMemoryError):  # there may be room in the engine's own context
                    rows = lane.owner.call(lambda: self._decode_in(lane, batch, n_threads), stop)
                    if np.isfinite(rows).all():
                        return rows
            return self._call(lambda: self._decode_healed(batch, n_threads), stop, batch)

    def decode_tokens(self, batch: Batch, stop: Cancellation | None = None) -> Float32Array:
        """The last hidden state of every token, float32 ``[n_tokens, n_embd]``, in the batch's order.

        Args:
            batch: texts without ``shared`` tokens.
            stop: as for ``decode``.

        Raises:
            As ``decode``; rows that are not finite are returned as they are.
        """
        check_batch(batch, self._limits, takes_shared=self._takes_shared)
        if batch.shared:
            raise InvalidOptionError("the vectors of tokens are asked for of a batch with shared tokens")
        with self._lanes.first():
            return self._call(lambda: self._decode_tokens(batch), stop, batch, tokens=not self._takes_rows)

    def forget(self) -> None:
        """Be as it was when it was made.

        Beginnings of texts that stay in memory, and a context that grew, move the last digits of what is computed next.

        Raises:
            EngineMemoryError, EngineClosedError: as ``decode``.
        """
        self._lanes.forget()
        self._owner.call(self._start_afresh)

    def tokenize(self, text: str) -> list[int]:
        """Token ids by the library's own tokenizer, none added; special-token text in it is recognized."""
        with self._owner.borrowed():  # on the caller's thread: tokenizing only reads the model
            return library_ids(self._lib, self._handles.model, text)

    def close(self) -> None:
        """Free the model. Calls under way finish first; later ones raise EngineClosedError."""
        self._finalizer()

    def _call(
        self, work: Callable[[], Float32Array], stop: Cancellation | None, batch: Batch, *, tokens: bool = False
    ) -> Float32Array:
        """Work for the engine's own context. Where it fails it is tried once more: with the memory of the other lanes,
        or on the CPU in the place of devices that it may replace."""
        placed = self.placement
        try:
            return self._owner.call(work, stop)
        except (EngineMemoryError, ComputeError) as failure:
            error = failure
        if placed.may_fall_back:
            shape = self._shape(max(batch.n_tokens, self._limits.n_batch), tokens=tokens)
            say(self._owner.call(lambda: self._leave_devices(placed, error, shape)))
        elif not (isinstance(error, EngineMemoryError) and self._lanes.forget()):
            raise error
        return self._owner.call(work, stop)

    def _decode_in(self, lane: Lane, batch: Batch, n_threads: int) -> Float32Array:
        """What a lane computes. It does not know the engine, whose model must stay until it is done: this does."""
        return lane.decode(batch, n_threads)

    # Everything below runs on the thread that owns the engine's own context.

    def _load(self, first: ContextShape) -> None:
        """Load the model where it was placed, or on the CPU where GPUs fail and it may take their place."""
        return_large_blocks()
        try:
            self._load_placed()
        except (ModelFileError, EngineMemoryError) as error:
            if not self.placement.may_fall_back:
                raise
            self._handles.free()
            self._load_on_cpu(first, error)

    def _load_on_cpu(self, first: ContextShape, error: EdgeEmbedError) -> None:
        """Load the model in the place of devices that have failed, and been freed; the placement's note says so."""
        self._capacity = self._made_for = 0
        asked = self.placement.wanted
        self.placement = place(self._info, first, asked.on_cpu(f"{asked.device} failed ({error.message})"))
        self._load_placed()

    def _load_placed(self) -> None:
        self._handles.model = load_weights(
            self._lib, self._info, self.placement, use_extra_bufts=self._repacks, mmap=self._mmap
        )
        if self._lora is not None:
            self._handles.adapter = adapter.load(self._lib, self._handles.model, self._lora)
        self._grow(self._limits.n_batch)

    def _leave_devices(self, failed: Placement, error: EdgeEmbedError, shape: ContextShape) -> str:
        """After an error in the midst of work: have the CPU compute the model from now on, and say so.

        A device that has failed once is not trusted with the next batch, and two copies of a model may not fit.

        Args:
            failed: where the model was when it happened; another call may have left that already.
            error: what happened. It is raised, and all stays as it is, where the CPU has no room either.
            shape: the context that the CPU needs for the same.

        Raises:
            EdgeEmbedError: that one; or why the model cannot be loaded again, and then the engine is closed.
        """
        if self.placement is not failed:
            return ""
        try:  # what shares the machine's memory holds the weights there already
            check_fits(self._info, shape, loaded=all(gpu.shares_memory for gpu in failed.gpus))
        except EngineMemoryError:
            raise error from None
        try:
            with self._owner.undisturbed():
                self._handles.free()
                self._load_on_cpu(self._shape(self._limits.n_batch), error)
        except BaseException:
            self._finalizer()
            raise
        return self.placement.note

    def _shape(self, n_tokens: int, *, tokens: bool = False) -> ContextShape:
        return context_shape(
            self._info,
            n_tokens=n_tokens,
            n_seq_max=self._limits.n_seq_max,
            n_ubatch=self._n_ubatch,
            hidden=self.hidden,
            tokens=tokens,
            kv_type=self._kv_type,
            share=self._room_to_share,
        )

    def _grow(self, n_tokens: int, *, tokens: bool = False) -> None:
        """Make a context for batches of ``n_tokens``, in place of the present one.

        Args:
            n_tokens: most tokens of a batch.
            tokens: whether the vectors of all tokens are asked for.
        """
        shape, handles = self._shape(n_tokens, tokens=tokens), self._handles
        handles.free_context()
        self._capacity, self._tokens = 0, tokens
        self._memory.detach()
        check_fits(self._info, shape, gpu_layers=self.gpu_layers, loaded=True)
        callback = None
        if self.hidden:
            self._rows = HiddenRows(self._lib, self._info.n_hidden)
            callback = self._rows.callback
        if self._observer is not None:
            callback = self._observer.attach(self._lib, self._rows.observe if self.hidden else None)
        handles.context = make_context(
            self._lib, self._info, handles, shape, self._abort, n_threads=self.n_threads, lora=self._lora,
            callback=callback,
        )  # fmt: skip
        self._capacity, self._made_for = shape.n_ctx, n_tokens
        self._memory.attach(handles.context, shape.n_ctx)

    def _fit(self, n_tokens: int, *, tokens: bool = False) -> None:
        """Have a context for a batch of ``n_tokens``: a larger one if need be, a smaller one after a long text."""
        wanted = max(n_tokens, self._limits.n_batch)
        if n_tokens > self._capacity or tokens != self._tokens or self._made_for > _TOO_LARGE * wanted:
            self._grow(wanted, tokens=tokens)

    def _start_afresh(self) -> None:
        if self._tokens or self._made_for != self._limits.n_batch:
            self._grow(self._limits.n_batch)
        else:
            self._memory.clear(data=False)

    def _decode_healed(self, batch: Batch, n_threads: int) -> Float32Array:
        self._n_threads_now = n_threads
        rows = self._decode(batch)
        if np.isfinite(rows).all():
            return rows
        self._memory.clear(data=True)
        for row, single in enumerate(alone(batch)):
            rows[row] = self._decode(single)[0] if batch.n_seqs > 1 else rows[row]
            if not np.isfinite(rows[row]).all():
                rows[row] = np.nan
                self._memory.clear(data=True)
        return rows

    def _decode(self, batch: Batch) -> Float32Array:
        if batch.shared and not self._shares:
            return np.concatenate([self._decode(single) for single in alone(batch)])
        self._fit(batch.n_tokens)
        if self._takes_rows:
            return pooled(self._token_rows(batch), batch.lengths, self._info.pooling)
        texts = sequences(batch) if self._shares else []
        warm = self._memory.warm(batch, texts)
        embeddings = None
        if batch.second is not None and self._pair_embeddings is not None:
            embeddings = self._pair_embeddings(batch.token_ids, batch.second)
        self._run(CBatch(self._lib.c, batch, warm, embeddings, last_only=self.hidden and not self._every_token))
        if not self.hidden:
            return self._pooled_rows(batch.n_seqs)
        rows = self._rows.take()
        if self._every_token and len(rows) == batch.n_tokens:
            return pooled(rows, batch.lengths, self._info.pooling)
        if len(rows) == batch.n_seqs and not self._every_token:
            if self._shares:
                self._memory.keep(batch, texts)
            return rows if self._head is None else logits(rows, self._head)
        self.hidden = self._shares = False  # no result_norm in this architecture's graph: let llama.cpp pool
        self._limits = replace(self._limits, shares_prefixes=False)
        self._grow(batch.n_tokens)
        return self._decode(batch)

    def _decode_tokens(self, batch: Batch) -> Float32Array:
        self._n_threads_now = self.n_threads
        self._fit(batch.n_tokens, tokens=not self._takes_rows)
        self._memory.clear(data=False)
        rows = self._token_rows(batch)
        if not np.isfinite(rows).all():
            self._memory.clear(data=True)
        return rows

    def _token_rows(self, batch: Batch) -> Float32Array:
        """The last hidden state of every token, float32 ``[n_tokens, n_embd]``, of a context made for that."""
        whole = in_company(batch) if self._takes_rows else batch
        self._run(CBatch(self._lib.c, whole, [0] * whole.n_seqs, None, last_only=False))
        if self.hidden:
            rows = self._rows.take()
        else:
            rows = output_rows(self._lib, self._handles.context, batch.n_tokens, self._info.n_hidden)
        if len(rows) != batch.n_tokens:
            raise ComputeError(f"the engine gave {len(rows)} vectors for {batch.n_tokens} tokens")
        return rows

    def _run(self, packed: CBatch) -> None:
        """Compute a batch; the memory is cleared where that fails."""
        if self.hidden:
            self._rows.clear()
        context, n_threads = self._handles.context, self._n_threads_now
        self._lib.c.llama_set_n_threads(context, n_threads, n_threads)
        try:
            run(self._lib, context, packed)
        except (CallCancelledError, EngineMemoryError, ComputeError):
            self._memory.clear(data=True)
            raise

    def _pooled_rows(self, n_seqs: int) -> Float32Array:
        rows = np.empty((n_seqs, self._width), dtype=np.float32)
        for seq in range(n_seqs):
            pointer = self._lib.c.llama_get_embeddings_seq(self._handles.context, seq)
            if not pointer:
                raise ComputeError(f"the engine gave no vector for text {seq} of the batch")
            ctypes.memmove(rows[seq].ctypes.data, pointer, rows.strides[0])
        if self._info.rerank is not None and self._info.causal:  # llama.cpp ends qwen3's head with a softmax
            rows = np.log(np.maximum(rows, np.finfo(np.float32).tiny))
        return rows


def _in_range(name: str, value: int, low: int, high: int) -> int:
    if type(value) is not int or not low <= value <= high:
        raise InvalidOptionError(f"{name} is {value!r}", hint=f"give an integer from {low} to {high}")
    return value
