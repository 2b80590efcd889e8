"""``edge-embed rerank``: a query and documents in, the documents from best to worst out, a line of JSON each.

With an embedder, in two stages: it finds the candidates among any number of documents, and the reranker orders those.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edge_embed.cli.options import (
    AT_LEAST_1,
    Command,
    TextSource,
    cache_option,
    device_option,
    gpu_layers_option,
    grouped,
    lora_file,
    low_memory_option,
    text_source,
    truncate_option,
)
from edge_embed.cli.pull import ensure
from edge_embed.cli.terminal import note

if TYPE_CHECKING:
    from edge_embed.reranker import Reranker
    from edge_embed.two_stage import Search
    from edge_embed.types import RankedDocument, Truncate

CANDIDATES = 100


@dataclass(frozen=True, slots=True)
class RerankOptions:
    """Which model scores pairs, how it is run, and what it is told."""

    model: str
    top_k: int | None
    instruction: str | None
    raw_scores: bool
    truncate: Truncate
    max_tokens: int | None
    threads: int | None
    batch_tokens: int | None
    device: str | None
    gpu_layers: int | None
    low_memory: bool
    lora: tuple[str, float]
    cache: bool
    yes: bool
    progress: bool | None

    @property
    def found(self) -> str | Path:
        """The model, once it is here."""
        found = ensure(self.model, yes=self.yes)
        assert found is not None, "the option is required"
        return found

    @property
    def shows_progress(self) -> bool:
        return sys.stderr.isatty() if self.progress is None else self.progress

    @property
    def manner(self) -> dict[str, Any]:
        """How both models of a search are run; layers are the reranker's own."""
        return {
            "n_threads": self.threads,
            "n_batch": self.batch_tokens,
            "device": self.device,
            "low_memory": self.low_memory,
            "cache": self.cache,
        }

    @contextmanager
    def open(self) -> Iterator[Reranker]:
        from edge_embed.reranker import Reranker

        lora, scale = self.lora
        with Reranker(
            self.found,
            max_tokens=self.max_tokens,
            gpu_layers=self.gpu_layers,
            lora=lora or None,
            lora_scale=scale,
            **self.manner,
        ) as reranker:
            yield reranker

    def rank(self, reranker: Reranker, query: str, documents: list[str]) -> list[RankedDocument]:
        """All of them, the best first."""
        return reranker.rank(
            query,
            documents,
            instruction=self.instruction,
            raw_scores=self.raw_scores,
            truncate=self.truncate,
            show_progress_bar=self.shows_progress,
        )


@dataclass(frozen=True, slots=True)
class SearchOptions:
    """How candidates are found, where there are two stages."""

    embedder: str | None
    candidates: int | None
    vectors: Path | None

    def check(self, top_k: int | None) -> None:
        """click.UsageError where what is asked for needs a first stage, or more of it.

        Args:
            top_k: how many documents are to be printed, None for all that are reranked.
        """
        if self.embedder is None and (self.candidates is not None or self.vectors is not None):
            option = "--candidates" if self.candidates is not None else "--vectors"
            raise click.UsageError(f"{option} is about finding candidates: name the model that does, with --embedder")
        if self.candidates is not None and top_k is not None and top_k > self.candidates:
            raise click.UsageError(f"--top-k {top_k} of --candidates {self.candidates}: raise the latter")


def _rerank_options(command: Command) -> Command:
    return grouped(
        "asked",
        RerankOptions,
        command,
        click.option(
            "-m",
            "--model",
            "--reranker",
            "model",
            metavar="MODEL",
            required=True,
            help="The reranker: GGUF file or a name of `edge-embed list`.",
        ),
        click.option("-k", "--top-k", type=AT_LEAST_1, metavar="N", help="How many documents to print, if not all."),
        click.option(
            "--instruction", metavar="TEXT", help="What is looked for, for models that were trained with instructions."
        ),
        click.option(
            "--raw-scores", is_flag=True, help="Logits instead of what the model makes of them, mostly probabilities."
        ),
        truncate_option("a document"),
        click.option("--max-tokens", type=AT_LEAST_1, metavar="N", help="Most tokens of a pair, if not the file's."),
        click.option("--threads", type=AT_LEAST_1, metavar="N", help="CPU threads, if not all physical cores."),
        click.option("--batch-tokens", type=AT_LEAST_1, metavar="N", help="Tokens that the model is given at once."),
        device_option(),
        gpu_layers_option(),
        low_memory_option(),
        click.option(
            "--lora",
            metavar="FILE[:SCALE]",
            default="",
            callback=lambda _ctx, _param, value: lora_file(value),
            help="A LoRA adapter (GGUF) to add to the reranker, as much of it as SCALE says; 1 by default.",
        ),
        cache_option("scores, and a first stage's vectors,"),
        click.option(
            "-y", "--yes", is_flag=True, envvar="EDGE_EMBED_DOWNLOAD", help="Download a model that is missing unasked."
        ),
        click.option(
            "--progress/--no-progress", default=None, help="Show progress on stderr, or not; by default on a terminal."
        ),
    )  # fmt: skip


