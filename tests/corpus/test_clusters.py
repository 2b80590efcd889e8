"""Clusters and maps: what belongs together, the same every time."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pytest

from edge_embed.corpus.clusters import clustered, positions
from edge_embed.corpus.drawing import page, picture
from edge_embed.corpus.neighbours import unit
from edge_embed.errors import InvalidOptionError
from edge_embed.types import Float32Array
from tests.corpus.conftest import random_vectors


def groups(*sizes: int, d: int = 8, noise: float = 0.05) -> Float32Array:
    """Texts of as many kinds, one after another."""
    kinds = np.eye(d, dtype=np.float32)[np.repeat(np.arange(len(sizes)), sizes)]
    return unit(kinds + noise * random_vectors(sum(sizes), d=d))


@pytest.mark.parametrize("asked", [3, None])
def test_kinds_are_found_the_largest_first(asked: int | None) -> None:
    found = clustered(groups(10, 30, 20), asked)
    assert found.labels.tolist() == [2] * 10 + [0] * 30 + [1] * 20
    assert found.n_clusters == 3
    assert found.silhouette > 0.8
    assert sorted(found.members(2)) == list(range(10))
    assert np.all(np.diff(found.cosines[found.members(0)]) <= 0)


def test_the_same_texts_give_the_same_clusters_and_map() -> None:
    vectors = random_vectors(200, d=16)
    one, two = (clustered(vectors, 7, seed=3) for _ in range(2))
    assert np.array_equal(one.labels, two.labels)
    assert np.array_equal(positions(vectors, seed=3), positions(vectors, seed=3))


def test_many_texts_are_read_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edge_embed.corpus.clusters.LARGE", 10)
    vectors = groups(10, 30, 20)
    found = clustered(vectors, 3)
    assert found.labels.tolist() == [2] * 10 + [0] * 30 + [1] * 20
    assert np.array_equal(found.labels, clustered(vectors, 3).labels)


def test_equal_texts_are_one_cluster_whatever_is_asked() -> None:
    found = clustered(np.repeat(random_vectors(2), 5, axis=0), 4)
    assert found.n_clusters == 2


def test_one_cluster_has_no_silhouette() -> None:
    assert np.isnan(clustered(random_vectors(5), 1).silhouette)
    assert clustered(random_vectors(2)).n_clusters in (1, 2)


@pytest.mark.parametrize(("n", "k"), [(0, None), (1, None), (3, 4), (3, 0)])
def test_too_few_texts_are_refused(n: int, k: int | None) -> None:
    with pytest.raises(InvalidOptionError, match="cannot be put into"):
        clustered(random_vectors(n), k)


def test_real_sentences_of_two_languages_are_told_apart(real: tuple[Float32Array, Float32Array]) -> None:
    """Of 400 sentences, by the bundled model."""
    found = clustered(np.concatenate(real), 2)
    french = np.repeat([True, False], 200)
    right = np.mean((found.labels == 0) == french)
    assert max(right, 1 - right) >= 0.9


def test_what_is_alike_lies_together_on_the_map() -> None:
    places = positions(groups(30, 30, d=16))
    assert places.shape == (60, 2)
    assert np.isfinite(places).all()
    centres = places[:30].mean(axis=0), places[30:].mean(axis=0)
    spread = max(places[:30].std(), places[30:].std())
    assert np.linalg.norm(centres[0] - centres[1]) > spread


@pytest.mark.parametrize("n", [0, 1, 2, 3, 4, 5])
def test_few_texts_have_places_too(n: int) -> None:
    places = positions(random_vectors(n))
    assert places.shape == (n, 2)
    assert len(np.unique(places, axis=0)) == n


def test_the_page_holds_every_text_as_text() -> None:
    """Nothing in a text becomes part of the page."""
    texts = ["<script>alert(1)</script>", "</script><b>x", "a & b", "naïve 咖啡 \U0001f600", "__DATA__", "\ud800"]
    vectors = random_vectors(6)
    html = page(positions(vectors), texts, clustered(vectors, 2), range(6), "T <i>").decode()
    head, _, rest = html.partition("const data = ")
    data, _, tail = rest.partition(";\nconst canvas")
    assert "<" not in data
    assert html.count("</script>") == 1
    assert "://" not in head + tail
    points = json.loads(data)["points"]
    assert [point[4] for point in points] == [*texts[:5], "?"]
    assert [point[3] for point in points] == list(range(6))


def test_the_picture_is_a_png() -> None:
    vectors = random_vectors(50)
    found = clustered(vectors, 20)
    drawn = picture(positions(vectors), found, range(50), "T")
    assert drawn.startswith(b"\x89PNG\r\n")
    assert drawn == picture(positions(vectors), found, range(50), "T")


def test_without_scikit_learn_the_extra_is_named() -> None:
    code = (
        "import sys; sys.modules.update(sklearn=None, threadpoolctl=None)\n"
        "import numpy as np; from edge_embed.corpus.clusters import clustered\n"
        "clustered(np.eye(3, dtype=np.float32))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "pip install 'edge-embed[corpus]'" in done.stderr
