"""``edge-embed tune``, from a model and a kind of work to a choice that is kept: what is tried, on how many texts.

The search itself is in ``search.py``, a candidate's process in ``trial.py``, what is kept in ``tune.py``.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from pathlib import Path
from typing import Final

from edge_embed.engine import bindings, builds, placement, report
from edge_embed.engine.devices import Gpu, default_threads
from edge_embed.engine.probe import probe
from edge_embed.engine.search import Coordinate, Found, Judge, Measured, Search, allowed_deviation
from edge_embed.engine.trial import CandidateFailedError, Trial, Work, deviation
from edge_embed.engine.tune import Choice, Profile, Settings, keep, untuned
from edge_embed.engine.tuning_texts import work
from edge_embed.errors import EngineUnavailableError, InvalidOptionError
from edge_embed.types import ModelInfo

BATCHES: Final = {False: (128, 192, 256, 384, 512, 768, 1024), True: (256, 512, 1024, 2048)}  # encoders, decoders
UBATCHES: Final = (128, 256, 512, 1024)
# A repetition takes this part of the time, within bounds: shorter ones are all noise, longer ones need not be.
_SHARE_OF_BUDGET, _SECONDS = 1 / 150, (0.25, 4.0)
_PILOT: Final = {"queries": 2, "documents": 3}
_FEWEST: Final = 4
# Memory that a loaded model may take, as a multiple of its file: the file, repacked weights, another backend's copy.
_LOADED: Final = 3.0


@dataclass(frozen=True, slots=True)
class Plan:
    """What a search will try.

    Attributes:
        reference: the settings that are used untuned, where it begins.
        coordinates: in the order of trying.
        work: the texts.
    """

    reference: Settings
    coordinates: tuple[Coordinate, ...]
    work: Work


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a search has found, and on what.

    Attributes:
        plan: what was to be tried.
        found: what it has led to.
        n_texts: texts of each part that were used.
        n_tokens: tokens of these.
        decided: whether there is anything to keep: better settings, or that there are none.
        kept: whether later starts will use it; False where the cache folder cannot be written.
    """

    plan: Plan
    found: Found
    n_texts: Mapping[str, int]
    n_tokens: Mapping[str, int]
    decided: bool
    kept: bool


