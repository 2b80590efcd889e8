"""How the page's files are sent: to browsers, once, and none but them."""

from __future__ import annotations

import urllib.error
import urllib.request

import pytest


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
