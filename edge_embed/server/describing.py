"""What lists of models say of each."""

from __future__ import annotations

from typing import Any

from edge_embed.errors import EdgeEmbedError
from edge_embed.registry import Registry, Served


def described(served: Served, registry: Registry) -> dict[str, Any]:
    """What is known of a model without loading it; of one that is not here, or damaged, that it is not."""
    loaded = next((one for one in registry.loaded() if one.served is served), None)
    if not served.is_here:
        return {"created": 0, "available": False, "reason": "it is not on this machine"}
    try:
        info, path = served.info, served.path
    except EdgeEmbedError as error:
        return {"created": 0, "available": False, "reason": error.message}
    return {
        "created": int(path.stat().st_mtime) if path.exists() else 0,
        "available": True,
        "loaded": loaded is not None,
        "device": None if loaded is None else loaded.model.backend.device,
        "kind": served.kind,
        "architecture": info.architecture,
        "dimensions": info.n_embd if info.rerank is None else None,
        "mrl_dimensions": list(info.mrl_dimensions),
        "max_tokens": info.max_tokens,
        "prompts": sorted(info.prompts),
        "takes_instructions": info.instruction_template is not None
        or (info.rerank is not None and info.rerank.instruction is not None),
        "size_bytes": info.size_bytes,
        "license": info.license,
    }
