"""Who may ask: keys, pages in browsers, names; and what is never written down."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from dataclasses import replace

import httpx
import pytest

from edge_embed.errors import ServerSettingsError
from edge_embed.server.log import AccessLog
from edge_embed.server.settings import ServerSettings
from edge_embed.testing import FakeEngine
from tests.serving import QUIET, Running, fake_server

KEYS = ("first-key", "second-key")
EMBED = "/v1/embeddings"
BODY = {"input": "a text"}


@pytest.fixture(scope="module")
def keyed() -> Iterator[Running]:
    with fake_server(settings=replace(QUIET, api_keys=KEYS)) as found:
        yield found


@pytest.fixture(scope="module")
def server() -> Iterator[Running]:
    with fake_server() as found:
        yield found


@pytest.mark.parametrize(
    "headers",
    [
        {"Authorization": "Bearer first-key"},
        {"Authorization": "bearer  second-key"},
        {"Authorization": "second-key"},  # as some clients of text-embeddings-inference send it
        {"X-Api-Key": "first-key"},
        {"Api-Key": "first-key"},
        {"Authorization": "Bearer wrong", "X-Api-Key": "first-key"},
    ],
)
def test_a_key_is_found_where_clients_put_it(keyed: Running, headers: dict[str, str]) -> None:
    assert httpx.post(keyed.url + EMBED, json=BODY, headers=headers).status_code == 200


@pytest.mark.parametrize(
    ("headers", "said"),
    [
        ({}, "a key is needed"),
        ({"Authorization": ""}, "a key is needed"),
        ({"Authorization": "Bearer"}, "a key is needed"),
        ({"Authorization": "Bearer first-ke"}, "the key is wrong"),
        ({"Authorization": "Bearer first-key2"}, "the key is wrong"),
        ({"Authorization": "Basic first-key"}, "the key is wrong"),
        ({"X-Api-Key": "FIRST-KEY"}, "the key is wrong"),
        ({"X-Api-Key": "k\u00e9y".encode("latin-1")}, "the key is wrong"),
    ],
)
def test_other_keys_are_401(keyed: Running, headers: dict[str, str], said: str) -> None:
    refused = httpx.post(keyed.url + EMBED, json=BODY, headers=headers)
    assert refused.status_code == 401
    assert refused.headers["www-authenticate"] == "Bearer"
    assert said in refused.json()["error"]["message"]
    assert "first" not in refused.text


def test_every_route_but_health_and_pages_needs_the_key(keyed: Running) -> None:
    public = {"/health", "/", "/docs", "/openapi.json", "/docs/start.js", "/docs/swagger-ui.css"}
    open_ones = set()
    with httpx.Client(base_url=keyed.url) as client:
        for path, methods in client.get("/openapi.json").json()["paths"].items():
            for method in methods:
                answer = client.request(method, path.replace("{model}", "x").replace("{digest}", "x"), json={})
                if answer.status_code != 401:
                    open_ones.add(path)
    assert open_ones == {"/health", "/ping", "/api/version"}  # whether somebody is there, and nothing else
    assert {200} == {httpx.get(keyed.url + path).status_code for path in public}
    assert httpx.get(f"{keyed.url}/metrics", headers={"X-Api-Key": "first-key"}).status_code == 200


def test_without_keys_any_authorization_will_do(server: Running) -> None:
    for value in ("", "Bearer", "Bearer anything", "Basic eDp5", "ollama"):
        assert httpx.post(server.url + EMBED, json=BODY, headers={"Authorization": value}).status_code == 200


@pytest.mark.parametrize("key", ["", " a", "a ", "\u00e9", "a\n"])
def test_keys_that_no_header_carries_are_refused(key: str) -> None:
    with pytest.raises(ServerSettingsError, match="key"):
        ServerSettings(api_keys=(key,))


# Pages


@pytest.mark.parametrize(
    "origin",
    ["app://obsidian.md", "capacitor://localhost", "http://localhost:5173", "http://127.0.0.1:8080", "tauri://localhost",
     "vscode-webview://1f2a"]
)  # fmt: skip
def test_known_origins_may_ask_and_ask_first(server: Running, origin: str) -> None:
    asked = {
        "Origin": origin,
        "Access-Control-Request-Method": "POST",
        "Access-Control-Request-Headers": "authorization,content-type,x-stainless-os",
        "Access-Control-Request-Private-Network": "true",
    }
    first = httpx.options(server.url + EMBED, headers=asked)
    assert first.status_code == 200
    assert first.headers["access-control-allow-origin"] == origin
    assert first.headers["access-control-allow-private-network"] == "true"
    assert {"authorization", "content-type", "x-stainless-os"} <= {
        name.strip().lower() for name in first.headers["access-control-allow-headers"].split(",")
    }
    answer = httpx.post(server.url + EMBED, json=BODY, headers={"Origin": origin})
    assert (answer.status_code, answer.headers["access-control-allow-origin"]) == (200, origin)
    wrong = httpx.post(server.url + EMBED, content=b"{", headers={"Origin": origin})
    assert (wrong.status_code, wrong.headers["access-control-allow-origin"]) == (400, origin)


@pytest.mark.parametrize(
    "origin",
    ["https://evil.example", "http://localhost.evil.example", "http://127.0.0.1.evil.example", "app://obsidian.md.evil",
     "null", "https://evil.example:11435", "http://evil.example/http://localhost"]
)  # fmt: skip
def test_other_origins_get_no_header_and_no_work(server: Running, keyed: Running, origin: str) -> None:
    """Without a key the request itself is refused, because a page may send one without seeing the answer."""
    first = httpx.options(server.url + EMBED, headers={"Origin": origin, "Access-Control-Request-Method": "POST"})
    assert first.status_code == 400
    assert "access-control-allow-origin" not in first.headers
    answer = httpx.post(
        server.url + EMBED, content=json.dumps(BODY), headers={"Origin": origin, "Content-Type": "text/plain"}
    )
    assert answer.status_code == 403
    assert "access-control-allow-origin" not in answer.headers
    with_key = httpx.post(keyed.url + EMBED, json=BODY, headers={"Origin": origin, "X-Api-Key": "first-key"})
    assert with_key.status_code == 200  # whoever knows the key is no stranger
    assert "access-control-allow-origin" not in with_key.headers


def test_origins_can_be_added_and_all_can_be_let_in() -> None:
    for origins in (("https://notes.example",), ("*",)):
        with fake_server(settings=replace(QUIET, origins=origins)) as server:
            answer = httpx.post(server.url + EMBED, json=BODY, headers={"Origin": "https://notes.example"})
            assert (answer.status_code, answer.headers["access-control-allow-origin"]) == (200, "https://notes.example")


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:11435", "localhost.evil.example", "127.0.0.1.evil.example"]
)
def test_a_name_that_is_led_here_is_refused(server: Running, keyed: Running, host: str) -> None:
    """DNS rebinding: the page is of the same origin as the server, by a name that its owner leads to this machine."""
    for path in (EMBED, "/v1/models", "/api/tags", "/", "/health", "/metrics"):
        method = "POST" if path == EMBED else "GET"
        refused = httpx.request(
            method, server.url + path, json=BODY, headers={"Host": host, "Origin": f"http://{host}"}
        )
        assert refused.status_code == 403, path
    answer = httpx.post(keyed.url + EMBED, json=BODY, headers={"Host": host, "X-Api-Key": "first-key"})
    assert answer.status_code == 200


@pytest.mark.parametrize(
    "host", ["localhost", "LOCALHOST:11435", "127.0.0.1", "127.1.2.3:80", "[::1]:11435", "192.168.1.7:11435",
             "host.docker.internal:11435", "box.local", "a.localhost"]
)  # fmt: skip
def test_names_of_this_machine_are_good(server: Running, host: str) -> None:
    assert httpx.post(server.url + EMBED, json=BODY, headers={"Host": host}).status_code == 200


def test_a_trusted_host_is_good() -> None:
    with fake_server(settings=replace(QUIET, hosts=("embed.example",))) as server:
        assert httpx.get(f"{server.url}/health", headers={"Host": "embed.example"}).status_code == 200
        assert httpx.get(f"{server.url}/health", headers={"Host": "other.example"}).status_code == 403


# What is written


class BuggyEngine(FakeEngine):
    """Fails with the texts in its message, as nothing of ours does."""

    def decode(self, *_: object) -> object:  # type: ignore[override]
        raise RuntimeError("SECRET TEXT in a message")


@pytest.mark.parametrize("form", ["plain", "json"])
@pytest.mark.parametrize("kind", [FakeEngine, BuggyEngine])
def test_logs_have_ids_and_figures_and_no_texts_or_keys(form: str, kind: type[FakeEngine]) -> None:
    engine = kind()
    stream = io.StringIO()
    with fake_server(settings=replace(QUIET, api_keys=("SECRET-KEY",)), engine=engine) as server:
        server.gate.log.form, server.gate.log._stream = form, stream  # type: ignore[assignment]
        headers = {"X-Api-Key": "SECRET-KEY", "X-Request-Id": "my-request.17"}
        client = httpx.Client(base_url=server.url, headers=headers)
        first = client.post(EMBED, json={"input": ["SECRET TEXT"], "prompt": "SECRET PROMPT: "})
        client.post(EMBED, json={"input": "SECRET TEXT", "model": "SECRET MODEL"})
        client.post(EMBED, content=b'{"input": "SECRET TEXT"')
        client.post("/rerank", json={"query": "SECRET", "documents": ["SECRET TEXT"]})
        client.get("/nothing/here?q=SECRET")
        client.post(
            EMBED, json={"input": "SECRET TEXT"}, headers={"X-Api-Key": "SECRET-WRONG", "X-Request-Id": "x y\n"[:3]}
        )
        client.close()
    assert first.headers["x-request-id"] == "my-request.17"
    written = stream.getvalue()
    assert "SECRET" not in written
    assert "my-request.17" in written
    assert "/nothing/here" in written
    if form == "json":
        lines = [json.loads(line) for line in written.splitlines()]
        requests = [line for line in lines if line["event"] == "request"]
        assert [(line["status"], line.get("error")) for line in requests[1:3]] == [
            (404, "ModelNotFoundError"), (400, "RequestShapeError")
        ]  # fmt: skip
        assert all(len(line["id"]) >= 3 and line["client"] == "127.0.0.1" for line in requests)
    if isinstance(engine, BuggyEngine):
        assert first.status_code == 500
        assert "SECRET" not in first.text


def test_a_line_cannot_be_forged() -> None:
    stream = io.StringIO()
    with fake_server() as server:
        server.gate.log.form, server.gate.log._stream = "plain", stream
        httpx.get(f"{server.url}/a%0A12:00:00%20request%20status=200")
    assert len(stream.getvalue().splitlines()) == 2 - 1 + stream.getvalue().count("ending") + stream.getvalue().count(
        "ended"
    )


def test_a_bug_is_logged_by_its_places_alone() -> None:
    stream = io.StringIO()
    log = AccessLog("json", stream)
    try:
        raise RuntimeError("SECRET")
    except RuntimeError as error:
        log.unexpected("an-id", error)
    line = json.loads(stream.getvalue())
    assert (line["event"], line["id"], line["error"]) == ("bug", "an-id", "RuntimeError")
    assert "test_access.py" in line["places"][0]
    assert "SECRET" not in stream.getvalue()
