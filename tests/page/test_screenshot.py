"""The README's picture of the page.

``make screenshot`` takes it, with ``EDGE_EMBED_SCREENSHOT`` set to it; otherwise the picture is taken and left.
"""

from __future__ import annotations

import os
from pathlib import Path

from PIL import Image
from playwright.sync_api import Browser, expect

from tests.page.browsing import looking

MOST_PICTURE_BYTES = 150_000


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
    root = Path(__file__).parents[2]
    assert "docs/page.png" in (root / "README.md").read_text(encoding="utf-8")
    assert (root / "docs/page.png").stat().st_size < MOST_PICTURE_BYTES
