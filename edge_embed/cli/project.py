"""``edge-embed project``: a projection learned on the user's own texts, for models that were not trained to be cut."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edge_embed.cli.options import (
    AT_LEAST_1,
    POOLINGS,
    EncodeOptions,
    TextSource,
    encode_options,
    text_source,
)
from edge_embed.cli.pull import ensure
from edge_embed.cli.terminal import facts, note, say_json, table, terminable
from edge_embed.errors import OutputFileError, UnsupportedModelError

if TYPE_CHECKING:
    from edge_embed.embedder import Embedder
    from edge_embed.projection import Cost, Projection, Sample
    from edge_embed.types import Float32Array, ModelInfo, Pooling

EXAMPLES = """\b
Examples:
  edge-embed project fit all-minilm-l6-v2 -f articles.jsonl --field body -o articles-projection.gguf
  edge-embed embed -f articles.jsonl --field body --projection articles-projection.gguf -d 128 -o vectors.npy
  edge-embed project fit model.gguf -f texts.txt --into model-projected.gguf --plot sizes.png
"""


@click.group(epilog=EXAMPLES)
def project() -> None:
    """Learn to cut the vectors of a model that was not trained for it (MRL), on your own texts.

    A projection turns the axes of the vectors, so that the first values hold as much as possible of what makes your
    texts differ. Cut to the same size, vectors then find more of what they found before.
    """


@dataclass(frozen=True, slots=True)
class Outputs:
    """Where the projection goes: a file of its own, a copy of the model, or both; and the picture."""

    beside: Path | None
    inside: Path | None
    plot: Path | None

    def check(self, inputs: Sequence[Path]) -> None:
        """Find out before the work what cannot be written, or would replace one of the inputs.

        Raises:
            click.UsageError: the outputs contradict each other or the inputs.
            InvalidOptionError, OutputFileError: the picture cannot be drawn, or a folder is missing.
        """
        paths = [path for path in (self.beside, self.inside) if path is not None]
        if not paths:
            raise click.UsageError("nowhere to put the projection: give --output, or --into for a copy of the model")
        if len({path.resolve() for path in paths}) < len(paths):
            raise click.UsageError("--output and --into are one file")
        for path in paths:
            if path.exists() and not path.is_file():
                raise click.UsageError(f"{path} is not a file")
            if any(path.exists() and read.exists() and path.samefile(read) for read in inputs):
                raise click.UsageError(f"{path} would replace what is read")
            if not path.resolve().parent.is_dir():
                raise OutputFileError(f"{path} cannot be written: there is no such folder")
        if self.plot is not None:
            from edge_embed.convert.plot import require

            require(self.plot)


@project.command(epilog=EXAMPLES)
@click.argument("model")
@text_source
@click.option("-o", "--output", type=click.Path(path_type=Path), help="File for the projection, a small GGUF.")
@click.option("--into", type=click.Path(path_type=Path), help="File for a copy of the model with the projection in it.")
@click.option(
    "--sample",
    type=AT_LEAST_1,
    metavar="N",
    help="Most texts to use, chosen by their content, not their order; 20000 by default.",
)
@click.option(
    "--center/--no-center",
    default=False,
    help="Take the texts' mean off first: cosines then spread around 0, and are others than the model's.",
)
@encode_options
@click.option("--pooling", type=click.Choice(POOLINGS), help="Pool hidden states otherwise than the file says.")
@click.option("--max-tokens", type=AT_LEAST_1, metavar="N", help="Most tokens of a text, if not the file's.")
@click.option("--threads", type=AT_LEAST_1, metavar="N", help="CPU threads, if not all physical cores.")
@click.option(
    "--plot", metavar="PNG", type=click.Path(path_type=Path), help="Draw the table (needs the extra `plots`)."
)
@click.option("--json", "as_json", is_flag=True, help="JSON instead of a table.")
@click.option("--progress/--no-progress", default=True, help="Show progress on stderr, or not.")
@click.option(
    "-y", "--yes", is_flag=True, envvar="EDGE_EMBED_DOWNLOAD", help="Download a model that is missing unasked."
)
def fit(
    model: str,
    source: TextSource,
    encoding: EncodeOptions,
    output: Path | None,
    into: Path | None,
    sample: int | None,
    center: bool,
    pooling: Pooling | None,
    max_tokens: int | None,
    threads: int | None,
    plot: Path | None,
    as_json: bool,
    progress: bool,
    yes: bool,
) -> None:
    """Find the axes along which TEXTS differ most in a MODEL, and say what each size of vector costs.

    MODEL is a GGUF or a name of `edge-embed list`. The more TEXTS are like those that will be embedded, the better;
    five times as many as the model has dimensions are enough. They are taken as documents, unless --query or another
    prompt is given. --dimensions is the most values that vectors can have afterwards.

    --output is used beside its model: `embed --projection`, Embedder(projection=...). --into needs no option, and
    other programs that run GGUFs see the model as it was.

    One text in ten is held out. On these, for each size, of the ten nearest texts the share that stays, and by how much
    a cosine changes; beside it the same for a plain cut of the model's own vectors.
    """
    from edge_embed import projection as learned
    from edge_embed.convert.plot import draw_costs
    from edge_embed.convert.projection import write_beside, write_inside
    from edge_embed.embedder import Embedder
    from edge_embed.gguf_header import read_header
    from edge_embed.progress import BytesProgress
    from edge_embed.projection_file import has_projection

    outputs = Outputs(output, into, plot)
    path = Path(ensure(model, yes=yes) or "")
    outputs.check([path] if source.file in (None, "-") else [path, Path(source.file)])
    chosen = learned.choose(source.read(), learned.SAMPLE if sample is None else sample)
    with terminable():
        with Embedder(path, pooling=pooling, max_tokens=max_tokens, n_threads=threads) as embedder:
            info = embedder.info
            if has_projection(info):
                raise UnsupportedModelError(f"{path} holds a projection already", hint="fit one for the model without")
            if into is not None and info.pooling_source == "caller":
                raise click.UsageError("--into stores no pooling, so a copy would not be run with that of --pooling")
            found, costs = _learn(embedder, chosen, encoding, center=center, progress=progress)
        header = read_header(path)
        if output is not None:
            write_beside(output, found, header)
        if into is not None:
            with BytesProgress("copying", enabled=progress) as shown:
                write_inside(into, found, header, progress=shown)
    if plot is not None and costs:
        draw_costs(costs, plot, title=info.name)
    if as_json:
        say_json(_described(info, outputs, found, chosen, costs))
    else:
        for line in _lines(info, outputs, found, chosen, costs):
            click.echo(line)
    for sentence in _remarks(info, outputs, found, chosen, costs):
        note(sentence)


def _learn(
    embedder: Embedder, sample: Sample, encoding: EncodeOptions, *, center: bool, progress: bool
) -> tuple[Projection, tuple[Cost, ...]]:
    from edge_embed.progress import Progress
    from edge_embed.projection import learn

    named = encoding.prompt is not None or encoding.prompt_name is not None or encoding.instruction is not None
    whole = replace(encoding, dimensions=None, document=encoding.document or not (named or encoding.query))

    def embed(texts: Sequence[str]) -> Float32Array:
        return whole.embed(embedder, texts, normalize=True).vectors

    with Progress("fitting", len(sample), "texts", enabled=progress) as shown:
        return learn(
            sample,
            embed,
            embedder.info.n_embd,
            pooling=embedder.info.pooling,
            dimensions=encoding.dimensions,
            center=center,
            advance=shown.advance,
        )


def _described(
    info: ModelInfo, outputs: Outputs, found: Projection, sample: Sample, costs: Sequence[Cost]
) -> dict[str, Any]:
    """What ``--json`` prints."""
    return {
        "model": info.name,
        "output": None if outputs.beside is None else str(outputs.beside),
        "into": None if outputs.inside is None else str(outputs.inside),
        "plot": None if outputs.plot is None or not costs else str(outputs.plot),
        "model_dimensions": found.n_in,
        "dimensions": found.n_out,
        "centered": found.centered,
        "texts_read": sample.n_read,
        "texts_fitted": found.n_texts,
        "texts_held_out": len(sample.held_out),
        "sizes": [asdict(cost) for cost in costs],
    }


def _lines(
    info: ModelInfo, outputs: Outputs, found: Projection, sample: Sample, costs: Sequence[Cost]
) -> Iterator[str]:
    """The same for people."""
    written = {"projection": outputs.beside, "model with it": outputs.inside, "plot": outputs.plot if costs else None}
    yield from facts(
        {
            **{name: str(path) for name, path in written.items() if path is not None},
            "model": info.name,
            "vectors": f"{found.n_in} values to at most {found.n_out}",
            "mean": "taken off" if found.centered else "kept",
            "texts": f"{found.n_texts:,} fitted and {len(sample.held_out):,} held out, of {sample.n_read:,} read",
        }
    )
    if not costs:
        return
    yield "\nwhat a size costs, on the texts held out, beside a plain cut of the model's own vectors:"
    yield from table(
        [
            (
                str(cost.dimensions),
                f"{cost.projected.overlap:.1%}",
                f"{cost.plain.overlap:.1%}",
                f"{cost.projected.drift:.4f}",
                f"{cost.plain.drift:.4f}",
            )
            for cost in costs
        ],
        head=("size", "top-10 kept", "plain", "change of cosines", "plain"),
        right=(0, 1, 2, 3, 4),
    )


def _remarks(
    info: ModelInfo, outputs: Outputs, found: Projection, sample: Sample, costs: Sequence[Cost]
) -> Iterator[str]:
    """What should be known of the result."""
    from edge_embed.projection import ENOUGH, SENSIBLE_HELD_OUT

    if found.n_texts < ENOUGH * found.n_in:
        yield (
            f"{found.n_texts:,} texts are few for {found.n_in} values: with {ENOUGH * found.n_in:,} or more the axes "
            "suit other texts better"
        )
    if not sample.whole:
        yield f"{len(sample):,} of the texts were used; --sample takes more"
    if not costs:
        yield "too few texts are held out to measure what a size costs"
    elif len(sample.held_out) < SENSIBLE_HELD_OUT:
        yield f"only {len(sample.held_out)} texts are held out: the figures are rough"
    if not info.normalize:
        yield "the model's vectors are not of unit length, and become so before they are projected: lengths are lost"
    if info.mrl_dimensions:
        sizes = ", ".join(map(str, info.mrl_dimensions))
        yield f"the model was trained to be cut to {sizes}: these sizes need no projection"
    if outputs.inside is not None:
        yield f"other programs take {outputs.inside.name} for the model without the projection"
