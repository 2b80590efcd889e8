"""``edge-embed tune``: the fastest settings for a model on this machine, measured, and kept for every later start."""

from __future__ import annotations

import os
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from edge_embed.catalogue import DEFAULT_MODEL
from edge_embed.cli.options import POOLINGS
from edge_embed.cli.pull import ensure
from edge_embed.cli.terminal import clean, note, say_json, table, terminable
from edge_embed.files import INPUT_FORMATS, InputFormat, read_file

if TYPE_CHECKING:
    from edge_embed.engine.search import Found, Measured
    from edge_embed.engine.tune import Profile, Settings
    from edge_embed.engine.tuner import Outcome, Plan
    from edge_embed.types import ModelInfo, Pooling

PROFILES: Final = ("queries", "documents", "mixed")
INTERRUPTED: Final = 130


@click.command(
    epilog="""\b
Examples:
  edge-embed tune
  edge-embed tune qwen3-embedding-0.6b --profile documents --budget 600
  edge-embed tune model.gguf -f articles.jsonl --field body
  edge-embed tune model.gguf --library ~/llama.cpp/build/bin --dry-run
  edge-embed tune model.gguf --device cuda:0 --device cpu
  edge-embed tune model.gguf --forget
"""
)
@click.argument("model", metavar="[MODEL]", default=DEFAULT_MODEL)
@click.option(
    "--profile",
    type=click.Choice(PROFILES),
    default="mixed",
    show_default=True,
    help="What to be fast at: short texts one at a time, many longer ones together, or both alike.",
)
@click.option("-f", "--file", type=click.Path(path_type=Path), help="Measure on these texts instead of built-in ones.")
@click.option("--input-format", type=click.Choice(INPUT_FORMATS), help="How the file stores them.")
@click.option("--field", metavar="NAME", help="Field or column that holds the text.")
@click.option(
    "--library",
    "libraries",
    multiple=True,
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="Consider another build of llama.cpp's shared libraries, too; repeat it for more.",
)
@click.option(
    "--device",
    "devices",
    multiple=True,
    metavar="DEVICE",
    help="Consider this device alone (cpu, cuda:0, ...; auto is what the engine takes by itself); repeat it for more.",
)
@click.option(
    "--budget",
    type=click.FloatRange(min=1),
    default=300.0,
    show_default=True,
    metavar="SECONDS",
    help="Begin nothing new after this time.",
)
@click.option("--pooling", type=click.Choice(POOLINGS), help="Pool hidden states otherwise than the file says.")
@click.option("--dry-run", is_flag=True, help="Say what would be tried, and try nothing.")
@click.option("--forget", is_flag=True, help="Forget what was chosen for the model.")
@click.option("--json", "as_json", is_flag=True, help="JSON instead of a table.")
@click.option("-y", "--yes", is_flag=True, help="Download the model if it is not here.")
@click.pass_context
def tune(
    ctx: click.Context,
    model: str,
    profile: Profile,
    file: Path | None,
    input_format: InputFormat | None,
    field: str | None,
    libraries: tuple[Path, ...],
    devices: tuple[str, ...],
    budget: float,
    pooling: Pooling | None,
    dry_run: bool,
    forget: bool,
    as_json: bool,
    yes: bool,
) -> None:
    """Find the fastest settings for a model on this machine, and use them from now on.

    Measures engines, devices, kernels, threads, batches and, where a decoder is concerned, shared beginnings, each
    candidate in a process of its own beside the best so far, in turns. One that crashes, hangs, or gives other vectors
    than the untuned engine is out. Options of a call, such as --threads, always come before what was chosen. Ctrl-C
    keeps the best so far.
    """
    from edge_embed.engine import tune as choices
    from edge_embed.engine import tuner
    from edge_embed.engine.devices import load_average
    from edge_embed.gguf_header import read_header
    from edge_embed.model_info import read_model_info

    if file is None and (input_format or field):
        raise click.UsageError("--input-format and --field are about a --file")
    path = ensure(model, yes=yes)
    info = read_model_info(read_header(str(path)), pooling=pooling)
    if forget:
        known = choices.forget(info)
        click.echo("forgotten: the engine decides again" if known else "nothing was chosen for this model")
        return
    texts = None if file is None else list(read_file(file, input_format=input_format, field=field))
    if dry_run:
        planned = tuner.plan(info, profile, texts=texts, libraries=libraries, device_names=devices)
        _show_plan(planned, budget, as_json=as_json)
        return
    load, cpus = load_average(), os.cpu_count()
    if load is not None and cpus is not None and load > cpus / 2:
        note(f"the machine is busy (a load of {load:.1f} on {cpus} CPUs): other settings may be fastest when it is not")
    with terminable():
        outcome = tuner.tune(
            info, profile, budget=budget, say=_say, texts=texts, libraries=libraries, device_names=devices
        )
    _show(info, outcome, profile, as_json=as_json)
    if outcome.found.interrupted:
        ctx.exit(INTERRUPTED)


