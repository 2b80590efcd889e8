"""Which pages may ask, and under which names: what keeps other sites in a user's browser from using a local server."""

from __future__ import annotations

import ipaddress
import re
import socket
from collections.abc import Sequence
from typing import Final

from starlette.datastructures import Headers

from edge_embed.errors import ForeignOriginError
from edge_embed.server.settings import ServerSettings

# What a name may end with: these are never looked up on the internet, so nobody else's page goes by them.
_PRIVATE: Final = (".localhost", ".local", ".internal", ".home.arpa")


def pattern(allowed: Sequence[str]) -> str:
    """A pattern for the origins that may ask from a browser; ``*`` alone is all of them."""
    if "*" in allowed:
        return ".*"
    return "|".join(re.escape(origin).replace(r"\*", r"[\w.-]+") for origin in allowed) or "(?!)"


class Origins:
    """Looks at where a request comes from. With keys, the key decides alone: another site does not know it.

    Args:
        settings: of the server.
    """

    def __init__(self, settings: ServerSettings) -> None:
        self._allowed = re.compile(pattern(settings.origins))
        self._open = bool(settings.api_keys)
        self._any_host = not settings.is_local or settings.uds is not None
        self._hosts = {name.lower() for name in ("localhost", socket.gethostname(), settings.host, *settings.hosts)}

    def check(self, headers: Headers) -> None:
        """Look at ``Origin`` and ``Host``.

        A page of another site may send a request without asking first; it does not see the answer, but the work is
        done. And the name of a site can be made to lead to this machine (DNS rebinding): then its pages are no other
        site's any more, but the name is still theirs.

        Raises:
            ForeignOriginError: neither is known.
        """
        if self._open:
            return
        host = headers.get("host", "")
        if not self._any_host and not self._is_ours(host):
            raise ForeignOriginError(
                f"this server is not called {host[:80]!r}", hint="--trusted-host adds a name; a key makes any name good"
            )
        origin = headers.get("origin")
        if origin is None or self._allowed.fullmatch(origin) or origin.partition("://")[2] == host:
            return
        raise ForeignOriginError(
            f"pages of {origin[:80]!r} may not ask this server", hint="--origin adds one; --api-key makes keys decide"
        )

    def _is_ours(self, host: str) -> bool:
        name = host.rpartition("]")[0].lstrip("[") if host.startswith("[") else host.partition(":")[0]
        name = name.lower().rstrip(".")
        if not name or name in self._hosts or name.endswith(_PRIVATE):
            return True
        try:
            ipaddress.ip_address(name)
        except ValueError:
            return False
        return True
