"""What can be said of many texts at once from their vectors: duplicates, clusters, translations, labels.

Everything here takes unit vectors and no texts, compares in blocks, so that memory is that of the vectors, and gives
the same result for the same input on the same machine. Where many are learned from (clusters, labels), scikit-learn
does it, which is an extra (``corpus``).
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from edge_embed.errors import InvalidOptionError


@contextlib.contextmanager
def learning() -> Iterator[None]:
    """Around imports of scikit-learn; its absence is an InvalidOptionError that names the extra.

    What is computed inside runs on one thread: sums of several come in no certain order.
    """
    try:
        from threadpoolctl import threadpool_limits
    except ImportError:
        raise InvalidOptionError("this needs scikit-learn", hint="pip install 'edge-embed[corpus]'") from None
    with threadpool_limits(1):
        yield
