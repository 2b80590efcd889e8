"""``edge-embed quantize``: a GGUF in, a GGUF of another type out."""

from __future__ import annotations

from pathlib import Path

import click

from edge_embed.cli.conversion import TYPE, progress_option, quantizing_threads_option, tensor_type_option
from edge_embed.cli.convert import summary
from edge_embed.cli.recipe import RecipeOptions, Shown, recipe_options, show_choice
from edge_embed.cli.terminal import note, terminable


@click.command(
    epilog="""\b
Examples:
  edge-embed quantize model-F16.gguf model-Q4_K_M.gguf --type q4_k_m
  edge-embed quantize model-BF16.gguf model.gguf --type iq4_xs --imatrix imatrix.gguf
  edge-embed quantize model-F16.gguf model.gguf --max-size 400MB --plot frontier.png
  edge-embed quantize model-F16.gguf model.gguf --min-cosine 0.99 --calibration texts.txt
"""
)
@click.argument("source", metavar="IN.gguf", type=click.Path(path_type=Path))
@click.argument("output", metavar="OUT.gguf", type=click.Path(path_type=Path))
@click.option("--type", "ftype", type=TYPE, help="What weights are stored as.")
@tensor_type_option
@recipe_options
@click.option(
    "--min-cosine",
    type=click.FloatRange(0.0, 1.0, min_open=True, max_open=True),
    metavar="X",
    help="Choose each matrix's type by measurement, for the smallest file that keeps each calibration text this close.",
)
@click.option(
    "--allow-requantize",
    is_flag=True,
    help="Take a file that is quantized already: its errors and the new ones add up.",
)
@quantizing_threads_option
@progress_option
def quantize(
    source: Path,
    output: Path,
    ftype: str | None,
    overrides: list[tuple[str, str]],
    recipe: RecipeOptions,
    min_cosine: float | None,
    allow_requantize: bool,
    threads: int | None,
    progress: bool,
) -> None:
    """Write a GGUF again with other types.

    IN.gguf is an F32, F16 or BF16 file. Its metadata is kept, save what is no longer true, such as figures of a
    verification. Where it holds the checkpoint's weights without loss, OUT.gguf is byte for byte what `convert
    --no-verify` gives. It is read and written tensor by tensor, and gets its name when it is whole. With --max-size or
    --min-cosine each matrix's type is chosen by what it costs the vectors: the model is run, and must fit into memory.
    """
    from edge_embed.convert.quantize import quantize as run
    from edge_embed.convert.recipe import quantize_to_target
    from edge_embed.engine.devices import default_threads
    from edge_embed.progress import BytesProgress

    if ftype is not None and min_cosine is not None:
        raise click.UsageError("--type and --min-cosine both choose the types: give one of them")
    target = recipe.target(ftype, min_cosine, others=bool(overrides))
    threads = threads or default_threads()
    if target is None and ftype is None:
        raise click.UsageError("give a --type, a --max-size or a --min-cosine")
    if target is not None:
        with terminable(), Shown(enabled=progress) as shown:
            choice = quantize_to_target(source, output, target, recipe.measuring(threads, shown))
        report = choice.report
    else:
        with terminable(), BytesProgress("quantizing", enabled=progress) as bar:
            report = run(
                source,
                output,
                ftype=ftype or "",
                overrides=overrides,
                imatrix=recipe.imatrix,
                allow_requantize=allow_requantize,
                threads=threads,
                progress=bar,
            )
    for line in summary(report):
        click.echo(line)
    if target is not None:
        show_choice(choice, recipe)
    for sentence in report.notes:
        note(sentence)
