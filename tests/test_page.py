"""The page at ``/``, as people use it: in headless Chromium, against a server that runs.

The browser is the machine's own; ``make browser`` installs it on Debian. A machine without one fails these tests.
``make screenshot`` runs the last of them with ``EDGE_EMBED_SCREENSHOT`` set to the picture of the README.
"""

from __future__ import annotations

import base64
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from axe_playwright_python.sync_playwright import Axe
from PIL import Image
from playwright.sync_api import Browser, Page, Route, expect, sync_playwright

from edge_embed import Embedder, Reranker
from edge_embed.catalogue import DEFAULT_MODEL
from edge_embed.server.settings import ServerSettings
from tests.serving import real_server
from tests.tiny_gguf import gguf_bytes, tiny_decoder, tiny_reranker

KEY = "a key for the page"
BROWSERS = (
    "chromium",
    "chromium-browser",
    "google-chrome",
    "google-chrome-stable",
    "/Applications/Google Chrome.app/Contents/MacOS/Google Chrome",
)
MOST_PICTURE_BYTES = 150_000


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Two models beside the bundled one: one that was trained to be cut, and a reranker."""
    folder = tmp_path_factory.mktemp("models")
    metadata, tensors = tiny_decoder(hidden=64)
    metadata["edge_embed.mrl_dimensions"] = np.array([16, 32, 64], np.uint32)
    paths = {"trained": folder / "trained.gguf", "judge": folder / "judge.gguf"}
    paths["trained"].write_bytes(gguf_bytes(metadata, tensors))
    paths["judge"].write_bytes(gguf_bytes(*tiny_reranker()))
    return paths


@pytest.fixture(scope="module")
def address(models: dict[str, Path]) -> Iterator[str]:
    """The bundled model and those two; five texts a request."""
    settings = ServerSettings(port=0, log="off", max_texts=5)
    with real_server(DEFAULT_MODEL, *(f"{name}={path}" for name, path in models.items()), settings=settings) as found:
        yield found.url


@pytest.fixture(scope="module")
def locked(models: dict[str, Path]) -> Iterator[str]:
    """A server that asks for a key."""
    settings = ServerSettings(port=0, log="off", api_keys=(KEY,))
    with real_server(f"trained={models['trained']}", settings=settings) as found:
        yield found.url


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    named = os.environ.get("EDGE_EMBED_BROWSER")
    found = next(filter(None, map(shutil.which, [named] if named else BROWSERS)), None)
    if found is None:
        pytest.fail(
            "the page's tests need Chromium: `apt install chromium` (`make browser` does it), or set "
            "EDGE_EMBED_BROWSER to the program of a Chromium or Chrome"
        )
    with sync_playwright() as playwright:
        # Chromium refuses to sandbox what root runs; all that it is shown here is this page.
        running = playwright.chromium.launch(executable_path=found, args=["--no-sandbox"])
        yield running
        running.close()


@contextmanager
def looking(browser: Browser, address: str, *, complaints: Sequence[str] = (), **options: Any) -> Iterator[Page]:
    """The page, open. Everything that it asks for comes from its own address, and the browser has nothing to complain
    of but ``complaints``.
    """
    context = browser.new_context(**{"viewport": {"width": 1200, "height": 900}, "reduced_motion": "reduce", **options})
    asked: list[str] = []
    said: list[str] = []
    context.on("request", lambda request: asked.append(request.url))
    context.on("console", lambda message: said.append(message.text))
    context.on("weberror", lambda error: said.append(str(error.error)))
    page = context.new_page()
    page.set_default_timeout(60_000)
    expect.set_options(timeout=60_000)
    try:
        page.goto(address)
        yield page
        assert asked
        assert [url for url in asked if not url.startswith(address + "/")] == []
        assert [text for text in said if not any(allowed in text for allowed in complaints)] == []
    finally:
        context.close()


@pytest.fixture
def page(browser: Browser, address: str) -> Iterator[Page]:
    """The page of the server without a key, with the first heat map drawn."""
    with looking(browser, address) as found:
        expect(found.locator("#heatmap tbody tr")).to_have_count(5)
        yield found


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


def test_documents_are_ranked_by_the_reranker(page: Page, models: dict[str, Path]) -> None:
    expect(page.locator("#rerank-facts")).to_contain_text("judge reads the query with each document.")
    documents = ["one", "another one", "something else entirely", "one more"]
    page.get_by_label("Query").fill("which one?")
    page.get_by_label("Documents, one per line").fill("\n".join([documents[0], "", *documents[1:], "  "]))
    page.get_by_role("button", name="Rank").click()
    rows = page.get_by_role("list", name="Documents, best first").get_by_role("listitem")
    expect(rows).to_have_count(4)
    with Reranker(models["judge"], n_threads=1) as reranker:
        ranked = reranker.rank("which one?", documents)
    order = rows.evaluate_all("rows => rows.map(row => +row.dataset.index)")
    assert order == [result.index for result in ranked]
    scores = [
        float(title) for title in page.locator("#ranking .score").evaluate_all("all => all.map(one => one.title)")
    ]
    np.testing.assert_allclose(scores, [result.score for result in ranked], atol=1e-4)
    expect(page.locator("#rank-note")).to_have_text(re.compile(r"^4 documents, in \d+ ms$"))


def test_without_a_reranker_it_is_the_cosine_and_says_so(
    browser: Browser, locked: str, models: dict[str, Path]
) -> None:
    with looking(browser, locked, complaints=["401"]) as page:
        page.get_by_label("API key").fill(KEY)
        page.get_by_role("button", name="Use it").click()
        expect(page.locator("#rerank-facts")).to_contain_text("No reranker is served here")
        page.get_by_label("Query").fill("which one?")
        documents = ["one", "another one", "something else entirely"]
        page.get_by_label("Documents, one per line").fill("\n".join(documents))
        page.get_by_role("button", name="Rank").click()
        expect(page.locator("#rank-note")).to_contain_text("3 documents, by embedding, in ")
        with Embedder(models["trained"], n_threads=1) as embedder:
            cosines = (embedder.encode_query("which one?") @ embedder.encode_document(documents).T).ravel()
        order = page.locator("#ranking li").evaluate_all("rows => rows.map(row => +row.dataset.index)")
        assert order == list(np.argsort(-cosines))


def test_an_error_is_shown_in_the_servers_own_words(browser: Browser, address: str) -> None:
    with looking(browser, address, complaints=["413"]) as page:
        expect(page.locator("#heatmap tbody tr")).to_have_count(5)
        page.get_by_role("button", name="Add a text").click()
        page.keyboard.type("One more than the server takes.")
        page.get_by_role("button", name="Embed").click()
        alert = page.locator("#embed-error")
        expect(alert).to_contain_text("the request has 6 texts, and the limit is 5")
        expect(alert).to_have_attribute("role", "alert")
        page.get_by_role("button", name="Remove text 6").click()
        page.get_by_role("button", name="Embed").click()
        expect(alert).to_be_hidden()


def test_a_key_is_asked_for_when_the_server_wants_one(browser: Browser, locked: str) -> None:
    with looking(browser, locked, complaints=["401"], permissions=["clipboard-read", "clipboard-write"]) as page:
        field = page.get_by_label("API key")
        expect(field).to_be_focused()
        expect(page.locator("#state")).to_have_text("Key needed")
        field.fill("not the key")
        page.keyboard.press("Enter")
        expect(page.locator("#key-error")).to_contain_text("the key is wrong")
        field.fill(KEY)
        page.keyboard.press("Enter")
        expect(page.locator("#key-form")).to_be_hidden()
        expect(page.locator("#heatmap tbody tr")).to_have_count(5)
        assert page.evaluate("[localStorage.length, document.cookie]") == [0, ""]
        assert page.evaluate("Object.values(sessionStorage)") == [KEY]
        assert KEY not in page.content()
        expect(page.locator("#copy-note")).to_contain_text("Your key is hidden here")
        page.get_by_role("button", name="Copy").click()
        expect(page.locator("#copy-note")).to_have_text("Copied.")
        assert f"Bearer {KEY}" in page.evaluate("navigator.clipboard.readText()")


def answer_of(command: str) -> Any:
    """What the server says to a curl command; sent without curl, which not every machine has."""
    program, url, *arguments = shlex.split(command.replace("\\\n", " "))
    assert program == "curl"
    options = list(zip(arguments[::2], arguments[1::2], strict=True))
    headers = dict(value.split(": ", 1) for flag, value in options if flag == "-H")
    (body,) = (value for flag, value in options if flag == "-d")
    request = urllib.request.Request(url, body.encode(), headers)
    with urllib.request.urlopen(request) as response:
        return json.load(response)


def test_the_curl_snippet_works_as_it_is(page: Page) -> None:
    page.get_by_label("Values kept").fill("96")
    page.get_by_label("Values kept").press("Enter")
    answer = answer_of(page.locator("#code").inner_text())
    assert [len(row["embedding"]) for row in answer["data"]] == [96, 96]
    assert answer["model"] == DEFAULT_MODEL


@pytest.mark.parametrize(("tab", "printed"), [("Python", "2 384"), ("LangChain", "384")])
def test_the_snippets_of_programs_work_as_they_are(page: Page, tab: str, printed: str) -> None:
    page.get_by_role("tab", name=tab).click()
    code = page.locator("#code").inner_text()
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == printed


def test_tabs_are_walked_with_arrows(page: Page) -> None:
    page.get_by_role("tab", name="curl").focus()
    page.keyboard.press("ArrowRight")
    expect(page.get_by_role("tab", name="Python")).to_be_focused()
    expect(page.locator("#code")).to_contain_text("from openai import OpenAI")
    page.keyboard.press("End")
    expect(page.locator("#code")).to_contain_text("OpenAIEmbeddings")
    page.keyboard.press("ArrowRight")
    expect(page.get_by_role("tab", name="curl", selected=True)).to_be_focused()


def test_every_control_is_reached_with_tab_in_its_order_and_shows_it(page: Page) -> None:
    stops = """() => [...document.querySelectorAll('a[href], button, input, select, textarea, [tabindex="0"]')]
        .filter(one => one.checkVisibility() && one.tabIndex >= 0 && !one.disabled)"""
    expected = page.evaluate(f"({stops})().length")
    assert expected > 25
    page.evaluate("document.body.focus()")
    for position in range(expected):
        page.keyboard.press("Tab")
        found = page.evaluate(
            f"""() => {{
                const at = document.activeElement;
                const style = getComputedStyle(at);
                return [({stops})().indexOf(at), style.outlineStyle, parseFloat(style.outlineWidth)];
            }}"""
        )
        assert found == [position, "solid", 2]


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1200, 360])
def test_nothing_stands_in_the_way_of_anybody(browser: Browser, address: str, scheme: str, width: int) -> None:
    """axe-core: names, roles, labels, order, and contrast in both schemes; and nothing is wider than a phone."""
    options = {"color_scheme": scheme, "viewport": {"width": width, "height": 780}}
    with looking(browser, address, **options) as page:
        expect(page.locator("#heatmap tbody tr")).to_have_count(5)
        page.get_by_role("button", name="Rank").click()
        expect(page.locator("#ranking li")).to_have_count(5)
        found = Axe().run(page)
        violations = {item["id"]: [node["html"] for node in item["nodes"]] for item in found.response["violations"]}
        assert violations == {}, violations
        assert "color-contrast" in {item["id"] for item in found.response["passes"]}
        assert page.evaluate("document.documentElement.scrollWidth") == width
        ground = page.evaluate("getComputedStyle(document.body).backgroundColor")
        brightness = sum(int(part) for part in re.findall(r"\d+", ground)[:3]) / 3
        assert (brightness > 200) == (scheme == "light")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_shade_of_the_heat_map_is_readable(browser: Browser, address: str, scheme: str) -> None:
    """4.5 to 1 between ink and ground (WCAG's AA), over the whole scale."""
    with looking(browser, address, color_scheme=scheme) as page:
        expect(page.locator("#heatmap tbody tr")).to_have_count(5)
        pairs = page.evaluate(
            """async () => {
                const { heatmap } = await import("./ui/heatmap.js");
                const canvas = document.createElement("canvas").getContext("2d", { willReadFrequently: true });
                const rgb = (color) => {
                    canvas.fillStyle = color;
                    canvas.fillRect(0, 0, 1, 1);
                    return [...canvas.getImageData(0, 0, 1, 1).data].slice(0, 3);
                };
                const found = [];
                for (let value = -1; value <= 1.0001; value += 0.01) {
                    const table = heatmap(["a", "b"], [[1, value], [value, 1]], [1, 0], 2);
                    document.querySelector("#heatmap").replaceChildren(table);
                    const style = getComputedStyle(table.querySelector("td.nearest"));
                    found.push([rgb(style.backgroundColor), rgb(style.color)]);
                }
                return found;
            }"""
        )
        assert len(pairs) == 201
        assert min(contrast(*pair) for pair in pairs) >= 4.5


def contrast(one: Sequence[int], other: Sequence[int]) -> float:
    """https://www.w3.org/TR/WCAG22/#dfn-contrast-ratio"""

    def luminance(color: Sequence[int]) -> float:
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in (v / 255 for v in color)]
        return float(np.dot(linear, [0.2126, 0.7152, 0.0722]))

    dark, bright = sorted((luminance(one), luminance(other)))
    return (bright + 0.05) / (dark + 0.05)


