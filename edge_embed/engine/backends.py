"""ggml's own registry of devices, by ctypes: which there are, and which weights the CPU's kernels keep a copy of.

llama-cpp-python has no bindings for it. Only functions of ggml-backend.h and ggml.h are called, and one structure's
first fields are touched.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from functools import cache
from typing import Final

from edge_embed.engine import bindings
from edge_embed.errors import EngineUnavailableError
from edge_embed.gguf_header import TENSOR_TYPES
from edge_embed.model_shape import Matrix

_Pointer = ctypes.c_void_p
# name -> (result, arguments). Source: ggml-backend.h, ggml.h.
_FUNCTIONS: Final = {
    "ggml_backend_dev_count": (ctypes.c_size_t, []),
    "ggml_backend_dev_get": (_Pointer, [ctypes.c_size_t]),
    "ggml_backend_dev_by_name": (_Pointer, [ctypes.c_char_p]),
    "ggml_backend_dev_by_type": (_Pointer, [ctypes.c_int]),
    "ggml_backend_dev_name": (ctypes.c_char_p, [_Pointer]),
    "ggml_backend_dev_description": (ctypes.c_char_p, [_Pointer]),
    "ggml_backend_dev_type": (ctypes.c_int, [_Pointer]),
    "ggml_backend_dev_memory": (None, [_Pointer, _Pointer, _Pointer]),
    "ggml_backend_dev_backend_reg": (_Pointer, [_Pointer]),
    "ggml_backend_dev_supports_op": (ctypes.c_bool, [_Pointer, _Pointer]),
    "ggml_backend_reg_name": (ctypes.c_char_p, [_Pointer]),
    "ggml_backend_reg_get_proc_address": (_Pointer, [_Pointer, ctypes.c_char_p]),
    "ggml_backend_buft_alloc_buffer": (_Pointer, [_Pointer, ctypes.c_size_t]),
    "ggml_backend_buffer_free": (None, [_Pointer]),
    "ggml_tensor_overhead": (ctypes.c_size_t, []),
    "ggml_free": (None, [_Pointer]),
    "ggml_new_tensor_2d": (_Pointer, [_Pointer, ctypes.c_int, ctypes.c_int64, ctypes.c_int64]),
    "ggml_mul_mat": (_Pointer, [_Pointer, _Pointer, _Pointer]),
}
_CPU, _F32 = 0, 0  # enum ggml_backend_dev_type, enum ggml_type
_TYPE_IDS: Final = {name: kind for kind, (name, _, _) in TENSOR_TYPES.items()}


class _InitParams(ctypes.Structure):
    """ggml.h, struct ggml_init_params."""

    _fields_ = (("mem_size", ctypes.c_size_t), ("mem_buffer", _Pointer), ("no_alloc", ctypes.c_bool))


class _TensorHead(ctypes.Structure):
    """ggml.h, the first two fields of struct ggml_tensor."""

    _fields_ = (("type", ctypes.c_int), ("buffer", _Pointer))


@cache
def registry() -> ctypes.CDLL:
    """The library that holds the registry, the one that computes.

    Raises:
        EngineUnavailableError: the library is missing or does not fit.
    """
    ggml = bindings.Ggml(bindings.load().library.parent)
    for name, (result, arguments) in _FUNCTIONS.items():
        function = getattr(ggml, name)
        function.restype, function.argtypes = result, arguments
    ggml.ggml_init.restype, ggml.ggml_init.argtypes = _Pointer, [_InitParams]
    return ggml


def device_list(names: Sequence[str]) -> ctypes.Array[ctypes.c_void_p]:
    """Devices for ``llama_model_params.devices``: without any, the CPU alone, also for large products.

    Args:
        names: what the library calls them. The array must outlive the model's loading.

    Raises:
        EngineUnavailableError: one of them is gone.
    """
    found = [registry().ggml_backend_dev_by_name(name.encode()) for name in names]
    if not all(found):
        raise EngineUnavailableError(f"one of the devices {', '.join(names)} is not there any more")
    return (ctypes.c_void_p * (len(found) + 1))(*found, None)


def repacks() -> Callable[[Matrix], bool]:
    """Which matrices the CPU's kernels copy into an order of their own when a model is loaded.

    It is asked of the kernels themselves, as llama.cpp does it: whether they multiply a matrix that lies in their own
    kind of buffer. Source: llama-model-loader.cpp, weight_buft_supported.
    """
    ggml = registry()
    device = ggml.ggml_backend_dev_by_type(_CPU)
    if not device:
        return lambda _: False
    address = ggml.ggml_backend_reg_get_proc_address(
        ggml.ggml_backend_dev_backend_reg(device), b"ggml_backend_dev_get_extra_bufts"
    )
    kinds: list[int] = []
    if address:
        listed = ctypes.CFUNCTYPE(ctypes.POINTER(_Pointer), _Pointer)(address)(device)
        while listed and listed[len(kinds)]:
            kinds.append(listed[len(kinds)])

    @cache
    def asked(type_name: str, n_in: int, n_out: int) -> bool:
        return any(_multiplies(ggml, device, kind, _TYPE_IDS[type_name], n_in, n_out) for kind in kinds)

    return lambda matrix: matrix.type_name in _TYPE_IDS and asked(matrix.type_name, matrix.n_in, matrix.n_out)


def _multiplies(ggml: ctypes.CDLL, device: int, kind: int, type_id: int, n_in: int, n_out: int) -> bool:
    context = ggml.ggml_init(_InitParams(8 * ggml.ggml_tensor_overhead(), None, True))
    try:
        weight = ggml.ggml_new_tensor_2d(context, type_id, n_in, n_out)
        product = ggml.ggml_mul_mat(context, weight, ggml.ggml_new_tensor_2d(context, _F32, n_in, 512))
        head = _TensorHead.from_address(weight)
        head.buffer = ggml.ggml_backend_buft_alloc_buffer(kind, 0)
        try:
            return bool(ggml.ggml_backend_dev_supports_op(device, product))
        finally:
            ggml.ggml_backend_buffer_free(head.buffer)
            head.buffer = None
    finally:
        ggml.ggml_free(context)
