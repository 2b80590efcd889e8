"""A PEFT adapter into a GGUF of its own, which llama.cpp adds to a model while it computes.

The base checkpoint says which family it is and how its tensors are called in the GGUF; of its weights only the
headers are read.
"""

from __future__ import annotations

import re
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from edge_embed import keys
from edge_embed.errors import CheckpointError, InvalidOptionError, UnsupportedCheckpointError
from edge_embed.types import Float32Array

from ..architectures import family_of
from ..architectures.family import Family, PlannedTensor, SkippedTensor, plan_tensors
from ..architectures.qwen3 import QWEN3, QWEN3_CROSS
from ..blocks.rows import encode_rows, tensor_bytes
from ..blocks.types import RECIPES, TensorType
from ..checkpoint import Checkpoint
from ..container.entries import KeyValue, real, text, uint
from ..container.output import GGUFOutput, OutputTensor
from ..modules import read_modules
from ..reranker import is_reranker
from ..values import read_rows
from ..writing import ConversionReport, check_texts, make_report, output_path
from .merge import match
from .peft import ADAPTER_WEIGHTS, Adapter, Update

FTYPES = ("f32", "f16", "bf16")
# Where llama.cpp's graphs add an adapter (llm_graph_context::build_lora_mm). It would do so to token embeddings, too,
# and then ends the process where these are the output matrix as well.
_COMPUTED = re.compile(r"blk\.\d+\.(attn_q|attn_k|attn_v|attn_qkv|attn_output|ffn_up|ffn_gate|ffn_down)\.weight")


@dataclass(frozen=True, slots=True)
class _Pair:
    """An update under the name of the tensor that it changes, and what its B is multiplied by."""

    planned: PlannedTensor
    update: Update
    factor: float


def convert_adapter(
    source: Path | str,
    base: Path | str,
    output: Path | str | None = None,
    *,
    ftype: str = "f32",
    name: str | None = None,
    license: str | None = None,  # noqa: A002 - the field's word, and what the metadata calls it
    repository: str | None = None,
    revision: str | None = None,
) -> ConversionReport:
    """Convert a PEFT adapter folder into a GGUF adapter.

    Args:
        source: folder with adapter_config.json and adapter_model.safetensors.
        base: folder of the checkpoint that it was trained on.
        output: file to write, or a folder for it; ``<name>-lora-<TYPE>.gguf`` in the working directory by default.
        ftype: f32, f16 or bf16; an adapter is small, so its values are kept by default.
        name: ``general.name``; the folder's name by default.
        license: ``general.license``, an SPDX identifier.
        repository: where the adapter comes from, ``organization/model``.
        revision: the commit of that repository.

    Returns:
        What became of every tensor, and the totals.

    Raises:
        CheckpointError: something in either folder is missing, malformed or does not fit.
        UnsupportedCheckpointError: the adapter would not be computed faithfully.
        InvalidOptionError: an unknown type.
        OutputFileError: the file cannot be written.
    """
    started = time.perf_counter()
    if ftype.lower() not in FTYPES:
        raise InvalidOptionError(f"an adapter cannot be {ftype!r}", hint=f"one of: {', '.join(FTYPES)}")
    recipe = RECIPES[ftype.lower()]
    folder = Path(source)
    title = name or folder.resolve().name
    check_texts(name=title, license=license, repository=repository, revision=revision)
    with Adapter(folder) as adapter, Checkpoint((modules := read_modules(Path(base))).transformer) as checkpoint:
        family = family_of(checkpoint.config)
        planned, _ = plan_tensors(family, family.hyper(checkpoint.config), checkpoint.tensors)
        updates, ignored = match(adapter, family, checkpoint.tensors)
        notes = _head_notes(ignored, family, reranker=family is QWEN3_CROSS or is_reranker(Path(base), modules))
        pairs, alpha = _pairs(adapter, updates, planned, {skipped.name for skipped in ignored})
        infos = []
        for pair in pairs:
            for half, ref in (("lora_a", pair.update.a), ("lora_b", pair.update.b)):
                tensor = f"{pair.planned.name}.{half}"
                infos.append(OutputTensor(tensor, ref.shape, recipe.default, tensor_bytes(recipe.default, ref.shape)))
        key_values = [
            text("general.type", "adapter"),
            text("general.name", title),
            uint("general.file_type", int(recipe.file_type)),
            text("adapter.type", "lora"),
            real("adapter.lora.alpha", alpha),
            *_provenance(adapter, license, repository, revision),
        ]
        path = output_path(output, f"{title}-lora-{recipe.name.upper()}.gguf".replace("/", "-"))
        with GGUFOutput(path, family.arch, key_values, infos) as file:
            for pair in pairs:
                for values, ref in ((adapter.read(pair.update.a), pair.update.a), (_b(adapter, pair), pair.update.b)):
                    file.write(encode_rows(values, recipe.default, f"{ref.file}: tensor {ref.name!r}"))
                    file.pad()
    types = [TensorType(info.kind, info.kind) for info in infos]
    return make_report(path, family.arch, title, recipe, infos, types, ignored, notes, file, started)


