"""A model's file is not kept in memory beside the copies of its weights."""

from __future__ import annotations

import mmap
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from edge_embed.engine import bindings
from edge_embed.engine.loading import PageDropper, mappings

linux = pytest.mark.skipif(sys.platform != "linux", reason="only Linux says what is mapped where")


def resident(file: Path) -> int:
    """Bytes of a file's mappings that are in memory."""
    total, counting = 0, False
    for line in Path("/proc/self/smaps").read_text(errors="replace").splitlines():
        if not line.split(maxsplit=1)[0].endswith(":"):
            counting = line.endswith(str(file))
        elif counting and line.startswith("Rss:"):
            total += int(line.split()[1]) * 1024
    return total


@linux
def test_pages_that_were_read_are_given_back_and_come_back(tmp_path: Path) -> None:
    path = tmp_path / "a name with spaces.gguf"
    content = np.random.default_rng(0).integers(0, 256, 1 << 20, dtype=np.uint8).tobytes()
    path.write_bytes(content)
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ, flags=mmap.MAP_PRIVATE) as mapped:
        assert content == mapped[:]
        assert [1 << 20] == [size for _, size in mappings(str(path))]
        assert resident(path) == 1 << 20
        dropper = PageDropper(bindings.load().c, str(path))
        assert dropper.callback(0.5, None) is True
        assert resident(path) == 0
        assert content == mapped[:]


def test_a_file_that_is_not_mapped_or_a_system_that_does_not_say_is_no_error(tmp_path: Path) -> None:
    path = tmp_path / "x.gguf"
    path.write_bytes(b"x")
    assert [] == mappings(str(path))
    assert [] == mappings(str(path), tmp_path / "no such list")
    assert [] == mappings(str(tmp_path / "no such file"))
    assert PageDropper(bindings.load().c, str(path)).callback(1.0, None) is True


# Frees what it loads, each time on another thread, and says what memory it has then.
_OVER_AND_OVER = """
import threading
from edge_embed import Embedder

def once():
    with Embedder(n_threads=2, cache=False) as embedder:
        embedder.encode([f"text {i} about a cat and its friends" for i in range(60)])

for _ in range(8):
    thread = threading.Thread(target=once)
    thread.start()
    thread.join()
    print(next(line for line in open("/proc/self/status") if line.startswith("RssAnon")).split()[1])
"""


@linux
def test_a_model_that_is_closed_leaves_no_memory_behind() -> None:
    """The bundled model's repacked weights are 26 MB, its contexts more than that."""
    done = subprocess.run([sys.executable, "-c", _OVER_AND_OVER], capture_output=True, text=True, check=True)
    resident = [int(line) for line in done.stdout.split()]
    assert len(resident) == 8
    assert max(resident[2:]) - resident[1] < 12_000, resident


# Many threads that take memory at the same time, and how many heaps glibc has made for them by then.
_HEAPS = """
import ctypes, platform, sys, threading
from edge_embed.engine.loading import share_arenas

assert platform.libc_ver()[0] == "glibc"
if sys.argv[1] != "0":
    share_arenas(int(sys.argv[1]))
libc = ctypes.CDLL(None)
libc.malloc.restype = libc.open_memstream.restype = ctypes.c_void_p
together = threading.Barrier(12)

def take():
    together.wait()
    libc.malloc(1000)
    together.wait()

threads = [threading.Thread(target=take) for _ in range(12)]
[thread.start() for thread in threads]
[thread.join() for thread in threads]
text, size = ctypes.c_char_p(), ctypes.c_size_t()
stream = ctypes.c_void_p(libc.open_memstream(ctypes.byref(text), ctypes.byref(size)))
libc.malloc_info(0, stream)
libc.fclose(stream)
print(text.value.decode().count("<heap "))
"""


def heaps(n: int, **environment: str) -> int:
    """How many there are, with ``share_arenas(n)``; without it where n is 0."""
    command = [sys.executable, "-c", _HEAPS, str(n)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env={**os.environ, **environment})
    return int(done.stdout)


@linux
def test_threads_share_heaps() -> None:
    assert heaps(0) > 6
    assert heaps(1) == 2
    assert heaps(3) == 3
    assert heaps(1, MALLOC_ARENA_MAX="5") == 5
    assert heaps(1, GLIBC_TUNABLES="glibc.malloc.arena_max=4") == 4
