"""Where a model computes: what devices are called, which of them a caller's words mean here, and the layers they take.

A device is called by its kind and its number among those of its kind, ``cuda:0``, ``vulkan:1``, ``metal``. What is not
as it was asked for is said in a ``DeviceWarning``, which the commands print and the server logs:

* ``auto`` takes GPUs where there are some, and the CPU for what they have no room for, or cannot load;
* a device that was named is used or refused, and what of the model it has no room for is computed by the CPU;
* ``cuda:0,cpu`` is that device, and the CPU where it is missing or full.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final

from edge_embed.engine import backends, devices
from edge_embed.engine.devices import Gpu
from edge_embed.engine.fits import check_fits
from edge_embed.engine.memory_model import DEVICES, gpu_need, host_need
from edge_embed.engine.plan import gb, layer_counts, room_of
from edge_embed.engine.shape import ContextShape, has_memory
from edge_embed.errors import EngineMemoryError, EngineUnavailableError, InvalidOptionError
from edge_embed.types import ModelInfo

VARIABLE: Final = "EDGE_EMBED_DEVICE"
AUTO: Final = "auto"
CPU: Final = "cpu"


class DeviceWarning(RuntimeWarning):
    """A model is not computed where it was asked to be, or not all of it; the message says what is, and why."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """What a caller's words mean on this machine.

    Attributes:
        said: the words.
        gpus: the GPUs that they mean; none for the CPU.
        falls_back: whether the CPU may take the place of GPUs.
        note: a sentence where something that was named is missing; else empty.
    """

    said: str
    gpus: tuple[Gpu, ...] = ()
    falls_back: bool = True
    note: str = ""

    @property
    def device(self) -> str:
        """The devices' names, ``cpu`` where there is no GPU among them."""
        return ",".join(gpu.device for gpu in self.gpus) or CPU

    def on_cpu(self, note: str) -> Wanted:
        """The CPU in the place of GPUs."""
        return replace(self, gpus=(), note=note)


@dataclass(frozen=True, slots=True)
class Placement:
    """Where a model is computed.

    Attributes:
        wanted: what was asked for.
        gpu_layers: layers on GPUs, the output counted as one; -1 for all, 0 for the CPU alone.
        note: a sentence where that is not what was asked for; else empty.
    """

    wanted: Wanted
    gpu_layers: int
    note: str = ""

    @property
    def gpus(self) -> tuple[Gpu, ...]:
        """The GPUs that have layers."""
        return self.wanted.gpus if self.gpu_layers else ()

    @property
    def device(self) -> str:
        """``cpu``, or the GPUs' names."""
        return self.wanted.device if self.gpu_layers else CPU

    @property
    def may_fall_back(self) -> bool:
        """Whether the CPU may take over what GPUs cannot load or compute."""
        return bool(self.gpus) and self.wanted.falls_back


def here() -> list[Gpu]:
    """The GPUs that the library can use; loads it.

    Raises:
        EngineUnavailableError: it is missing or does not fit.
    """
    return devices.gpus(backends.registry())


def wanted(device: str | None, gpu_layers: int | None, found: Sequence[Gpu]) -> Wanted:
    """What a caller asks for, on a machine with these GPUs.

    Args:
        device: ``auto``, ``cpu``, or devices with commas between them, perhaps with ``cpu`` at the end; what the
            environment variable EDGE_EMBED_DEVICE says by default, else ``auto``.
        gpu_layers: layers on GPUs, as many as fit by default. 0 means the CPU, whatever the variable says.

    Raises:
        InvalidOptionError: a device that is not here, with those that are; or words that contradict each other.
    """
    if device is not None and not isinstance(device, str):
        raise InvalidOptionError(f"device is {device!r}", hint=f"give a name: {AUTO}, {CPU}, cuda:0, ...")
    if device is None and gpu_layers == 0:
        return Wanted(CPU)
    said = (device if device is not None else os.environ.get(VARIABLE, "")).strip().lower() or AUTO
    where = "device" if device is not None else VARIABLE
    names = [name.strip() for name in said.split(",")]
    if AUTO in names:
        if len(names) > 1:
            raise InvalidOptionError(f"{where} is {said!r}", hint=f"{AUTO} is all there is to say, or name the devices")
        return Wanted(AUTO, () if gpu_layers == 0 else _by_itself(found))
    if CPU in names[:-1] or len(set(names)) < len(names):
        raise InvalidOptionError(
            f"{where} is {said!r}", hint="each device once, and cpu at the end: what the others cannot do is its part"
        )
    if names == [CPU]:
        if gpu_layers:
            raise InvalidOptionError(f"{where} is {CPU}, and gpu_layers is {gpu_layers}", hint="leave one of them out")
        return Wanted(CPU)
    if gpu_layers == 0:
        raise InvalidOptionError(f"gpu_layers is 0, and {where} is {said!r}", hint="leave one of them out")
    return _by_name(said, names, found, where)


