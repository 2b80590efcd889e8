"""Servers that have a page, and a browser to look at it: one of each for all of these tests.

The browser is the machine's own; ``make programs`` installs it on Debian. A machine without one fails these tests.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from playwright.sync_api import Browser, Page, expect, sync_playwright

from edge_embed.catalogue import DEFAULT_MODEL
from edge_embed.server.settings import ServerSettings
from tests.page.browsing import KEY, looking
from tests.serving import real_server
from tests.tiny_gguf import gguf_bytes, tiny_decoder, tiny_reranker

BROWSERS = (
    "chromium",
    "chromium-browser",
    "google-chrome",
    "google-chrome-stable",
    "/Applications/Google Chrome.app/Contents/MacOS/Google Chrome",
)


@pytest.fixture(scope="package")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Two models beside the bundled one: one that was trained to be cut, and a reranker."""
    folder = tmp_path_factory.mktemp("models")
    metadata, tensors = tiny_decoder(hidden=64)
    metadata["edge_embed.mrl_dimensions"] = np.array([16, 32, 64], np.uint32)
    paths = {"trained": folder / "trained.gguf", "judge": folder / "judge.gguf"}
    paths["trained"].write_bytes(gguf_bytes(metadata, tensors))
    paths["judge"].write_bytes(gguf_bytes(*tiny_reranker()))
    return paths


@pytest.fixture(scope="package")
def address(models: dict[str, Path]) -> Iterator[str]:
    """The bundled model and those two; five texts a request."""
    settings = ServerSettings(port=0, log="off", max_texts=5)
    with real_server(DEFAULT_MODEL, *(f"{name}={path}" for name, path in models.items()), settings=settings) as found:
        yield found.url


@pytest.fixture(scope="package")
def locked(models: dict[str, Path]) -> Iterator[str]:
    """A server that asks for a key."""
    settings = ServerSettings(port=0, log="off", api_keys=(KEY,))
    with real_server(f"trained={models['trained']}", settings=settings) as found:
        yield found.url


@pytest.fixture(scope="package")
def browser() -> Iterator[Browser]:
    named = os.environ.get("EDGE_EMBED_BROWSER")
    found = next(filter(None, map(shutil.which, [named] if named else BROWSERS)), None)
    if found is None:
        pytest.fail(
            "the page's tests need Chromium: `apt install chromium` (`make programs` does it), or set "
            "EDGE_EMBED_BROWSER to the program of a Chromium or Chrome"
        )
    with sync_playwright() as playwright:
        # Chromium refuses to sandbox what root runs; all that it is shown here is this page.
        running = playwright.chromium.launch(executable_path=found, args=["--no-sandbox"])
        yield running
        running.close()


@pytest.fixture
def page(browser: Browser, address: str) -> Iterator[Page]:
    """The page of the server without a key, with the first heat map drawn."""
    with looking(browser, address) as found:
        expect(found.locator("#heatmap tbody tr")).to_have_count(5)
        yield found