def test_it_asks_every_two_seconds_and_not_while_nobody_looks(browser: Browser, address: str) -> None:
    with looking(browser, address) as page:
        line = page.locator("#live-texts-line polyline")

        def answers(n: int) -> re.Pattern[str]:
            """The line's points after so many."""
            return re.compile(rf"^\S+( \S+){{{n - 1}}}$")

        page.clock.install(time=0)
        page.clock.pause_at(60_000)
        page.reload()
        expect(line).to_have_attribute("points", answers(1))
        for n in (1, 2, 3):
            page.clock.run_for(1999)
            assert answers(n).match(line.get_attribute("points") or "")
            page.clock.run_for(1)
            expect(line).to_have_attribute("points", answers(n + 1))
        hide = "hidden => { Object.defineProperty(document, 'hidden', { value: hidden, configurable: true });"
        hide += "document.dispatchEvent(new Event('visibilitychange')); }"
        page.evaluate(hide, True)
        asked: list[str] = []
        page.on("request", lambda request: asked.append(request.url.rpartition("/")[2]))
        page.clock.run_for(10_000)
        page.evaluate("fetch('health')")  # what was asked before this is known after it
        assert asked == ["health"]
        with page.expect_request("**/api/status"):
            page.evaluate(hide, False)


def test_what_the_server_does_is_shown(page: Page, address: str) -> None:
    expect(page.locator("#live-models tr")).to_have_count(3)
    row = page.locator("#live-models tr").filter(has_text=DEFAULT_MODEL)
    expect(row).to_contain_text("in memory")
    expect(row).to_contain_text("384")
    expect(page.locator("#live-memory")).to_have_text(re.compile(r"^\d[\d.]* MB$"))
    expect(page.locator("#live-queue")).to_have_text("0 texts")
    before = status_of(address)["totals"]
    with page.expect_response("**/v1/embeddings"):
        page.get_by_role("button", name="Paraphrases").click()
    after = status_of(address)["totals"]
    assert after["texts"] - before["texts"] == 5
    assert after["tokens"] > before["tokens"]
    expect(page.locator("#live-texts")).not_to_have_text("0")


