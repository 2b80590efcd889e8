"""edge-embed in the libraries that people already use, one module each; none is imported before it is asked for.

Every class takes the model by name, as a GGUF file or as an ``Embedder`` or ``Reranker`` that is open, embeds queries
and documents with the model's own prompts for these, and may be used from any number of threads.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator


@contextlib.contextmanager
def extra(name: str) -> Iterator[None]:
    """A missing package inside becomes an error that says which extra brings it."""
    try:
        yield
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"{error.name} is not installed: pip install 'edge-embed[{name}]'", name=error.name
        ) from error
