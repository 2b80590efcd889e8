"""``edge-embed mcp``: tools for assistants, over standard input and output."""

from __future__ import annotations

from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import click

from edge_embed.cli.options import ModelOptions, model_options
from edge_embed.cli.pull import ensure


@click.command(
    epilog="""\b
Examples:
  edge-embed mcp
  edge-embed mcp -m qwen3-embedding-0.6b --reranker qwen3-reranker-0.6b
  edge-embed mcp --db ~/search

\b
In the settings of a program that takes MCP servers:
  {"mcpServers": {"edge-embed": {"command": "edge-embed", "args": ["mcp"]}}}
"""
)
@click.option("--reranker", metavar="MODEL", help="What ranks texts: a GGUF file or a name; cosines do without one.")
@click.option(
    "--db",
    type=click.Path(path_type=Path),
    metavar="PATH",
    help="A database of `edge-embed index`: adds a tool that searches those files, with the model that read them.",
)
@model_options
def mcp(engine: ModelOptions, reranker: str | None, db: Path | None) -> None:
    """Give assistants tools: embed, rerank and search, with models on this machine, over MCP.

    The program that the assistant runs in starts this command, and speaks MCP on its standard input and output. Models
    must be here already, are loaded at the first call, and stay until the input ends.
    """
    try:
        from edge_embed.integrations.mcp import Models, build
    except ImportError as error:
        raise click.ClickException(str(error)) from None
    from edge_embed.reranker import Reranker

    with ExitStack() as opened:
        database = None
        if db is not None:
            from edge_embed.cli.index import settled
            from edge_embed.search.database import Database

            database = opened.enter_context(Database(db.expanduser().absolute()))
            engine = settled(engine, database.record)
        # What is not here is said before the handshake, where a person may see it
        ensure(engine.model, yes=engine.yes)
        found = None if reranker is None else ensure(reranker, yes=engine.yes)
        manner: dict[str, Any] = {
            "n_threads": engine.threads,
            "device": engine.device,
            "low_memory": engine.low_memory,
        }
        models = Models(engine.open, None if found is None else lambda: Reranker(found, **manner))
        opened.enter_context(closing(models))
        build(models, database).run()