def status_of(address: str) -> dict[str, Any]:
    with urllib.request.urlopen(f"{address}/api/status") as response:
        found: dict[str, Any] = json.load(response)
    return found


def test_the_status_needs_the_key(locked: str) -> None:
    with pytest.raises(urllib.error.HTTPError, match="401"):
        urllib.request.urlopen(f"{locked}/api/status")


def get(url: str, **headers: str) -> tuple[int, dict[str, str], bytes]:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    try:
        with urllib.request.urlopen(urllib.request.Request(url, headers=named)) as response:
            return response.status, dict(response.headers), response.read()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, dict(error.headers), error.read()


def test_browsers_get_the_page_and_programs_a_word(address: str) -> None:
    status, headers, body = get(f"{address}/", Accept="text/html,application/xhtml+xml,*/*;q=0.8")
    assert (status, body[:15]) == (200, b"<!doctype html>")
    assert headers["content-type"].startswith("text/html")
    assert "Accept" in headers["vary"]
    for accept in ("*/*", "application/json", "text/html;q=0, */*"):
        assert get(f"{address}/", Accept=accept)[2] == b"Ollama is running"


def test_the_page_may_load_nothing_from_elsewhere(address: str) -> None:
    _, headers, body = get(f"{address}/", Accept="text/html")
    policy = dict(part.split(" ", 1) for part in headers["content-security-policy"].split("; "))
    assert policy["default-src"] == "'none'"
    assert policy["script-src"] == policy["style-src"] == policy["connect-src"] == "'self'"
    assert policy["frame-ancestors"] == "'none'"
    assert b"style=" not in body
    assert b"<script>" not in body
    assert b"//" not in body


