"""Is it safe to run this model with this library on this machine? Found out in a child process, once.

Two things end a process that loads a model: kernels that were compiled wrongly (gcc 12 on CPUs with AMX) and files
that pass every check of ours and still crash the library. So before a file is first used, a child process loads it and
computes two small batches. If the child dies with the repacked weights that AMX uses, it is tried without them; if it
dies again, the file is refused. The result is cached per library, CPU and file.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

from edge_embed.engine.child import Answer, Child, ChildDiedError, ChildSilentError, serve
from edge_embed.engine.devices import cpu_name_and_flags
from edge_embed.engine.findings import Findings, key_of
from edge_embed.errors import EngineUnavailableError, ModelFileError
from edge_embed.types import ModelInfo

_PURPOSE: Final = "try the model"


class SlowEngineWarning(RuntimeWarning):
    """The engine runs, but not with its fastest kernels; the message says why and how to mend it."""


@dataclass(frozen=True, slots=True)
class ProbeResult:
    """How a model can be run here.

    Attributes:
        use_extra_bufts: whether weights may be repacked for AMX and similar kernels.
        reason: why not, where it is False; else empty.
    """

    use_extra_bufts: bool
    reason: str = ""


@dataclass(frozen=True, slots=True)
class ChildResult:
    """What became of a child process: ``error`` is empty where it computed vectors."""

    crashed: bool
    error: str = ""


RunChild = Callable[[ModelInfo, bool], ChildResult]
PROBED: Final = Findings("probe.json", lambda found: ProbeResult(**found), asdict)


def probe(info: ModelInfo, library: Path, *, run: RunChild | None = None) -> ProbeResult:
    """How to run a model, from the cache or by trying it in a child process.

    Args:
        info: the model.
        library: path of libllama; its neighbours hold the kernels.
        run: starts the child; replaced by tests.

    Raises:
        ModelFileError: the library dies on the file, or refuses it, whatever the settings.
        EngineUnavailableError: the child could not be started.
    """
    key = key_of(info, library)
    known = PROBED.get(key)
    if known is not None:
        return known
    result = _try(info, run or run_child)
    if not result.use_extra_bufts:
        _warn(result.reason)
    PROBED.put(key, result)
    return result


def _try(info: ModelInfo, run: RunChild) -> ProbeResult:
    first = run(info, True)
    if not first.error:
        return ProbeResult(True)
    if not first.crashed:
        raise ModelFileError(f"the engine cannot run {info.path}: {first.error}", hint="convert or download it again")
    second = run(info, False)
    if second.error:
        raise ModelFileError(
            f"the engine dies on {info.path}: {second.error}",
            hint="the file is corrupt in a way that only the engine notices: convert or download it again",
        )
    return ProbeResult(False, first.error)


def _warn(reason: str) -> None:
    cause = "gcc 12 miscompiles its AMX code; " if "amx" in cpu_name_and_flags()[1] else ""
    warnings.warn(
        f"llama.cpp's fastest kernels for this CPU crash in the installed build ({reason}), so slower ones are used. "
        f"{cause}a build that mends it takes a few minutes: {Path(sys.executable).name} -m edge_embed.engine.build",
        SlowEngineWarning,
        stacklevel=4,
    )


def cached(info: ModelInfo, library: Path) -> ProbeResult | None:
    """The cached outcome, or None."""
    return PROBED.get(key_of(info, library))


def timeout_of(info: ModelInfo) -> float:
    """Seconds within which a child has loaded a model and computed a little: a slow card reads 20 MB/s."""
    return 120 + info.size_bytes / 20e6


def run_child(info: ModelInfo, use_extra_bufts: bool) -> ChildResult:
    """Load the model in a child process and compute with it.

    Raises:
        EngineUnavailableError: no child could be started, or it ended for a reason that is not the model's.
    """
    request = {"path": info.path, "pooling": info.pooling, "use_extra_bufts": use_extra_bufts}
    with Child(__name__, _PURPOSE) as child:
        try:
            return ChildResult(False, str(child.ask(request, timeout_of(info))["error"]))
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

    from edge_embed.engine.llama import LlamaEngine
    from edge_embed.gguf_header import read_header
    from edge_embed.model_info import read_model_info
    from edge_embed.types import Batch

    info = read_model_info(read_header(request["path"]), pooling=request["pooling"])
    engine = LlamaEngine(info, use_extra_bufts=request["use_extra_bufts"])
    # One long and some short texts: matrix kernels differ between one row and many.
    longest = min(64, info.n_ctx_train)
    for lengths in ([longest], [3, 1, 5]):
        n = sum(lengths)
        ids = (np.arange(n, dtype=np.int64) * 7919 % info.n_vocab).astype(np.int32)
        batch = Batch(ids, np.array(lengths, dtype=np.int32), tuple(range(len(lengths))))
        engine.decode(batch)  # a value that overflows is no crash: each call looks for those by itself
    engine.close()
    return {"error": ""}
