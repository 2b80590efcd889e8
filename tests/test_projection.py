"""A learned projection: what it computes, what is stored and read back, and what is refused."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator, Sequence

import numpy as np
import pytest

from edge_embed.errors import (
    InvalidDimensionError,
    InvalidOptionError,
    InvalidTextError,
    NonFiniteError,
    TextTooLongError,
)
from edge_embed.postprocess import finish, project, unit
from edge_embed.projection import (
    MOST_HELD_OUT,
    Moments,
    Projection,
    check_rows,
    check_texts,
    choose,
    costs,
    fit,
    learn,
    report_sizes,
)
from edge_embed.types import Float32Array

N, WIDTH = 300, 24


def vectors(n: int = N, *, seed: int = 0) -> Float32Array:
    """Unit vectors that vary more along some directions than along others, around a mean that is not zero."""
    random_ = np.random.default_rng(seed)
    turned, _ = np.linalg.qr(np.random.default_rng(99).standard_normal((WIDTH, WIDTH)))
    rows = random_.standard_normal((n, WIDTH)) * np.linspace(2.0, 0.1, WIDTH) @ turned + np.linspace(-0.5, 1.0, WIDTH)
    return unit(rows.astype(np.float32))


def moments(rows: Float32Array, step: int = 37) -> Moments:
    """Counted in by batches."""
    result = Moments(rows.shape[1])
    for first in range(0, len(rows), step):
        result.add(rows[first : first + step])
    return result


def cosines(rows: np.ndarray) -> np.ndarray:
    wide = rows.astype(np.float64)
    wide /= np.linalg.norm(wide, axis=1, keepdims=True)
    return wide @ wide.T


# The axes


@pytest.mark.parametrize("step", [1, 7, N])
def test_the_axes_are_those_of_a_singular_value_decomposition(step: int) -> None:
    """Of the centred data, computed another way; batches make no difference."""
    rows = vectors()
    _, _, expected = np.linalg.svd(rows.astype(np.float64) - rows.astype(np.float64).mean(axis=0))
    found = fit(moments(rows, step), WIDTH, pooling="mean").weight
    assert np.abs(np.abs((expected * found).sum(axis=1)) - 1).max() < 1e-6


def test_mean_and_covariance_are_numpys() -> None:
    rows = vectors()
    found = moments(rows)
    assert N == found.n
    assert np.abs(rows.astype(np.float64).mean(axis=0) - found.mean).max() < 1e-12
    assert np.abs(np.cov(rows.astype(np.float64).T, bias=True) - found.covariance).max() < 1e-12


@pytest.mark.parametrize("rows", [1, 5, WIDTH])
@pytest.mark.parametrize("center", [False, True])
def test_rows_are_orthonormal_and_the_first_has_the_largest_variance(rows: int, center: bool) -> None:
    found = fit(moments(vectors()), rows, pooling="mean", center=center).weight
    assert (rows, WIDTH) == found.shape
    assert np.abs(found @ found.T - np.eye(rows)).max() < 1e-6
    variances = (vectors() @ found.T).var(axis=0)
    assert sorted(variances, reverse=True) == variances.tolist()


def test_an_axis_points_to_where_its_largest_value_is_positive() -> None:
    """LAPACKs differ in the sign; files must not."""
    found = fit(moments(vectors()), WIDTH, pooling="mean").weight
    assert (found.max(axis=1) == np.abs(found).max(axis=1)).all()


def test_in_full_size_and_with_the_mean_kept_every_cosine_stays() -> None:
    rows = vectors()
    projection = fit(moments(rows), WIDTH, pooling="mean")
    turned = project(rows, [projection.layer])
    assert projection.layer.bias is None
    assert np.abs(cosines(rows) - cosines(turned)).max() < 1e-6


def test_the_mean_taken_off_is_gone_and_cosines_are_others() -> None:
    rows = vectors()
    projection = fit(moments(rows), WIDTH, pooling="mean", center=True)
    turned = project(rows, [projection.layer])
    by_hand = (rows.astype(np.float64) - rows.astype(np.float64).mean(axis=0)) @ projection.weight.T.astype(np.float64)
    assert np.abs(by_hand - turned).max() < 1e-6
    assert np.abs(turned.mean(axis=0)).max() < 1e-6
    assert np.abs(cosines(rows) - cosines(turned)).max() > 0.1


@pytest.mark.parametrize("size", [1, 4, 12])
def test_no_other_axes_hold_more_of_the_variance(size: int) -> None:
    rows = vectors().astype(np.float64)
    weight = fit(moments(vectors()), size, pooling="mean").weight
    kept = (rows @ weight.T).var(axis=0).sum()
    for seed in range(50):
        others, _ = np.linalg.qr(np.random.default_rng(seed).standard_normal((WIDTH, size)))
        assert (rows @ others).var(axis=0).sum() <= kept


def test_vectors_of_any_length_are_made_unit_length_first() -> None:
    layer = fit(moments(vectors()), 8, pooling="mean", center=True).layer
    long = vectors() * np.float32(1e3)
    assert np.abs(project(vectors(), [layer]) - project(long, [layer])).max() < 1e-5


def test_rows_that_are_zero_or_not_finite_leave_the_others_alone() -> None:
    layer = fit(moments(vectors()), 8, pooling="mean").layer
    rows = vectors(4)
    rows[1], rows[2] = 0, np.nan
    found = project(rows, [layer])
    assert np.isnan(found[2]).all()
    assert [0.0] * 8 == found[1].tolist()
    assert project(vectors(4), [layer])[[0, 3]].tolist() == found[[0, 3]].tolist()


# What it costs


def test_costs_are_those_counted_by_hand() -> None:
    held = vectors(40, seed=1)
    projection = fit(moments(vectors()), 16, pooling="mean", center=True)
    found = costs(held, projection)
    assert [1, 2, 4, 8, 16] == [cost.dimensions for cost in found]
    turned = project(held, [projection.layer])
    for cost, source, quality in itertools.chain(
        ((cost, turned, cost.projected) for cost in found), ((cost, held, cost.plain) for cost in found)
    ):
        before, after = cosines(held), cosines(source[:, : cost.dimensions])
        pairs = [(i, j) for i in range(40) for j in range(i)]
        assert quality.drift == pytest.approx(np.mean([abs(before[p] - after[p]) for p in pairs]), abs=1e-6)
        kept = 0
        for i in range(40):
            near = [sorted(set(range(40)) - {i}, key=lambda j: -m[i, j])[:10] for m in (before, after)]
            kept += len(set(near[0]) & set(near[1]))
        assert quality.overlap == pytest.approx(kept / 400, abs=0.006)  # a tie may fall either way


def test_projected_vectors_keep_more_of_their_neighbours_than_cut_ones() -> None:
    found = costs(vectors(200, seed=1), fit(moments(vectors()), WIDTH, pooling="mean"))
    *cut, whole = found
    assert all(cost.projected.overlap > cost.plain.overlap for cost in cut)
    assert all(cost.projected.drift < cost.plain.drift for cost in cut)
    assert (1.0, 1.0) == (whole.projected.overlap, whole.plain.overlap)
    assert whole.projected.drift < 1e-6


@pytest.mark.parametrize("n", [0, 1, 2])
def test_of_two_texts_nothing_can_be_said(n: int) -> None:
    assert () == costs(vectors(N)[:n], fit(moments(vectors()), 4, pooling="mean"))


@pytest.mark.parametrize(
    ("rows", "sizes"),
    [(1, [1]), (12, [1, 2, 4, 8, 12]), (16, [1, 2, 4, 8, 16]), (17, [16, 17]), (384, [16, 32, 64, 128, 256, 384])],
)
def test_sizes_of_the_report(rows: int, sizes: list[int]) -> None:
    assert sizes == report_sizes(rows)


# The texts


WORDS = [f"text {i}" for i in range(1000)]


def test_the_sample_depends_on_the_texts_and_not_on_their_order() -> None:
    shuffled = [*WORDS, *WORDS[:300], "", "  \n"]
    random.Random(0).shuffle(shuffled)
    a, b = choose(WORDS, 400), choose(shuffled, 400)
    assert (a.to_fit, a.held_out) == (b.to_fit, b.held_out)
    assert (1000, 1302) == (a.n_read, b.n_read)
    assert not a.whole
    assert 400 == len(a) == len({*a.to_fit, *a.held_out})


def test_all_texts_are_taken_where_they_fit_and_one_in_ten_is_held_out() -> None:
    found = choose(WORDS)
    assert found.whole
    assert sorted(WORDS) == sorted([*found.to_fit, *found.held_out])
    assert 70 < len(found.held_out) < 130


def test_a_text_is_held_out_whatever_the_sample_is() -> None:
    """So figures of two runs are about texts that neither was fit on."""
    assert not set(choose(WORDS).held_out) & set(choose(WORDS, 300).to_fit)


def test_most_of_many_texts_are_not_held_out() -> None:
    assert MOST_HELD_OUT == len(choose(map(str, range(12_000))).held_out)


def test_texts_are_read_one_at_a_time_and_only_the_sample_is_kept() -> None:
    alive = 0

    class Counted(str):
        def __del__(self) -> None:
            nonlocal alive
            alive -= 1

    def texts() -> Iterator[str]:
        nonlocal alive
        for i in range(2_000):
            alive += 1
            assert alive < 60
            yield Counted(i)

    assert 50 == len(choose(texts(), 50))


@pytest.mark.parametrize(("n_texts", "rows"), [(0, 1), (1, 1), (32, 32)])
def test_fewer_texts_than_axes_are_refused(n_texts: int, rows: int) -> None:
    with pytest.raises(
        InvalidOptionError, match=f"{n_texts} distinct texts to fit on cannot show {rows} axes"
    ) as caught:
        check_texts(n_texts, rows)
    assert "fewer --dimensions" in caught.value.hint


@pytest.mark.parametrize("dimensions", [0, -1, WIDTH + 1, 2.0, "8", True])
def test_rows_that_there_cannot_be_are_refused(dimensions: object) -> None:
    with pytest.raises(InvalidDimensionError, match="dimensions is") as caught:
        check_rows(dimensions, WIDTH)  # type: ignore[arg-type]
    assert f"give 1 to {WIDTH}" in caught.value.hint


# Fitting


def embed(texts: Sequence[str]) -> Float32Array:
    """A vector for each text that depends on it alone."""
    return np.stack([vectors(1, seed=int(text.split()[1]))[0] for text in texts]) * np.float32(3)


def test_learning_is_fitting_on_one_part_and_measuring_on_the_other() -> None:
    sample, ticks = choose(WORDS, 200), []
    projection, found = learn(sample, embed, WIDTH, pooling="cls", dimensions=10, advance=ticks.append)
    expected = fit(moments(embed(sample.to_fit) / np.float32(3)), 10, pooling="cls")
    assert np.abs(expected.weight - projection.weight).max() < 1e-5
    assert ("cls", len(sample.to_fit), 10) == (projection.pooling, projection.n_texts, projection.n_out)
    assert [1, 2, 4, 8, 10] == [cost.dimensions for cost in found]
    assert 200 == sum(ticks)


def test_too_few_texts_are_found_before_the_model_runs() -> None:
    def never(texts: Sequence[str]) -> Float32Array:
        raise AssertionError

    with pytest.raises(InvalidOptionError, match="cannot show 24 axes"):
        learn(choose(WORDS[:20]), never, WIDTH, pooling="mean")


@pytest.mark.parametrize(
    ("error", "message"), [(TextTooLongError(1, 300, 256), "has 300 tokens"), (NonFiniteError([1]), "no finite vector")]
)
def test_a_text_that_fails_is_named_by_its_beginning(error: Exception, message: str) -> None:
    """Its number says nothing: texts are taken in another order."""
    sample = choose(WORDS, 100)

    def fails(texts: Sequence[str]) -> Float32Array:
        raise error

    with pytest.raises(InvalidTextError, match=f"the text '{sample.to_fit[1]}'") as caught:
        learn(sample, fails, WIDTH, pooling="mean")
    assert message in caught.value.message


def test_a_cut_is_the_first_values_made_unit_length_again() -> None:
    projection = fit(moments(vectors()), WIDTH, pooling="mean")
    turned = project(vectors(), [projection.layer])
    cut = finish(turned, dim=5, normalize=True, precision="float32")
    fewer = Projection(projection.weight[:5], projection.mean, "mean", N)
    again = finish(project(vectors(), [fewer.layer]), dim=5, normalize=True, precision="float32")
    assert np.abs(cut - again).max() < 1e-6
