"""Looking into llama.cpp's graph while it computes, and giving a loaded model's matrices other types.

An observer is passed to ``LlamaEngine`` and is asked about every node of the graph through llama.cpp's ``cb_eval``
callback. Two are here: one sums the squared inputs of each weight matrix (for importance matrices), the other knows
where the matrices lie and can put other data of another type in their place (to measure what a type costs).

The nodes are ``ggml_tensor`` structures, read by a layout that is compared with the library's own functions before
the first use. Exceptions cannot pass through C: an observer keeps the first and the caller asks for it.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final, Protocol

import numpy as np

from edge_embed.engine.bindings import Bindings
from edge_embed.errors import EngineUnavailableError
from edge_embed.types import Float32Array

_F32: Final = 0  # ggml.h: GGML_TYPE_F32
_WEIGHT: Final = ".weight"
_LOOK_UP: Final = b"GET_ROWS"
_MULTIPLY: Final = b"MUL_MAT"

Callback = Callable[[int, bool, Any], bool]


class _Tensor(ctypes.Structure):
    """``ggml_tensor`` of ggml.h."""

    _fields_ = (
        ("type", ctypes.c_int32),
        ("buffer", ctypes.c_void_p),
        ("ne", ctypes.c_int64 * 4),
        ("nb", ctypes.c_size_t * 4),
        ("op", ctypes.c_int32),
        ("op_params", ctypes.c_int32 * 16),
        ("flags", ctypes.c_int32),
        ("src", ctypes.c_void_p * 10),
        ("view_src", ctypes.c_void_p),
        ("view_offs", ctypes.c_size_t),
        ("data", ctypes.c_void_p),
        ("name", ctypes.c_char * 64),
    )

    @property
    def title(self) -> str:
        return bytes(self.name).decode("utf-8", "replace")


class GraphObserver(Protocol):
    """What ``LlamaEngine`` needs of an observer."""

    def attach(self, lib: Bindings, inner: Callback | None) -> Any:
        """A ``ggml_backend_sched_eval_callback`` that also asks ``inner``, whose answers end the graph as before."""
        ...


class Observer:
    """Asked about every node: ``wants`` before it is computed, ``saw`` afterwards where that was true."""

    def __init__(self) -> None:
        self._error: BaseException | None = None
        self._callback: Any = None
        self._checked = False

    def attach(self, lib: Bindings, inner: Callback | None) -> Any:
        """The callback for one context; it lives as long as the observer."""
        self._lib = lib
        ggml = lib.ggml
        ggml.ggml_op_name.argtypes, ggml.ggml_op_name.restype = [ctypes.c_int], ctypes.c_char_p
        ggml.ggml_backend_tensor_set.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t, ctypes.c_size_t]
        ggml.ggml_backend_tensor_set.restype = None
        self._ops = {name: code for code in range(64) if (name := ggml.ggml_op_name(code)) in (_LOOK_UP, _MULTIPLY)}

        def observe(address: int, ask: bool, data: Any) -> bool:
            mine = self._guarded(address, ask)
            if inner is None:
                return mine if ask else True
            if ask:
                return inner(address, True, data) or mine
            return inner(address, False, data) if inner(address, True, data) else True

        self._callback = lib.c.ggml_backend_sched_eval_callback(observe)
        return self._callback

    def raise_if_failed(self) -> None:
        """Raise what went wrong inside the callback, if anything did."""
        if self._error is not None:
            error, self._error = self._error, None
            raise error

    def wants(self, node: _Tensor, address: int) -> bool:
        """Whether ``saw`` is to be called once the node is computed."""
        raise NotImplementedError

    def saw(self, node: _Tensor) -> None:
        """The node and its sources hold their values."""
        raise NotImplementedError

    def _guarded(self, address: int, ask: bool) -> bool:
        if self._error is not None:
            return False
        try:
            if not self._checked:
                self._check_layout(address)
            node = _Tensor.from_address(address)
            if ask:
                return self.wants(node, address)
            if self.wants(node, address):
                self.saw(node)
        except BaseException as error:  # it cannot pass through C; raise_if_failed raises it
            self._error = error
        return True

    def _check_layout(self, address: int) -> None:
        """Compare our idea of a tensor with what the library's own functions say of this one."""
        ggml = self._lib.ggml
        get_name = ctypes.cast(ggml.ggml_get_name, ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.c_void_p))
        node = _Tensor.from_address(address)
        if (
            get_name(address) != address + _Tensor.name.offset
            or (node.type == _F32 and _span(node) != ggml.ggml_nbytes(address))
            or len(self._ops) != 2
        ):
            raise EngineUnavailableError(
                "this llama.cpp lays out its tensors differently", hint="install the version that this release names"
            )
        self._checked = True

    def _weight(self, node: _Tensor, op: bytes) -> _Tensor | None:
        """The weight matrix that the node multiplies with, or looks rows up in."""
        if node.op != self._ops.get(op) or not node.src[0]:
            return None
        weight = _Tensor.from_address(node.src[0])
        return weight if weight.title.endswith(_WEIGHT) and weight.op == 0 else None


