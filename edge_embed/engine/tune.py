"""Measured settings of a model on this machine: what they are, where they are kept, and how they reach the engine.

``search.py`` finds them, when ``edge-embed tune`` is asked to; this module is what every start looks at. A choice
belongs to one file, one machine, and the library that would be loaded without it, as the probe's outcome does. It may
name another folder of libraries; a process that has loaded a library already runs the model untuned then.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, Final, Literal

from edge_embed.engine import bindings
from edge_embed.engine.devices import default_threads
from edge_embed.engine.findings import Findings, files_of, key_of
from edge_embed.engine.placement import AUTO, CPU, VARIABLE
from edge_embed.engine.shape import BATCH_CAUSAL, BATCH_ENCODER, UBATCH_CAUSAL
from edge_embed.errors import EngineUnavailableError
from edge_embed.types import ModelInfo

Profile = Literal["queries", "documents", "mixed"]
PROFILES: Final[tuple[Profile, ...]] = ("queries", "documents", "mixed")


@dataclass(frozen=True, slots=True)
class Settings:
    """How a model is run. The vectors are the same but for the last digits; the speed is not.

    Attributes:
        library: folder of the native libraries; empty for those that are loaded anyway.
        device: where it computes, by name; empty leaves that to the engine, as ``auto`` does.
        use_extra_bufts: whether weights are repacked for AMX and similar kernels.
        n_threads: CPU threads.
        n_batch: tokens of a batch.
        n_ubatch: tokens that a decoder's graph is computed for at a time.
        share_prefixes: whether a decoder computes what texts begin with once.
    """

    library: str
    device: str
    use_extra_bufts: bool
    n_threads: int
    n_batch: int
    n_ubatch: int
    share_prefixes: bool

    def arguments(self) -> dict[str, Any]:
        """The same as arguments of ``LlamaEngine``. The library is not one: it is loaded before."""
        values = asdict(self)
        del values["library"]
        if not self.device:
            del values["device"]
        return values


@dataclass(frozen=True, slots=True)
class Choice:
    """What was chosen for a model.

    Attributes:
        settings: the fastest that were found.
        profile: the kind of texts that they were found with.
        speedup: how many times as fast they are as the untuned ones, measured at the end.
        complete: False where the time was up, or it was interrupted, before everything was tried.
        files: what ``settings.library`` held, as ``findings.files_of``; empty where it is not set.
    """

    settings: Settings
    profile: Profile
    speedup: float
    complete: bool
    files: list[list[Any]]


def _read(value: Mapping[str, Any]) -> Choice:
    """A choice of its JSON. ValueError, TypeError, KeyError where it is none: the cache is then taken for empty."""
    found = value["settings"]
    settings = Settings(**found)
    kinds = {"str": str, "int": int, "bool": bool}
    for field in fields(settings):
        if type(found[field.name]) is not kinds[str(field.type)]:
            raise ValueError(field.name)
    if min(settings.n_threads, settings.n_batch, settings.n_ubatch) < 1 or value["profile"] not in PROFILES:
        raise ValueError(value)
    return Choice(settings, value["profile"], float(value["speedup"]), bool(value["complete"]), list(value["files"]))


CHOICES: Final = Findings("tune.json", _read, asdict)


def untuned(info: ModelInfo, *, use_extra_bufts: bool, device: str = "") -> Settings:
    """What the engine does by itself, or on a device that it was told."""
    return Settings(
        library="",
        device=device,
        use_extra_bufts=use_extra_bufts,
        n_threads=default_threads(),
        n_batch=BATCH_CAUSAL if info.causal else BATCH_ENCODER,
        n_ubatch=UBATCH_CAUSAL,
        share_prefixes=True,
    )


def choice(info: ModelInfo) -> Choice | None:
    """What was chosen for the model on this machine, or None; loads no library.

    One whose library has been changed or removed since is none.
    """
    try:
        found = CHOICES.get(_key(info))
        if found is None or not found.settings.library:
            return found
        now = files_of(bindings.library_file(Path(found.settings.library), "llama"))
    except (EngineUnavailableError, OSError):
        return None
    return found if now == found.files else None


def summary(info: ModelInfo) -> str:
    """What was chosen for the model on this machine, in a line for people, or nothing; loads no library."""
    found = choice(info)
    if found is None:
        return ""
    values = {name: value for name, value in asdict(found.settings).items() if value != ""}
    shown = ", ".join(f"{name} {readable(name, value)}" for name, value in values.items())
    return f"for {found.profile}, {found.speedup:.2f} times as fast as untuned: {shown}"


def readable(name: str, value: object) -> str:
    """A setting's value for people."""
    if isinstance(value, bool):
        return "on" if value else "off"
    return str(value) or {"library": "installed", "device": AUTO}.get(name, "")


def keep(info: ModelInfo, chosen: Choice) -> bool:
    """Have every later start use the choice; False where the cache folder cannot be written."""
    folder = chosen.settings.library
    files = files_of(bindings.library_file(Path(folder), "llama")) if folder else []
    return CHOICES.put(_key(info), replace(chosen, files=files))


def forget(info: ModelInfo) -> bool:
    """Go back to what the engine does by itself; whether there was a choice."""
    return CHOICES.drop(_key(info))


def _key(info: ModelInfo) -> str:
    library = bindings.library_file(bindings.default_folder(), "llama")
    return key_of(info, library, default_threads(), os.cpu_count())


def arguments(info: ModelInfo, options: Mapping[str, object]) -> dict[str, Any]:
    """Arguments of ``LlamaEngine`` besides ``use_extra_bufts``: what the caller says, else what was chosen.

    The library that the choice names is loaded, if none is yet.

    Args:
        info: the model.
        options: the caller's; None leaves an option open.
    """
    given = {name: value for name, value in options.items() if value is not None}
    chosen = choice(info)
    if chosen is None or given.get("low_memory"):
        return given
    elsewhere = "device" in given or VARIABLE in os.environ
    # An adapter was not measured, and other devices may not know how to add one; nor have other libraries the devices.
    if chosen.settings.library and ("lora" in given or elsewhere or not bindings.prefer(chosen.settings.library)):
        return given
    measured = chosen.settings.arguments()
    if elsewhere or "gpu_layers" in given:
        measured.pop("device", None)
    elif measured.get("device", CPU) != CPU:  # the user chose the speed, not the device: it may be gone some day
        measured["device"] += f",{CPU}"
    return {**measured, **given}
