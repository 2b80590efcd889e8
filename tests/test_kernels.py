"""The kernels of ``engine/native`` against NumPy, through ggml's own graph: sizes, masks and layouts that models use.

A library without them (a stock build, another processor) passes too, but rounds more.
"""

from __future__ import annotations

import ctypes
import itertools
from ctypes import c_bool, c_char_p, c_float, c_int, c_int64, c_size_t, c_void_p
from functools import cache
from typing import Any

import numpy as np
import pytest
from gguf import GGMLQuantizationType, quants
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_embed.convert.blocks import ggml
from edge_embed.engine import bindings
from edge_embed.engine.report import compiled_features

F32, F16 = 0, 1  # ggml.h, enum ggml_type


class InitParams(ctypes.Structure):
    """``struct ggml_init_params``."""

    _fields_ = (("mem_size", c_size_t), ("mem_buffer", c_void_p), ("no_alloc", c_bool))


@cache
def libraries() -> tuple[Any, Any]:
    """libggml-base and libggml-cpu, with the signatures that are used here."""
    lib = bindings.load()
    folder = lib.library.parent
    base = ctypes.CDLL(str(bindings.library_file(folder, "ggml-base")))
    variants = [folder / name for name in lib.backends if "ggml-cpu-" in name]  # of a build for any processor
    cpu = ctypes.CDLL(str(*variants or [bindings.library_file(folder, "ggml-cpu")]))
    pointers = [c_void_p] * 5
    for library, name, result, arguments in (
        (base, "ggml_init", c_void_p, [InitParams]),
        (base, "ggml_free", None, [c_void_p]),
        (base, "ggml_new_tensor_4d", c_void_p, [c_void_p, c_int, c_int64, c_int64, c_int64, c_int64]),
        (base, "ggml_permute", c_void_p, [c_void_p, c_void_p, c_int, c_int, c_int, c_int]),
        (base, "ggml_flash_attn_ext", c_void_p, [*pointers, c_float, c_float, c_float]),
        (base, "ggml_gelu", c_void_p, [c_void_p, c_void_p]),
        (base, "ggml_mul_mat", c_void_p, [c_void_p, c_void_p, c_void_p]),
        (base, "ggml_new_graph", c_void_p, [c_void_p]),
        (base, "ggml_build_forward_expand", None, [c_void_p, c_void_p]),
        (base, "ggml_backend_alloc_ctx_tensors", c_void_p, [c_void_p, c_void_p]),
        (base, "ggml_backend_alloc_ctx_tensors_from_buft", c_void_p, [c_void_p, c_void_p]),
        (base, "ggml_backend_buft_name", c_char_p, [c_void_p]),
        (base, "ggml_backend_reg_dev_get", c_void_p, [c_void_p, c_size_t]),
        (base, "ggml_backend_reg_get_proc_address", c_void_p, [c_void_p, c_char_p]),
        (base, "ggml_backend_buffer_free", None, [c_void_p]),
        (base, "ggml_backend_tensor_set", None, [c_void_p, c_void_p, c_size_t, c_size_t]),
        (base, "ggml_backend_tensor_get", None, [c_void_p, c_void_p, c_size_t, c_size_t]),
        (base, "ggml_backend_graph_compute", c_int, [c_void_p, c_void_p]),
        (base, "ggml_backend_free", None, [c_void_p]),
        (cpu, "ggml_backend_cpu_reg", c_void_p, []),
        (cpu, "ggml_backend_cpu_init", c_void_p, []),
        (cpu, "ggml_backend_cpu_set_n_threads", None, [c_void_p, c_int]),
    ):
        function = getattr(library, name)
        function.restype, function.argtypes = result, arguments
    return base, cpu


def tolerance(n_queries: int = 40, *sizes: int) -> float:
    """Our kernel computes in float32. ggml's own, which takes the rest, rounds queries and some sums to float16."""
    ours = hasattr(libraries()[1], "_ZN10edge_embed9attentionEPK11ggml_tensor")
    return 2e-5 if ours and n_queries >= 4 and all(size % 16 == 0 and size <= 256 for size in sizes) else 1e-2


