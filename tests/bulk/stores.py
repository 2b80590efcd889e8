"""A store that speaks S3 over HTTP, on this machine: moto's server."""

from __future__ import annotations

import logging
import secrets
from pathlib import Path
from typing import Any

from pyarrow import fs


class Server:
    """One server; use as a context manager."""

    def __enter__(self) -> Server:
        from moto.server import ThreadedMotoServer

        logging.getLogger("werkzeug").setLevel(logging.ERROR)  # else a line for each request
        self._server = ThreadedMotoServer("127.0.0.1", port=0, verbose=False)
        self._server.start()
        host, port = self._server.get_host_and_port()
        self.address = f"{host}:{port}"
        self.endpoint = f"http://{self.address}"
        return self

    def __exit__(self, *_: object) -> None:
        self._server.stop()

    def bucket(self) -> Store:
        """A new bucket."""
        return Store(self, f"corpus-{secrets.token_hex(4)}")


class Store:
    """One bucket, looked into without edge-embed."""

    def __init__(self, server: Server, name: str) -> None:
        self.server, self.name = server, name
        self.system = fs.S3FileSystem(
            access_key="key", secret_key="secret", endpoint_override=server.endpoint, allow_bucket_creation=True
        )
        self.system.create_dir(name)

    def uri(self, key: str, query: str = "") -> str:
        return f"s3://{self.name}/{key}{query}"

    def put(self, key: str, path: Path) -> str:
        """Store a file, or a folder with all below; its URI."""
        for one in [path] if path.is_file() else sorted(path.rglob("*")):
            if one.is_file():
                target = key if path.is_file() else f"{key}/{one.relative_to(path).as_posix()}"
                with self.system.open_output_stream(f"{self.name}/{target}") as stream:
                    stream.write(one.read_bytes())
        return self.uri(key)

    def delete(self, key: str) -> None:
        self.system.delete_file(f"{self.name}/{key}")

    def files(self, folder: str) -> dict[str, tuple[int, Any]]:
        """Names of all files below a folder, with sizes and times of change."""
        root = f"{self.name}/{folder}".rstrip("/")
        found = self.system.get_file_info(fs.FileSelector(root, recursive=True, allow_not_found=True))
        return {one.path[len(root) + 1 :]: (one.size, one.mtime) for one in found if one.is_file}

    def copy(self, folder: str, to: Path) -> Path:
        """All files below a folder, on this machine."""
        for name in self.files(folder):
            target = to / name
            target.parent.mkdir(parents=True, exist_ok=True)
            with self.system.open_input_stream(f"{self.name}/{folder}/{name}") as stream:
                target.write_bytes(stream.readall())
        return to
