"""The Hugging Face hub: what a repository holds, its checkpoints and its ready GGUF files.

huggingface-hub does the talking: addresses, tokens (``HF_TOKEN`` or a login), ``HF_ENDPOINT``, proxies, and the cache
in ``HF_HOME`` that other programs share. It is imported on first use.

A repository is not trusted. Its names may not leave the folder that they are put into, nothing in it is executed, and
pickled weights are refused before anything large is downloaded.
"""

from __future__ import annotations

from .checkpoint import Snapshot, cached, checkpoint_files, fetch_into_cache, missing
from .failures import endpoint
from .gguf import choose_gguf, gguf_files, gguf_type
from .repository import Reference, RepoFile, Repository, hub_cache, inspect, is_offline, parse_reference
from .transfer import check_space, download, part_of, same_disk

__all__ = [
    "Reference",
    "RepoFile",
    "Repository",
    "Snapshot",
    "cached",
    "check_space",
    "checkpoint_files",
    "choose_gguf",
    "download",
    "endpoint",
    "fetch_into_cache",
    "gguf_files",
    "gguf_type",
    "hub_cache",
    "inspect",
    "is_offline",
    "missing",
    "parse_reference",
    "part_of",
    "same_disk",
]
