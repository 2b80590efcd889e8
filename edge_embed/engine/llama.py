"""One loaded model and its context, over llama.cpp's low-level API: packed batches in, raw pooled vectors out.

Two ways lead to a vector, or to the logits of a reranker:

* **pooled**: llama.cpp pools by itself (encoders). A text must fit into one ubatch, so the context grows to the longest
  text seen.
* **hidden**: for decoders, rerankers among them, whose head is in ``head.py``. A ``cb_eval`` callback copies the tensor
  ``result_norm`` (the hidden states after the final norm) and stops the graph there, so the vocabulary projection
  never runs. With last-token pooling only the last token of each text is marked as output, otherwise every token is,
  and the pooling is done here. Where that tensor does not appear, the pooled way is taken instead.

llama.cpp ends the process when a limit is broken, so every limit is checked here before the C call. One thread owns
the model: calls from any thread are handed to it in order.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import threading
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Final, TypeVar

import numpy as np

from edge_embed.architectures import DECODERS
from edge_embed.batching import alone
from edge_embed.engine import adapter, bindings
from edge_embed.engine.devices import default_threads
from edge_embed.engine.head import read_head
from edge_embed.engine.observe import GraphObserver
from edge_embed.engine.token_types import PairEmbeddings
from edge_embed.errors import (
    ComputeError,
    EngineClosedError,
    EngineMemoryError,
    EngineUnavailableError,
    InvalidOptionError,
    ModelFileError,
)
from edge_embed.gguf_header import read_header
from edge_embed.types import Batch, EngineLimits, Float32Array, Int32Array, Lora, ModelInfo, Pooling

T = TypeVar("T")

# llama.h
_POOLING_ID: Final = {"none": 0, "mean": 1, "cls": 2, "last": 3, "rank": 4}
_FLASH_ATTN_ENABLED, _FLASH_ATTN_AUTO = 1, -1
# The hidden states behind the final norm: the second where every token is an output and nothing is pooled.
_HIDDEN_NAMES: Final = (b"result_norm", b"result_embd_pooled")
_LOAD_MODE_NONE: Final = 0  # neither mapped nor locked
_ROW: Final = 256  # llama.cpp rounds a context up to this many cells

# Tokens of a batch: measured for MiniLM, where 256 to 512 are alike and fewer or more are slower; a causal model of
# billions of weights wants its weights read less often.
_BATCH_ENCODER, _BATCH_CAUSAL = 384, 512
# Most texts of a batch. llama.cpp sizes its output buffer as this times the vocabulary, even if it is never used:
# 64 rows of a 151,936-token vocabulary are 39 MB. Its own ceiling is 256.
_SEQ_MAX = 64
_SEQ_CEILING = 256
_UBATCH_CAUSAL = 512
_LARGEST_BATCH = 4096


class LlamaEngine:
    """A model in memory that turns batches into raw pooled vectors.

    Args:
        info: what the model file says of itself; ``info.path`` is loaded.
        n_threads: CPU threads; the usable physical cores by default.
        n_batch: preferred tokens per batch.
        n_seq_max: most texts per batch, 1 to 256.
        use_extra_bufts: repack weights for AMX and the like; the probe decides this.
        gpu_layers: layers put on a GPU; all where the library supports one, by default.
        hidden: False takes the pooled way for causal models too.
        lora: an adapter that is added while the model computes.
        observer: asked about every node of the graph, see ``observe.py``; slower.
        mmap: False reads the file into memory of its own instead of mapping it.

    Raises:
        EngineUnavailableError: the library is missing or does not fit.
        ModelFileError: the library refused the file.
        EngineMemoryError: the context could not be allocated.
        InvalidOptionError: an option outside its range.
    """

    def __init__(
        self,
        info: ModelInfo,
        *,
        n_threads: int | None = None,
        n_batch: int | None = None,
        n_seq_max: int = _SEQ_MAX,
        use_extra_bufts: bool = True,
        gpu_layers: int | None = None,
        hidden: bool = True,
        lora: Lora | None = None,
        observer: GraphObserver | None = None,
        mmap: bool = True,
    ) -> None:
        default_batch = _BATCH_CAUSAL if info.causal else _BATCH_ENCODER
        self.n_threads = _in_range("n_threads", default_threads() if n_threads is None else n_threads, 1, 512)
        largest = max(info.n_ctx_train, _LARGEST_BATCH)  # attention and outputs grow with it
        n_batch = _in_range("n_batch", default_batch if n_batch is None else n_batch, 1, largest)
        if gpu_layers is not None:
            _in_range("gpu_layers", gpu_layers, -1, 1 << 20)
        n_seq_max = _in_range("n_seq_max", n_seq_max, 1, _SEQ_CEILING)
        if lora is not None:
            adapter.check(lora, read_header(info.path))
        self._info, self._lora, self._observer = info, lora, observer
        self._lib = bindings.load()
        self._owner = _Owner()
        self._capacity = 0
        self._context: Any = None
        self._head = read_head(info) if info.causal else None
        types = info.rerank.token_types if info.rerank is not None else None
        self._pair_embeddings = None if types is None else PairEmbeddings(info, types)
        self._has_memory = info.architecture in DECODERS
        self.hidden = hidden and self._has_memory and (info.rerank is None or self._head is not None)
        self._every_token = info.pooling in ("mean", "cls")
        self._width = info.n_hidden if info.rerank is None else len(info.rerank.labels)
        self._limits = EngineLimits(
            n_batch=n_batch,
            n_seq_max=n_seq_max,
            n_ctx_max=info.n_ctx_train,
            n_vocab=info.n_vocab,
        )
        self._handles = _Handles(self._lib.c)
        self._finalizer = weakref.finalize(self, _shutdown, self._owner, self._handles)
        try:
            self._owner.call(lambda: self._load(use_extra_bufts, gpu_layers, mmap))
        except BaseException:
            self._finalizer()
            raise

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
    def n_embd(self) -> int:
        """Size of the vectors, before any Dense layers."""
        return self._info.n_hidden

    def decode(self, batch: Batch) -> Float32Array:
        """Raw pooled vectors of a batch, float32 ``[n_seqs, n_embd]``, in the batch's order.

        Of a reranker the logits of its outputs, ``[n_seqs, n_labels]``, up to a constant for each pair where there
        are two.

        A text whose values overflow poisons its neighbours and, through stale KV cells, later calls. So non-finite
        rows are looked for, the memory is cleared with its data, and the batch's members run alone: only the guilty
        text's row is NaN in the result.

        Raises:
            InvalidOptionError: the batch breaks a limit.
            EngineMemoryError, ComputeError: the library failed.
            EngineClosedError: after ``close()``.
        """
        self._check(batch)
        return self._owner.call(lambda: self._decode_healed(batch))

    def tokenize(self, text: str) -> list[int]:
        """Token ids by the library's own tokenizer, none added; special-token text in it is recognized."""
        raw = text.encode()
        c, size = self._lib.c, len(raw) + 2
        with self._owner.borrowed():  # on the caller's thread: tokenizing only reads the model
            vocab = c.llama_model_get_vocab(self._handles.model)
            while True:
                ids = (ctypes.c_int32 * size)()
                n = c.llama_tokenize(vocab, raw, len(raw), ids, size, False, True)
                if n >= 0:
                    return ids[:n]
                if n == -(1 << 31):
                    raise InvalidOptionError("the text is too long to be tokenized", hint="split it")
                size = -n

    def close(self) -> None:
        """Free the model. Calls under way finish first; later ones raise EngineClosedError."""
        self._finalizer()

    # Everything below runs on the owning thread, except the checks.

    def _load(self, use_extra_bufts: bool, gpu_layers: int | None, mmap: bool) -> None:
        c = self._lib.c
        params = c.llama_model_default_params()
        params.use_extra_bufts = use_extra_bufts
        if not mmap:
            params.load_mode = _LOAD_MODE_NONE
        params.n_gpu_layers = (-1 if c.llama_supports_gpu_offload() else 0) if gpu_layers is None else gpu_layers
        bindings.last_complaint()
        model = c.llama_model_load_from_file(os.fsencode(self._info.path), params)
        if not model:
            raise ModelFileError(
                f"the engine refused {self._info.path}: {bindings.last_complaint() or 'no reason given'}",
                hint="convert or download the model again",
            )
        self._handles.model = model
        found = (c.llama_model_n_embd_out(model), c.llama_vocab_n_tokens(c.llama_model_get_vocab(model)))
        if found != (self._info.n_hidden, self._info.n_vocab):
            raise ModelFileError(
                f"{self._info.path}: the engine sees vectors of {found[0]} and {found[1]} tokens, "
                f"the metadata says {self._info.n_hidden} and {self._info.n_vocab}"
            )
        if self._info.rerank is not None and c.llama_model_n_cls_out(model) != self._width:
            raise ModelFileError(
                f"{self._info.path}: the engine sees a head of {c.llama_model_n_cls_out(model)} outputs, "
                f"the metadata says {self._width}"
            )
        if self._lora is not None:
            self._handles.adapter = adapter.load(self._lib, model, self._lora)
        self._grow(self._limits.n_batch)

    def _grow(self, n_tokens: int) -> None:
        """Make a context that holds ``n_tokens``, in place of the present one."""
        capacity = max(-(-n_tokens // _ROW) * _ROW, self._limits.n_seq_max)
        c, handles = self._lib.c, self._handles
        handles.free_context()
        self._capacity = 0
        params = c.llama_context_default_params()
        params.n_ctx = params.n_batch = capacity
        # llama.cpp pools, and looks ahead, within one ubatch only.
        params.n_ubatch = min(capacity, _UBATCH_CAUSAL) if self.hidden and self._info.causal else capacity
        params.n_seq_max = self._limits.n_seq_max
        params.n_threads = params.n_threads_batch = self.n_threads
        params.no_perf = True
        params.embeddings = not self.hidden or self._every_token  # makes every token an output
        params.pooling_type = _POOLING_ID["none" if self.hidden else self._info.pooling]
        if self._has_memory:
            params.kv_unified = True
        if self.hidden:
            if not self._every_token:
                params.n_outputs_max = self._limits.n_seq_max
            self._rows = _HiddenRows(self._lib, self._info.n_hidden)
            params.cb_eval = self._rows.callback
        if self._observer is not None:
            params.cb_eval = self._observer.attach(self._lib, self._rows.observe if self.hidden else None)
        for flash in (_FLASH_ATTN_ENABLED, _FLASH_ATTN_AUTO):
            params.flash_attn_type = flash
            bindings.last_complaint()
            handles.context = c.llama_init_from_model(handles.model, params)
            if handles.context:
                if self._lora is not None:
                    adapter.apply(self._lib, handles.context, handles.adapter, self._lora)
                self._capacity = capacity
                return
        raise EngineMemoryError(
            f"no memory for a context of {capacity} tokens: {bindings.last_complaint() or 'no reason given'}",
            hint="lower n_batch (--batch-tokens) or max_tokens, shorten the texts, or use a smaller model",
        )

    def _decode_healed(self, batch: Batch) -> Float32Array:
        rows = self._decode(batch)
        if np.isfinite(rows).all():
            return rows
        self._clear(data=True)
        for row, single in enumerate(alone(batch)):
            rows[row] = self._decode(single)[0] if batch.n_seqs > 1 else rows[row]
            if not np.isfinite(rows[row]).all():
                rows[row] = np.nan
                self._clear(data=True)
        return rows

    def _decode(self, batch: Batch) -> Float32Array:
        if batch.n_tokens > self._capacity:
            self._grow(batch.n_tokens)
        self._clear(data=False)
        if self.hidden:
            self._rows.clear()
        bindings.last_complaint()
        embeddings = None
        if batch.second is not None and self._pair_embeddings is not None:
            embeddings = self._pair_embeddings(batch.token_ids, batch.second)
        # It owns the arrays that the structure points to.
        packed = _CBatch(self._lib.c, batch, embeddings, last_only=self.hidden and not self._every_token)
        code = self._lib.c.llama_decode(self._handles.context, packed.struct)
        if code in (1, -2):
            raise EngineMemoryError(
                f"no memory for a batch of {batch.n_tokens} tokens: {bindings.last_complaint() or f'code {code}'}",
                hint="lower n_batch or max_tokens",
            )
        if code != 0:
            raise ComputeError(f"the engine returned code {code}: {bindings.last_complaint() or 'no reason given'}")
        if not self.hidden:
            return self._pooled_rows(batch.n_seqs)
        rows = self._rows.take()
        if self._every_token and len(rows) == batch.n_tokens:
            return _pooled(rows, batch.lengths, self._info.pooling)
        if len(rows) == batch.n_seqs and not self._every_token:
            return rows if self._head is None else _product(rows, self._head)
        self.hidden = False  # no result_norm in this architecture's graph: let llama.cpp pool
        self._grow(batch.n_tokens)
        return self._decode(batch)

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

    def _clear(self, *, data: bool) -> None:
        memory = self._lib.c.llama_get_memory(self._handles.context)
        if memory:  # encoders have none
            self._lib.c.llama_memory_clear(memory, data)

    def _check(self, batch: Batch) -> None:
        limits = self._limits
        lengths, ids = batch.lengths, batch.token_ids
        if ids.dtype != np.int32 or lengths.dtype != np.int32 or ids.ndim != 1 or lengths.ndim != 1:
            raise InvalidOptionError("token_ids and lengths must be int32 vectors")
        if batch.second is not None and (batch.second.dtype != np.bool_ or batch.second.shape != ids.shape):
            raise InvalidOptionError("second must be a bool for each token")
        if not 1 <= batch.n_seqs <= limits.n_seq_max:
            raise InvalidOptionError(f"a batch of {batch.n_seqs} texts, expected 1 to {limits.n_seq_max}")
        if (
            lengths.min() < 1
            or int(lengths.sum(dtype=np.int64)) != batch.n_tokens
            or len(batch.indices) != len(lengths)
        ):
            raise InvalidOptionError("the lengths of a batch do not add up to its tokens")
        if lengths.max() > limits.n_ctx_max:
            raise InvalidOptionError(f"a text of {lengths.max()} tokens, the model holds {limits.n_ctx_max}")
        if batch.n_seqs > 1 and batch.n_tokens > limits.n_batch:
            raise InvalidOptionError(f"a batch of {batch.n_tokens} tokens, expected at most {limits.n_batch}")
        if ids.min() < 0 or ids.max() >= limits.n_vocab:
            raise InvalidOptionError(f"a token id outside 0 to {limits.n_vocab - 1}")


class _HiddenRows:
    """Collects the rows of the last hidden states as the graph produces them, and ends the graph there."""

    def __init__(self, lib: bindings.Bindings, n_embd: int) -> None:
        self._chunks: list[Float32Array] = []
        self._n_embd = n_embd
        chunks, ggml = self._chunks, lib.ggml

        def observe(tensor: int, ask: bool, _: Any) -> bool:
            if ask:
                return ggml.ggml_get_name(tensor) in _HIDDEN_NAMES
            n_bytes = ggml.ggml_nbytes(tensor)
            rows = np.empty((n_bytes // (4 * n_embd), n_embd), dtype=np.float32)
            if rows.nbytes == n_bytes:
                ggml.ggml_backend_tensor_get(tensor, rows.ctypes.data, 0, n_bytes)
                chunks.append(rows)
            return False

        self.observe = observe
        self.callback = lib.c.ggml_backend_sched_eval_callback(observe)

    def clear(self) -> None:
        self._chunks.clear()

    def take(self) -> Float32Array:
        rows = np.concatenate(self._chunks) if self._chunks else np.empty((0, self._n_embd), dtype=np.float32)
        self._chunks.clear()
        return rows


class _CBatch:
    """A ``llama_batch`` whose arrays are NumPy's; keep it alive during the call. Embeddings take the ids' place."""

    def __init__(self, c: Any, batch: Batch, embeddings: Float32Array | None, *, last_only: bool) -> None:
        n, lengths = batch.n_tokens, batch.lengths
        ends = np.cumsum(lengths)
        sequence = np.repeat(np.arange(batch.n_seqs, dtype=np.int64), lengths)
        self.input = np.ascontiguousarray(batch.token_ids) if embeddings is None else embeddings
        self.pos = (np.arange(n) - np.repeat(ends - lengths, lengths)).astype(np.int32)
        self.n_seq_id = np.ones(n, dtype=np.int32)
        self.names = np.arange(batch.n_seqs, dtype=np.int32)
        self.seq_id = (self.names.ctypes.data + 4 * sequence).astype(np.uintp)  # a pointer to its name for each token
        self.output = np.zeros(n, dtype=np.int8)
        self.output[ends - 1 if last_only else slice(None)] = 1
        self.struct = c.llama_batch()
        self.struct.n_tokens = n
        for name, array in (
            ("token" if embeddings is None else "embd", self.input),
            ("pos", self.pos),
            ("n_seq_id", self.n_seq_id),
            ("seq_id", self.seq_id),
            ("logits", self.output),
        ):
            kind = dict(c.llama_batch._fields_)[name]
            setattr(self.struct, name, ctypes.cast(array.ctypes.data, kind))


class _Handles:
    """The C objects, freed in the right order, once."""

    def __init__(self, c: Any) -> None:
        self._c = c
        self.model: Any = None
        self.adapter: Any = None  # freed with the model
        self.context: Any = None

    def free_context(self) -> None:
        if self.context:
            self._c.llama_free(self.context)
            self.context = None

    def free(self) -> None:
        self.free_context()
        if self.model:
            self._c.llama_model_free(self.model)
            self.model = None


class _Owner:
    """The one thread that touches the model. OpenMP keeps a team of workers for each thread that calls it, so
    handing all calls to one thread also keeps the number of native threads constant."""

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix="edge-embed-engine")
        self._thread = self._pool.submit(threading.get_ident).result()
        self._pid = os.getpid()
        self._lock = threading.Condition()
        self._borrowers = 0
        self.closed = False

    def call(self, work: Callable[[], T]) -> T:
        self._check_process()
        with self._lock:
            self._check_open()
            future: Future[T] = self._pool.submit(work)
        return future.result()

    @contextlib.contextmanager
    def borrowed(self) -> Iterator[None]:
        """The model stays in memory inside the block, for reading it on any thread."""
        self._check_process()
        with self._lock:
            self._check_open()
            self._borrowers += 1
        try:
            yield
        finally:
            with self._lock:
                self._borrowers -= 1
                self._lock.notify_all()

    def _check_process(self) -> None:
        if os.getpid() != self._pid:
            raise EngineUnavailableError(
                "the engine belongs to another process",
                hint="make the Embedder after forking, one in each process",
            )

    def _check_open(self) -> None:
        if self.closed:
            raise EngineClosedError("the engine is closed", hint="make a new Embedder")

    def close(self, last: Callable[[], None]) -> None:
        if os.getpid() != self._pid:
            return  # a forked child: the parent owns the memory, and perhaps held the lock when it forked
        with self._lock:
            if self.closed:
                return
            self.closed = True
            self._lock.wait_for(lambda: self._borrowers == 0)
            if (
                threading.get_ident() == self._thread
            ):  # a finished call held the last reference: it cannot wait for itself
                last()
                self._pool.shutdown(wait=False)
                return
            future = None
            with contextlib.suppress(RuntimeError):  # the interpreter is ending and its pools are shut: free from here
                future = self._pool.submit(last)
        if future is not None:
            future.result()
        else:
            last()
        self._pool.shutdown(wait=True)


def _pooled(rows: Float32Array, lengths: Int32Array, pooling: Pooling) -> Float32Array:
    """The mean of each text's rows, or the first of them."""
    starts = np.cumsum(lengths) - lengths
    if pooling == "cls":
        first: Float32Array = rows[starts]
        return first
    with np.errstate(all="ignore"):  # what overflows is looked for by the caller
        sums = np.add.reduceat(rows, starts, axis=0, dtype=np.float64)
        means: Float32Array = (sums / lengths[:, None]).astype(np.float32)
    return means


def _product(rows: Float32Array, head: Float32Array) -> Float32Array:
    with np.errstate(all="ignore"):  # what overflows is looked for by the caller
        result: Float32Array = rows @ head.T
    return result


def _shutdown(owner: _Owner, handles: _Handles) -> None:
    owner.close(handles.free)


def _in_range(name: str, value: int, low: int, high: int) -> int:
    if type(value) is not int or not low <= value <= high:
        raise InvalidOptionError(f"{name} is {value!r}", hint=f"give an integer from {low} to {high}")
    return value
