"""Vectors that were computed before, in one SQLite file that several processes share."""

from edge_embed.cache.rows import Lookup, ModelCache
from edge_embed.cache.store import CacheStatus, CacheWarning, EmbeddingCache

__all__ = ["CacheStatus", "CacheWarning", "EmbeddingCache", "Lookup", "ModelCache"]
