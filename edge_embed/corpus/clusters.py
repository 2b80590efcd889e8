"""Clusters of texts (k-means on unit vectors), and a map of them in two dimensions (t-SNE)."""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from edge_embed.corpus import learning
from edge_embed.errors import InvalidOptionError
from edge_embed.types import Float32Array

LARGE = 20_000  # texts from which on k-means reads them in parts
_PART = 4096
_JUDGED = 2000  # texts by which numbers of clusters are compared
_MAP_VALUES = 50  # principal components that a map is made from


@dataclass(frozen=True, slots=True, eq=False)
class Clustering:
    """Texts in clusters, the largest of which is 0.

    Attributes:
        labels: int64 ``[n]``, the cluster of each text.
        cosines: float32 ``[n]``, of each text with its cluster's centre.
        silhouette: how much nearer texts are to their own cluster than to the next, -1 to 1, on a sample; NaN for one
            cluster.
    """

    labels: npt.NDArray[np.int64]
    cosines: Float32Array
    silhouette: float

    @property
    def n_clusters(self) -> int:
        """How many there are."""
        return int(self.labels.max()) + 1

    def members(self, cluster: int) -> list[int]:
        """The texts of a cluster, the nearest to its centre first."""
        found = np.flatnonzero(self.labels == cluster)
        order = np.argsort(-self.cosines[found], kind="stable")
        return [int(i) for i in found[order]]


def clustered(vectors: Float32Array, n_clusters: int | None = None, *, seed: int = 0) -> Clustering:
    """Texts in clusters of similar ones.

    Args:
        vectors: unit vectors ``[n, d]``, 2 or more.
        n_clusters: how many; by default the number with the best silhouette of 2, 3, 4, 6, 8, 12 ... up to twice the
            root of n.
        seed: where k-means begins. Fewer clusters than asked for come back where there are fewer different vectors.

    Raises:
        InvalidOptionError: too few texts for that, or scikit-learn is not installed.
    """
    n = len(vectors)
    if n < 2 or (n_clusters is not None and not 1 <= n_clusters <= n):
        wanted = "clusters" if n_clusters is None else f"{n_clusters} clusters"
        raise InvalidOptionError(f"{n} texts cannot be put into {wanted}", hint="give more texts or fewer clusters")
    with learning():
        if n_clusters is not None:
            return _kmeans(vectors, n_clusters, seed)
        tried = (_kmeans(vectors, k, seed) for k in _candidates(n))
        return max(tried, key=lambda found: -2 if np.isnan(found.silhouette) else found.silhouette)


def _candidates(n: int) -> list[int]:
    most = max(2, min(int(2 * n**0.5), n - 1, 256))
    return [k for k in sorted({b << e for b in (2, 3) for e in range(8)}) if k <= most]


def _kmeans(vectors: Float32Array, k: int, seed: int) -> Clustering:
    from sklearn.cluster import KMeans, MiniBatchKMeans
    from sklearn.exceptions import ConvergenceWarning

    large = len(vectors) > LARGE
    model = (
        MiniBatchKMeans(k, random_state=seed, n_init=3, batch_size=_PART)
        if large
        else KMeans(k, random_state=seed, n_init=4)
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # fewer different vectors than clusters: some stay empty
        found = model.fit_predict(vectors)
    labels = _by_size(found)
    centres = np.stack([vectors[labels == c].mean(axis=0) for c in range(labels.max() + 1)])
    centres /= np.maximum(np.linalg.norm(centres, axis=1, keepdims=True), 1e-12)
    cosines: Float32Array = np.einsum("ij,ij->i", vectors, centres[labels])
    return Clustering(labels, cosines, _silhouette(vectors, labels, seed))


def _by_size(found: npt.NDArray[np.int32]) -> npt.NDArray[np.int64]:
    """Labels renamed: the largest cluster is 0, of equal ones that with the first text comes first; none is empty."""
    names, firsts, sizes = np.unique(found, return_index=True, return_counts=True)
    order = np.lexsort((firsts, -sizes))
    renamed = np.zeros(int(names.max()) + 1, dtype=np.int64)
    renamed[names[order]] = np.arange(len(names))
    return renamed[found]


def _silhouette(vectors: Float32Array, labels: npt.NDArray[np.int64], seed: int) -> float:
    from sklearn.metrics import silhouette_score

    chosen = np.arange(len(labels))
    if len(labels) > _JUDGED:
        chosen = np.sort(np.random.default_rng(seed).choice(len(labels), _JUDGED, replace=False))
    some = labels[chosen]
    if not 2 <= len(np.unique(some)) < len(some):
        return float("nan")
    return float(silhouette_score(vectors[chosen], some))


def positions(vectors: Float32Array, *, seed: int = 0) -> Float32Array:
    """A place for each text in two dimensions, float32 ``[n, 2]``: what is alike lies together; far apart says little.

    Args:
        vectors: unit vectors ``[n, d]``; some thousands take a minute.
        seed: where t-SNE begins.

    Raises:
        InvalidOptionError: scikit-learn is not installed.
    """
    n = len(vectors)
    if n < 4 or vectors.shape[1] < 2:
        places: Float32Array = np.stack([np.arange(n), np.zeros(n)], axis=1).astype(np.float32)
        return places
    with learning():
        from sklearn.decomposition import PCA
        from sklearn.manifold import TSNE

        fewer = PCA(min(_MAP_VALUES, n, vectors.shape[1]), svd_solver="full").fit_transform(vectors)
        model = TSNE(perplexity=min(30.0, (n - 1) / 3), init="pca", random_state=seed)
        found: Float32Array = model.fit_transform(fewer)
    return found.astype(np.float32)