class Graph:
    """Tensors by their NumPy arrays (row-major, four dimensions), and one operation."""

    def __init__(self) -> None:
        self.ggml, self.cpu = libraries()
        self.context = self.ggml.ggml_init(InitParams(1 << 20, None, True))
        self.inputs: list[tuple[int, np.ndarray]] = []

    def tensor(self, array: np.ndarray) -> int:
        kind = {np.dtype(np.float32): F32, np.dtype(np.float16): F16}[array.dtype]
        tensor: int = self.ggml.ggml_new_tensor_4d(self.context, kind, *reversed(array.shape))
        self.inputs.append((tensor, np.ascontiguousarray(array)))
        return tensor

    def compute(self, result: int, shape: tuple[int, ...], threads: int) -> np.ndarray:
        graph = self.ggml.ggml_new_graph(self.context)
        self.ggml.ggml_build_forward_expand(graph, result)
        backend = self.cpu.ggml_backend_cpu_init()
        self.cpu.ggml_backend_cpu_set_n_threads(backend, threads)
        buffer = self.ggml.ggml_backend_alloc_ctx_tensors(self.context, backend)
        for tensor, array in self.inputs:
            self.ggml.ggml_backend_tensor_set(tensor, array.ctypes.data, 0, array.nbytes)
        assert self.ggml.ggml_backend_graph_compute(backend, graph) == 0
        values = np.empty(shape, dtype=np.float32)
        self.ggml.ggml_backend_tensor_get(result, values.ctypes.data, 0, values.nbytes)
        self.ggml.ggml_backend_buffer_free(buffer)
        self.ggml.ggml_backend_free(backend)
        self.ggml.ggml_free(self.context)
        return values


def attention(
    q: np.ndarray, k: np.ndarray, v: np.ndarray, mask: np.ndarray | None, scale: float, threads: int
) -> np.ndarray:
    """ggml's flash attention; ``[heads, tokens, size]`` arrays, laid out token by token as models have them."""
    graph = Graph()
    # Models keep [tokens, heads, size] and show it to the operation with two axes exchanged.
    views = [
        graph.ggml.ggml_permute(graph.context, graph.tensor(x.transpose(1, 0, 2)[None]), 0, 2, 1, 3) for x in (q, k, v)
    ]
    masked = None if mask is None else graph.tensor(mask[None, None])
    result = graph.ggml.ggml_flash_attn_ext(graph.context, *views, masked, scale, 0.0, 0.0)
    heads, tokens, size = q.shape[0], q.shape[1], v.shape[2]
    return graph.compute(result, (tokens, heads, size), threads).transpose(1, 0, 2)


def expected_attention(q: np.ndarray, k: np.ndarray, v: np.ndarray, mask: np.ndarray | None, scale: float) -> Any:
    """softmax(scale q k' + mask) v in float64; a query that sees nothing gets zeros."""
    shared = q.shape[0] // k.shape[0]
    k, v = (np.repeat(x.astype(np.float64), shared, axis=0) for x in (k, v))
    scores = scale * q.astype(np.float64) @ k.transpose(0, 2, 1)
    if mask is not None:
        scores = scores + mask.astype(np.float64)[None, : q.shape[1], : k.shape[1]]
    largest = np.maximum(scores.max(axis=2, keepdims=True), -1e300)
    weights = np.exp(scores - largest)
    total = weights.sum(axis=2, keepdims=True)
    return np.where(total > 0, weights / np.where(total > 0, total, 1) @ v, 0)


