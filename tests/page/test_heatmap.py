"""The heat map shows the library's cosines, and the slider what a cut costs."""

from __future__ import annotations

import base64
from pathlib import Path

import numpy as np
import pytest
from playwright.sync_api import Browser, Page, Route, expect

from edge_embed import Embedder
from edge_embed.catalogue import DEFAULT_MODEL
from tests.page.browsing import looking


def texts_of(page: Page) -> list[str]:
    return [field.input_value() for field in page.locator("#texts textarea").all()]


def table_of(page: Page) -> np.ndarray:
    """The heat map's cosines: the two digits that are shown agree with the six that the pointer is told."""
    rows = page.locator("#heatmap tbody tr").evaluate_all(
        "rows => rows.map(row => [...row.querySelectorAll('td')].map(cell => [cell.firstChild.data, cell.title]))"
    )
    shown = np.array([[float(text.replace("−", "-")) for text, _ in row] for row in rows])
    exact = np.array([[float(title) for _, title in row] for row in rows])
    np.testing.assert_allclose(shown, exact, atol=0.00501)
    return exact


def library_vectors(model: str | Path, texts: list[str]) -> np.ndarray:
    with Embedder(model, n_threads=1) as embedder:
        return embedder.encode(texts).astype(np.float64)


def cut(vectors: np.ndarray, size: int) -> np.ndarray:
    kept = vectors[:, :size]
    return kept / np.linalg.norm(kept, axis=1, keepdims=True)


def nearest(cosines: np.ndarray) -> np.ndarray:
    return np.argmax(cosines - 2 * np.eye(len(cosines)), axis=1)


def test_the_first_view_is_the_heat_map_of_the_librarys_cosines(page: Page) -> None:
    texts = texts_of(page)
    assert len(texts) == 5
    vectors = library_vectors(DEFAULT_MODEL, texts)
    np.testing.assert_allclose(table_of(page), vectors @ vectors.T, atol=1e-5)
    expect(page.locator("#state")).to_have_text("Ready")
    expect(page.locator("#embed-note")).to_contain_text("5 texts, ")
    ringed = page.locator("#heatmap td.nearest").evaluate_all("cells => cells.map(cell => +cell.dataset.column)")
    np.testing.assert_array_equal(ringed, nearest(vectors @ vectors.T))


def test_the_heat_map_is_a_table_that_can_be_heard(page: Page) -> None:
    first = texts_of(page)[0]
    table = page.get_by_role("table", name="Cosine of each pair of texts")
    expect(table.get_by_role("rowheader").first).to_have_text(f"1: {first}")
    expect(table.get_by_role("columnheader").first).to_have_text(f"1: {first}")
    heard = table.locator("td.nearest").first.text_content()
    assert heard is not None
    assert heard.endswith(", nearest")


def test_texts_are_added_and_removed(page: Page) -> None:
    page.get_by_role("button", name="Remove text 5").click()
    expect(page.get_by_label("Text 4", exact=True)).to_be_focused()
    page.get_by_role("button", name="Remove text 4").click()
    page.get_by_role("button", name="Add a text").click()
    expect(page.get_by_label("Text 4", exact=True)).to_be_focused()
    page.keyboard.type("Interest rates rose.")
    expect(page.locator("#embed-note")).to_have_text("Edited. Embed again to see it.")
    page.keyboard.press("Control+Enter")
    expect(page.locator("#heatmap tbody tr")).to_have_count(4)
    texts = texts_of(page)
    assert texts[-1] == "Interest rates rose."
    vectors = library_vectors(DEFAULT_MODEL, texts)
    np.testing.assert_allclose(table_of(page), vectors @ vectors.T, atol=1e-5)


def check_cut(page: Page, vectors: np.ndarray, size: int) -> None:
    """The page shows what NumPy says of vectors cut to that size."""
    kept = cut(vectors, size)
    cosines, full = kept @ kept.T, vectors @ vectors.T
    np.testing.assert_allclose(table_of(page), cosines, atol=1e-5)
    pairs = np.tril_indices(len(vectors), -1)
    change = np.abs(cosines - full)[pairs].mean()
    assert abs(float(page.locator("#figure-change").inner_text()) - change) < 0.00051
    stay = int((nearest(cosines) == nearest(full)).sum())
    expect(page.locator("#figure-nearest")).to_have_text(f"{stay} of {len(vectors)}")
    expect(page.locator("#size")).to_have_attribute("aria-valuetext", f"{size} of {vectors.shape[1]} values")


