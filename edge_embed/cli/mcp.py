"""``edge-embed mcp``: tools for assistants, over standard input and output."""

from __future__ import annotations

from contextlib import closing

import click

from edge_embed.cli.options import ModelOptions, model_options
from edge_embed.cli.pull import ensure


@click.command(
    epilog="""\b
Examples:
  edge-embed mcp
  edge-embed mcp -m qwen3-embedding-0.6b --reranker qwen3-reranker-0.6b

\b
In the settings of a program that takes MCP servers:
  {"mcpServers": {"edge-embed": {"command": "edge-embed", "args": ["mcp"]}}}
"""
)
@click.option("--reranker", metavar="MODEL", help="What ranks texts: a GGUF file or a name; cosines do without one.")
@model_options
def mcp(engine: ModelOptions, reranker: str | None) -> None:
    """Give assistants tools: embed and rerank, with models on this machine, over MCP.

    The program that the assistant runs in starts this command, and speaks MCP on its standard input and output. Models
    must be here already, are loaded at the first call, and stay until the input ends.
    """
    try:
        from edge_embed.integrations.mcp import Models, build
    except ImportError as error:
        raise click.ClickException(str(error)) from None
    from edge_embed.reranker import Reranker

    ensure(engine.model, yes=engine.yes)  # what is not here is said before the handshake, where a person may see it
    found = None if reranker is None else ensure(reranker, yes=engine.yes)
    models = Models(engine.open, None if found is None else lambda: Reranker(found, n_threads=engine.threads))
    with closing(models):
        build(models).run()
