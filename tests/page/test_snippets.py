"""The page's snippets are programs that run."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
import urllib.error
import urllib.request
from typing import Any

import pytest
from playwright.sync_api import Page

from edge_embed.catalogue import DEFAULT_MODEL


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