def texts_mask(lengths: list[int], causal: bool, prefix: int, window: int) -> np.ndarray:
    """Each text sees itself and a common prefix; causal texts look back only, and no further than ``window``."""
    owner = np.repeat(np.arange(len(lengths)), lengths)
    position = np.concatenate([np.arange(n) for n in lengths])
    own = owner[:, None] == owner[None, :]
    if causal:
        own &= position[:, None] >= position[None, :]
    if window:
        own &= np.abs(position[:, None] - position[None, :]) < window
    seen = np.concatenate([np.ones((len(owner), prefix), dtype=bool), own], axis=1)
    return np.where(seen, 0, -np.inf).astype(np.float16)


@settings(max_examples=60)
@given(
    lengths=st.lists(st.integers(1, 70), min_size=1, max_size=8),
    causal=st.booleans(),
    prefix=st.sampled_from([0, 0, 5, 40, 150]),
    window=st.sampled_from([0, 0, 3, 33]),
    heads=st.sampled_from([(1, 1), (3, 3), (4, 2), (6, 1), (8, 2), (40, 2)]),
    sizes=st.sampled_from([(32, 32), (64, 64), (128, 128), (48, 16), (40, 40), (80, 96), (256, 256), (272, 32)]),
    kind=st.sampled_from([np.float16, np.float32]),
    threads=st.integers(1, 3),
)
def test_attention_of_packed_texts(
    lengths: list[int],
    causal: bool,
    prefix: int,
    window: int,
    heads: tuple[int, int],
    sizes: tuple[int, int],
    kind: Any,
    threads: int,
) -> None:
    random = np.random.default_rng(len(lengths))
    mask = texts_mask(lengths, causal, prefix, window)
    n, n_keys = mask.shape
    q = random.standard_normal((heads[0], n, sizes[0])).astype(np.float32)
    k = random.standard_normal((heads[1], n_keys, sizes[0])).astype(kind)
    v = random.standard_normal((heads[1], n_keys, sizes[1])).astype(kind)
    found = attention(q, k, v, mask, sizes[0] ** -0.5, threads)
    np.testing.assert_allclose(found, expected_attention(q, k, v, mask, sizes[0] ** -0.5), atol=tolerance(n, *sizes))


@pytest.mark.parametrize("order", ["in a row", "scattered"])
def test_attention_over_a_memory_that_holds_other_texts(order: str) -> None:
    """Queries of two texts see a common prefix and their own cells, with those of others in between."""
    random = np.random.default_rng(0)
    n_keys, lengths = 1000, [37, 5]
    cells = random.permutation(n_keys) if order == "scattered" else np.arange(n_keys)
    prefix, own = cells[:70], [cells[400:437], cells[900:905]]
    mask = np.full((sum(lengths), n_keys), -np.inf, dtype=np.float16)
    mask[:, prefix] = 0
    for text, first in enumerate(np.cumsum([0, *lengths[:-1]])):
        for i in range(lengths[text]):
            mask[first + i, own[text][: i + 1]] = 0
    q = random.standard_normal((16, sum(lengths), 128)).astype(np.float32)
    k, v = (random.standard_normal((8, n_keys, 128)).astype(np.float16) for _ in range(2))
    expected = expected_attention(q, k, v, mask, 0.1)
    np.testing.assert_allclose(attention(q, k, v, mask, 0.1, 2), expected, atol=tolerance())
    if order == "in a row" and tolerance() < 1e-3:  # whole blocks that nobody sees are not even read
        for x in (k, v):
            x[:, 128:384] = x[:, 480:880] = np.nan
        np.testing.assert_allclose(attention(q, k, v, mask, 0.1, 2), expected, atol=tolerance())


@pytest.mark.parametrize("n_keys", [1, 31, 32, 33, 200])
def test_attention_without_a_mask(n_keys: int) -> None:
    random = np.random.default_rng(0)
    q = random.standard_normal((2, 19, 64)).astype(np.float32)
    k, v = (random.standard_normal((2, n_keys, 64)).astype(np.float16) for _ in range(2))
    np.testing.assert_allclose(
        attention(q, k, v, None, 0.125, 2), expected_attention(q, k, v, None, 0.125), atol=tolerance()
    )


