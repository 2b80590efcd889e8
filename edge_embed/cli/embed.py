"""``edge-embed embed``: texts in, vectors out, in batches that do not depend on how many texts there are."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterable, Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edge_embed.bulk.counting import counted_from
from edge_embed.bulk.job import TABLE_FORMATS
from edge_embed.cli.embed_tables import InputSource, TableOptions, embed_tables, input_source, table_options
from edge_embed.cli.options import (
    PRECISIONS,
    STDIN,
    EncodeOptions,
    ModelOptions,
    TextSource,
    encode_options,
    model_options,
)
from edge_embed.cli.output import OUTPUT_FORMATS, VectorOutput, choose_format
from edge_embed.cli.resume import Job, State, TextDigest, discard, input_identity, refuse_leftovers
from edge_embed.cli.terminal import note, terminable
from edge_embed.errors import OutputFileError

if TYPE_CHECKING:
    from edge_embed.embedder import Embedder
    from edge_embed.types import EmbedResult, Precision

# The first step of the work, and how often it doubles: small, so that a slow model shows progress soon; then large
# enough to pack well, and no larger, so that memory stays small. By size and never by time, because the company that
# a text is computed in moves the last digits of its vector: the same input gives the same bytes.
STEP_TEXTS, STEP_CHARACTERS, DOUBLINGS = 64, 1 << 12, 4


@click.command(
    epilog="""\b
Examples:
  edge-embed embed "a text" "another text"
  cat lines.txt | edge-embed embed --output-format jsonl
  edge-embed embed -f articles.csv --field body -o vectors.npy
  edge-embed embed -f corpus.jsonl --document -d 256 --precision int8 -o corpus.npy
  edge-embed embed -f large.jsonl -o large.npy --resume
  edge-embed embed --query "how do bees navigate?" -m qwen3-0.6b-q8_0.gguf
  edge-embed embed articles.parquet --engine local --column body -o vectors
  edge-embed embed s3://corpus/articles --engine ray --workers 8 -o s3://corpus/vectors
