"""What people do with the page beside vectors: rank documents, give a key, read errors and see what the server does."""

from __future__ import annotations

import json
import re
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from playwright.sync_api import Browser, Page, expect

from edge_embed import Embedder, Reranker
from edge_embed.catalogue import DEFAULT_MODEL
from tests.page.browsing import KEY, looking


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