def plan(
    info: ModelInfo,
    profile: Profile,
    *,
    texts: Sequence[str] | None = None,
    libraries: Sequence[Path] = (),
    device_names: Sequence[str] = (),
    use_extra_bufts: bool = True,
) -> Plan:
    """What would be tried; starts nothing.

    Args:
        info: the model.
        profile: what kind of work it is to be fast at.
        texts: the user's own; built-in ones by default.
        libraries: folders with other builds of llama.cpp to consider, besides those of ``edge-embed engine list``.
        device_names: the only devices to consider, the first of them in the place of what the engine takes by itself;
            by default that, the CPU, and the GPUs that it would not take.
        use_extra_bufts: whether repacked weights are known to work.

    Raises:
        InvalidOptionError: no texts, a folder without libraries, or a device that no engine has.
    """
    if texts is not None and not any(texts):
        raise InvalidOptionError("there are no texts to measure", hint="give some, or leave out the file")
    folders = list(dict.fromkeys([*(_folder(path) for path in libraries), *_installed()]))
    usual, others = _devices(device_names, elsewhere=bool(folders))
    default = default_threads()
    threads = sorted({1, max(1, default // 2), default, os.cpu_count() or default})
    coordinates = [
        Coordinate("library", ("", *folders)),
        Coordinate(
            "device", (usual, *others), applies=lambda best: bool(best.library or device_names or placement.here())
        ),
        Coordinate("use_extra_bufts", (True, False) if use_extra_bufts else (False,)),
        Coordinate("n_threads", tuple(threads), ordered=True),
    ]
    if profile != "queries" or info.rerank is not None:  # one short text at a time fills no batch
        coordinates.append(Coordinate("n_batch", BATCHES[info.causal], ordered=True))
        if info.causal:
            coordinates.append(Coordinate("n_ubatch", UBATCHES, ordered=True))
    if info.causal:
        coordinates.append(Coordinate("share_prefixes", (True, False)))
    return Plan(
        untuned(info, use_extra_bufts=use_extra_bufts, device=usual),
        tuple(coordinate for coordinate in coordinates if len(coordinate.values) > 1),
        work(profile, texts, pairs=info.rerank is not None),
    )


def tune(
    info: ModelInfo,
    profile: Profile,
    *,
    budget: float,
    say: Callable[[Measured], None],
    texts: Sequence[str] | None = None,
    libraries: Sequence[Path] = (),
    device_names: Sequence[str] = (),
) -> Outcome:
    """Find the fastest settings for a model on this machine, and keep them for every later start.

    Args:
        info: the model.
        profile: what kind of work it is to be fast at.
        budget: seconds after which nothing new is begun.
        say: told of each candidate as it is decided.
        texts, libraries, device_names: as for ``plan``.

    Raises:
        ModelFileError: the engine cannot run the model at all.
        EngineUnavailableError: not even the untuned settings could be measured.
        InvalidOptionError: as for ``plan``.
    """
    deadline = time.monotonic() + budget
    usable = probe(info, bindings.load().library).use_extra_bufts
    planned = plan(info, profile, texts=texts, libraries=libraries, device_names=device_names, use_extra_bufts=usable)
    reference = Trial(info, planned.reference, planned.work)
    try:
        numbers, n_tokens, judge = _prepare(info, reference, budget)
        limited = planned.work.first(numbers)
        tried = {reference.settings: reference}

        def start(settings: Settings) -> Trial:
            return tried.setdefault(settings, Trial(info, settings, limited))

        search = Search(start, judge, deadline, say)
        coordinates = _worth_trying(planned.coordinates, n_tokens, lambda settings: tried[settings].device)
        found = search.run(reference, coordinates)
    except CandidateFailedError as failure:
        raise EngineUnavailableError(
            f"the untuned settings could not be measured: {failure}",
            hint="free memory, or see whether `edge-embed doctor` finds the reason",
        ) from None
    finally:
        reference.rest()
    decided = found.complete or found.settings != planned.reference
    kept = decided and keep(info, Choice(found.settings, profile, found.speedup, found.complete, []))
    return Outcome(planned, found, numbers, n_tokens, decided, kept)


def _prepare(info: ModelInfo, reference: Trial, budget: float) -> tuple[dict[str, int], dict[str, int], Judge]:
    """How many texts of each part make a repetition of the wanted length, their tokens, and what is compared."""
    loaded = reference.load()
    counts = loaded.n_tokens
    reference.limit({name: min(_PILOT[name], len(n)) for name, n in counts.items()})
    reference.vectors()
    pilot = reference.run()
    low, high = _SECONDS
    wanted = min(max(budget * _SHARE_OF_BUDGET, low), high) / len(counts)
    numbers = {}
    for name, n in counts.items():
        rate = sum(n[: _PILOT[name]]) / max(pilot[name], 1e-9)
        reached = sum(1 for before in accumulate((0, *n[:-1])) if before < rate * wanted)
        numbers[name] = max(reached, min(_FEWEST, len(n)))
    reference.limit(numbers)
    packed, alone = reference.vectors(), reference.vectors(alone=True)
    noise = deviation(info, packed, alone)
    available = report.machine().available_bytes
    judge = Judge(
        n_tokens={name: sum(n[: numbers[name]]) for name, n in counts.items()},
        reference=packed,
        deviation=lambda a, b: deviation(info, a, b),
        allowed=allowed_deviation(info.types, noise, scores=info.rerank is not None),
        together=available is None or available > _LOADED * info.size_bytes,
    )
    return numbers, dict(judge.n_tokens), judge


def _worth_trying(
    coordinates: Sequence[Coordinate], n_tokens: Mapping[str, int], device_of: Callable[[Settings], str]
) -> list[Coordinate]:
    """Without batches that the texts do not fill, and without the CPU where an engine takes it by itself."""
    most = max(n_tokens.values())
    kept = []
    for coordinate in coordinates:
        if coordinate.name in ("n_batch", "n_ubatch"):
            coordinate = replace(coordinate, values=tuple(value for value in coordinate.values if value <= most))
        elif coordinate.name == "device" and {*coordinate.values} <= {"", placement.CPU}:
            coordinate = replace(coordinate, applies=lambda best: device_of(best) != placement.CPU)
        kept.append(coordinate)
    return kept


def _devices(names: Sequence[str], *, elsewhere: bool) -> tuple[str, list[str]]:
    """The device of the untuned settings, empty for what the engine takes by itself, and those to compare it with.

    Args:
        names: the only ones, as the user named them.
        elsewhere: whether other libraries are considered, which may have devices of their own.
    """
    here = placement.here()
    if not names:
        usual = placement.wanted(placement.AUTO, None, here).device
        cpu = [placement.CPU] if here or elsewhere else []
        return "", cpu + [gpu.device for gpu in here if gpu.device != usual]
    # The first is measured with the libraries in use, and the others, too, where these are the only ones.
    known = names[:1] if elsewhere else names
    usual, *others = dict.fromkeys(_plain(name, here if name in known else None) for name in names)
    return usual, others


def _plain(name: str, found: Sequence[Gpu] | None) -> str:
    """A device as settings have it: without the CPU that may help out, empty for what the engine takes by itself.

    Raises:
        InvalidOptionError: it is not among the GPUs that were found; None where these are not known.
    """
    said = ",".join(part.strip() for part in name.lower().split(","))
    if placement.AUTO in said.split(","):
        placement.wanted(said, None, ())  # says that there is no more to say
        return ""
    return said.removesuffix(f",{placement.CPU}") if found is None else placement.wanted(said, None, found).device


def _folder(path: Path) -> str:
    """The folder itself, if it has a libllama."""
    try:
        return str(bindings.library_file(path.resolve(), "llama").parent)
    except EngineUnavailableError:
        raise InvalidOptionError(
            f"there is no libllama in {path}", hint="name the folder with the shared libraries of a llama.cpp build"
        ) from None


def _installed() -> list[str]:
    """Engines that were built beside the one that would be loaded."""
    ready = [found for found in builds.installed() if isinstance(found, builds.Build) and not found.unfit()]
    return [str(found.folder) for found in ready if found.folder != bindings.default_folder()]
