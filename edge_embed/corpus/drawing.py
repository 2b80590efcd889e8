"""A map of texts as a page that needs nothing from elsewhere, or as a picture."""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from importlib import resources
from typing import Final

from edge_embed.corpus.clusters import Clustering
from edge_embed.types import Float32Array

_SHOWN: Final = 300  # characters of a text
_NAMED: Final = 12  # clusters that the picture's legend has
# Okabe and Ito's colours, which people with any kind of colour vision tell apart, then the same again
COLOURS: Final = ("#0072b2", "#e69f00", "#009e73", "#d55e00", "#56b4e9", "#cc79a7", "#8a7f00", "#666666")


def page(places: Float32Array, texts: Sequence[str], clusters: Clustering, indices: Sequence[int], title: str) -> bytes:
    """HTML: a point for each text, which the pointer or the arrow keys make readable, and a list of the clusters.

    Args:
        places: float32 ``[n, 2]``.
        texts: the ``n`` texts.
        clusters: of all texts.
        indices: where the ``n`` texts stand among all.
        title: shown above.
    """
    values = {
        "title": title,
        "colours": COLOURS,
        "sizes": [len(clusters.members(c)) for c in range(clusters.n_clusters)],
        "points": [
            [round(float(x), 3), round(float(y), 3), int(clusters.labels[i]), i, text[:_SHOWN]]
            for (x, y), i, text in zip(places, indices, texts, strict=True)
        ],
    }
    # inside a script element: nothing in a text may end it
    data = json.dumps(values, ensure_ascii=False).replace("<", "\\u003c")
    template = resources.files(__package__).joinpath("map.html").read_text(encoding="utf-8")
    return template.replace("__DATA__", data).encode("utf-8", errors="replace")


def picture(places: Float32Array, clusters: Clustering, indices: Sequence[int], title: str) -> bytes:
    """PNG of the same, without texts.

    Args:
        places, clusters, indices, title: as for ``page``.

    Raises:
        ModuleNotFoundError: matplotlib is not installed.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 8), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    labels = clusters.labels[list(indices)]
    for c in range(clusters.n_clusters):
        own = places[labels == c]
        name = f"{c} ({len(clusters.members(c))})" if c < _NAMED else None
        axes.scatter(own[:, 0], own[:, 1], s=9, color=COLOURS[c % len(COLOURS)], label=name, linewidths=0)
    axes.set_axis_off()
    axes.legend(title="cluster (texts)", loc="best", fontsize=8)
    axes.set_title(title)
    stream = io.BytesIO()
    figure.savefig(stream, format="png", dpi=120, metadata={"Software": None})
    return stream.getvalue()