"""
)
@input_source
@click.option("-o", "--output", metavar="PATH", help="File to write; standard output by default.")
@click.option(
    "--output-format",
    type=click.Choice(list(dict.fromkeys([*OUTPUT_FORMATS, *TABLE_FORMATS]))),
    help="How vectors are written; by default the extension of --output says so, and standard output is json.",
)
@encode_options
@click.option(
    "--no-normalize", is_flag=True, help="Keep the vectors' lengths, even where the original model makes each 1."
)
@click.option(
    "--precision", type=click.Choice(PRECISIONS), default="float32", show_default=True, help="What each value becomes."
)
@model_options
@table_options
@click.option(
    "--resume/--no-resume",
    default=None,
    help="Keep what is done when interrupted, and go on with it; or start again from what was kept.",
)
@click.option(
    "--progress/--no-progress",
    default=None,
    help="Show progress on stderr, or not; by default for a file, where stderr is a terminal.",
)
def embed(
    source: InputSource,
    encoding: EncodeOptions,
    engine: ModelOptions,
    tables: TableOptions,
    output: str | None,
    output_format: Any,
    no_normalize: bool,
    precision: Precision,
    resume: bool | None,
    progress: bool | None,
) -> None:
    """Turn texts into vectors.

    TEXTS are the arguments, or the lines of standard input (also as -), or a --file. Vector i belongs to text i.

    \b
    Input formats:
      txt     a text per line; a blank line is an empty text, so that vector i is line i
      jsonl   a JSON string or object per line (.jsonl, .ndjson); blank lines are skipped
      csv     a header and rows, a column is the text; tsv the same with tabs

    \b
    Output formats:
      json    a list of lists                      npy     a NumPy array [n, d]
      jsonl   {"index":0,"embedding":[...]}        f32     little-endian float32, no header
      csv     a row per vector, no header          base64  a line per vector, little-endian values

    A --file is read through once before the work begins, so that a mistake in its last line is found at once. It may
    be larger than memory. With --resume, whatever ends the work (Ctrl-C, a crash, no power), the same command goes
    on from OUTPUT.part, and the result is the one of an undisturbed run. Without it an interrupt leaves nothing.

    \b
    Tables, with --engine (a --file that is .parquet or .lance is one anyway):
      local   TEXTS are files, folders or URIs (s3://...) of Parquet, lines of JSON or Lance; --output is a folder
              or URI that gets their rows with the vectors in one more column, a file for each block of rows, or a
              NAME.lance table. The same command always goes on where an earlier one was ended.
      ray     the same, by the workers of a Ray cluster, or of this machine. A worker that is lost loses no row.
    Rows stay in order with both, which costs nothing: a block's file is named after its place.
    """
    finish = {"normalize": False if no_normalize else None, "precision": precision}
    if tables.chosen(source):
        embed_tables(
            source, tables, engine, {**encoding.arguments(), **finish}, output, output_format, resume, progress
        )
        return
    _embed_texts(
        source,
        encoding,
        engine,
        None if output in (None, "-") else Path(output),
        output_format,
        finish,
        resume,
        progress,
    )


def _embed_texts(
    source: TextSource,
    encoding: EncodeOptions,
    engine: ModelOptions,
    output: Path | None,
    output_format: Any,
    finish: dict[str, Any],
    resume: bool | None,
    progress: bool | None,
) -> None:
    if output_format not in (None, *OUTPUT_FORMATS):
        raise click.UsageError(f"{output_format} is for tables, which --engine reads and writes")
    chosen = choose_format(output, output_format)
    precision = finish["precision"]
    if chosen == "f32" and precision != "float32":
        raise click.UsageError(f"f32 holds float32, not {precision}: use npy or base64")
    if output is not None and source.file is not None and output.exists() and output.samefile(source.file):
        raise click.UsageError("--output would replace the --file that is read")
    job = _job(source, output, resume, {"output-format": chosen, **finish, **asdict(encoding), **_about(engine)})
    begun = job.load() if job is not None else None
    total = source.count()
    if job is not None and begun is not None and job.is_finished(begun):
        job.remove()
        note(f"{output} was complete already")
        return
    shown = sys.stderr.isatty() and total is not None if progress is None else progress
    with (
        terminable(),
        VectorOutput(output, chosen, keep=job is not None, mark=begun.mark if begun is not None else None) as vectors,
        engine.open() as embedder,
    ):
        work = _Work(embedder, encoding, finish, vectors, begun or State(vectors.mark()), total, shown)
        if job is None:
            for _ in work.run(source.read()):
                pass
        else:
            _keeping(job, work, source)
        limit = embedder.info.max_tokens
    if job is not None:
        job.remove()
    state = work.state
    if state.n_texts == 0:
        note("the input holds no texts")
    if state.n_truncated:
        cut = f"{state.n_truncated} of {state.n_texts} texts {'was' if state.n_truncated == 1 else 'were'} cut"
        note(f"{cut} to {limit} tokens; --truncate error refuses instead")


def _about(engine: ModelOptions) -> dict[str, Any]:
    """What of the model's options moves the vectors; the model itself goes by its bytes."""
    settings = {name: value for name, value in asdict(engine).items() if name not in ("model", "cache", "yes")}
    path, scale = engine.lora
    projection = engine.projection
    return {
        **settings,
        "lora": [*input_identity(Path(path)), scale] if path else None,
        "projection": input_identity(Path(projection)) if projection else None,
    }


def _job(source: TextSource, output: Path | None, resume: bool | None, settings: dict[str, Any]) -> Job | None:
    """The job that may be continued, with --resume; without, what an earlier one left is removed or refused."""
    if not resume:
        if output is not None and (output.is_file() or not output.exists()):
            discard(output) if resume is False else refuse_leftovers(output)
        return None
    if source.file in (None, STDIN) or output is None:
        raise click.UsageError("--resume needs a --file to read and an --output to write")
    if output.exists() and not output.is_file():
        raise click.UsageError(f"--resume needs an --output that is a file, and {output} is not")
    from importlib.metadata import version

    import edge_embed

    return Job(
        output,
        {
            "file": input_identity(Path(str(source.file))),
            "input-format": source.input_format,
            "field": source.field,
            **settings,
            "version of edge-embed": edge_embed.__version__,
            "version of llama-cpp-python": version("llama-cpp-python"),
        },
    )


def _keeping(job: Job, work: _Work, source: TextSource) -> None:
    """Do the work, and write down now and then how far it is."""
    job.check_model(Path(work.embedder.info.path))
    texts = source.read()
    if work.state.n_texts:
        job.passed(texts, work.state, work.digest)
        note(f"{work.state.n_texts} texts were done before")
    job.save(work.state)
    try:
        for _ in work.run(texts):
            if job.is_due():
                work.vectors.sync()
                job.save(work.state)
    except BaseException:
        with contextlib.suppress(OutputFileError):  # an earlier state is true as well
            work.vectors.sync()
            job.save(work.state)
        total = "" if work.total is None else f" of {work.total}"
        note(f"{work.state.n_texts}{total} texts are kept: the same command goes on from there")
        raise
    work.state = replace(work.state, complete=True)
    work.vectors.sync()
    job.save(work.state)


class _Work:
    """Steps of texts through the model and into the output, counted."""

    def __init__(
        self,
        embedder: Embedder,
        encoding: EncodeOptions,
        finish: dict[str, Any],
        vectors: VectorOutput,
        state: State,
        total: int | None,
        shown: bool,
    ) -> None:
        self.embedder, self.vectors, self.state, self.total = embedder, vectors, state, total
        self.digest = TextDigest()
        self._encoding, self._finish, self._shown = encoding, finish, shown

    def run(self, texts: Iterable[str]) -> Iterator[None]:
        """One step after another, of texts that come behind those that are done."""
        from edge_embed.progress import Progress

        done = self.state.n_texts
        with Progress("embedding", self.total, "texts", start=done, enabled=self._shown) as progress:
            for step in _steps(texts, self.state.n_steps):
                result = self._embed(step, self.state.n_texts)
                self.vectors.write(result.vectors)
                for text in step:
                    self.digest.add(text)
                self.state = State(
                    self.vectors.mark(),
                    n_texts=self.state.n_texts + len(step),
                    n_steps=self.state.n_steps + 1,
                    n_truncated=self.state.n_truncated + result.usage.n_truncated,
                    texts=self.digest.hexdigest(),
                )
                progress.reach(self.state.n_texts)
                yield

    def _embed(self, step: list[str], done: int) -> EmbedResult:
        """The vectors of a step, whatever came before it; errors count texts from the beginning of the input."""
        self.embedder.forget()  # so that a job that goes on here gives the bytes that it would have given
        with counted_from(done):
            return self._encoding.embed(self.embedder, step, **self._finish)


def _steps(texts: Iterable[str], made: int = 0) -> Iterator[list[str]]:
    """Texts in steps; ``made``: how many steps came before. At least one in all, possibly of no texts."""
    step: list[str] = []
    characters = 0
    for text in texts:
        step.append(text)
        characters += len(text)
        scale = 1 << min(made, DOUBLINGS)
        if len(step) >= STEP_TEXTS * scale or characters >= STEP_CHARACTERS * scale:
            yield step
            step, characters, made = [], 0, made + 1
    if step or not made:
        yield step
