"""Is it safe to run this model with this library on this machine? Found out in a child process, once.

Two things end a process that loads a model: kernels that were compiled wrongly (gcc 12 on CPUs with AMX) and files
that pass every check of ours and still crash the library. So before a file is first used, a child process loads it and
computes two small batches. If the child dies with the repacked weights that AMX uses, it is tried without them; if it
dies again, the file is refused. The result is cached per library, CPU and file.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from edge_embed.engine.devices import cpu_name_and_flags
from edge_embed.errors import EngineUnavailableError, ModelFileError
from edge_embed.paths import cache_dir
from edge_embed.types import ModelInfo

_CACHE_FILE = "probe.json"
_CACHE_ENTRIES = 200


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
    key = cache_key(info, library)
    cache = _read_cache()
    if key in cache:
        return ProbeResult(**cache[key])
    result = _try(info, run or run_child)
    if not result.use_extra_bufts:
        _warn(result.reason)
    _write_cache({**cache, key: asdict(result)})
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


def cache_key(info: ModelInfo, library: Path) -> str:
    """Digest of everything that the outcome depends on: libraries, CPU, file and how it is pooled."""
    facts: list[Any] = [*cpu_name_and_flags(), info.pooling, sys.version]
    for file in [*sorted(library.parent.glob("*ggml*")), library, Path(info.path)]:
        stat = file.stat()
        facts.append([str(file.resolve()), stat.st_size, stat.st_mtime_ns])
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()


def cached(info: ModelInfo, library: Path) -> ProbeResult | None:
    """The cached outcome, or None."""
    entry = _read_cache().get(cache_key(info, library))
    return ProbeResult(**entry) if entry else None


def _read_cache() -> dict[str, dict[str, Any]]:
    try:
        found = json.loads((cache_dir() / _CACHE_FILE).read_text())
        return {key: asdict(ProbeResult(**value)) for key, value in found.items()}
    except (OSError, ValueError, TypeError, AttributeError, RecursionError):
        return {}  # absent, or not ours: probe again


def _write_cache(entries: dict[str, dict[str, Any]]) -> None:
    newest = dict(list(entries.items())[-_CACHE_ENTRIES:])
    with contextlib.suppress(OSError):  # a read-only home only means that each start probes again
        folder = cache_dir()
        folder.mkdir(parents=True, exist_ok=True)
        fd, name = tempfile.mkstemp(dir=folder, prefix=_CACHE_FILE)
        try:
            with os.fdopen(fd, "w") as file:
                json.dump(newest, file)
            Path(name).replace(folder / _CACHE_FILE)
        except OSError:
            Path(name).unlink(missing_ok=True)
            raise


# The child's program. Python puts the working directory first on the path of `-c` and `-m`, where anybody's numpy.py
# may lie, so the parent's own path takes its place before anything else is imported.
_CHILD: Final = "import sys; sys.path[:] = sys.argv[1:]; from edge_embed.engine.probe import main; main()"
# How a miscompiled kernel or a corrupt file ends a process. Anything else (killed for memory, by a user) says nothing
# about the model and is not remembered.
_CRASHES: Final = ("SIGSEGV", "SIGILL", "SIGBUS", "SIGABRT", "SIGFPE", "SIGTRAP")


def run_child(info: ModelInfo, use_extra_bufts: bool) -> ChildResult:
    """Load the model in a child process and compute with it.

    Raises:
        EngineUnavailableError: no child could be started, or it ended for a reason that is not the model's.
    """
    timeout = 120 + info.size_bytes / 20e6  # a slow card reads 20 MB/s
    request = json.dumps({"path": info.path, "pooling": info.pooling, "use_extra_bufts": use_extra_bufts})
    path = [str(Path(entry).resolve()) for entry in sys.path if entry]
    try:
        done = subprocess.run(
            [sys.executable or "python3", "-c", _CHILD, *path],
            input=request,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=timeout,
            # A crash is expected here: without this ggml would start a debugger, if there is one, and take seconds.
            env={**os.environ, "GGML_NO_BACKTRACE": "1"},
        )
    except subprocess.TimeoutExpired:
        raise EngineUnavailableError(
            f"a child process that tries the model gave no answer within {timeout:.0f} s",
            hint="the machine may be overloaded or out of memory: try again when it is not",
        ) from None
    except OSError as error:
        raise EngineUnavailableError(
            f"no child process could be started to try the model: {error}",
            hint="the engine tries each new model in a child process: allow it to start one",
        ) from error
    if done.returncode == 0:
        with contextlib.suppress(ValueError, IndexError, KeyError, TypeError):
            return ChildResult(False, str(json.loads(done.stdout.strip().splitlines()[-1])["error"]))
    tail = "".join(done.stderr.strip().splitlines()[-1:])
    if done.returncode < 0:
        name = f"signal {-done.returncode}"
        with contextlib.suppress(ValueError):
            name = signal.Signals(-done.returncode).name
        if name in _CRASHES:
            return ChildResult(True, f"it died of {name}")
        tail = f"killed by {name}"
    if (
        sys.platform == "win32" and done.returncode > 0xBFFFFFFF
    ):  # an NTSTATUS of severity "error", e.g. access violation
        return ChildResult(True, f"it died of {done.returncode:#x}")
    raise EngineUnavailableError(
        f"a child process that tries the model ended with code {done.returncode}: {tail or 'no reason given'}",
        hint="this says nothing about the model: free memory, or see whether Python itself works here",
    )


def main() -> None:
    """The child: read a request from stdin, answer with one line of JSON on stdout."""
    import numpy as np

    from edge_embed.engine.llama import LlamaEngine
    from edge_embed.errors import EdgeEmbedError
    from edge_embed.gguf_header import read_header
    from edge_embed.model_info import read_model_info
    from edge_embed.types import Batch

    with contextlib.suppress(ImportError, ValueError, OSError):
        import resource

        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # a crash here is an answer, not something to dump
    request = json.load(sys.stdin)
    error = ""
    try:
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
    except EdgeEmbedError as problem:
        error = problem.message
    sys.stdout.write(json.dumps({"error": error}) + "\n")


if __name__ == "__main__":
    main()
