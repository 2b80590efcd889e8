"""The command ``edge-embed``: one module for each command; they parse, call and print.

Nothing heavy is imported until a command runs: ``edge-embed --help`` loads click and nothing else.
"""

from __future__ import annotations

from edge_embed.cli.app import main

__all__ = ["main"]