def test_attention_adds_what_the_mask_holds() -> None:
    random = np.random.default_rng(0)
    q = random.standard_normal((2, 50, 32)).astype(np.float32)
    k, v = (random.standard_normal((2, 70, 32)).astype(np.float16) for _ in range(2))
    mask = random.standard_normal((50, 70)).astype(np.float16)
    mask[random.random(mask.shape) < 0.5] = -np.inf
    np.testing.assert_allclose(
        attention(q, k, v, mask, 0.2, 2), expected_attention(q, k, v, mask, 0.2), atol=tolerance()
    )


def test_a_query_that_sees_nothing_disturbs_no_other() -> None:
    random = np.random.default_rng(0)
    q = random.standard_normal((2, 40, 32)).astype(np.float32)
    k, v = (random.standard_normal((2, 40, 32)).astype(np.float16) for _ in range(2))
    mask = texts_mask([12, 28], causal=False, prefix=0, window=0)
    mask[[3, 20]] = -np.inf
    found = attention(q, k, v, mask, 0.2, 2)
    np.testing.assert_allclose(found, expected_attention(q, k, v, mask, 0.2), atol=tolerance())
    assert not found[:, [3, 20]].any()


def test_attention_keeps_nan_in_the_text_that_has_it() -> None:
    random = np.random.default_rng(0)
    q, k, v = (random.standard_normal((2, 40, 32)).astype(np.float32) for _ in range(3))
    q[:, 5] = np.nan
    v[:, 20] = np.nan
    found = attention(q, k, v, texts_mask([12, 28], causal=False, prefix=0, window=0), 0.2, 2)
    assert np.isnan(found[:, 5]).all()
    assert np.isnan(found[:, 12:]).all()
    assert np.isfinite(np.delete(found[:, :12], 5, axis=1)).all()


def test_gelu() -> None:
    x = np.concatenate([np.linspace(-12, 12, 1003), [0, -0.0, 1e4, -1e4]]).astype(np.float32)
    graph = Graph()
    result = graph.ggml.ggml_gelu(graph.context, graph.tensor(x[None, None, None]))
    wide = x.astype(np.float64)
    expected = wide / 2 * (1 + np.tanh(np.sqrt(2 / np.pi) * (wide + 0.044715 * wide**3)))
    np.testing.assert_allclose(graph.compute(result, x.shape, 2), expected, atol=4e-3, rtol=1e-3)


# Products with quantized weights


@cache
def own_buffers() -> int | None:
    """The buffer type that interleaves rows for our products; None in a library or on a processor without them."""
    if "EDGE_EMBED_PRODUCTS" not in compiled_features(bindings.load().c.llama_print_system_info().decode()):
        return None
    base, cpu = libraries()
    reg = cpu.ggml_backend_cpu_reg()
    address = base.ggml_backend_reg_get_proc_address(reg, b"ggml_backend_dev_get_extra_bufts")
    extra = ctypes.CFUNCTYPE(ctypes.POINTER(c_void_p), c_void_p)(address)(base.ggml_backend_reg_dev_get(reg, 0))
    kinds = itertools.takewhile(bool, (extra[i] for i in itertools.count()))
    return next(kind for kind in kinds if base.ggml_backend_buft_name(kind) == b"CPU_VNNI")


def quantized(kind: str, rows: int, size: int, seed: int = 0) -> tuple[bytes, np.ndarray]:
    """Blocks of random weights, and the numbers that they stand for; scales differ from row to row."""
    random = np.random.default_rng(seed)
    weights = random.standard_normal((rows, size)) * np.exp(random.standard_normal((rows, 1))) + 0.1
    blocks = ggml.quantize(weights.astype(np.float32), GGMLQuantizationType[kind])
    data = np.frombuffer(bytes(blocks), dtype=np.uint8).reshape(rows, -1)
    return data.tobytes(), quants.dequantize(data, GGMLQuantizationType[kind]).astype(np.float64)


