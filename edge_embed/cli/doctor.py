"""``edge-embed doctor``: does it run here, how fast can it be, and if not, what to do about it."""

from __future__ import annotations

import platform
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import click

import edge_embed
from edge_embed.catalogue import DEFAULT_MODEL, resolve
from edge_embed.cli.options import POOLINGS, device_option
from edge_embed.cli.terminal import clean, pad, say_json, size, style
from edge_embed.errors import EdgeEmbedError
from edge_embed.paths import cache_dir

if TYPE_CHECKING:
    from edge_embed.types import ModelInfo, Pooling

Status = Literal["ok", "slow", "fail"]
COLOURS = {"ok": "green", "slow": "yellow", "fail": "red"}
REPAIRED = "repaired"  # what the checks are called that name a repair of the file's metadata
REBUILD = "build it for this CPU: python -m edge_embed.engine.build"


@dataclass(frozen=True, slots=True)
class Check:
    """One thing that was looked at.

    Attributes:
        name: what.
        status: ``ok``; ``slow``: it works, but could be faster; ``fail``: it does not work.
        detail: what was found.
        hint: what to do about it, or empty.
    """

    name: str
    status: Status
    detail: str
    hint: str = ""


@click.command(
    epilog="""\b
Examples:
  edge-embed doctor
  edge-embed doctor model.gguf --fresh
  edge-embed doctor --json

\b
Exit codes: 0 everything works (possibly slowly), 1 something is broken.
"""
)
@click.argument("named", metavar="[MODEL]", required=False)
@click.option("-m", "--model", metavar="MODEL", help="The same as MODEL, as other commands have it.")
@click.option("--pooling", type=click.Choice(POOLINGS), help="Pool hidden states otherwise than the file says.")
@device_option()
@click.option("--fresh", is_flag=True, help="Forget which models are known to run here, and try again.")
@click.option("--json", "as_json", is_flag=True, help="JSON instead of a table.")
@click.pass_context
def doctor(
    ctx: click.Context,
    named: str | None,
    model: str | None,
    pooling: Pooling | None,
    device: str | None,
    fresh: bool,
    as_json: bool,
) -> None:
    """Check that edge-embed works on this machine, and how well.

    MODEL is a GGUF file or a name of `edge-embed list`, the bundled model by default. Looks at Python, the native
    library, the CPU, memory and the model, says which of the file's flags were missing or wrong and what is used in
    their place, tries the model in a child process as is done before its first use, and embeds one text.
    """
    if named is not None and model is not None:
        raise click.UsageError("name the model once, as MODEL or with --model")
    model = named or model
    checks: list[Check] = []
    for check in _checks(model or DEFAULT_MODEL, pooling, device, fresh):
        checks.append(check)
        if not as_json:
            _print(check)
    broken = any(check.status == "fail" for check in checks)
    if as_json:
        repairs = [check.detail for check in checks if check.name == REPAIRED]
        say_json({"ok": not broken, "repairs": repairs, "checks": [asdict(check) for check in checks]})
    ctx.exit(1 if broken else 0)


def _print(check: Check) -> None:
    label = style(pad(check.status, 4), fg=COLOURS[check.status], bold=True)
    click.echo(f"{label}  {pad(check.name, 9)}  {clean(check.detail)}")
    if check.hint:
        click.echo(f"{' ' * 17}{style('→', dim=True)} {clean(check.hint)}")


def _checks(model: str, pooling: Pooling | None, device: str | None, fresh: bool) -> Iterator[Check]:
    """One check after another, as each is done; those that need what has failed are left out."""
    from edge_embed.engine import report

    yield _versions()
    machine = report.machine()
    yield Check(
        "CPU", "ok", f"{machine.cpu or platform.machine()}: {', '.join(machine.features) or 'no known features'}"
    )
    limits = [f"{machine.physical_cores} physical cores", f"{machine.logical_cpus} logical CPUs"]
    if machine.performance_cores < machine.physical_cores:
        limits.append(f"{machine.performance_cores} of the cores are fast")
    if machine.quota is not None:
        limits.append(f"a quota of {machine.quota}")
    yield Check("threads", "ok", f"{machine.threads}: the process may use {', '.join(limits)}")
    if machine.memory_bytes is not None:
        free = "" if machine.available_bytes is None else f", {size(machine.available_bytes)} available"
        yield Check("memory", "ok", size(machine.memory_bytes) + free)
    library = _attempt("library", report.library)
    if isinstance(library, Check):
        yield library
        return
    yield Check("library", "ok", f"llama-cpp-python {library.version}, {library.library}")
    yield _engine(library.library.parent, library.backends)
    status: Status = "slow" if library.unused else "ok"
    unused = f"; not compiled for this CPU's {', '.join(library.unused)}" if library.unused else ""
    compiled = ", ".join(sorted(report.compiled_features(library.system_info)))
    yield Check("kernels", status, compiled + unused, REBUILD if library.unused else "")
    asked = _attempt("device", lambda: _devices(device, library.gpu_offload))
    if isinstance(asked, Check):
        yield asked
        return
    chosen, check = asked
    yield check
    yield _cache()
    info = _attempt("model", lambda: _model(model, pooling))
    if isinstance(info, Check):
        yield info
        return
    yield Check("model", "ok", f"{info.name}, {size(info.size_bytes)}, {info.path}")
    for repair in info.repairs:
        yield Check(REPAIRED, "ok", repair)
    probed = _attempt("probe", lambda: _probe(info, chosen, fresh))
    if isinstance(probed, Check):
        yield probed
        return
    yield probed[0]
    yield _tuned(info)
    if info.rerank is None:
        yield _attempt("embedding", lambda: _embed(model, pooling, device))
    else:
        yield _attempt("reranking", lambda: _rerank(model, device))