@dataclass(frozen=True, slots=True)
class Inputs:
    """What went into a weight matrix: the sum of squares of each column, float64 ``[n_cols]``, and how many rows."""

    sums: np.ndarray
    count: int


class InputObserver(Observer):
    """Sums the squares of what each weight matrix is multiplied with."""

    def __init__(self) -> None:
        super().__init__()
        self._sums: dict[str, np.ndarray] = {}
        self._counts: dict[str, int] = {}

    @property
    def inputs(self) -> Mapping[str, Inputs]:
        """Weight's name -> what was seen so far."""
        return {name: Inputs(sums, self._counts[name]) for name, sums in self._sums.items()}

    def wants(self, node: _Tensor, address: int) -> bool:  # noqa: ARG002 - other observers need the address
        if self._weight(node, _MULTIPLY) is None or not node.src[1]:
            return False
        return bool(_Tensor.from_address(node.src[1]).type == _F32)

    def saw(self, node: _Tensor) -> None:
        weight = self._weight(node, _MULTIPLY)
        assert weight is not None, "wants() was true"
        rows = self._rows(node.src[1])
        sums = np.einsum("ij,ij->j", rows, rows, dtype=np.float64)
        name = weight.title
        self._sums[name] = self._sums[name] + sums if name in self._sums else sums
        self._counts[name] = self._counts.get(name, 0) + len(rows)

    def _rows(self, address: int) -> Float32Array:
        """A float32 tensor's values as ``[rows, columns]``, whatever its strides."""
        tensor, n_bytes = _Tensor.from_address(address), self._lib.ggml.ggml_nbytes(address)
        data = np.empty(n_bytes // 4, np.float32)
        self._lib.ggml.ggml_backend_tensor_get(address, data.ctypes.data, 0, n_bytes)
        whole = np.lib.stride_tricks.as_strided(data, tensor.ne[::-1], tensor.nb[::-1], writeable=False)
        return whole.reshape(-1, tensor.ne[0])


class WeightObserver(Observer):
    """Notes where the weight matrices lie while the first texts are computed, and replaces them afterwards.

    The engine must have loaded the model into memory of its own (``mmap=False``), and nothing may be computing.
    """

    def __init__(self) -> None:
        super().__init__()
        self._found: dict[str, tuple[int, int]] = {}

    @property
    def names(self) -> tuple[str, ...]:
        """The matrices that the model multiplies with or looks rows up in."""
        return tuple(self._found)

    def wants(self, node: _Tensor, address: int) -> bool:  # noqa: ARG002 - nothing is waited for
        for op in (_MULTIPLY, _LOOK_UP):
            weight = self._weight(node, op)
            if weight is not None and weight.title not in self._found:
                source = node.src[0]
                self._found[weight.title] = (source, self._lib.ggml.ggml_nbytes(source))
        return False

    def saw(self, node: _Tensor) -> None:
        raise AssertionError(f"{node.title} was not asked for")

    def replace(self, name: str, kind: int, block: tuple[int, int], parts: Iterable[bytes]) -> None:
        """Put other data of another type in a matrix's place; no larger than what the file had.

        Args:
            name: one of ``names``.
            kind: ggml's number of the type.
            block: values and bytes of its blocks.
            parts: the matrix in that type, in order. Where making one raises, the matrix is to be replaced again.

        Raises:
            ValueError: the parts are more or fewer bytes than the matrix has in that type, or than there is room.
        """
        address, room = self._found[name]
        tensor = _Tensor.from_address(address)
        row = tensor.ne[0] // block[0] * block[1]
        size = row * tensor.ne[1] * tensor.ne[2] * tensor.ne[3]
        if size > room:
            raise ValueError(f"{size} bytes do not fit in the place of {name}")
        tensor.type = kind
        tensor.nb[0], tensor.nb[1] = block[1], row
        tensor.nb[2] = row * tensor.ne[1]
        tensor.nb[3] = tensor.nb[2] * tensor.ne[2]
        done = 0
        for part in parts:
            if done + len(part) > size:
                raise ValueError(f"{done + len(part)} bytes do not fit in the place of {name}, which has {size}")
            self._lib.ggml.ggml_backend_tensor_set(address, part, done, len(part))
            done += len(part)
        if done != size:
            raise ValueError(f"{done} bytes do not fit in the place of {name}, which has {size}")


def _span(tensor: _Tensor) -> int:
    """Bytes from a float32 tensor's first value to behind its last."""
    return int(4 + sum((n - 1) * stride for n, stride in zip(tensor.ne, tensor.nb, strict=True)))