def product(kind: str, blocks: bytes, rows: int, x: np.ndarray, threads: int) -> np.ndarray:
    """``x @ weights.T`` by the library, ``x`` of ``[texts, tokens, size]``."""
    graph = Graph()
    apart = graph.ggml.ggml_init(InitParams(1 << 20, None, True))  # weights have a buffer type of their own
    weights = graph.ggml.ggml_new_tensor_4d(apart, GGMLQuantizationType[kind].value, x.shape[2], rows, 1, 1)
    ours = own_buffers()
    if ours is None:
        backend = graph.cpu.ggml_backend_cpu_init()
        buffer = graph.ggml.ggml_backend_alloc_ctx_tensors(apart, backend)
        graph.ggml.ggml_backend_free(backend)
    else:
        buffer = graph.ggml.ggml_backend_alloc_ctx_tensors_from_buft(apart, ours)
    graph.ggml.ggml_backend_tensor_set(weights, blocks, 0, len(blocks))
    result = graph.ggml.ggml_mul_mat(graph.context, weights, graph.tensor(x[None]))
    found = graph.compute(result, (*x.shape[:2], rows), threads)
    graph.ggml.ggml_backend_buffer_free(buffer)
    graph.ggml.ggml_free(apart)
    return found


def most_lost(x: np.ndarray, weights: np.ndarray, block: int) -> Any:
    """The largest error that rounding activations to 8 bits in blocks of that size can make."""
    blocks = np.abs(x).astype(np.float64).reshape(*x.shape[:2], -1, block)
    steps = np.repeat(blocks.max(axis=3) / 127, block, axis=2)
    return steps / 2 @ np.abs(weights).T * 1.001 + 1e-4


KINDS = ["Q8_0", "Q4_K", "Q5_K", "Q6_K"]


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=25)
@given(
    n=st.sampled_from([1, 2, 3, 4, 5, 6, 7, 11, 12, 13, 50, 150]),
    texts=st.sampled_from([1, 1, 2]),
    rows=st.sampled_from([16, 32, 48, 144]),
    size=st.sampled_from([256, 512, 1024]),
    threads=st.integers(1, 3),
)
def test_products(kind: str, n: int, texts: int, rows: int, size: int, threads: int) -> None:
    blocks, weights = quantized(kind, rows, size)
    random = np.random.default_rng(n)
    x = (random.standard_normal((texts, n, size)) * np.exp(2 * random.standard_normal(size))).astype(np.float32)
    x[0, n // 2, :32] = 0
    found, expected = product(kind, blocks, rows, x, threads), x.astype(np.float64) @ weights.T
    block = 32 if own_buffers() or kind == "Q8_0" else 256
    assert (np.abs(found - expected) <= most_lost(x, weights, block)).all()


@pytest.mark.parametrize("kind", KINDS)
def test_products_of_large_matrices(kind: str) -> None:
    """More activations than are walked at a time, and many groups of rows for each thread."""
    blocks, weights = quantized(kind, 1008, 3072)
    x = np.random.default_rng(0).standard_normal((1, 200, 3072)).astype(np.float32)
    found, expected = product(kind, blocks, 1008, x, 2), x.astype(np.float64) @ weights.T
    block = 32 if own_buffers() or kind == "Q8_0" else 256
    assert (np.abs(found - expected) <= most_lost(x, weights, block)).all()
    assert np.linalg.norm(found - expected) / np.linalg.norm(expected) < 0.01


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_products_keep_nan_in_the_token_that_has_it(kind: str, bad: float) -> None:
    blocks, _ = quantized(kind, 48, 512)
    x = np.random.default_rng(0).standard_normal((1, 9, 512)).astype(np.float32)
    x[0, 4, 300] = bad
    found = product(kind, blocks, 48, x, 2)
    if own_buffers():  # stock kernels lose it
        assert np.isnan(found[0, 4]).all()
    assert np.isfinite(np.delete(found[0], 4, axis=0)).all()
