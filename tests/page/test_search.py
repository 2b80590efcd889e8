"""The page's panel over indexed files: there where a database is, not elsewhere."""

from __future__ import annotations

import re
from pathlib import Path

from playwright.sync_api import Browser, Page, expect

from edge_embed import Embedder
from edge_embed.search.database import Database
from edge_embed.search.indexing import Indexer
from edge_embed.search.record import make_record
from edge_embed.search.scan import root_of
from edge_embed.server.settings import ModelOptions
from edge_embed.server.start import build, served_models
from tests.page.browsing import looking
from tests.serving import QUIET, running


def test_a_question_finds_places_in_files(browser: Browser, models: dict[str, Path], tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "bees.md").write_text("# Bees & <b>\n\n\U0001f41d They navigate by the sun <script>.\n")
    (folder / "bank.md").write_text("Interest rates rose.\n")
    with (
        Embedder(models["trained"], n_threads=1) as embedder,
        Database(tmp_path / "db", make_record(embedder, model=models["trained"])) as database,
    ):
        Indexer(database, embedder).update([root_of(folder)])
    served = served_models([f"trained={models['trained']}"])
    app = build(served, QUIET, ModelOptions(n_threads=1), database=tmp_path / "db")
    with running(app) as url, looking(browser, url) as page:
        expect(page.locator("#search-facts")).to_have_text("2 places, found by trained.")
        page.get_by_label("Question").fill("navigating sun")
        page.locator("#search-mode").select_option("text")
        page.get_by_role("button", name="Search").click()
        rows = page.get_by_role("list", name="Places in files, best first").get_by_role("listitem")
        expect(rows).to_have_count(1)
        expect(rows).to_contain_text("bees.md:3")
        expect(rows).to_contain_text("Bees & <b>")
        expect(rows.locator(".found-text")).to_have_text("\U0001f41d They navigate by the sun <script>.")
        assert ["navigate", "sun"] == rows.locator("mark").all_text_contents()
        expect(page.locator("#search-note")).to_have_text(re.compile(r"^in \d+ ms$"))


def test_without_a_database_there_is_no_box(page: Page) -> None:
    expect(page.locator("#search-panel")).to_be_hidden()