def _search_options(command: Command) -> Command:
    return grouped(
        "stage",
        SearchOptions,
        command,
        click.option("--embedder", metavar="MODEL", help="Find candidates first, with this embedding model."),
        click.option(
            "--candidates",
            type=AT_LEAST_1,
            metavar="N",
            help=f"How many are reranked; {CANDIDATES} by default, or as many as are to be printed.",
        ),
        click.option(
            "--vectors",
            type=click.Path(path_type=Path),
            metavar="FILE",
            help="The documents' vectors (.npy of `edge-embed embed --document`), if they are embedded already.",
        ),
    )  # fmt: skip


@click.command(
    epilog="""\b
Examples:
  edge-embed rerank -m qwen3-reranker-0.6b "how do bees navigate?" "by the sun" "by bus"
  edge-embed rerank -m bge-reranker-v2-m3.gguf "flat tire" -f found.jsonl --field body --top-k 10
  edge-embed rerank -m reranker.gguf "binary search" --instruction "Retrieve the code that does this" - < files.txt

\b
In two stages, on a corpus of any size, embedded now or once for many queries:
  edge-embed rerank "flat tire" -f corpus.jsonl --embedder qwen3-embedding-0.6b --reranker qwen3-reranker-0.6b -k 10
  edge-embed embed -m qwen3-embedding-0.6b --document -f corpus.jsonl -o corpus.npy
  edge-embed rerank "flat tire" -f corpus.jsonl --embedder qwen3-embedding-0.6b --vectors corpus.npy \\
      --reranker qwen3-reranker-0.6b -k 10
"""
)
@click.argument("query")
@text_source
@_search_options
@_rerank_options
def rerank(query: str, source: TextSource, stage: SearchOptions, asked: RerankOptions) -> None:
    """Order documents by how well they answer a query.

    QUERY is compared with each of the TEXTS, which are the other arguments, or the lines of standard input (also as
    -), or a --file. Each line of the output is a JSON object with the document's "index" (counted from 0), "score",
    "document" and whether it was "truncated"; the best comes first.

    With --embedder the documents are embedded first, and only the candidates, those nearest to the query, are reranked:
    their lines have the "cosine" as well. The query is embedded with the model's own prompt for queries, or with the
    --instruction where the model takes one. Of the corpus only the candidates are kept in memory.
    """
    stage.check(asked.top_k)
    if stage.embedder is not None:
        _two_stages(query, source, stage, asked)
        return
    documents = list(source.read())
    with asked.open() as reranker:
        ranked = asked.rank(reranker, query, documents)
        limit = reranker.info.max_tokens
    for document in ranked[: asked.top_k]:
        _print(asdict(document))
    if not documents:
        note("the input holds no documents")
    _say_what_was_cut(ranked, limit)


def _two_stages(query: str, source: TextSource, stage: SearchOptions, asked: RerankOptions) -> None:
    from edge_embed.tokens import Tokens

    # What would go wrong in the second stage does so before the first, which may take hours.
    Tokens(asked.found, max_tokens=asked.max_tokens).encode_pair(query, "", instruction=asked.instruction)
    found = _candidates(query, source, stage, asked)
    if not found.candidates:
        note("the input holds no documents")
        return
    with asked.open() as reranker:
        ranked = asked.rank(reranker, query, [candidate.document for candidate in found.candidates])
        limit = reranker.info.max_tokens
    for document in ranked[: asked.top_k]:
        candidate = found.candidates[document.index]
        _print(
            {
                "index": candidate.index,
                "score": document.score,
                "cosine": candidate.cosine,
                "document": document.document,
                "truncated": document.truncated,
            }
        )
    _say_what_was_cut(ranked, limit)


def _candidates(query: str, source: TextSource, stage: SearchOptions, asked: RerankOptions) -> Search:
    """What the first stage finds; its model is closed again, so that there is room for the other one."""
    from edge_embed.embedder import Embedder
    from edge_embed.progress import Progress
    from edge_embed.two_stage import check_count, open_vectors, search

    vectors = None if stage.vectors is None else open_vectors(stage.vectors)
    total = source.count()
    if vectors is not None and total is not None:
        check_count(len(vectors), total)
    shown = asked.shows_progress and vectors is None and total is not None
    model = ensure(stage.embedder, yes=asked.yes)
    with Embedder(model, **asked.manner) as embedder:
        takes_instruction = embedder.info.instruction_template is not None
        with Progress("embedding", total or 0, "texts", enabled=shown) as progress:
            found = search(
                embedder,
                query,
                source.read(),
                stage.candidates or max(CANDIDATES, asked.top_k or 0),
                vectors=vectors,
                instruction=asked.instruction if takes_instruction else None,
                truncate=asked.truncate,
                progress=progress,
            )
        limit = embedder.info.max_tokens
    if found.n_truncated:
        cut = f"{found.n_truncated} of {found.n_texts} documents {'was' if found.n_truncated == 1 else 'were'} cut"
        note(f"{cut} to {limit} tokens to be embedded; --truncate error refuses instead")
    return found


def _print(document: dict[str, Any]) -> None:
    click.echo(json.dumps(document, ensure_ascii=False))


def _say_what_was_cut(ranked: list[RankedDocument], limit: int) -> None:
    if n_truncated := sum(document.truncated for document in ranked):
        cut = f"{n_truncated} of {len(ranked)} documents {'was' if n_truncated == 1 else 'were'} cut"
        note(f"{cut}, so that the pair has {limit} tokens; --truncate error refuses instead")
