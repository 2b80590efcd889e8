"""What fits: how many layers go to the GPU, how large batches and texts may be; or why nothing does, in numbers.

The search is short and in this order: everything on the GPU, else as many layers as it holds; then fewer tokens at a
time; then smaller batches; then, where nothing else is left, keys and values in q8_0. A context grows when a long text
comes, so a plan is made for batches, and says how long a single text may be; a length that is asked for is held.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Final

from edge_embed.engine import backends, devices
from edge_embed.engine.devices import Gpu
from edge_embed.engine.lane_plan import plan_lanes
from edge_embed.engine.memory_model import DEVICES, UNKNOWN, Device, Need, gpu_need, host_need
from edge_embed.engine.shape import (
    Q8_0_BLOCK,
    ROW,
    Sizes,
    context_shape,
    has_memory,
    sizes,
)
from edge_embed.errors import EngineMemoryError, InvalidOptionError
from edge_embed.model_shape import ModelShape
from edge_embed.types import KvType, ModelInfo

_SMALLEST: Final = 128  # tokens at a time; with fewer, the weights are read too often for what is saved


@dataclass(frozen=True, slots=True)
class Room:
    """What there is to fit into.

    Attributes:
        ram: main memory in bytes, or None where that is not known.
        vram: memory of GPUs together, in bytes; 0 without one.
        device: their kind; None without one.
        n_gpus: how many there are.
        gpus: what the library calls them, where they are this machine's.
    """

    ram: int | None
    vram: int = 0
    device: Device | None = None
    n_gpus: int = 1
    gpus: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class MemoryPlan:
    """How a model is run, and what that takes.

    Attributes:
        device: ``CPU``, or the kind of GPU that has layers.
        gpu_layers: layers on it as llama.cpp counts them: the output is the first one; 0 without.
        n_layer: layers of the model, the output not counted.
        n_batch: tokens of a batch.
        n_ubatch: tokens that are computed at a time.
        n_ctx: cells of the context that is made at first, or for ``max_tokens`` where these were asked for.
        max_tokens: the longest text that fits.
        kv_type: type of keys and values.
        host: what main memory has to hold.
        gpu: what GPUs have to hold together.
        room: what there is.
        notes: what was given up, a sentence each.
    """

    device: str
    gpu_layers: int
    n_layer: int
    n_batch: int
    n_ubatch: int
    n_ctx: int
    max_tokens: int
    kv_type: KvType
    host: Need
    gpu: Need
    room: Room
    notes: tuple[str, ...] = ()

    @property
    def weights_bytes(self) -> int:
        return self.host.weights + self.gpu.weights

    @property
    def kv_bytes(self) -> int:
        return self.host.kv + self.gpu.kv

    @property
    def compute_bytes(self) -> int:
        return self.host.compute + self.gpu.compute

    @property
    def output_bytes(self) -> int:
        return self.host.output + self.gpu.output

    @property
    def overhead_bytes(self) -> int:
        return self.host.overhead + self.gpu.overhead

    @property
    def total(self) -> int:
        """Of both places, when the model is loaded."""
        return self.host.firm + self.gpu.firm

    @property
    def reclaimable(self) -> int:
        """Of the weights, pages of the mapped file: the system may drop them, and has to read them again."""
        return self.host.reclaimable

    def explain(self) -> list[str]:
        """The plan in sentences."""
        lines = []
        if self.gpu_layers:
            count = min(self.n_layer, self.gpu_layers - 1)
            which = "all" if count == self.n_layer else f"{count} of"
            lines.append(
                f"{which} {self.n_layer} layers and the output on {self.device}: {gb(self.gpu.total)} of "
                f"{gb(self.room.vram)}"
            )
        elif self.room.vram:
            lines.append(f"no layer fits into {gb(self.room.vram)} of the GPU's memory: all on the CPU")
        have = "" if self.room.ram is None else f" of {gb(self.room.ram)}"
        lines.append(f"main memory: {gb(self.host.firm)}{have}")
        if self.host.total > self.host.firm:
            lines.append(
                f"while the model is loaded, the process shows {gb(self.host.total)}: the file's pages, which make way"
            )
        lines.append(
            f"batches of {self.n_batch:,} tokens, {self.n_ubatch:,} computed at a time, {self.kv_type} keys and values"
            if self.kv_bytes
            else f"batches of {self.n_batch:,} tokens"
        )
        lines.append(f"a text may have up to {self.max_tokens:,} tokens")
        return [*lines, *self.notes]


def room_of(gpus: Sequence[Gpu], ram: int | None = None) -> Room:
    """What main memory and these GPUs have free; ``ram`` takes the place of main memory's."""
    device = None
    if gpus:
        known = DEVICES.get(gpus[0].kind, replace(UNKNOWN, kind=gpus[0].kind))
        device = replace(known, shares_memory=any(gpu.shares_memory for gpu in gpus))
    return Room(
        devices.memory().available if ram is None else ram,
        sum(gpu.free for gpu in gpus),
        device,
        max(1, len(gpus)),
        tuple(gpu.name for gpu in gpus),
    )


