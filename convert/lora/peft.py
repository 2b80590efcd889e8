"""A PEFT LoRA adapter: its folder, checked.

LoRA learns, beside a matrix W, two narrow ones: the layer computes (W + s B A) x. Knows adapter_config.json and PEFT's
names of tensors. Knows nothing of GGUF. Whatever PEFT computes beyond that sum (DoRA, biases, replaced modules, weights
changed at the start) is refused by name.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from edge_embed.errors import CheckpointError, UnsupportedCheckpointError
from edge_embed.types import Float32Array

from ..checkpoint import ADAPTER_CONFIG, READABLE, Fields, TensorRef, Weights, read_json, short

ADAPTER_WEIGHTS = "adapter_model.safetensors"
_PREFIX = "base_model.model."  # PEFT's wrapper around the model's own class
# One entry for each half of an update: (A's spelling, B's spelling, whether it is an embedding).
_HALVES = {
    "lora_A.weight": ("a", False),
    "lora_B.weight": ("b", False),
    "lora_embedding_A": ("a", True),
    "lora_embedding_B": ("b", True),
}

# Fields of LoraConfig (PEFT 0.18 and earlier) that say how to train, or where the adapter came from, or that the names
# of the tensors say again.
_HARMLESS = (
    "peft_type", "auto_mapping", "base_model_name_or_path", "revision", "inference_mode", "task_type", "peft_version",
    "target_modules", "exclude_modules", "lora_dropout", "layers_to_transform", "layers_pattern", "megatron_core",
    "eva_config", "runtime_config", "corda_config", "lora_ga_config", "loftq_config", "qalora_group_size", "r",
    "lora_alpha", "use_rslora", "rank_pattern", "alpha_pattern", "init_lora_weights", "bias",
)  # fmt: skip
# What makes PEFT compute something else, where it is set, and why that is not done here.
_REFUSED: Mapping[str, str] = {
    "use_dora": "DoRA rescales every row by a learned magnitude",
    "fan_in_fan_out": "the weights would be stored transposed, which no family here does",
    "modules_to_save": "whole modules were replaced, and only sums of two narrow matrices are added",
    "lora_bias": "biases were trained too",
    "use_qalora": "inputs are pooled before the adapter",
    "layer_replication": "layers were repeated",
    "trainable_token_indices": "single token embeddings were trained",
    "target_parameters": "parameters of mixture-of-experts layers were trained",
    "alora_invocation_tokens": "an activated LoRA applies to the tokens behind its invocation only",
}
# Ways to start the training that leave the base weights as they are. The others (PiSSA, OLoRA, CorDA, LoftQ) train
# beside a changed base, and A and B mean nothing beside the original.
_STARTS = (True, False, None, "gaussian", "eva", "orthogonal")
_MAX_RANK = 2**14


@dataclass(frozen=True, slots=True)
class Update:
    """What is added to one weight ``[n_out, n_in]``: ``scale * B @ A``.

    Attributes:
        module: the module's name in the adapter, without PEFT's prefix.
        a: ``[rank, n_in]``; of an embedding ``[rank, n_rows]``.
        b: ``[n_out, rank]``; of an embedding ``[n_cols, rank]``, since the roles of A and B are exchanged there.
        embedding: whether the module is an embedding: then ``(B @ A)`` transposed is added.
        scale: alpha / rank, or alpha / sqrt(rank) with rank-stabilized LoRA.
    """

    module: str
    a: TensorRef
    b: TensorRef
    embedding: bool
    scale: float

    @property
    def rank(self) -> int:
        return self.a.shape[0]

    @property
    def shape(self) -> tuple[int, int]:
        """The shape that the weight must have."""
        n_out, n_in = self.b.shape[0], self.a.shape[1]
        return (n_in, n_out) if self.embedding else (n_out, n_in)


class Adapter:
    """An opened adapter folder.

    Attributes:
        folder: where adapter_config.json lies.
        alpha: ``lora_alpha``.
        base: what the adapter says that it was trained on, possibly empty.
        weights: its tensors.
        updates: one for each module.
    """

    def __init__(self, folder: Path) -> None:
        """Read the configuration and the headers of the weights.

        Raises:
            CheckpointError: a file or field is missing or malformed, or the tensors do not fit together.
            UnsupportedCheckpointError: PEFT would compute something else than a sum of two matrices.
        """
        if not (folder / ADAPTER_CONFIG).is_file():
            raise CheckpointError(
                f"{folder} is not the folder of a PEFT adapter: {ADAPTER_CONFIG} is missing",
                hint="pass the folder that PEFT's save_pretrained wrote",
            )
        config = read_json(folder, ADAPTER_CONFIG)
        _check_config(config)
        self.folder = folder
        self.alpha = _positive(config, "lora_alpha")
        self.base = config.string("base_model_name_or_path", default="")
        if not (folder / ADAPTER_WEIGHTS).is_file() and (folder / "adapter_model.bin").is_file():
            raise UnsupportedCheckpointError(
                f"{folder.name} has its weights only as pickle (adapter_model.bin); loading a pickle runs whatever "
                "code is in it, so it is refused",
                hint="save the adapter as safetensors where you trust it: save_pretrained(folder)",
            )
        self.weights = Weights(folder, [ADAPTER_WEIGHTS])
        try:
            self.updates = _updates(self.weights.tensors, config, self.alpha)
        except BaseException:
            self.weights.close()
            raise

    def __enter__(self) -> Adapter:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self.weights.close()

    def read(self, ref: TensorRef) -> Float32Array:
        """One of the narrow matrices, whole."""
        return self.weights.read_rows(ref, 0, ref.n_rows)


def _check_config(config: Fields) -> None:
    kind = config.string("peft_type")
    if kind != "LORA":
        raise UnsupportedCheckpointError(f"{config.file}: peft_type is {short(kind)}, and only LORA is converted")
    for key, value in config.values.items():
        if key in _HARMLESS or not value:
            continue
        reason = _REFUSED.get(key, "it is not known to leave the result as it is")
        raise UnsupportedCheckpointError(
            f"{config.file}: {key} is {short(value)}, which is not converted: {reason}",
            hint="merge the adapter with PEFT's merge_and_unload, save_pretrained the result and convert that",
        )
    if config.string("bias", default="none") != "none":
        raise UnsupportedCheckpointError(
            f"{config.file}: bias is {short(config.values['bias'])}, which is not converted: biases were trained too",
            hint="merge the adapter with PEFT's merge_and_unload, save_pretrained the result and convert that",
        )
    start = config.values.get("init_lora_weights", True)
    if not any(start is known or (isinstance(start, str) and start == known) for known in _STARTS):
        raise UnsupportedCheckpointError(
            f"{config.file}: init_lora_weights is {short(start)}, which trains beside base weights that are not the "
            "original ones",
            hint="save the adapter for the original base, with path_initial_model_for_weight_conversion",
        )


def _positive(config: Fields, key: str) -> float:
    value = config.number(key, low=0.0, high=1e6)
    if value == 0:
        raise config.error(key, "more than 0: the adapter would change nothing")
    return value


def _updates(tensors: Mapping[str, TensorRef], config: Fields, alpha: float) -> tuple[Update, ...]:
    """Pairs of tensors by the modules' names, in order."""
    halves: dict[str, dict[str, tuple[TensorRef, bool]]] = {}
    for name, ref in tensors.items():
        module, spelling = _split(name)
        if not spelling or not name.startswith(_PREFIX):
            raise UnsupportedCheckpointError(
                f"{ref.file}: tensor {name!r} is no half of a LoRA update, and it is not left out silently",
                hint="merge the adapter with PEFT's merge_and_unload, save_pretrained the result and convert that",
            )
        half, embedding = _HALVES[spelling]
        if ref.dtype not in READABLE:
            raise CheckpointError(
                f"{ref.file}: tensor {name!r} has dtype {ref.dtype}, expected one of {', '.join(READABLE)}"
            )
        if len(ref.shape) != 2 or 0 in ref.shape:
            raise CheckpointError(f"{ref.file}: tensor {name!r} has shape {list(ref.shape)}, expected a matrix")
        halves.setdefault(module, {})[half] = (ref, embedding)
    if not halves:
        raise CheckpointError(f"{ADAPTER_WEIGHTS} has no tensors")

    default_rank = config.integer("r", low=1, high=_MAX_RANK)
    stabilized = config.boolean("use_rslora", default=False)
    ranks, alphas = config.mapping("rank_pattern", default={}), config.mapping("alpha_pattern", default={})
    updates = []
    for module, pair in sorted(halves.items()):
        if len(pair) != 2 or pair["a"][1] != pair["b"][1]:
            only = next(iter(pair.values()))[0]
            raise CheckpointError(f"{only.file}: tensor {only.name!r} has no counterpart")
        (a, embedding), (b, _) = pair["a"], pair["b"]
        key = _pattern(ranks, module)
        rank = default_rank if key is None else ranks.integer(key, low=1, high=_MAX_RANK)
        if a.shape[0] != rank or b.shape[1] != rank:
            raise CheckpointError(
                f"{a.file}: {module!r} has ranks {a.shape[0]} and {b.shape[1]}, and {config.file} says {rank}"
            )
        key = _pattern(alphas, module)
        own_alpha = alpha if key is None else _positive(alphas, key)
        scale = own_alpha / (math.sqrt(rank) if stabilized else rank)
        updates.append(Update(module, a, b, embedding, scale))
    return tuple(updates)


def _split(name: str) -> tuple[str, str]:
    """The module and which half of its update a tensor is; no half where it is none."""
    for spelling in _HALVES:
        if name.endswith(f".{spelling}"):
            return name[len(_PREFIX) : -len(spelling) - 1], spelling
    return name, ""


def _pattern(patterns: Fields, module: str) -> str | None:
    """The first key that matches a module's name, or its end, as PEFT looks it up."""
    for key in patterns.values:
        try:
            if re.fullmatch(rf"(.*\.)?({key})", module):
                return key
        except re.error as error:
            raise CheckpointError(f"{patterns.file}: {key!r} is not a regular expression: {error}") from None
    return None