def _attempt(name: str, work: Callable[[], Any]) -> Any:
    """What ``work`` returns, or a failed check."""
    try:
        return work()
    except EdgeEmbedError as error:
        return Check(name, "fail", error.message, error.hint)


def _engine(folder: Path, backends: tuple[str, ...]) -> Check:
    """Which build of llama.cpp's libraries is used, and whether it is the one that was asked for."""
    from edge_embed.engine import bindings, builds

    chosen = builds.choice()
    picked = f", of its variants {', '.join(backends)}" if backends else ""
    try:
        wanted, problem = builds.folder_of(chosen) or bindings.packaged_folder(), ""
    except EdgeEmbedError as error:
        wanted, problem = None, f": {error.message}"
    if wanted == folder:
        return Check("engine", "ok", f"{chosen.name}{picked}, {chosen.said}")
    return Check(
        "engine",
        "slow",
        f"the packaged libraries, though {chosen.name!r} is {chosen.said}{problem}",
        "edge-embed engine list",
    )


def _devices(device: str | None, gpu_offload: bool) -> tuple[str, Check]:
    """Which devices are asked for, and what there is to choose from; raises where one of them is missing."""
    from edge_embed.engine import placement

    here = placement.here()
    asked = placement.wanted(device, None, here)
    if not here:
        known = "the library finds no GPU" + ("" if gpu_offload else ", or was built without support for one")
    else:
        known = "; ".join(
            f"{gpu.device}: {gpu.description}, {size(gpu.free)} of {size(gpu.total)} free"
            + (", the machine's own memory" if gpu.shares_memory else "")
            for gpu in here
        )
    note = f" ({asked.note})" if asked.note else ""
    return asked.device, Check("device", "slow" if note else "ok", f"{asked.device}{note}; {known}")


def _versions() -> Check:
    versions = f"edge-embed {edge_embed.__version__}, Python {platform.python_version()}"
    return Check("versions", "ok", f"{versions}, {platform.system()} {platform.machine()}, {sys.executable}")


def _cache() -> Check:
    """Whether what is found out about models can be kept."""
    folder = cache_dir()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / ".writable"
        probe.touch()
        probe.unlink()
    except OSError as error:
        return Check(
            "cache",
            "slow",
            f"{folder} cannot be written ({error.strerror}): each start tries the model again",
            "name another folder with EDGE_EMBED_CACHE",
        )
    return Check("cache", "ok", str(folder))


def _model(model: str, pooling: Pooling | None) -> ModelInfo:
    from edge_embed.gguf_header import read_header
    from edge_embed.model_info import read_model_info

    return read_model_info(read_header(resolve(model)), pooling=pooling)


def _probe(info: ModelInfo, device: str, fresh: bool) -> tuple[Check]:
    """Whether the model runs here, and with which kernels; a tuple, so that a failed check is told from it."""
    from edge_embed.engine import bindings, probe

    library = bindings.load().library
    if fresh:
        (cache_dir() / "probe.json").unlink(missing_ok=True)
    known = probe.cached(info, library, device) is not None
    with warnings.catch_warnings(record=True) as caught:  # it warns of what is said below
        warnings.simplefilter("always")
        result = probe.probe(info, library, device=device)
    how = "known from an earlier start" if known else "tried in a child process"
    if result.device_problem:
        problem = f"{device} does not compute the model: {result.device_problem} ({how})"
        return (Check("probe", "slow", problem, "try a newer driver, or choose another --device"),)
    if result.use_extra_bufts:
        return (Check("probe", "ok", f"the model runs with all kernels ({how})"),)
    hint = str(caught[-1].message) if caught else REBUILD
    return (Check("probe", "slow", f"the fastest kernels crash ({result.reason}); it runs without them ({how})", hint),)


def _tuned(info: ModelInfo) -> Check:
    """Whether measured settings are used for the model."""
    from edge_embed.engine import tune

    found = tune.summary(info)
    return Check("settings", "ok", f"tuned {found}" if found else "untuned; `edge-embed tune` looks for faster ones")


_FIRST, _SECOND = "The quick brown fox jumps over the lazy dog.", "Pack my box with five dozen liquor jugs."


def _embed(model: str, pooling: Pooling | None, device: str | None) -> Check:
    from edge_embed.embedder import Embedder

    start = time.perf_counter()
    with Embedder(model, pooling=pooling, device=device) as embedder:
        loaded = time.perf_counter()
        embedder.encode(_FIRST)
        first = time.perf_counter()
        embedder.encode(_SECOND)
        second = time.perf_counter()
        place = embedder.device
    return Check("embedding", "ok", f"on {place}: " + _times("text", start, loaded, first, second))


def _rerank(model: str, device: str | None) -> Check:
    from edge_embed.reranker import Reranker

    start = time.perf_counter()
    with Reranker(model, device=device) as reranker:
        loaded = time.perf_counter()
        reranker.predict(_FIRST, [_SECOND])
        first = time.perf_counter()
        reranker.predict(_SECOND, [_FIRST])
        second = time.perf_counter()
        place = reranker.backend.device
    return Check("reranking", "ok", f"on {place}: " + _times("pair", start, loaded, first, second))


def _times(unit: str, *moments: float) -> str:
    times = [f"{1000 * (b - a):.0f} ms" for a, b in pairwise(moments)]
    return f"loaded in {times[0]}, first {unit} in {times[1]}, second in {times[2]}"
