"""Dense modules of sentence-transformers: linear layers that come behind the pooling.

Knows their folders and their two places in a GGUF. llama.cpp computes two of them for gemma-embedding, without bias
and activation: there they are tensors like any other. It refuses a file with a tensor that it does not know, so all
others are arrays of the metadata, float32, which the runtime multiplies by and stock llama.cpp leaves out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from gguf import GGUFValueType

from edge_embed import keys
from edge_embed.errors import CheckpointError, UnsupportedCheckpointError
from edge_embed.types import Dense, DenseActivation, Float32Array

from .architectures.family import PlannedTensor, in_memory
from .checkpoint import READABLE, Fields, Weights, read_json, short
from .container.entries import KeyValue, text, uint

_ACTIVATIONS: dict[str, DenseActivation] = {
    "torch.nn.modules.linear.Identity": "identity",
    "torch.nn.modules.activation.Tanh": "tanh",
}
_COMPUTED_BY_LLAMA_CPP = "gemma-embedding"


@dataclass(frozen=True, slots=True)
class DensePlan:
    """Where the modules go: tensors, or entries of the metadata, and what is to be said of it."""

    tensors: tuple[PlannedTensor, ...] = ()
    key_values: tuple[KeyValue, ...] = ()
    notes: tuple[str, ...] = ()


def read_dense(folder: Path, path: str) -> Dense:
    """One module from its folder.

    Raises:
        CheckpointError: a file is missing or malformed.
        UnsupportedCheckpointError: an activation or an option that the runtime does not compute, or only a pickle.
    """
    read = read_json(folder / path, "config.json")
    config = Fields(read.values, f"{path}/config.json")
    activation = config.string("activation_function", default="torch.nn.modules.activation.Tanh")
    if activation not in _ACTIVATIONS:
        raise UnsupportedCheckpointError(
            f"{config.file}: activation_function {short(activation)} is not computed",
            hint=f"computed are {', '.join(_ACTIVATIONS)}",
        )
    for key in ("module_input_name", "module_output_name"):
        if config.string(key, default="sentence_embedding") != "sentence_embedding":
            raise UnsupportedCheckpointError(f"{config.file}: {key} is {short(config.values[key])}, not the vector")
    if config.boolean("use_residual", default=False):
        raise UnsupportedCheckpointError(f"{config.file}: use_residual is not computed")
    n_in, n_out = (config.integer(f"{end}_features", low=1, high=2**20) for end in ("in", "out"))
    expected: dict[str, tuple[int, ...]] = {"linear.weight": (n_out, n_in)}
    if config.boolean("bias", default=True):
        expected["linear.bias"] = (n_out,)
    values = _read_weights(folder / path, path, expected)
    return Dense(values["linear.weight"], values.get("linear.bias"), _ACTIVATIONS[activation])


def check_chain(modules: Sequence[Dense], n_embd: int) -> int:
    """The size of the vectors behind the modules; CheckpointError where one does not fit what comes before it."""
    size = n_embd
    for number, module in enumerate(modules):
        if module.n_in != size:
            raise CheckpointError(f"Dense module {number} takes vectors of {module.n_in}, and gets those of {size}")
        size = module.n_out
    return size


def plan_dense(arch: str, modules: Sequence[Dense], n_embd: int) -> DensePlan:
    """Tensors of llama.cpp's own where it computes just that, else arrays of the metadata."""
    if not modules:
        return DensePlan()
    bare = all(module.bias is None and module.activation == "identity" for module in modules)
    if arch == _COMPUTED_BY_LLAMA_CPP and bare and len(modules) == 2 and modules[-1].n_out == n_embd:
        tensors, key_values = [], []
        for number, module in enumerate(modules, start=2):  # as their folders are called: 2_Dense, 3_Dense
            tensors.append(in_memory(f"dense_{number}.weight", module.weight))
            key_values.append(uint(f"{arch}.dense_{number}_feat_in", module.n_in))
            key_values.append(uint(f"{arch}.dense_{number}_feat_out", module.n_out))
        return DensePlan(tuple(tensors), tuple(key_values))
    entries = []
    for number, module in enumerate(modules):
        prefix = f"{keys.DENSE}{number}."
        entries.append(uint(prefix + "in_features", module.n_in))
        entries.append(text(prefix + "activation", module.activation))
        entries.append(KeyValue(prefix + "weight", module.weight.ravel().tolist(), GGUFValueType.FLOAT32))
        if module.bias is not None:
            entries.append(KeyValue(prefix + "bias", module.bias.tolist(), GGUFValueType.FLOAT32))
    note = (
        f"{len(modules)} Dense module(s) behind the pooling are stored for edge-embed; llama.cpp does not compute "
        "them: its own vectors of this file are those before them"
    )
    return DensePlan(key_values=tuple(entries), notes=(note,))


def _read_weights(folder: Path, path: str, expected: dict[str, tuple[int, ...]]) -> dict[str, Float32Array]:
    if not (folder / "model.safetensors").is_file():
        if (folder / "pytorch_model.bin").is_file():
            raise UnsupportedCheckpointError(
                f"{path} has its weights only as pickle (pytorch_model.bin); loading a pickle runs whatever code is in "
                "it, so it is refused",
                hint="save the model as safetensors where you trust it: SentenceTransformer.save_pretrained(folder)",
            )
        raise CheckpointError(f"{path}/model.safetensors is missing", hint="the download is incomplete")
    with Weights(folder, ["model.safetensors"]) as weights:
        if weights.tensors.keys() != expected.keys():
            raise CheckpointError(
                f"{path}/model.safetensors has the tensors {', '.join(sorted(weights.tensors)) or 'none'}, "
                f"and its config.json makes them {', '.join(expected)}"
            )
        values = {}
        for name, shape in expected.items():
            ref = weights.tensors[name]
            if ref.shape != shape or ref.dtype not in READABLE:
                raise CheckpointError(
                    f"{path}/model.safetensors: tensor {name!r} is {ref.dtype} {list(ref.shape)}, and config.json "
                    f"makes it {list(shape)}, in one of {', '.join(READABLE)}"
                )
            values[name] = np.ascontiguousarray(weights.read_rows(ref, 0, ref.n_rows).reshape(shape))
        return values
