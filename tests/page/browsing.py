"""The page in a browser that complains of nothing and asks nobody else."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from playwright.sync_api import Browser, Page, expect

KEY = "a key for the page"


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
