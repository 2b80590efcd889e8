"""Commands as a test gives them: in this process, or in one that an interrupt reaches."""

from __future__ import annotations

import socket
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from click.testing import CliRunner, Result

from edge_embed.cli import main

COMMAND: Final = [sys.executable, "-m", "edge_embed.cli"]
# A process that a shell started in the background ignores interrupts, and so do its children.
INTERRUPTIBLE: Final = (
    "import signal; signal.signal(signal.SIGINT, signal.default_int_handler); from edge_embed.cli import main; main()"
)


def free_port() -> int:
    """A port of this machine that nothing listens on."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def run(
    *arguments: str | Path, stdin: str | bytes | None = None, env: Mapping[str, str | None] | None = None
) -> Result:
    """What ``edge-embed ARGUMENTS`` does, in this process.

    Commands are called through the group, as users do: click keeps the help option that a command is first called with,
    and the group is what says that it is ``-h``, too.
    """
    return CliRunner().invoke(main, list(map(str, arguments)), input=stdin, env=env, prog_name="edge-embed")
