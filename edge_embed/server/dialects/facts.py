"""What a model's file says to people who choose among models: digest, type, parameters, publisher.

``ModelInfo`` is what is needed to run a model; this is what other programs' lists of models show.
"""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timezone
from functools import lru_cache
from pathlib import Path
from typing import Any, Final

from edge_embed import catalogue, keys, store
from edge_embed.errors import EdgeEmbedError
from edge_embed.gguf_header import GgufHeader, read_header
from edge_embed.registry import Loaded, Registry, Served

# general.file_type -> name. Source: llama_ftype in llama.h; compared with gguf-py by a test.
FILE_TYPES: Final[Mapping[int, str]] = {
    0: "F32", 1: "F16", 2: "Q4_0", 3: "Q4_1", 7: "Q8_0", 8: "Q5_0", 9: "Q5_1", 10: "Q2_K", 11: "Q3_K_S", 12: "Q3_K_M",
    13: "Q3_K_L", 14: "Q4_K_S", 15: "Q4_K_M", 16: "Q5_K_S", 17: "Q5_K_M", 18: "Q6_K", 19: "IQ2_XXS", 20: "IQ2_XS",
    21: "Q2_K_S", 22: "IQ3_XS", 23: "IQ3_XXS", 24: "IQ1_S", 25: "IQ4_NL", 26: "IQ3_S", 27: "IQ3_M", 28: "IQ2_S",
    29: "IQ2_M", 30: "IQ4_XS", 31: "IQ1_M", 32: "BF16",
}  # fmt: skip
_LONG: Final = 5  # items; vocabularies and merges are left out of what is kept


@dataclass(frozen=True, slots=True)
class Facts:
    """What lists show of a model.

    Attributes:
        digest: 64 hexadecimal digits. The file's sha256 where it is recorded; else one of its name, size and time:
            reading gigabytes to answer a list would take longer than its reader waits.
        modified_at: when the file was written.
        parameters: weights in the file.
        quantization: the type of most of them, as llama.cpp calls it: ``Q8_0``, ``Q4_K_M``.
        ollama: its name in Ollama's library, or an empty string.
        publisher: who publishes the original, ``Qwen``; ``local`` where nobody is named.
        metadata: of the file; a list of more than a few values is None.
    """

    digest: str
    modified_at: datetime
    parameters: int
    quantization: str
    ollama: str
    publisher: str
    metadata: Mapping[str, Any]


def facts_of(served: Served) -> Facts:
    """What the file of a model says; it is read once, and again when it changes.

    Raises:
        ModelError: leaves of it; the file is not here, or damaged.
    """
    status = served.path.stat()
    return _facts(served.path, status.st_size, status.st_mtime_ns)


@dataclass(frozen=True, slots=True)
class Listed:
    """A model of a list.

    Attributes:
        served: the model.
        facts: what its file says.
        loaded: it in memory, or None.
        max_tokens: most tokens of a text: a server may be told to take fewer than the model can.
        n_embd: size of its vectors.
    """

    served: Served
    facts: Facts
    loaded: Loaded | None
    max_tokens: int
    n_embd: int


def listed(registry: Registry, served: Served) -> Listed:
    """A model as lists show it. Reads its file the first time, so this is work for a thread.

    Raises:
        ModelError: leaves of it. Nothing is fetched for a list.
    """
    if not served.is_here:
        catalogue.resolve(served.target)  # says what is missing
    loaded = next((one for one in registry.loaded() if one.served is served), None)
    info = served.info if loaded is None else loaded.model.info
    return Listed(served, facts_of(served), loaded, info.max_tokens, info.n_embd)


def all_listed(registry: Registry) -> list[Listed]:
    """The models whose files are here and whole, in the order in which they are served."""
    found = []
    for served in registry.served:
        try:
            if served.is_here:
                found.append(listed(registry, served))
        except (EdgeEmbedError, OSError):
            continue  # its own requests are told what is wrong with it
    return found


@lru_cache(maxsize=256)
def _facts(path: Path, size: int, mtime_ns: int) -> Facts:
    header = read_header(path)
    record = store.record_of(path)
    known = catalogue.identify(path, header.metadata)
    if record is not None and record.size_bytes == size:
        digest = record.sha256
    else:
        digest = known.sha256 if known is not None and known.path == path else ""
    return Facts(
        digest=digest or hashlib.sha256(f"{path.name}\0{size}\0{mtime_ns}".encode()).hexdigest(),
        modified_at=datetime.fromtimestamp(mtime_ns // 10**9, timezone.utc),
        parameters=sum(math.prod(tensor.shape) for tensor in header.tensors.values()),
        quantization=_quantization(header),
        ollama=known.ollama[0] if known is not None and known.ollama else "",
        publisher=_publisher(header, known.repository if known else record.repository if record else ""),
        metadata={
            key: None if isinstance(value, list) and len(value) > _LONG else value
            for key, value in header.metadata.items()
        },
    )


def _quantization(header: GgufHeader) -> str:
    """What the file says, or the type that holds most of its bytes."""
    said = FILE_TYPES.get(header.metadata.get("general.file_type", -1))
    if said is not None:
        return said
    n_bytes: Counter[str] = Counter()
    for tensor in header.tensors.values():
        n_bytes[tensor.type_name] += tensor.n_bytes
    return n_bytes.most_common(1)[0][0] if n_bytes else "unknown"


def _publisher(header: GgufHeader, repository: Any) -> str:
    """The owner of the repository that the weights are from, or the organization that the file names."""
    repository = repository or header.metadata.get(keys.SOURCE_REPOSITORY)
    owner = repository.partition("/")[0] if isinstance(repository, str) and "/" in repository else ""
    return owner or next(
        (
            said
            for key in ("general.organization", "general.author")
            if isinstance(said := header.metadata.get(key), str) and said
        ),
        "local",
    )
