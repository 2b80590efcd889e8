"""The page is for everybody: keys, names, labels and contrast."""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np
import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, Page, expect

from tests.page.browsing import looking


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
