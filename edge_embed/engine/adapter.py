"""A LoRA adapter beside a model: checked against the model here, because llama.cpp asserts or skips in silence.

The adapter is a GGUF of its own with two narrow matrices for each matrix that it changes; llama.cpp adds their
product while it computes, so the model's file stays as it is.
"""

from __future__ import annotations

import ctypes
import math
import os
import re
from typing import Any, Final

from edge_embed.engine import bindings
from edge_embed.errors import InvalidOptionError, ModelFileError, UnsupportedModelError
from edge_embed.gguf_header import GgufHeader, TensorInfo, read_header
from edge_embed.types import Lora

_FLOAT32: Final = 6  # GGUF's number of the type; llama.cpp reads alpha without asking for it
_LARGEST: Final = 3.4028234e38  # float32, which llama.cpp takes the scale as
_TYPES: Final = ("F32", "F16", "BF16", "Q8_0")
_HALF: Final = re.compile(r"(?P<name>.+)\.lora_(?P<half>[ab])")
# Where llama.cpp's graphs add an adapter: llm_graph_context::build_lora_mm. Not token_embd: it is looked up there, with
# A and B transposed, and where the embeddings are the output matrix, too, the process ends on the shapes.
_COMPUTED: Final = re.compile(r"blk\.\d+\.(attn_q|attn_k|attn_v|attn_qkv|attn_output|ffn_up|ffn_gate|ffn_down)\.weight")
_HINT: Final = "make the adapter again for this model: `edge-embed convert ADAPTER --base DIR`"


def check(lora: Lora, model: GgufHeader) -> None:
    """Refuse an adapter that is not one, does not fit the model, or would be added in part.

    Raises:
        ModelNotFoundError: there is no such file.
        ModelFileError: the file is malformed, or its tensors do not fit the model's.
        UnsupportedModelError: it is for another architecture, or has parts that llama.cpp leaves out.
        InvalidOptionError: the scale is not a number, or beyond float32.
    """
    if type(lora.scale) not in (int, float) or not abs(lora.scale) <= _LARGEST:
        raise InvalidOptionError(f"the scale of {lora.path} is {lora.scale!r}", hint="1 is the adapter as trained")
    adapter = read_header(lora.path)
    kind = adapter.metadata.get("general.type")
    if kind != "adapter" or adapter.metadata.get("adapter.type") != "lora":
        what = f"general.type is {kind!r}" if kind != "adapter" else f"it is a {adapter.metadata.get('adapter.type')!r}"
        raise UnsupportedModelError(f"{lora.path} is not a LoRA adapter: {what}", hint=_HINT)
    arch, own = adapter.metadata.get("general.architecture"), model.metadata.get("general.architecture")
    if arch != own:
        raise UnsupportedModelError(
            f"{lora.path} is for models of the architecture {arch!r}, and {model.path} is {own!r}", hint=_HINT
        )
    alpha = adapter.metadata.get("adapter.lora.alpha")
    if adapter.kinds.get("adapter.lora.alpha", _FLOAT32) != _FLOAT32 or not math.isfinite(alpha or 0.0):
        raise ModelFileError(f"{lora.path}: adapter.lora.alpha is {alpha!r}, expected a float32", hint=_HINT)
    if "adapter.alora.invocation_tokens" in adapter.metadata:
        raise UnsupportedModelError(
            f"{lora.path} is an activated LoRA, which applies to the tokens behind its invocation only"
        )
    pairs: dict[str, dict[str, TensorInfo]] = {}
    for tensor in adapter.tensors.values():
        match = _HALF.fullmatch(tensor.name)
        if match is None or _COMPUTED.fullmatch(match["name"]) is None:
            raise UnsupportedModelError(
                f"{lora.path}: the tensor {tensor.name!r} cannot be used: llama.cpp adds an adapter to the layers' "
                "matrices only",
                hint="merge the adapter while converting: `edge-embed convert DIR --merge-lora ADAPTER`",
            )
        if tensor.type_name not in _TYPES or len(tensor.shape) != 2:
            raise ModelFileError(
                f"{lora.path}: the tensor {tensor.name!r} is {tensor.type_name} of shape {tensor.shape}, "
                f"expected a matrix of one of {', '.join(_TYPES)}"
            )
        pairs.setdefault(match["name"], {})[match["half"]] = tensor
    if not pairs:
        raise ModelFileError(f"{lora.path} has no tensors", hint=_HINT)
    for name, pair in pairs.items():
        _check_pair(lora, model, name, pair)


def _check_pair(lora: Lora, model: GgufHeader, name: str, pair: dict[str, TensorInfo]) -> None:
    if len(pair) != 2:
        raise ModelFileError(f"{lora.path}: {name!r} has lora_{next(iter(pair))} alone", hint=_HINT)
    changed = model.tensors.get(name)
    if changed is None:
        raise ModelFileError(f"{lora.path} changes {name!r}, which {model.path} does not have", hint=_HINT)
    a, b = pair["a"].shape, pair["b"].shape
    if (a[0], b[1]) != changed.shape or a[1] != b[0]:
        raise ModelFileError(
            f"{lora.path}: lora_a {a} and lora_b {b} of {name!r} do not fit the model's {changed.shape}", hint=_HINT
        )


def load(lib: bindings.Bindings, model: Any, lora: Lora) -> Any:
    """The adapter in memory, which is freed with the model. Before the context: the graph's size counts it in.

    Raises:
        ModelFileError: the library refused it.
    """
    bindings.last_complaint()
    handle = lib.c.llama_adapter_lora_init(model, os.fsencode(lora.path))
    if not handle:
        reason = bindings.last_complaint() or "no reason given"
        raise ModelFileError(f"the engine refused {lora.path}: {reason}", hint=_HINT)
    return handle


def apply(lib: bindings.Bindings, context: Any, handle: Any, lora: Lora) -> None:
    """Use the adapter in a new context."""
    adapters = (lib.c.llama_adapter_lora_p_ctypes * 1)(handle)
    lib.c.llama_set_adapters_lora(context, adapters, 1, (ctypes.c_float * 1)(lora.scale))
