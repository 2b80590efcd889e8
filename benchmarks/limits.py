"""What a model takes under a memory limit that the kernel holds: it serves and is not killed, or refuses with numbers.

    python -m benchmarks.limits MODEL --limit 1GB 600MB [--mode usual low] [--texts 64]

As root on Linux: each run is a control group of its own below this process's (version 1 or 2), without swap, in which
``edge-embed serve`` starts and answers a request with many short texts and one with a text of 1,000 words. What the
kernel counted is printed: the group's peak, the process's own memory and the file's pages at the end, kills.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from edge_embed.cli.recipe import n_bytes

CGROUPS: Final = Path("/sys/fs/cgroup")
PATIENCE: Final = 900.0  # seconds until the server answers, and for each answer
MODES: Final = {"usual": [], "low": ["--low-memory"]}


@dataclass(frozen=True)
class Group:
    """A control group with a limit: its folder, and what the two versions call things."""

    folder: Path
    v2: bool

    def read(self, v2: str, v1: str) -> str:
        return (self.folder / (v2 if self.v2 else v1)).read_text()

    @property
    def peak(self) -> int | None:
        """Most bytes at once; version 2 says so since Linux 5.19."""
        with contextlib.suppress(OSError):
            return int(self.read("memory.peak", "memory.max_usage_in_bytes"))
        return None

    @property
    def kills(self) -> int:
        """Processes that were ended for lack of memory."""
        match = re.search(r"^oom_kill (\d+)", self.read("memory.events", "memory.oom_control"), re.MULTILINE)
        return int(match[1]) if match else 0


@contextlib.contextmanager
def group(limit: int) -> Iterator[Group]:
    """A control group of so many bytes below this process's, gone at the end."""
    v2 = (CGROUPS / "cgroup.controllers").exists()
    for line in Path("/proc/self/cgroup").read_text().splitlines():
        number, controllers, path = line.split(":", 2)
        if (number == "0") if v2 else ("memory" in controllers.split(",")):
            break
    own = (CGROUPS if v2 else CGROUPS / "memory") / path.lstrip("/")
    made = Group(own / f"edge-embed-limit-{os.getpid()}", v2)
    made.folder.mkdir()
    try:
        (made.folder / ("memory.max" if v2 else "memory.limit_in_bytes")).write_text(str(limit))
        swap = made.folder / ("memory.swap.max" if v2 else "memory.memsw.limit_in_bytes")
        with contextlib.suppress(OSError):
            swap.write_text("0" if v2 else str(limit))
        yield made
    finally:
        for _ in range(100):
            with contextlib.suppress(OSError):
                made.folder.rmdir()
                break
            time.sleep(0.1)


def forget(model: str) -> None:
    """Have the system drop the file's pages: those that are there already count for whoever read them."""
    with Path(model).open("rb") as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def ask(url: str, texts: list[str]) -> str:
    """How long an answer takes, or what the server says instead."""
    body = json.dumps({"input": texts}).encode()
    request = urllib.request.Request(f"{url}/v1/embeddings", body, {"Content-Type": "application/json"})
    start = time.monotonic()
    try:
        with urllib.request.urlopen(request, timeout=PATIENCE) as answer:
            assert len(json.load(answer)["data"]) == len(texts)
    except urllib.error.HTTPError as refusal:
        return f"refused: {refusal.code} {refusal.read().decode()[:500]}"
    return f"{time.monotonic() - start:.1f} s"


def served(model: str, limit: int, mode: str, texts: int) -> str:
    """A line about a run."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    url = f"http://127.0.0.1:{port}"
    command = [sys.executable, "-m", "edge_embed.cli", "serve", model, "--port", str(port), "--log", "off"]
    command += MODES[mode]
    forget(model)
    title = f"{Path(model).stem}, {limit / 1e6:,.0f} MB, {mode}: "
    with group(limit) as limited, tempfile.TemporaryFile("w+") as said:
        members = limited.folder / "cgroup.procs"
        joined = ["/bin/sh", "-c", f'echo $$ > "{members}" && exec "$@"', "sh", *command]
        process = subprocess.Popen(joined, stdin=subprocess.DEVNULL, stdout=said, stderr=said)
        try:
            start = time.monotonic()
            while process.poll() is None and time.monotonic() - start < PATIENCE:
                with contextlib.suppress(OSError):
                    urllib.request.urlopen(f"{url}/health", timeout=10).close()
                    break
                time.sleep(0.5)
            loaded = time.monotonic() - start
            if process.poll() is not None:
                said.seek(0)
                return f"{title}ended with {process.returncode}, {limited.kills} kills: {said.read().strip()}"
            short = ask(url, [f"text number {i}, about bees and the sun" for i in range(texts)])
            long = ask(url, ["word " * 1000])
            status = Path(f"/proc/{process.pid}/status").read_text()
            found = re.findall(r"^(VmHWM|RssAnon|RssFile):\s+(\d+)", status, re.MULTILINE)
            memory = {name: f"{int(kib) * 1024 / 1e6:,.0f} MB" for name, kib in found}
            peak = "?" if limited.peak is None else f"{limited.peak / 1e6:,.0f} MB"
            return (
                f"{title}served, {limited.kills} kills; peak of the group {peak}, of the process {memory['VmHWM']}; "
                f"at the end {memory['RssAnon']} its own, {memory['RssFile']} of files; "
                f"ready in {loaded:.1f} s, {texts} short texts: {short}; one of 1,000 words: {long}"
            )
        finally:
            process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(60)
            process.kill()
            process.wait()


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description="Serve a model under a memory limit.")
    parser.add_argument("model")
    parser.add_argument("--limit", nargs="+", required=True, metavar="SIZE")
    parser.add_argument("--mode", nargs="+", choices=MODES, default=["usual", "low"])
    parser.add_argument("--texts", type=int, default=64)
    options = parser.parse_args()
    for limit in options.limit:
        size = n_bytes(None, None, limit)
        assert size is not None
        for mode in options.mode:
            print(served(options.model, size, mode, options.texts), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
