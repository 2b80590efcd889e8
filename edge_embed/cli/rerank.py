"""``edge-embed rerank``: a query and documents in, the documents from best to worst out, a line of JSON each."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from typing import TYPE_CHECKING

import click

from edge_embed.cli.options import AT_LEAST_1, TRUNCATIONS, TextSource, text_source
from edge_embed.cli.pull import ensure
from edge_embed.cli.terminal import note

if TYPE_CHECKING:
    from edge_embed.types import Truncate


@click.command(
    epilog="""\b
Examples:
  edge-embed rerank -m qwen3-reranker-0.6b "how do bees navigate?" "by the sun" "by bus"
  edge-embed rerank -m bge-reranker-v2-m3.gguf "flat tire" -f found.jsonl --field body --top-k 10
  edge-embed rerank -m reranker.gguf "binary search" --instruction "Retrieve the code that does this" - < files.txt
"""
)
@click.argument("query")
@text_source
@click.option("-m", "--model", metavar="MODEL", required=True, help="GGUF file or a name of `edge-embed list`.")
@click.option("-k", "--top-k", type=AT_LEAST_1, metavar="N", help="How many documents to print, if not all.")
@click.option(
    "--instruction", metavar="TEXT", help="What is looked for, for a model that was trained with instructions."
)
@click.option(
    "--raw-scores", is_flag=True, help="Logits instead of what the model makes of them, mostly probabilities."
)
@click.option(
    "--truncate",
    type=click.Choice(TRUNCATIONS),
    default="right",
    show_default=True,
    help="What happens to a pair that is too long: the document loses its end, its beginning, or it is refused.",
)
@click.option("--max-tokens", type=AT_LEAST_1, metavar="N", help="Most tokens of a pair, if not the file's.")
@click.option("--threads", type=AT_LEAST_1, metavar="N", help="CPU threads, if not all physical cores.")
@click.option("--batch-tokens", type=AT_LEAST_1, metavar="N", help="Tokens that the model is given at once.")
@click.option(
    "-y", "--yes", is_flag=True, envvar="EDGE_EMBED_DOWNLOAD", help="Download a model that is missing unasked."
)
@click.option(
    "--progress/--no-progress", default=None, help="Show progress on stderr, or not; by default on a terminal."
)
def rerank(
    query: str,
    source: TextSource,
    model: str,
    top_k: int | None,
    instruction: str | None,
    raw_scores: bool,
    truncate: Truncate,
    max_tokens: int | None,
    threads: int | None,
    batch_tokens: int | None,
    yes: bool,
    progress: bool | None,
) -> None:
    """Order documents by how well they answer a query.

    QUERY is compared with each of the TEXTS, which are the other arguments, or the lines of standard input (also as
    -), or a --file. Each line of the output is a JSON object with the document's "index" (counted from 0), "score",
    "document" and whether it was "truncated"; the best comes first.
    """
    from edge_embed.reranker import Reranker

    documents = list(source.read())
    found = ensure(model, yes=yes)
    assert found is not None, "the option is required"
    with Reranker(found, max_tokens=max_tokens, n_threads=threads, n_batch=batch_tokens) as reranker:
        ranked = reranker.rank(
            query,
            documents,
            instruction=instruction,
            raw_scores=raw_scores,
            truncate=truncate,
            show_progress_bar=sys.stderr.isatty() if progress is None else progress,
        )
        limit = max_tokens or reranker.info.max_tokens
    for document in ranked[:top_k]:
        click.echo(json.dumps(asdict(document), ensure_ascii=False))
    if not documents:
        note("the input holds no documents")
    if n_truncated := sum(document.truncated for document in ranked):
        cut = f"{n_truncated} of {len(documents)} documents {'was' if n_truncated == 1 else 'were'} cut"
        note(f"{cut}, so that the pair has {limit} tokens; --truncate error refuses instead")