def _pairs(
    adapter: Adapter, updates: dict[str, Update], planned: Sequence[PlannedTensor], ignored: set[str]
) -> tuple[list[_Pair], float]:
    """The updates in the order of the model's tensors, and the one alpha of the file.

    llama.cpp scales each product by alpha over its rank. Where that one alpha is not everybody's (rank-stabilized
    LoRA with ranks of its own, alpha_pattern), what remains is multiplied into B.
    """
    found: list[tuple[PlannedTensor, Update]] = []
    for tensor in planned:
        update = updates.get(tensor.ref.name)
        if update is None:
            continue
        where = f"{update.a.file}: {update.module!r}"
        if update.embedding or _COMPUTED.fullmatch(tensor.name) is None or tensor.ref.shape != update.shape:
            raise UnsupportedCheckpointError(
                f"{where} changes {tensor.name}, and llama.cpp does not add an adapter there",
                hint="merge the adapter while converting its base: --merge-lora ADAPTER",
            )
        found.append((tensor, update))
    missing = [u.module for u in updates.values() if u.module not in {*ignored, *(f[1].module for f in found)}]
    if missing or not found:
        raise CheckpointError(f"{adapter.folder.name} changes {missing or 'nothing'}, which the model does not compute")
    alphas = {update.scale * update.rank for _, update in found}
    alpha = alphas.pop() if len(alphas) == 1 else adapter.alpha
    alpha = float(np.float32(alpha))
    return [_Pair(tensor, update, update.scale * update.rank / alpha) for tensor, update in found], alpha


def _head_notes(ignored: Sequence[SkippedTensor], family: Family, *, reranker: bool) -> tuple[str, ...]:
    """That a reranker made of the base would score without the adapter's change to its output matrix.

    Raises:
        UnsupportedCheckpointError: the base is a reranker, and the adapter changes what it scores by.
    """
    heads = [s.name for s in ignored if s.name.endswith(("lm_head", "score"))] if family in (QWEN3, QWEN3_CROSS) else []
    if heads and reranker:
        raise UnsupportedCheckpointError(
            f"{ADAPTER_WEIGHTS}: {heads[0]!r} changes what the reranker scores by, and llama.cpp does not add an "
            "adapter there",
            hint="merge the adapter while converting its base: --merge-lora ADAPTER",
        )
    return tuple(
        f"{name} is left out: embeddings do not use it; a reranker scores by it and needs the adapter merged"
        for name in heads
    )


def _b(adapter: Adapter, pair: _Pair) -> Float32Array:
    """B with its rows in the order of the model's, times its factor."""
    tensor = replace(pair.planned, ref=pair.update.b, plus=0.0)
    return read_rows(adapter.weights, tensor, 0, tensor.ref.n_rows) * np.float32(pair.factor)


def _provenance(
    adapter: Adapter, license_id: str | None, repository: str | None, revision: str | None
) -> list[KeyValue]:
    entries = [uint(keys.VERSION, 1), text(keys.SOURCE_SHA256, adapter.weights.sha256())]
    for key, value in (
        ("general.license", license_id),
        (keys.SOURCE_REPOSITORY, repository),
        (keys.SOURCE_REVISION, revision),
    ):
        if value:
            entries.append(text(key, value))
    return entries