def _say(measured: Measured) -> None:
    """A candidate, as it is decided, on stderr."""
    click.echo(clean(f"{_label(measured.changed)}: {_verdict(measured)}"), err=True)


def _verdict(measured: Measured) -> str:
    rate = ", ".join(f"{rate:,.0f} tokens/s ({name})" for name, rate in measured.tokens_per_second.items())
    if measured.verdict == "reference":
        return rate
    if measured.ratio is None:
        return f"{measured.verdict}: {measured.reason}"
    return f"{measured.ratio:.2f} times the best so far, {measured.verdict}; {rate}"


def _fate(measured: Measured, found: Found) -> str:
    """What became of a candidate in the end."""
    if measured.verdict == "reference":
        return "chosen" if measured.settings == found.settings else "untuned"
    if measured.verdict != "faster":
        return f"{measured.verdict}: {measured.reason}" if measured.reason else measured.verdict
    chosen = asdict(found.settings)
    in_use = all(chosen[name] == value for name, value in measured.changed.items())
    return "chosen" if in_use else "faster, but not in the end"


def _label(changed: Any) -> str:
    return ", ".join(f"{name} {_value(name, value)}" for name, value in changed.items()) or "untuned"


def _value(name: str, value: object) -> str:
    from edge_embed.engine.tune import readable

    return readable(name, value)


def _settings(settings: Settings) -> str:
    return ", ".join(f"{name} {_value(name, value)}" for name, value in asdict(settings).items())


def _show_plan(planned: Plan, budget: float, *, as_json: bool) -> None:
    calls = {name: sum(len(call.texts) for call in calls) for name, calls in planned.work.parts.items()}
    if as_json:
        say_json(
            {
                "reference": asdict(planned.reference),
                "coordinates": {coordinate.name: list(coordinate.values) for coordinate in planned.coordinates},
                "texts": calls,
                "budget": budget,
            }
        )
        return
    click.echo(f"from: {_settings(planned.reference)}")
    for coordinate in planned.coordinates:
        current = getattr(planned.reference, coordinate.name)
        others = [_value(coordinate.name, value) for value in coordinate.values if value != current]
        click.echo(f"try:  {coordinate.name} {', '.join(others)}")
    amounts = ", ".join(f"up to {n} {name}" for name, n in calls.items())
    click.echo(f"on:   {amounts}; nothing new is begun after {budget:.0f} s")


def _show(info: ModelInfo, outcome: Outcome, profile: Profile, *, as_json: bool) -> None:
    found = outcome.found
    if as_json:
        say_json(
            {
                "model": info.path,
                "profile": profile,
                "texts": dict(outcome.n_texts),
                "tokens": dict(outcome.n_tokens),
                "settings": asdict(found.settings),
                "speedup": found.speedup,
                "complete": found.complete,
                "kept": outcome.kept,
                "allowed_deviation": found.allowed,
                "measured": [asdict(measured) for measured in found.measured],
            }
        )
        return
    parts = list(outcome.n_tokens)
    rows = []
    for measured in found.measured:
        rows.append(
            (
                _label(measured.changed),
                *(f"{rate:,.0f}" if (rate := measured.tokens_per_second.get(name)) else "" for name in parts),
                "" if measured.ratio is None else f"{measured.ratio:.2f}",
                "" if measured.deviation is None else f"{measured.deviation:.1e}",
                _fate(measured, found),
            )
        )
    head = ("setting", *(f"{name}, tokens/s" for name in parts), "times", "deviation", "")
    for line in table(rows, head, right=range(1, len(head) - 1)):
        click.echo(line)
    click.echo()
    if found.settings != outcome.plan.reference:
        click.echo(f"{found.speedup:.2f} times as fast as untuned: {_settings(found.settings)}")
    elif outcome.decided:
        click.echo("nothing is faster than the untuned settings")
    if not found.complete:
        note("not everything was tried" + ("" if found.interrupted else ": give more time with --budget"))
    if outcome.kept:
        click.echo("kept: every later start uses it")
    elif outcome.decided:
        note("the cache folder cannot be written: nothing was kept")
    else:
        click.echo("nothing was decided, and nothing kept")