def test_files_are_asked_for_again_and_sent_once(address: str) -> None:
    status, headers, body = get(f"{address}/ui/app.js")
    assert (status, headers["cache-control"]) == (200, "no-cache")
    assert headers["content-type"].startswith("text/javascript")
    assert headers["x-content-type-options"] == "nosniff"
    again = get(f"{address}/ui/app.js", If_None_Match=f'"other", W/{headers["etag"]}')
    assert (again[0], again[2]) == (304, b"")
    assert get(f"{address}/ui/app.js", If_None_Match='"other"')[2] == body


@pytest.mark.parametrize(
    "path", ["/ui/", "/ui/none.js", "/ui/index.html", "/ui/../pages.py", "/ui/..%2fpages.py", "/ui/%2e%2e/pages.py"]
)
def test_no_path_reaches_the_file_system(address: str, path: str) -> None:
    assert get(address + path)[0] == 404


def test_screenshot(browser: Browser, address: str, tmp_path: Path) -> None:
    """The README's picture: the heat map and the slider, in 256 colours."""
    goal = Path(os.environ.get("EDGE_EMBED_SCREENSHOT") or tmp_path / "page.png")
    whole = tmp_path / "whole.png"
    with looking(browser, address, viewport={"width": 1080, "height": 1290}) as page:
        expect(page.locator("#heatmap tbody tr")).to_have_count(5)
        with page.expect_response("**/v1/embeddings"):
            page.get_by_role("button", name="Embed").click()  # the first time took longer, with everything else
        expect(page.locator("#embed")).to_have_text("Embed")
        page.get_by_label("Values kept").fill("96")
        page.get_by_label("Values kept").press("Enter")
        page.get_by_label("Values kept").blur()
        page.screenshot(path=whole)
    with Image.open(whole) as picture:
        small = picture.convert("RGB").quantize(256, dither=Image.Dither.NONE)
        goal.parent.mkdir(exist_ok=True)
        small.save(goal, optimize=True)
    assert goal.stat().st_size < MOST_PICTURE_BYTES


def test_the_readme_shows_it() -> None:
    root = Path(__file__).parents[1]
    assert "docs/page.png" in (root / "README.md").read_text(encoding="utf-8")
    assert (root / "docs/page.png").stat().st_size < MOST_PICTURE_BYTES