def room_here(
    gpus: Sequence[Gpu], *, ram: int | None = None, vram: int | None = None, backend: str | None = None
) -> Room:
    """What this machine has, or, where numbers are given, what those say instead.

    Args:
        gpus: those that are used here.
        ram: main memory in bytes; what is available by default.
        vram: GPU memory in bytes; 0 for none. What is free by default.
        backend: kind of GPU that ``vram`` belongs to; the one that is here, else CUDA.

    Raises:
        InvalidOptionError: a backend that is not known.
    """
    if backend is not None and backend not in DEVICES:
        raise InvalidOptionError(f"the backend {backend!r} is not known", hint=f"one of {', '.join(DEVICES)}")
    found = room_of(gpus, ram)
    device = DEVICES[backend] if backend else found.device or DEVICES["CUDA"]
    if vram is None:
        return replace(found, device=device if found.vram else None)
    return replace(found, vram=vram, device=device if vram else None, n_gpus=1, gpus=())


def make_plan(
    info: ModelInfo,
    room: Room,
    *,
    max_tokens: int | None = None,
    n_batch: int | None = None,
    kv_type: KvType | None = None,
    gpu_layers: int | None = None,
    repacked: float = 0.0,
    low_memory: bool = False,
) -> MemoryPlan:
    """The best way to run a model in that room.

    Args:
        info: the model.
        room: what there is.
        max_tokens: a text of so many tokens must fit.
        n_batch: tokens of a batch that are wished for; what the engine takes by default.
        kv_type: type of keys and values; f16, and q8_0 where nothing else fits, by default.
        gpu_layers: so many layers on the GPU, the output counted; as many as fit by default.
        repacked: share of the weights that this machine's kernels copy, see ``repacked_share``.
        low_memory: nothing is copied, and little taken on at a time, see ``shape.sizes``.

    Raises:
        EngineMemoryError: nothing fits; the message has the numbers.
        InvalidOptionError: ``max_tokens`` that the model does not hold, a ``kv_type`` that it cannot have, or a
            model of which nothing is known.
    """
    model = _shape(info)
    if max_tokens is not None and not 1 <= max_tokens <= info.n_ctx_train:
        raise InvalidOptionError(f"max_tokens is {max_tokens}", hint=f"give 1 to {info.n_ctx_train:,}")
    if kv_type == "q8_0" and not _takes_q8_0(info, model):
        raise InvalidOptionError("this model's keys and values cannot be q8_0", hint="leave the option out")
    usual = sizes(info, low_memory=low_memory)
    wished = n_batch or usual.n_batch
    search = _Search(info, model, room, 0.0 if low_memory else repacked, usual, low_memory)
    first: MemoryPlan | None = None
    for settings in _ways(info, model, wished, usual.n_ubatch, kv_type):
        for layers in layer_counts(model, room, gpu_layers):
            candidate = search.candidate(*settings, layers, max_tokens or 0)
            first = first or candidate
            if fits_in(candidate, room):
                longest = search.longest(candidate)
                return replace(candidate, max_tokens=longest, notes=_given_up(candidate, first, max_tokens, wished))
            last = candidate
    raise _refusal(info, search, last, max_tokens, gpu_layers)