def test_the_slider_shows_what_a_cut_costs(page: Page) -> None:
    vectors = library_vectors(DEFAULT_MODEL, texts_of(page))
    slider = page.get_by_role("slider", name="What if vectors were shorter?")
    slider.press("Home")
    check_cut(page, vectors, 8)
    slider.press("ArrowRight")
    check_cut(page, vectors, 9)
    number = page.get_by_label("Values kept")
    for size in (1, 100, 384):
        number.fill(str(size))
        number.press("Enter")
        check_cut(page, vectors, size)
    number.fill("9999")
    number.blur()
    check_cut(page, vectors, 384)
    expect(page.locator("#cut-changes")).to_have_text("")
    expect(page.locator("#marks-note")).to_contain_text("was not trained for shorter vectors")


def test_a_change_of_nearest_neighbours_is_said(page: Page) -> None:
    vectors = library_vectors(DEFAULT_MODEL, texts_of(page))
    before = nearest(vectors @ vectors.T)
    for size in range(1, 9):
        kept = cut(vectors, size)
        moved = [
            (i, old, new) for i, (old, new) in enumerate(zip(before, nearest(kept @ kept.T), strict=True)) if old != new
        ]
        if moved:
            break
    else:
        pytest.fail("no size moves a neighbour: choose other texts")
    page.get_by_label("Values kept").fill(str(size))
    page.get_by_label("Values kept").press("Enter")
    said = " ".join(f"Text {i + 1} is nearest to {new + 1} instead of {old + 1}." for i, old, new in moved)
    expect(page.locator("#cut-changes")).to_have_text(said)


def test_a_model_that_was_trained_for_it_has_its_sizes_marked(page: Page, models: dict[str, Path]) -> None:
    page.get_by_role("combobox", name="Model", exact=True).select_option("trained")
    expect(page.locator("#marks-note")).to_contain_text("Marked are the sizes that this model was trained for.")
    marks = page.get_by_role("group", name="Sizes to jump to").get_by_role("button")
    assert marks.all_inner_texts() == ["16", "32", "64"]
    vectors = library_vectors(models["trained"], texts_of(page))
    marks.nth(1).click()
    expect(marks.nth(1)).to_have_attribute("aria-pressed", "true")
    check_cut(page, vectors, 32)


def test_labels_of_many_sizes_do_not_run_into_each_other(browser: Browser, address: str) -> None:
    """Those of Qwen3-Embedding-4B, on a phone."""
    sizes = [32, 64, 128, 256, 512, 768, 1024, 1536, 2048, 2560]

    def with_sizes(route: Route) -> None:
        answer = route.fetch().json()
        answer["models"][0]["mrl_dimensions"] = sizes
        route.fulfill(json=answer)

    def with_vectors(route: Route) -> None:
        numbers = np.random.default_rng(0).standard_normal((5, 2560)).astype("<f4")
        rows = [{"index": i, "embedding": base64.b64encode(row.tobytes()).decode()} for i, row in enumerate(numbers)]
        route.fulfill(json={"data": rows, "usage": {"prompt_tokens": 5}})

    with looking(browser, address, viewport={"width": 360, "height": 780}) as page:
        page.route("**/api/status", with_sizes)
        page.route("**/v1/embeddings", with_vectors)
        page.reload()
        expect(page.locator("#marks button")).to_have_text([str(size) for size in sizes])
        boxes = page.locator("#marks button").evaluate_all(
            """all => all.map(one => {
                const label = document.createRange();
                label.selectNodeContents(one);
                const box = label.getBoundingClientRect();
                return [box.left, box.right, box.top, box.bottom];
            })"""
        )
        overlapping = [
            (sizes[i], sizes[j])
            for i, one in enumerate(boxes)
            for j, other in enumerate(boxes[:i])
            if one[0] < other[1] and other[0] < one[1] and one[2] < other[3] and other[2] < one[3]
        ]
        assert overlapping == []
        assert page.evaluate("document.documentElement.scrollWidth") == 360
