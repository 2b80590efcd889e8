"""``python -m edge_embed.cli`` is ``edge-embed``."""

from __future__ import annotations

from edge_embed.cli import main

main()