def repacked_share(model: ModelShape, asked: Callable[[str, int, int], bool] | None = None) -> float:
    """The share of the layers' weights that this machine's kernels copy when a model is loaded, 0 to 1.

    Args:
        model: the model.
        asked: whether a matrix of that type, with rows of so many values, and so many rows, is copied.
    """
    repacks = backends.repacks()
    chosen = [m for m in model.matrices if (asked(m.type_name, m.n_in, m.n_out) if asked else repacks(m))]
    layers = sum(model.layer_bytes)
    return sum(m.n_bytes for m in chosen) / layers if layers else 0.0


@dataclass(frozen=True, slots=True)
class _Search:
    info: ModelInfo
    model: ModelShape
    room: Room
    repacked: float
    usual: Sizes
    low_memory: bool

    def candidate(self, n_batch: int, n_ubatch: int, kv_type: KvType, gpu_layers: int, n_tokens: int) -> MemoryPlan:
        """What it takes to run like that, texts of ``n_tokens`` included."""
        cached = has_memory(self.info)
        context = context_shape(
            self.info,
            n_tokens=max(n_batch, n_tokens),
            n_seq_max=self.usual.n_seq_max,
            n_ubatch=n_ubatch,
            hidden=cached,
            kv_type=kv_type,
            share=self.usual.share,
        )
        device = self.room.device
        host = host_need(
            self.model,
            context,
            cached=cached,
            gpu_layers=gpu_layers,
            device=device,
            repacked=self.repacked,
            gives_back=sys.platform == "linux",
            n_tokens=max(n_batch, n_tokens),
        )
        if not gpu_layers and not self.low_memory:
            host = self.with_lanes(host, n_batch)
        gpu = Need()
        if gpu_layers and device is not None:
            gpu = gpu_need(
                self.model,
                context,
                cached=cached,
                gpu_layers=gpu_layers,
                device=device,
                n_gpus=self.room.n_gpus,
            )
        return MemoryPlan(
            device=device.kind if device is not None and gpu_layers else "CPU",
            gpu_layers=gpu_layers,
            n_layer=self.model.n_layer,
            n_batch=n_batch,
            n_ubatch=context.n_ubatch,
            n_ctx=context.n_ctx,
            max_tokens=n_tokens,
            kv_type=kv_type,
            host=host,
            gpu=gpu,
            room=self.room,
        )

    def with_lanes(self, host: Need, n_batch: int) -> Need:
        """What is needed with the lanes that the engine opens where there is room for them."""
        wider = plan_lanes(self.info, n_threads=devices.default_threads(), n_batch=n_batch).beside(host)
        return wider if self.room.ram is None or wider.firm <= self.room.ram else host

    def longest(self, plan: MemoryPlan) -> int:
        """The longest text that fits with these settings, a multiple of 256 or the model's own limit."""

        def fits(n_tokens: int) -> bool:
            # Where whole texts are computed at a time, n_ubatch follows from the length; else it is the plan's.
            other = self.candidate(plan.n_batch, plan.n_ubatch, plan.kv_type, plan.gpu_layers, n_tokens)
            return fits_in(other, self.room)

        low, high = 0, -(-self.info.max_tokens // ROW)
        if plan.max_tokens:
            low = plan.max_tokens // ROW
        while low < high:
            middle = (low + high + 1) // 2
            low, high = (middle, high) if fits(middle * ROW) else (low, middle - 1)
        return max(min(low * ROW, self.info.max_tokens), plan.max_tokens)


def _shape(info: ModelInfo) -> ModelShape:
    if info.shape is None:
        raise InvalidOptionError(f"nothing is known of the shape of {info.name}")
    return info.shape


def _takes_q8_0(info: ModelInfo, model: ModelShape) -> bool:
    return has_memory(info) and not model.key_length % Q8_0_BLOCK and not model.value_length % Q8_0_BLOCK


def _ways(
    info: ModelInfo, model: ModelShape, n_batch: int, n_ubatch: int, kv_type: KvType | None
) -> Iterator[tuple[int, int, KvType]]:
    """``(n_batch, n_ubatch, kv_type)``, the best first."""
    kinds: tuple[KvType, ...] = (kv_type,) if kv_type else ("f16", "q8_0") if _takes_q8_0(info, model) else ("f16",)
    for kind in kinds:
        batch, ubatch = n_batch, min(n_batch, n_ubatch)
        yield batch, ubatch, kind
        while ubatch >= 2 * _SMALLEST and info.causal:
            ubatch //= 2
            yield batch, ubatch, kind
        while batch >= 2 * ROW:  # a context is no smaller for fewer
            batch //= 2
            yield batch, min(batch, ubatch), kind


def layer_counts(model: ModelShape, room: Room, asked: int | None) -> Iterator[int]:
    """How many layers to try on GPUs, the output counted, the most first."""
    most = model.n_layer + 1
    if asked is not None:
        yield most if asked < 0 else min(asked, most)
    elif room.device is None:
        yield 0
    else:
        yield from range(most, -1, -1)


def fits_in(plan: MemoryPlan, room: Room) -> bool:
    """Whether the room holds what the plan needs."""
    needed = plan.host.firm
    if room.device is not None and room.device.shares_memory:
        needed += plan.gpu.total
    return (room.ram is None or needed <= room.ram) and plan.gpu.total <= room.vram


def _given_up(plan: MemoryPlan, best: MemoryPlan, max_tokens: int | None, wished: int) -> tuple[str, ...]:
    """A sentence for everything that is less than what was wished for."""
    notes = []
    if plan.n_batch < wished:
        notes.append(f"batches of {wished:,} tokens do not fit")
    elif plan.n_ubatch < best.n_ubatch:
        notes.append(f"{best.n_ubatch:,} tokens at a time do not fit")
    if plan.kv_type != best.kv_type:
        asked = f" for texts of {max_tokens:,} tokens" if max_tokens else ""
        notes.append(f"keys and values fit{asked} as q8_0 only, which moves vectors a little")
    return tuple(notes)


def _refusal(
    info: ModelInfo, search: _Search, least: MemoryPlan, max_tokens: int | None, gpu_layers: int | None
) -> EngineMemoryError:
    """Why nothing fits, and what would.

    Args:
        info: the model.
        search: what was searched.
        least: the way that takes least.
        max_tokens: as it was asked for.
        gpu_layers: as it was asked for.
    """
    room = search.room
    asked = f" with texts of {max_tokens:,} tokens" if max_tokens else ""
    needed = [f"{gb(least.host.firm)} of main memory ({gb(room.ram or 0)} available)"]
    if least.gpu.total:
        needed.append(f"{gb(least.gpu.total)} of the GPU's memory ({gb(room.vram)} available)")
    hint = "use a smaller model or type, or a machine with more memory"
    if not search.low_memory:
        hint = "low_memory (--low-memory) takes less; else " + hint
    if max_tokens:
        shorter = replace(least, max_tokens=0)
        without = search.candidate(least.n_batch, least.n_ubatch, least.kv_type, least.gpu_layers, 0)
        if fits_in(without, room):
            hint = f"max_tokens of {search.longest(shorter):,} would fit"
    if gpu_layers:
        hint += "; fewer gpu_layers take less of the GPU's memory"
    parts = (
        f"{gb(least.weights_bytes)} weights, {gb(least.kv_bytes)} keys and values, "
        f"{gb(least.compute_bytes + least.output_bytes)} buffers, {gb(least.overhead_bytes)} overhead"
    )
    return EngineMemoryError(
        f"{info.name} does not fit{asked}: at its smallest it takes {' and '.join(needed)}: {parts}",
        hint=hint,
    )


def gb(n_bytes: float) -> str:
    """A size in powers of 1000, as disks and memory are sold."""
    return f"{n_bytes / 1e9:.2f} GB" if n_bytes >= 0.9995e9 else f"{n_bytes / 1e6:.0f} MB"
