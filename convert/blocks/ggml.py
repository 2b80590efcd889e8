"""ggml's own block quantizers, through the library that llama-cpp-python ships: the converter's only native code.

Knows where ``libggml-base`` lies and the signatures of six C functions. Knows no tensors, recipes or files.
The library is loaded on first use and without importing ``llama_cpp``, which would load every backend.
ctypes lets go of the GIL during a call, so chunks of rows quantize in parallel on threads.
"""

from __future__ import annotations

import ctypes
import functools
import importlib.util
import os
from pathlib import Path

import numpy as np
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

from edge_embed.errors import EngineUnavailableError
from edge_embed.types import Float32Array

NAMES = ("libggml-base.so", "libggml-base.dylib", "ggml-base.dll", "libggml-base.dll")


def library_path() -> Path:
    """The ggml-base library: in ``LLAMA_CPP_LIB_PATH`` where that is set, else in the llama_cpp package.

    Raises:
        EngineUnavailableError: llama-cpp-python is not installed or has no such file.
    """
    override = os.environ.get("LLAMA_CPP_LIB_PATH")
    if override:
        folders = [Path(override)]
    else:
        spec = importlib.util.find_spec("llama_cpp")
        folders = [Path(p) / "lib" for p in (spec.submodule_search_locations or [])] if spec else []
    for folder in folders:
        for name in NAMES:
            if (folder / name).is_file():
                return folder / name
    where = ", ".join(str(f) for f in folders) or "llama_cpp, which is not installed"
    raise EngineUnavailableError(
        f"ggml's quantizers were not found: no ggml-base library in {where}",
        hint="install llama-cpp-python 0.3.36 or later, or convert to f32, f16 or bf16, which need no library",
    )


class _TypeTraits(ctypes.Structure):
    """``ggml_type_traits`` of ggml.h, as far as it is read."""

    _fields_ = (
        ("type_name", ctypes.c_char_p),
        ("blck_size", ctypes.c_int64),
        ("blck_size_interleave", ctypes.c_int64),
        ("type_size", ctypes.c_size_t),
        ("is_quantized", ctypes.c_bool),
        ("to_float", ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64)),
    )


@functools.lru_cache(maxsize=1)
def _library() -> ctypes.CDLL:
    path = library_path()
    try:
        library = ctypes.CDLL(str(path))
        library.ggml_quantize_chunk.restype = ctypes.c_size_t
        library.ggml_quantize_chunk.argtypes = [
            ctypes.c_int,
            ctypes.c_void_p,
            ctypes.c_void_p,
            ctypes.c_int64,
            ctypes.c_int64,
            ctypes.c_int64,
            ctypes.c_void_p,
        ]
        library.ggml_quantize_init.restype = None
        library.ggml_quantize_init.argtypes = [ctypes.c_int]
        library.ggml_validate_row_data.restype = ctypes.c_bool
        library.ggml_validate_row_data.argtypes = [ctypes.c_int, ctypes.c_void_p, ctypes.c_size_t]
        library.ggml_blck_size.restype = ctypes.c_int64
        library.ggml_blck_size.argtypes = [ctypes.c_int]
        library.ggml_type_size.restype = ctypes.c_size_t
        library.ggml_type_size.argtypes = [ctypes.c_int]
        library.ggml_get_type_traits.restype = ctypes.POINTER(_TypeTraits)
        library.ggml_get_type_traits.argtypes = [ctypes.c_int]
    except (OSError, AttributeError) as error:
        raise EngineUnavailableError(f"{path} cannot be used: {error}") from error
    return library


@functools.cache
def prepare(kind: GGMLQuantizationType) -> None:
    """Load the library, build the type's tables and check that its layout is the one that gguf-py knows.

    Raises:
        EngineUnavailableError: no library, or another block layout than expected.
    """
    library = _library()
    found = (library.ggml_blck_size(int(kind)), library.ggml_type_size(int(kind)))
    if found != GGML_QUANT_SIZES[kind]:
        raise EngineUnavailableError(
            f"ggml's {kind.name} has blocks of {found}, expected {GGML_QUANT_SIZES[kind]}: "
            "this build of llama-cpp-python is not one that is known"
        )
    library.ggml_quantize_init(int(kind))


def row_bytes(kind: GGMLQuantizationType, n_cols: int) -> int:
    """Bytes of a row; ``n_cols`` must be a multiple of the type's block."""
    block, size = GGML_QUANT_SIZES[kind]
    if n_cols % block:
        raise ValueError(f"rows of {n_cols} do not divide into blocks of {block} of {kind.name}")
    return n_cols // block * size


def quantize(values: Float32Array, kind: GGMLQuantizationType, importance: Float32Array | None = None) -> bytes | None:
    """Rows of finite float32 ``[n_rows, n_cols]`` as blocks of that type, or None where a block's scale overflowed.

    Args:
        values: C-contiguous; ``n_cols`` a multiple of the block.
        kind: a block type (F32, F16 and BF16 are not).
        importance: float32 ``[n_cols]``, how much an error in each column matters; None where all matter alike.

    Raises:
        ValueError: a shape or dtype does not fit; checked here because C would not.
        EngineUnavailableError: the library is missing or unknown.
    """
    if values.ndim != 2 or values.dtype != np.float32 or not values.flags.c_contiguous:
        raise ValueError("values must be float32 [n_rows, n_cols], C-contiguous")
    n_rows, n_cols = values.shape
    if importance is not None and (
        importance.shape != (n_cols,) or importance.dtype != np.float32 or not importance.flags.c_contiguous
    ):
        raise ValueError("importance must be float32 [n_cols], C-contiguous")
    prepare(kind)
    output = ctypes.create_string_buffer(n_rows * row_bytes(kind, n_cols))
    library = _library()
    weights = None if importance is None else importance.ctypes.data
    written = library.ggml_quantize_chunk(int(kind), values.ctypes.data, output, 0, n_rows, n_cols, weights)
    if written != len(output):
        raise EngineUnavailableError(f"ggml wrote {written} bytes of {kind.name} where {len(output)} were expected")
    return output.raw if library.ggml_validate_row_data(int(kind), output, len(output)) else None


def dequantize(data: bytes | bytearray, kind: GGMLQuantizationType, n_cols: int) -> Float32Array:
    """Blocks of that type as float32 ``[n_rows, n_cols]``; an overflowed scale gives NaN or infinity.

    Raises:
        ValueError: the bytes are not whole rows.
        EngineUnavailableError: the library is missing or unknown, or cannot read the type.
    """
    n_rows, rest = divmod(len(data), row_bytes(kind, n_cols))
    if rest:
        raise ValueError(f"{len(data)} bytes are not whole rows of {n_cols} of {kind.name}")
    prepare(kind)
    traits = _library().ggml_get_type_traits(int(kind)).contents
    if (traits.blck_size, traits.type_size) != GGML_QUANT_SIZES[kind] or not traits.to_float:
        raise EngineUnavailableError(f"this build of ggml cannot read {kind.name} back")
    values = np.empty((n_rows, n_cols), dtype=np.float32)
    source = np.frombuffer(data, np.uint8)
    traits.to_float(source.ctypes.data, values.ctypes.data, values.size)
    return values
