"""Settings as the untuned engine has them, and choices made of them."""

from __future__ import annotations

import dataclasses

from edge_embed.engine.tune import Choice, Settings

REFERENCE = Settings(
    library="", device="", use_extra_bufts=True, n_threads=2, n_batch=384, n_ubatch=512, share_prefixes=True
)


def chosen(**changed: object) -> Choice:
    return Choice(dataclasses.replace(REFERENCE, **changed), "mixed", 1.5, True, [])  # type: ignore[arg-type]