def _by_itself(found: Sequence[Gpu]) -> tuple[Gpu, ...]:
    """The GPUs that are used where none is named: all of the first kind, and none of the processor's beside others.

    One card may be listed by two kinds (CUDA and Vulkan), the better one first: llama.cpp registers them in that order.
    """
    separate = [gpu for gpu in found if not gpu.integrated] or list(found)
    return tuple(gpu for gpu in separate if gpu.kind == separate[0].kind)


def _by_name(said: str, names: list[str], found: Sequence[Gpu], where: str) -> Wanted:
    falls_back = names[-1] == CPU
    by_name = {gpu.device: gpu for gpu in found}
    chosen, missing = [], []
    for name in names[:-1] if falls_back else names:
        gpu = by_name.get(name) or by_name.get(f"{name}:0") or by_name.get(name.removesuffix(":0"))
        if gpu is None:
            missing.append(name)
        elif gpu not in chosen:
            chosen.append(gpu)
    listed = ", ".join((CPU, *by_name))
    if missing and not falls_back:
        raise InvalidOptionError(
            f"{where} is {said!r}, and there is no {' and no '.join(missing)} that the engine's libraries can use, "
            f"only {listed}",
            hint=f"choose one of these, {AUTO}, or {said},{CPU}; other libraries: edge-embed engine list",
        )
    note = f"there is no {' and no '.join(missing)} here, only {listed}" if missing else ""
    return Wanted(said, tuple(chosen), falls_back, note)


def place(info: ModelInfo, context: ContextShape, asked: Wanted, gpu_layers: int | None = None) -> Placement:
    """Where the layers go of a model that is about to be loaded.

    Args:
        info: the model.
        context: its first context.
        asked: see ``wanted``.
        gpu_layers: so many layers on GPUs, -1 for all; as many as fit by default.

    Raises:
        EngineMemoryError: main memory clearly does not suffice, or a GPU that was named has no room for a layer.
    """
    layers, notes = 0, [asked.note] if asked.note else []
    if asked.gpus and gpu_layers is not None:
        layers = gpu_layers
    elif asked.gpus:
        layers = layers_that_fit(info, context, asked.gpus)
        free = f"{gb(sum(gpu.free for gpu in asked.gpus))} of its memory is free"
        if layers == 0:
            notes.append(f"{asked.device} has no room for a layer of {info.name}: {free}")
            if not asked.falls_back:
                raise no_room(notes[-1], asked.said)
        elif layers > 0:
            notes.append(f"{asked.device} takes {layers - 1} of {info.n_layer} layers of {info.name}: {free}")
    elif gpu_layers and not notes:
        notes.append(f"gpu_layers is {gpu_layers}, and there is no GPU that the engine's libraries can use")
    note = ""
    if notes:
        whole = f"{asked.device if layers else 'the CPU'} computes the model"
        note = f"{'; '.join(notes)}: {'the CPU computes the others' if 0 < layers <= info.n_layer else whole}"
    check_fits(info, context, gpu_layers=layers)
    return Placement(asked, layers, note)


def layers_that_fit(info: ModelInfo, context: ContextShape, gpus: Sequence[Gpu]) -> int:
    """How many layers these GPUs have room for: -1 for all, 0 where that is none.

    Where their memory is the machine's, what the CPU needs is left to it.
    """
    model, cached, room = info.shape, has_memory(info), room_of(gpus)
    device = room.device
    if model is None or device is None or device.kind not in DEVICES:
        return -1  # nothing is known of such a model or device: it gets all of them
    for layers in layer_counts(model, room, None):
        need = gpu_need(model, context, cached=cached, gpu_layers=layers, device=device, n_gpus=room.n_gpus).total
        shared = 0
        if device.shares_memory and room.ram is not None:
            shared = need + host_need(model, context, cached=cached, gpu_layers=layers, device=device).firm
        if need <= room.vram and shared <= (room.ram or 0):
            return -1 if layers > model.n_layer else layers
    return 0


def no_room(what: str, said: str) -> EngineMemoryError:
    """The refusal where a GPU that was named does not suffice, and nothing may take its place."""
    return EngineMemoryError(
        what,
        hint=f"say {said},{CPU} to have the CPU help out, put fewer layers there (gpu_layers), or use a smaller type",
    )


def give_up(asked: Wanted, info: ModelInfo, problem: str) -> Wanted:
    """The CPU in the place of devices that the probe found not to compute a model; its note says so.

    Raises:
        EngineUnavailableError: nothing may take their place.
    """
    what = f"{asked.device} does not compute {info.name}: {problem}"
    if not asked.falls_back:
        raise EngineUnavailableError(what, hint=f"say {asked.said},{CPU}, {CPU} or {AUTO}")
    return asked.on_cpu(what)


def say(note: str) -> None:
    """Warn of what is not as it was asked for, if anything is not."""
    if note:
        warnings.warn(note, DeviceWarning, stacklevel=4)
