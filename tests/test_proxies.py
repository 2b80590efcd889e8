"""The examples of proxies in front of replicas agree with the server that they stand for."""

from __future__ import annotations

import re
from pathlib import Path

from edge_embed.server.settings import DEFAULT_PORT, ServerSettings

EXAMPLES = Path(__file__).parent.parent / "examples"
NGINX, CADDY = ((EXAMPLES / name).read_text(encoding="utf-8") for name in ("nginx.conf", "Caddyfile"))


def number(pattern: str) -> int:
    (found,) = re.findall(pattern, NGINX)
    return int(found)


def test_nginx_waits_as_long_and_takes_as_much_as_the_server() -> None:
    assert number(r"proxy_read_timeout (\d+)s;") > ServerSettings().timeout
    assert number(r"client_max_body_size (\d+)m;") * 2**20 >= ServerSettings().max_body_bytes


def test_the_replicas_are_where_the_server_listens() -> None:
    for text in (NGINX, CADDY):
        ports = {int(port) for port in re.findall(r"10\.0\.0\.1\d:(\d+)", text)}
        assert ports == {DEFAULT_PORT}
        assert "least_conn" in text
