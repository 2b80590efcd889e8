"""The description of the interface is true: what it promises is answered, and nothing that it allows is a 500."""

from __future__ import annotations

import gzip
import re
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import httpx
import pytest
import schemathesis
from hypothesis import HealthCheck, settings
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from edge_embed.server.app import DIALECTS
from edge_embed.server.openapi import describe
from tests.serving import QUIET, Running, fake_server


def no_server_error(_: Any, response: Any, __: Any) -> None:
    """501 is what is not offered at all; everything else from 500 on would be the server's fault."""
    assert response.status_code < 500 or response.status_code == 501, response.text


CHECKS = (
    no_server_error,
    status_code_conformance,
    content_type_conformance,
    response_schema_conformance,
)
SCHEMA = schemathesis.openapi.from_dict(describe(DIALECTS, keyed=False))
KEYED = replace(QUIET, api_keys=("a-key",))


@pytest.fixture(scope="module")
def server() -> Iterator[Running]:
    with fake_server() as found:
        yield found


@SCHEMA.parametrize()
@settings(max_examples=12, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck))
def test_every_described_request_is_answered_as_described(case: Any, server: Running) -> None:
    """Bodies that the description allows, and some that it does not; statuses and shapes are those it names."""
    case.call_and_validate(base_url=server.url, checks=CHECKS)


def test_the_served_description_is_that_of_the_routes(server: Running) -> None:
    served = httpx.get(f"{server.url}/openapi.json").json()
    assert served == describe(DIALECTS, keyed=False)
    assert served["openapi"] == "3.1.0"
    routes = {
        (endpoint.method.lower(), re.sub(r"{(\w+):\w+}", r"{\1}", endpoint.path))
        for dialect in DIALECTS
        for endpoint in dialect
    }
    assert routes == {(method, path) for path, methods in served["paths"].items() for method in methods}


def test_every_route_names_its_errors_in_its_familys_shape(server: Running) -> None:
    described = httpx.get(f"{server.url}/openapi.json").json()
    for path, methods in described["paths"].items():
        for method, operation in methods.items():
            assert {"200", "403", "500"} <= operation["responses"].keys(), path
            if "requestBody" in operation:
                assert {"408", "413", "415", "503"} <= operation["responses"].keys(), (method, path)
            for status, response in operation["responses"].items():
                if status != "200":
                    assert "$ref" in response["content"]["application/json"]["schema"]


def test_keys_are_described_where_they_are_needed() -> None:
    with fake_server(settings=KEYED) as server:
        paths = httpx.get(f"{server.url}/openapi.json").json()["paths"]
    assert paths["/v1/embeddings"]["post"]["security"] == [{"bearer": []}, {"key": []}]
    assert "401" in paths["/metrics"]["get"]["responses"]
    assert "security" not in paths["/health"]["get"]


def test_swagger_ui_comes_from_the_server_alone(server: Running) -> None:
    """The page, and all that it names, is here; its policy lets it ask nobody else."""
    page = httpx.get(f"{server.url}/docs")
    policy = page.headers["content-security-policy"]
    assert page.status_code == 200
    assert "default-src 'none'" in policy
    assert not re.search(r"https?:", policy)
    for path in re.findall(r'(?:src|href)="(/docs/[^"]+)"', page.text):
        packed = httpx.get(server.url + path)
        plain = httpx.get(server.url + path, headers={"Accept-Encoding": "identity"})
        assert packed.status_code == plain.status_code == 200
        assert packed.content == plain.content
        assert "content-encoding" not in plain.headers
        etag = packed.headers.get("etag")
        if etag:
            assert httpx.get(server.url + path, headers={"If-None-Match": etag}).status_code == 304
    assert not re.search(r"""(?:src|href)=["']https?:""", page.text)


def test_the_vendored_files_are_those_that_the_notice_names() -> None:
    from importlib import resources

    folder = resources.files("edge_embed.server") / "swagger"
    bundle = gzip.decompress((folder / "swagger-ui-bundle.js.gz").read_bytes())
    notice = (folder / "NOTICE").read_text()
    version = re.search(r"Swagger UI (\d+\.\d+\.\d+)", notice)
    assert version is not None
    assert version[1].encode() in bundle
    assert b"sourceMappingURL" not in bundle[-200:]


def test_docs_can_be_left_out() -> None:
    with fake_server(settings=replace(QUIET, docs=False)) as server:
        statuses = {path: httpx.get(server.url + path).status_code for path in ("/docs", "/openapi.json", "/health")}
    assert statuses == {"/docs": 404, "/openapi.json": 404, "/health": 200}
