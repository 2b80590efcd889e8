"""Is it safe to run this model with this library on this machine? Found out in a child process, once.

Two things end a process that loads a model: kernels that were compiled wrongly (gcc 12 on CPUs with AMX) and files
that pass every check of ours and still crash the library. So before a file is first used, a child process loads it and
computes some small batches. If the child dies with the repacked weights that AMX uses, it is tried without them; if it
dies again, the file is refused. On a GPU the child computes the same on the CPU, too: a driver or a backend that gives
other vectors is no more used than one that crashes. The result is cached per library, CPU, file and device.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Final

from edge_embed.engine.child import Answer, Child, ChildDiedError, ChildSilentError, serve
from edge_embed.engine.devices import cpu_name_and_flags
from edge_embed.engine.findings import Findings, key_of
from edge_embed.engine.placement import CPU
from edge_embed.errors import EngineMemoryError, EngineUnavailableError, ModelFileError
from edge_embed.types import Float32Array, ModelInfo

_PURPOSE: Final = "try the model"


class SlowEngineWarning(RuntimeWarning):
    """The engine runs, but not with its fastest kernels; the message says why and how to mend it."""


@dataclass(frozen=True, slots=True)
class ProbeResult:
    """How a model can be run here.

    Attributes:
        use_extra_bufts: whether weights may be repacked for AMX and similar kernels.
        reason: why not, where it is False; else empty.
        device_problem: why the devices that were asked for do not compute it; empty where they do, or there are none.
    """

    use_extra_bufts: bool
    reason: str = ""
    device_problem: str = ""


@dataclass(frozen=True, slots=True)
class ChildResult:
    """What became of a child process.

    Attributes:
        crashed: whether it died.
        error: why it computed no vectors; empty where it did.
        wrong: how far a device's vectors are from the CPU's, in words, where that is too far; else empty.
    """

    crashed: bool
    error: str = ""
    wrong: str = ""


RunChild = Callable[[ModelInfo, bool, str], ChildResult]
# How far a device's vectors may be from the CPU's: 1 - cosine, or a difference of scores. Both round activations to 8
# bits for quantized weights, in blocks of their own.
_FAR: Final = 0.02
# Seconds more for a driver that compiles its programs when they are first used.
_SHADERS: Final = 180.0
PROBED: Final = Findings("probe.json", lambda found: ProbeResult(**found), asdict)


def probe(
    info: ModelInfo, library: Path, *, device: str = CPU, low_memory: bool = False, run: RunChild | None = None
) -> ProbeResult:
    """How to run a model, from the cache or by trying it in a child process.

    Args:
        info: the model.
        library: path of libllama; its neighbours hold the kernels.
        device: the devices' names, as ``placement.Wanted`` has them.
        low_memory: the child has little memory, too: weights are not repacked there, nor will they be.
        run: starts the child; replaced by tests.

    Raises:
        ModelFileError: the library dies on the file, or refuses it, whatever the settings.
        EngineUnavailableError: the child could not be started.
    """
    key = _key(info, library, device, low_memory)
    known = PROBED.get(key) or (PROBED.get(_key(info, library, device)) if low_memory else None)
    if known is not None:
        return known
    run = run or run_child
    if device != CPU:
        try:
            first = run(info, not low_memory, device)
        except EngineUnavailableError as error:  # no answer: a driver that hangs, or compiles for minutes
            first = ChildResult(False, error.message)
        if first.error or first.wrong:
            result = probe(info, library, low_memory=low_memory, run=run)
            result = replace(result, device_problem=first.error or first.wrong)
            if first.crashed or first.wrong:  # anything else, a lack of memory above all, may be over next time
                PROBED.put(key, result)
            return result
        result = ProbeResult(True)
    elif low_memory:
        result = _try_plain(info, run)
    else:
        result = _try(info, run)
        if not result.use_extra_bufts:
            _warn(result.reason)
    PROBED.put(key, result)
    return result


def _key(info: ModelInfo, library: Path, device: str, low_memory: bool = False) -> str:
    return key_of(info, library, *([] if device == CPU else [device]), *(["low memory"] if low_memory else []))


def _try(info: ModelInfo, run: RunChild) -> ProbeResult:
    first = run(info, True, CPU)
    if not first.error:
        return ProbeResult(True)
    if not first.crashed:
        raise ModelFileError(f"the engine cannot run {info.path}: {first.error}", hint="convert or download it again")
    return _try_plain(info, run, first.error)


def _try_plain(info: ModelInfo, run: RunChild, reason: str = "") -> ProbeResult:
    """Without repacked weights, which for some reason are not tried any more."""
    tried = run(info, False, CPU)
    if tried.error and not tried.crashed and not reason:
        raise ModelFileError(f"the engine cannot run {info.path}: {tried.error}", hint="convert or download it again")
    if tried.error:
        raise ModelFileError(
            f"the engine dies on {info.path}: {tried.error}",
            hint="the file is corrupt in a way that only the engine notices: convert or download it again",
        )
    return ProbeResult(False, reason)


def _warn(reason: str) -> None:
    cause = "gcc 12 miscompiles its AMX code; " if "amx" in cpu_name_and_flags()[1] else ""
    warnings.warn(
        f"llama.cpp's fastest kernels for this CPU crash in the installed build ({reason}), so slower ones are used. "
        f"{cause}a build that mends it takes a few minutes: {Path(sys.executable).name} -m edge_embed.engine.build",
        SlowEngineWarning,
        stacklevel=4,
    )


def cached(info: ModelInfo, library: Path, device: str = CPU) -> ProbeResult | None:
    """The cached outcome, or None."""
    return PROBED.get(_key(info, library, device))


def timeout_of(info: ModelInfo) -> float:
    """Seconds within which a child has loaded a model and computed a little: a slow card reads 20 MB/s."""
    return 120 + info.size_bytes / 20e6


def run_child(info: ModelInfo, use_extra_bufts: bool, device: str = CPU) -> ChildResult:
    """Load the model in a child process and compute with it.

    Raises:
        EngineUnavailableError: no child could be started, or it ended for a reason that is not the model's.
    """
    request = {"path": info.path, "pooling": info.pooling, "use_extra_bufts": use_extra_bufts, "device": device}
    with Child(__name__, _PURPOSE) as child:
        try:
            answer = child.ask(request, timeout_of(info) + (_SHADERS if device != CPU else 0))
            return ChildResult(False, str(answer["error"]), str(answer.get("wrong", "")))
        except ChildDiedError as death:
            return ChildResult(True, str(death))
        except ChildSilentError as silence:
            raise EngineUnavailableError(
                f"a child process to {_PURPOSE} gave {silence}",
                hint="the machine may be overloaded or out of memory: try again when it is not",
            ) from None


def main() -> None:
    """The child."""
    serve(_tried)


def _tried(request: Answer) -> Answer:
    import numpy as np

    from edge_embed.engine.trial import deviation
    from edge_embed.gguf_header import read_header
    from edge_embed.model_info import read_model_info

    info = read_model_info(read_header(request["path"]), pooling=request["pooling"])
    compared = request["device"] != CPU
    rows, device = _rows(info, request["use_extra_bufts"], request["device"], compared)
    if device == CPU:
        return {"error": ""}
    try:
        expected, _ = _rows(info, request["use_extra_bufts"], CPU, compared)
    except EngineMemoryError:  # a model that only the GPU has room for cannot be compared
        return {"error": ""}
    if not np.isfinite(expected).all():
        return {"error": ""}
    if not np.isfinite(rows).all():
        return {"error": "", "wrong": "it gives values that are not finite, and the CPU does not"}
    far = deviation(info, expected, rows)
    what = (
        "scores differ from the CPU's by" if info.rerank is not None else "vectors differ, 1 - cosine with the CPU's is"
    )
    return {"error": "", "wrong": f"{what} {far:.2g}" if far > _FAR else ""}


def _rows(info: ModelInfo, use_extra_bufts: bool, device: str, compared: bool) -> tuple[Float32Array, str]:
    """What texts of several lengths give, float32 ``[n, width]``, and where it was computed.

    For a comparison, one is longer than what llama.cpp's KV cache grows by (256 cells): a backend that keeps compiled
    graphs may compute the first and not the next one.
    """
    import numpy as np

    from edge_embed.engine.llama import LlamaEngine
    from edge_embed.types import Batch

    engine = LlamaEngine(info, use_extra_bufts=use_extra_bufts, low_memory=not use_extra_bufts, device=device)
    # One long and some short texts: matrix kernels differ between one row and many.
    longest = min(64, info.n_ctx_train)
    batches = [[longest], [3, 1, 5]]
    if compared:
        batches.append([min(300, engine.limits.n_ctx_max)])
    rows = []
    for lengths in batches:
        n = sum(lengths)
        ids = (np.arange(n, dtype=np.int64) * 7919 % info.n_vocab).astype(np.int32)
        batch = Batch(ids, np.array(lengths, dtype=np.int32), tuple(range(len(lengths))))
        rows.append(engine.decode(batch))  # a value that overflows is no crash: each call looks for those by itself
    computed_by = engine.device
    engine.close()
    return np.concatenate(rows), computed_by
