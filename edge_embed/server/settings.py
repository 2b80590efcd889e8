"""What a server can be told. Where it comes from (flags, environment, a file) is the command's business."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal

from edge_embed.errors import ServerSettingsError

if TYPE_CHECKING:  # commands read this module, and they load no NumPy
    from pathlib import Path

    from edge_embed.cache import EmbeddingCache
    from edge_embed.types import KvType

DEFAULT_PORT: Final = 11435
LONGEST_SECONDS: Final = 1_000_000
"""No time limit is longer: 11 days, and event loops take no endless one."""
ORIGINS: Final = (
    "app://obsidian.md",
    "capacitor://localhost",
    "http://localhost",
    "http://localhost:*",
    "http://127.0.0.1",
    "http://127.0.0.1:*",
    "tauri://localhost",
    "vscode-webview://*",
)
"""Pages and applications that may ask from a browser, unless others are named. ``*`` stands for any port or host."""


@dataclass(frozen=True, slots=True)
class ServerSettings:
    """Limits and manners of a server.

    Attributes:
        host, port: where it listens.
        uds: a Unix socket to listen on instead, or None.
        api_keys: keys that a request may bring; none needs one where this is empty.
        origins: what may ask from a browser (CORS); see ``ORIGINS``.
        hosts: names that the server goes by, beside its own and addresses, where no key protects it.
        max_texts: most texts, or pairs, of a request.
        max_request_tokens: most tokens of a request, None for as many as the queue holds.
        max_body_bytes: longest body.
        max_requests: most requests at the same time, the waiting ones counted.
        max_queued_texts, max_queued_tokens: what may wait for one model.
        timeout: seconds after which a request is given up.
        max_connections: most connections at the same time, idle ones counted.
        header_timeout: seconds within which a connection must have sent the head of a request.
        body_timeout: seconds within which a body must have arrived; longer for a large one that keeps coming.
        idle_timeout: seconds that a connection stays open without a request, and that an answer may wait to be read.
        drain_seconds: how long requests that were accepted may take to end, once the server is told to.
        truncate: whether texts above the limit lose their end where a request does not say; otherwise it is refused.
        prompt, prompt_name: put before texts where neither the request nor its role says.
        token_encoding: the encoding that lists of token ids are in (``cl100k_base``, or a file of its tokens), None for
            the model's own.
        docs: whether the interface describes itself at ``/docs`` and ``/openapi.json``.
        log: a line for each request, as text or JSON, or none.
    """

    host: str = "127.0.0.1"
    port: int = DEFAULT_PORT
    uds: str | None = None
    api_keys: tuple[str, ...] = ()
    origins: tuple[str, ...] = ORIGINS
    hosts: tuple[str, ...] = ()
    max_texts: int = 2048
    max_request_tokens: int | None = None
    max_body_bytes: int = 32_000_000
    max_requests: int = 512
    max_queued_texts: int = 16_384
    max_queued_tokens: int = 8_000_000
    max_connections: int = 1024
    timeout: float = 600.0
    header_timeout: float = 10.0
    body_timeout: float = 30.0
    idle_timeout: float = 75.0
    drain_seconds: float = 30.0
    truncate: bool = True
    prompt: str | None = None
    prompt_name: str | None = None
    token_encoding: str | None = None
    docs: bool = True
    log: Literal["plain", "json", "off"] = "plain"

    def __post_init__(self) -> None:
        limits = ("max_texts", "max_body_bytes", "max_requests", "max_queued_texts", "max_queued_tokens")
        for name in (*limits, "max_connections"):
            if getattr(self, name) < 1:
                raise ServerSettingsError(f"{name} is {getattr(self, name)}", hint="give 1 or more")
        for name in ("timeout", "header_timeout", "body_timeout", "idle_timeout", "drain_seconds"):
            if not 0 < getattr(self, name) <= LONGEST_SECONDS:
                raise ServerSettingsError(
                    f"{name} is {getattr(self, name)} s", hint=f"give more than 0 and at most {LONGEST_SECONDS} s"
                )
        if any(not key or key != key.strip() or not key.isascii() for key in self.api_keys):
            raise ServerSettingsError(
                "a key is empty, or has spaces around it or letters beyond ASCII", hint="no header can carry it"
            )
        if self.prompt is not None and self.prompt_name is not None:
            raise ServerSettingsError("a default prompt and the name of one were given", hint="give one of them")
        if self.max_texts > self.max_queued_texts:
            raise ServerSettingsError(
                f"a request may have {self.max_texts} texts, and only {self.max_queued_texts} may wait",
                hint="let at least as many wait",
            )

    @property
    def is_local(self) -> bool:
        """Whether only this machine reaches the server."""
        if self.uds is not None or self.host == "localhost":
            return True
        try:
            return ipaddress.ip_address(self.host.strip("[]")).is_loopback
        except ValueError:
            return False


@dataclass(frozen=True, slots=True)
class ModelOptions:
    """How models are run; see ``Embedder``."""

    n_threads: int | None = None
    n_batch: int | None = None
    device: str | None = None
    gpu_layers: int | None = None
    low_memory: bool = False
    kv_type: KvType = "f16"
    deterministic: bool = False
    max_tokens: int | None = None
    cache: EmbeddingCache | str | Path | bool | None = None
