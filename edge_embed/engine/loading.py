"""What loading a model keeps in memory: the weights once, not the file beside their copies; and what freeing it leaves.

llama.cpp maps the file. Weights that are repacked for faster kernels, or moved to a GPU, are read through the mapping
and copied, and the pages that were read stay with the process: for most quantized models the whole file a second time.
They can be read again at any time, so they are given back while the model is loaded. What stays mapped (the embeddings
of tokens, of which a text needs a few rows) comes back page by page when it is used.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import sys
from pathlib import Path
from typing import Any, Final

_MAPS: Final = Path("/proc/self/maps")
_MADV_DONTNEED: Final = 4  # Linux, asm-generic/mman-common.h
_M_MMAP_THRESHOLD: Final = -3  # glibc, malloc.h
_M_ARENA_MAX: Final = -8  # likewise
_LARGE: Final = 1 << 20  # bytes


def mappings(file: str, maps: Path = _MAPS) -> list[tuple[int, int]]:
    """Where a file is mapped into this process: ``(address, bytes)``; empty where the system does not say.

    Format of the list: proc_pid_maps(5).
    """
    found = []
    with contextlib.suppress(OSError):
        inode = Path(file).stat().st_ino
        for line in maps.read_text(errors="replace").splitlines():
            fields = line.split(maxsplit=5)
            if len(fields) == 6 and fields[4] == str(inode) and fields[5] == os.path.realpath(file):
                start, _, end = fields[0].partition("-")
                found.append((int(start, 16), int(end, 16) - int(start, 16)))
    return found


def return_large_blocks() -> None:
    """Have blocks of a megabyte and more go back to the system as soon as they are freed, from now on.

    glibc begins so, but raises its limit (up to 32 MB) with every such block that is freed; smaller ones then stay with
    the thread that had them. A process that loads and frees models, each on a thread of its own, would keep the buffers
    of several. Nothing happens where the C library is another, or the user has set the limit.
    """
    _tell_glibc(_M_MMAP_THRESHOLD, _LARGE, "mmap_threshold")


def share_arenas(n: int) -> None:
    """Have all threads take small blocks from ``n`` heaps (at least 2); to be called before there are many.

    glibc gives up to eight for each core, and what was freed in one is not used by threads of another. A server whose
    models come and go, each with threads of its own, would grow until all of them have been as full as they ever get.
    For a process that is ours alone. Nothing happens where the C library is another, or the user has set the limit.
    """
    _tell_glibc(_M_ARENA_MAX, max(2, n), "arena_max")


def _tell_glibc(parameter: int, value: int, name: str) -> None:
    """``mallopt``, unless the environment has a value of that name."""
    set_by_user = f"MALLOC_{name.upper()}" in os.environ or f"MALLOC_{name.upper()}_" in os.environ
    if sys.platform != "linux" or set_by_user or name in os.environ.get("GLIBC_TUNABLES", ""):
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(parameter, value)


class PageDropper:
    """A progress callback for ``llama_model_load_from_file`` that gives the file's pages back after each tensor.

    Args:
        c: the bindings.
        file: what is loaded.
    """

    def __init__(self, c: Any, file: str) -> None:
        self._file = file
        self._libc = ctypes.CDLL(None) if sys.platform == "linux" else None
        if self._libc is not None:
            self._libc.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
        self.callback = c.llama_progress_callback(self._drop)

    def _drop(self, _progress: float, _data: Any) -> bool:
        if self._libc is not None:
            for address, size in mappings(self._file):
                self._libc.madvise(address, size, _MADV_DONTNEED)
        return True
