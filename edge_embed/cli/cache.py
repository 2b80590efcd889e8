"""``edge-embed cache``: where vectors are kept for the next time, how much that is, and how it is made less."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from edge_embed.cli.recipe import n_bytes
from edge_embed.cli.terminal import facts, note, say_json, size

if TYPE_CHECKING:
    from edge_embed.cache import EmbeddingCache


@click.group(
    invoke_without_command=True,
    epilog="""\b
Examples:
  edge-embed cache
  edge-embed cache limit 5GB
  edge-embed cache trim 500MB
  edge-embed cache clear
""",
)
@click.option(
    "--path", type=click.Path(path_type=Path), help="The cache's file, if not the one in the folder of caches."
)
@click.option("--json", "as_json", is_flag=True, help="JSON instead of a table.")
@click.pass_context
def cache(ctx: click.Context, path: Path | None, as_json: bool) -> None:
    """Show the cache of vectors, or make it smaller.

    The commands that compute vectors use it with --cache, or always where EDGE_EMBED_CACHE_VECTORS=1 is set. It
    lies in $EDGE_EMBED_CACHE, by default in the platform's folder for caches.
    """
    from edge_embed.cache import EmbeddingCache

    ctx.obj = ctx.with_resource(EmbeddingCache(path))
    if ctx.invoked_subcommand is not None:
        return
    status = ctx.obj.status()
    if as_json:
        say_json(
            {
                "path": str(status.path),
                "entries": status.n_entries,
                "size_bytes": status.size_bytes,
                "max_bytes": status.max_bytes,
            }
        )
        return
    known = f"{status.n_entries} vectors" if status.n_entries else "nothing yet"
    described = {
        "file": str(status.path),
        "holds": known,
        "size": f"{size(status.size_bytes)} of at most {size(status.max_bytes)}",
    }
    for line in facts(described):
        click.echo(line)


@cache.command()
@click.pass_obj
def clear(store: EmbeddingCache) -> None:
    """Remove every vector, of every model."""
    _say_removed(store.trim())


@cache.command()
@click.argument("to", metavar="SIZE", callback=n_bytes)
@click.pass_obj
def trim(store: EmbeddingCache, to: int) -> None:
    """Remove what was not used for longest, until at most SIZE is left: 500MB, 2GiB."""
    _say_removed(store.trim(to))


@cache.command()
@click.argument("to", metavar="SIZE", callback=n_bytes)
@click.pass_obj
def limit(store: EmbeddingCache, to: int) -> None:
    """Let the file grow to SIZE, 1GB if never said; the oldest vectors make room for new ones."""
    store.set_limit(to)
    note(f"{store.path} may grow to {size(to)}")


def _say_removed(count: int) -> None:
    note(f"{count} vector{' was' if count == 1 else 's were'} removed")
