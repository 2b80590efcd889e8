"""``edge-embed calibrate``: an importance matrix, measured on texts framed as the model will see them."""

from __future__ import annotations

from pathlib import Path

import click

from edge_embed.cli.conversion import progress_option
from edge_embed.cli.options import AT_LEAST_1
from edge_embed.cli.terminal import facts, terminable
from edge_embed.files import INPUT_FORMATS, InputFormat, read_file


@click.command(
    epilog="""\b
Examples:
  edge-embed calibrate model-F16.gguf -f texts.txt -o imatrix.gguf
  edge-embed quantize model-F16.gguf model-IQ4_XS.gguf --type iq4_xs --imatrix imatrix.gguf
"""
)
@click.argument("model", metavar="MODEL", type=str)
@click.option(
    "-f",
    "--file",
    metavar="PATH",
    type=click.Path(path_type=Path),
    help="Texts such as the model will see, .txt, .jsonl, .csv or .tsv; built-in ones in many languages by default.",
)
@click.option("--input-format", type=click.Choice(INPUT_FORMATS), help="How the file stores texts, if not as it ends.")
@click.option("--field", metavar="NAME", help='Field or column that holds the text; "text" or the only column.')
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path),
    default=Path("imatrix.gguf"),
    show_default=True,
    help="File to write.",
)
@click.option("--threads", type=AT_LEAST_1, metavar="N", help="CPU threads, if not all physical cores.")
@progress_option
def calibrate(
    model: str,
    file: Path | None,
    input_format: InputFormat | None,
    field: str | None,
    output: Path,
    threads: int | None,
    progress: bool,
) -> None:
    """Measure which columns of each weight matrix matter, for quantizers to weigh errors with.

    MODEL is a GGUF, best F32, F16 or BF16, or a name of `edge-embed list`. Each text is computed as a query and as a
    document, with the model's own prompts, where it tells them apart. The file is in llama.cpp's format:
    `convert --imatrix`, `quantize --imatrix` and llama.cpp's own tools read it.
    """
    from edge_embed.catalogue import resolve
    from edge_embed.convert.calibrate import calibrate as run
    from edge_embed.progress import Progress

    texts = None if file is None else list(read_file(file, input_format=input_format, field=field))
    bar: Progress | None = None
    reached = 0

    def tick(done: int, total: int) -> None:
        nonlocal bar, reached
        bar = bar or Progress("calibrating", total, "texts", enabled=progress)
        bar.advance(done - reached)
        reached = done

    with terminable():
        try:
            report = run(
                resolve(model),
                texts,
                output,
                dataset="built-in texts" if file is None else file.name,
                threads=threads,
                tick=tick,
            )
        finally:
            if bar is not None:
                bar.__exit__(None, None, None)
    for line in facts(
        {
            "file": str(report.path),
            "model": report.name,
            "texts": f"{report.n_texts} (as {' and '.join(report.framings)}), {report.n_tokens:,} tokens",
            "matrices": str(report.n_matrices),
        }
    ):
        click.echo(line)
