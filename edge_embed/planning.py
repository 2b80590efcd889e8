"""A memory plan for a model by name or file: what ``edge-embed plan`` prints.

A file that is here is planned by its own header, and what llama.cpp itself would reserve for the plan is asked of it. A
known model that is not here is planned by the numbers that its publisher gives.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final, cast

from edge_embed import catalogue
from edge_embed.architectures import DECODERS
from edge_embed.catalogue import CatalogueEntry
from edge_embed.engine import placement, simulate
from edge_embed.engine.plan import MemoryPlan, fits_in, make_plan, repacked_share, room_here
from edge_embed.engine.shape import context_shape, has_memory, sizes
from edge_embed.errors import InvalidOptionError, ModelMissingError
from edge_embed.gguf_header import read_header
from edge_embed.model_info import read_model_info
from edge_embed.model_shape import shape_of_published
from edge_embed.types import KvType, ModelInfo, Pooling

# llama.cpp keeps token embeddings that are the output matrix, too, in at least Q6_K: llama-quant.cpp. Others are stored
# in the type's own bits.
_EMBEDDING_BITS: Final = {"f32": 32.0, "f16": 16.0, "bf16": 16.0, "q8_0": 8.5}
_Q6_K_BITS: Final = 6.5625
_ROUNDS: Final = 3


@dataclass(frozen=True, slots=True)
class Planned:
    """A plan and what it is for.

    Attributes:
        info: the model.
        plan: how it is run.
        ftype: the type that was planned for a model that is not here, else None.
        laid_out: bytes of intermediate results as llama.cpp itself lays them out for this plan: on the GPU where one
            is here and has layers, else in main memory; None for a model that is not here, or a GPU that is not.
    """

    info: ModelInfo
    plan: MemoryPlan
    ftype: str | None
    laid_out: int | None

    @property
    def predicted(self) -> int:
        """What ``laid_out`` is to be compared with."""
        return self.plan.gpu.compute if self.plan.gpu_layers else self.plan.host.compute


def plan(
    model: str | None = None,
    *,
    ftype: str | None = None,
    ram: int | None = None,
    vram: int | None = None,
    backend: str | None = None,
    max_tokens: int | None = None,
    n_batch: int | None = None,
    kv_type: KvType | None = None,
    device: str | None = None,
    gpu_layers: int | None = None,
    low_memory: bool = False,
) -> Planned:
    """How to run a model in the memory that there is.

    Of an encoder the lanes are counted that it gets here by default: with as many threads as this machine has cores,
    at most four, where there is room for them.

    Args:
        model: a GGUF file or a name of `edge-embed list`; the bundled model by default.
        ftype: plan a known model in that type by its published numbers, whether it is here or not.
        ram: main memory in bytes; what is available here by default.
        vram: GPU memory in bytes, 0 for none; what is free here by default.
        backend: kind of GPU, where it is not this machine's: ``CUDA``, ``ROCm``, ``Vulkan`` or ``Metal``.
        max_tokens: a text of so many tokens must fit; by default the plan says how long one may be.
        n_batch: tokens of a batch.
        kv_type: type of keys and values.
        device: which of this machine's devices, see ``Embedder``; not together with ``vram`` or ``backend``.
        gpu_layers: layers on the GPU, the output counted as one.
        low_memory: as ``Embedder`` has it.

    Raises:
        EngineMemoryError: nothing fits; with the numbers.
        InvalidOptionError: an option, or a known model without published numbers.
        ModelError: the file.
        EngineUnavailableError: the library is missing.
    """
    info, ftype = _find(model, ftype)
    elsewhere = vram is not None or backend is not None
    if elsewhere and device is not None:
        raise InvalidOptionError("device is about this machine, vram and backend are not", hint="leave one of them out")
    asked = placement.wanted(placement.AUTO if elsewhere else device, gpu_layers, placement.here())
    room = room_here(asked.gpus, ram=ram, vram=vram, backend=backend)
    assert info.shape is not None
    repacked = repacked_share(info.shape) if ftype is None else 0.0
    made = room
    for _ in range(_ROUNDS):
        chosen = make_plan(
            info,
            made,
            max_tokens=max_tokens,
            n_batch=n_batch,
            kv_type=kv_type,
            gpu_layers=gpu_layers,
            repacked=repacked,
            low_memory=low_memory,
        )
        laid_out = None
        if ftype is None and (room.gpus or not chosen.gpu_layers):  # of a GPU that is not here, llama.cpp knows nothing
            laid_out = _laid_out(info, chosen, low_memory=low_memory)
        if laid_out is None or not chosen.gpu_layers or laid_out <= chosen.gpu.compute:
            break
        exact = replace(chosen, gpu=replace(chosen.gpu, compute=laid_out))
        if fits_in(exact, room):
            chosen = exact
            break
        made = replace(room, vram=room.vram - (laid_out - chosen.gpu.compute))
    return Planned(info, replace(chosen, room=room), ftype, laid_out)


def memory_of(
    info: ModelInfo, *, device: str | None = None, gpu_layers: int | None = None, low_memory: bool = False
) -> int:
    """Bytes that a model takes when it is loaded here as the engine does by itself, main memory and GPU together.

    Settings of a call, such as ``n_threads`` (which an encoder's lanes follow from) and ``n_batch``, are not counted.

    Args:
        info: the model.
        device, gpu_layers, low_memory: as ``Embedder`` has them.

    Raises:
        EngineMemoryError: it does not fit.
        EngineUnavailableError: the library is missing.
    """
    if info.shape is None:
        return info.size_bytes
    room = room_here(placement.wanted(device, gpu_layers, placement.here()).gpus)
    repacked = repacked_share(info.shape)
    return make_plan(info, room, gpu_layers=gpu_layers, repacked=repacked, low_memory=low_memory).total


def _find(model: str | None, ftype: str | None) -> tuple[ModelInfo, str | None]:
    """The model, and the type that is planned by published numbers, None for a file."""
    if ftype is not None:
        if ftype.lower() not in catalogue.BITS:
            raise InvalidOptionError(f"{ftype!r} is not a type", hint=f"known types: {', '.join(catalogue.BITS)}")
        entry = catalogue.find(model or catalogue.DEFAULT_MODEL)
        if entry is None:
            raise InvalidOptionError(
                f"{model} is not the name of a known model, so it cannot be planned in another type",
                hint="leave --type out for a file",
            )
        return known_model(entry, ftype.lower()), ftype.lower()
    try:
        return read_model_info(read_header(catalogue.resolve(model))), None
    except ModelMissingError:
        assert model is not None
        base, typed = catalogue.split_type(model) if catalogue.find(model.rpartition(":")[0]) else (model, None)
        entry = catalogue.find(base)
        if entry is None or entry.published is None:
            raise
        chosen = typed or catalogue.LADDER[-1]
        return known_model(entry, chosen), chosen


def known_model(entry: CatalogueEntry, ftype: str) -> ModelInfo:
    """What is known of a model before it is here, as far as a plan needs it.

    Raises:
        InvalidOptionError: its publisher's numbers were not written down.
    """
    if entry.published is None:
        raise InvalidOptionError(
            f"the numbers of {entry.name} are not known here",
            hint=f"fetch it with `edge-embed pull {entry.name}`, and plan for the file",
        )
    embedding_bits = _EMBEDDING_BITS.get(ftype, _Q6_K_BITS)
    return ModelInfo(
        path="",
        architecture=entry.architecture,
        name=f"{entry.name}:{ftype}",
        n_embd=entry.dimensions,
        n_ctx_train=entry.max_tokens,
        n_layer=entry.published.layers,
        n_vocab=entry.published.vocabulary,
        pooling=cast(Pooling, entry.pooling),
        pooling_source="catalogue",
        causal=entry.architecture in DECODERS,
        max_tokens=entry.max_tokens,
        normalize=True,
        shape=shape_of_published(entry.published, catalogue.BITS[ftype], embedding_bits),
    )


def _laid_out(info: ModelInfo, chosen: MemoryPlan, *, low_memory: bool) -> int:
    """What llama.cpp lays out for a plan."""
    usual = sizes(info, low_memory=low_memory)
    context = context_shape(
        info,
        n_tokens=max(chosen.n_batch, 1),
        n_seq_max=usual.n_seq_max,
        n_ubatch=chosen.n_ubatch,
        hidden=has_memory(info),
        kv_type=chosen.kv_type,
        share=usual.share,
    )
    context = replace(context, n_ctx=chosen.n_ctx, n_ubatch=chosen.n_ubatch)
    if not chosen.gpu_layers:
        return simulate.used(info, context)
    found = simulate.reserved(info, context, gpu_layers=chosen.gpu_layers, gpus=chosen.room.gpus)
    return sum(n_bytes for kind, n_bytes in found.items() if not kind.startswith("CPU") and "Host" not in kind)
