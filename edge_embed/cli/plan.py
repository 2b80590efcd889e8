"""``edge-embed plan``: whether a model fits, where its layers go, and how long texts may be."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any, Final

import click

from edge_embed.cli.options import (
    AT_LEAST_1,
    BATCH_TOKENS,
    device_option,
    gpu_layers_option,
    low_memory_option,
)
from edge_embed.cli.recipe import n_bytes
from edge_embed.cli.terminal import size, table

if TYPE_CHECKING:
    from edge_embed.engine.memory_model import Need
    from edge_embed.planning import Planned

BACKENDS: Final = ("CUDA", "ROCm", "Vulkan", "Metal")
_PARTS: Final = ("weights", "kv", "compute", "output", "overhead")
_NAMES: Final = {"kv": "keys and values", "compute": "intermediate results", "output": "rows of results",
                 "overhead": "Python, tokenizer, runtime"}  # fmt: skip


def _vram(context: click.Context, parameter: click.Parameter, value: str | None) -> int | None:
    """A size; 0 is one, too."""
    return 0 if value is not None and value.strip() == "0" else n_bytes(context, parameter, value)


@click.command(
    epilog="""\b
Examples:
  edge-embed plan qwen3-embedding-4b --type q4_k_m --vram 4GB --batch-tokens 2048
  edge-embed plan model.gguf --ram 2GB --max-tokens 8192
  edge-embed plan qwen3-embedding-0.6b --type q4_k_m --ram 1GB --vram 0 --low-memory
  edge-embed plan model.gguf --vram 12GB --backend Vulkan
  edge-embed plan model.gguf --json | jq .gpu_layers
"""
)
@click.argument("model", required=False)
@click.option("--vram", metavar="SIZE", callback=_vram, help="GPU memory, e.g. 12GB; what is free here by default.")
@click.option(
    "--ram", metavar="SIZE", callback=n_bytes, help="Main memory, e.g. 4GB; what is available here by default."
)
@click.option("--max-tokens", type=AT_LEAST_1, metavar="N", help="A text of N tokens must fit.")
@click.option("--batch-tokens", type=AT_LEAST_1, metavar="N", help=BATCH_TOKENS)
@click.option("--type", "ftype", metavar="TYPE", help="Plan a known model in that type, whether it is here or not.")
@click.option(
    "--backend",
    type=click.Choice(BACKENDS, case_sensitive=False),
    help="Kind of GPU that --vram belongs to; this machine's, else CUDA.",
)
@click.option("--kv-type", type=click.Choice(("f16", "q8_0")), help="Type of keys and values; f16 where that fits.")
@device_option()
@gpu_layers_option()
@low_memory_option()
@click.option("--json", "as_json", is_flag=True, help="JSON instead of a table.")
def plan(
    model: str | None,
    vram: int | None,
    ram: int | None,
    max_tokens: int | None,
    batch_tokens: int | None,
    ftype: str | None,
    backend: str | None,
    kv_type: Any,
    device: str | None,
    gpu_layers: int | None,
    low_memory: bool,
    as_json: bool,
) -> None:
    """Plan a model into this machine's memory, or into another's.

    MODEL is a GGUF file or a name of `edge-embed list`; the bundled model by default. As many layers as fit go to the
    GPU, then batches become smaller, then keys and values q8_0. What cannot fit is refused, with what it would take.
    Sizes are in powers of 1000; GiB and MiB are understood, too. --vram 0 plans without a GPU, as --device cpu does on
    this machine. The contexts of an encoder, which computes several batches side by side, are counted for this
    machine's cores, also where --ram says how much another one has: with fewer --threads, or fewer cores, it takes
    less.
    """
    from edge_embed.planning import plan as plan_for

    found = plan_for(
        model,
        ftype=ftype,
        ram=ram,
        vram=vram,
        backend=backend,
        max_tokens=max_tokens,
        n_batch=batch_tokens,
        kv_type=kv_type,
        device=device,
        gpu_layers=gpu_layers,
        low_memory=low_memory,
    )
    if as_json:
        from edge_embed.cli.terminal import say_json

        say_json(_described(found))
        return
    for line in _lines(found):
        click.echo(line)


def _lines(found: Planned) -> list[str]:
    chosen = found.plan
    places = [("main memory", chosen.host), *([(chosen.device, chosen.gpu)] if chosen.gpu_layers else [])]
    rows = [[_NAMES.get(part, part), *(size(getattr(need, part)) for _, need in places)] for part in _PARTS]
    rows.append(["together", *(size(need.firm) for _, need in places)])
    rows.append(["while loading", *(size(need.total) for _, need in places)])
    rows.append(["there is", size(chosen.room.ram) if chosen.room.ram is not None else "?"])
    if chosen.gpu_layers:
        rows[-1].append(size(chosen.room.vram))
    lines = [found.info.name, *table(rows, head=["", *(name for name, _ in places)], right=range(1, len(places) + 1))]
    lines += ["", *chosen.explain()]
    if found.laid_out is not None:
        lines.append(f"llama.cpp itself lays out {size(found.laid_out)} of intermediate results for this")
    if found.ftype is not None:
        lines.append(f"by the published numbers of the model, in {found.ftype}: sizes are a few percent off")
    return lines


def _described(found: Planned) -> dict[str, Any]:
    chosen = found.plan
    return {
        "model": found.info.name,
        "path": found.info.path or None,
        "type": found.ftype,
        "device": chosen.device,
        "gpu_layers": chosen.gpu_layers,
        "layers": chosen.n_layer,
        "n_batch": chosen.n_batch,
        "n_ubatch": chosen.n_ubatch,
        "n_ctx": chosen.n_ctx,
        "max_tokens": chosen.max_tokens,
        "kv_type": chosen.kv_type,
        "weights_bytes": chosen.weights_bytes,
        "kv_bytes": chosen.kv_bytes,
        "compute_bytes": chosen.compute_bytes,
        "output_bytes": chosen.output_bytes,
        "overhead_bytes": chosen.overhead_bytes,
        "total_bytes": chosen.total,
        "reclaimable_bytes": chosen.reclaimable,
        "main_memory": _need(chosen.host),
        "gpu_memory": _need(chosen.gpu) if chosen.gpu_layers else None,
        "available_bytes": chosen.room.ram,
        "available_gpu_bytes": chosen.room.vram,
        "laid_out_bytes": found.laid_out,
        "explanation": chosen.explain(),
    }


def _need(need: Need) -> dict[str, int]:
    return {**asdict(need), "total": need.firm, "at_most": need.total}
