"""Cold start: wall time of ``edge-embed embed`` and of ``import edge_embed``, warm page cache, medians."""

from __future__ import annotations

import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

RUNS = 9


def main() -> None:
    """Measure and print."""
    command = [str(Path(sys.executable).with_name("edge-embed")), "embed", "some text"]
    for label, arguments in {
        "edge-embed embed 'some text'": command,
        "python -c 'import edge_embed'": [sys.executable, "-c", "import edge_embed"],
        "python -c pass": [sys.executable, "-c", "pass"],
    }.items():
        seconds = []
        with tempfile.TemporaryDirectory() as elsewhere:  # not the checkout: the installed package is measured
            for _ in range(RUNS + 1):
                start = time.perf_counter()
                subprocess.run(arguments, check=True, stdout=subprocess.DEVNULL, cwd=elsewhere)
                seconds.append(time.perf_counter() - start)
        warm = seconds[1:]  # the first run tries the model in a child process and fills the page cache
        print(f"{label}: median {statistics.median(warm):.3f} s, worst {max(warm):.3f} s, first {seconds[0]:.3f} s")


if __name__ == "__main__":
    main()
