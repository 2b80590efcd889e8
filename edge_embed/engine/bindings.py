"""The native library, checked before its first use: is it there, and is it laid out as this code believes?

``llama_cpp.llama_cpp`` passes C structures by value. If its idea of them differs from ours, or from the shared
library's, arguments land in the wrong fields and the process dies or, worse, computes something else. So the field
lists are compared with the ones that this release was tested with, and the library's own defaults with known values.
Nothing else in edge-embed imports ``llama_cpp``.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib.util
import os
import re
import threading
import warnings
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any, Final

from edge_embed.engine import builds
from edge_embed.errors import EngineUnavailableError

# name:kind in C order. u4/i4 integers, f4 float, b1 bool, p8 pointer. From llama-cpp-python 0.3.36.
LAYOUTS: Final[dict[str, str]] = {
    "llama_model_params": (
        "devices:p8 tensor_buft_overrides:p8 n_gpu_layers:i4 split_mode:i4 load_mode:i4 lazy_mode:i4 main_gpu:i4 "
        "tensor_split:p8 progress_callback:p8 progress_callback_user_data:p8 kv_overrides:p8 vocab_only:b1 "
        "check_tensors:b1 use_extra_bufts:b1 no_host:b1 no_alloc:b1 load_mtp:b1"
    ),
    "llama_context_params": (
        "n_ctx:u4 n_batch:u4 n_ubatch:u4 n_seq_max:u4 n_rs_seq:u4 n_outputs_max:u4 n_outputs_max_per_seq:u4 "
        "n_threads:i4 n_threads_batch:i4 ctx_type:i4 rope_scaling_type:i4 pooling_type:i4 attention_type:i4 "
        "flash_attn_type:i4 rope_freq_base:f4 rope_freq_scale:f4 yarn_ext_factor:f4 yarn_attn_factor:f4 "
        "yarn_beta_fast:f4 yarn_beta_slow:f4 yarn_orig_ctx:u4 defrag_thold:f4 cb_eval:p8 cb_eval_user_data:p8 "
        "type_k:i4 type_v:i4 abort_callback:p8 abort_callback_data:p8 embeddings:b1 offload_kqv:b1 no_perf:b1 "
        "op_offload:b1 swa_full:b1 kv_unified:b1 samplers:p8 n_samplers:p8 ctx_other:p8"
    ),
    "llama_batch": "n_tokens:i4 token:p8 embd:p8 pos:p8 n_seq_id:p8 seq_id:p8 logits:p8",
}
# Values that the library itself reports, spread over the structures. Source: llama_context_default_params(),
# llama_model_default_params() in llama.cpp.
DEFAULTS: Final[dict[str, dict[str, Any]]] = {
    "llama_context_params": {
        "n_ctx": 512, "n_batch": 2048, "n_ubatch": 512, "n_seq_max": 1, "pooling_type": -1, "attention_type": -1,
        "rope_freq_base": 0.0, "yarn_ext_factor": -1.0, "type_k": 1, "type_v": 1, "embeddings": False,
        "kv_unified": False, "n_samplers": 0,
    },
    "llama_model_params": {"main_gpu": 0, "vocab_only": False, "use_extra_bufts": True, "no_alloc": False},
}  # fmt: skip
_CPU_VARIANT: Final = re.compile(r"(lib)?ggml-cpu-.+\.(so|dylib|dll)")
SPIN_COUNT: Final = "2000"
TESTED: Final = "llama-cpp-python 0.3.36"
_REINSTALL: Final = f'reinstall it: pip install --force-reinstall "llama-cpp-python=={TESTED.split()[1]}"'


@dataclass(frozen=True)
class Bindings:
    """The checked library.

    Attributes:
        c: the module ``llama_cpp.llama_cpp``.
        ggml: for the tensors that callbacks hand over.
        library: path of the shared library ``libllama``.
        version: version of the Python package.
        backends: names of the libraries that were picked at run time, e.g. ``libggml-cpu-zen4.so``; none where kernels
            are part of the libraries.
    """

    c: ModuleType
    ggml: Ggml
    library: Path
    version: str
    backends: tuple[str, ...]


@cache
def load() -> Bindings:
    """Import llama-cpp-python's low-level bindings, check them, silence the library's log.

    Raises:
        EngineUnavailableError: it is not installed, does not load, or is laid out differently.
    """
    folder, llama_cpp = _first_that_loads()
    c = llama_cpp.llama_cpp
    check_layout(c)
    _capture_log(c)
    backends = _load_backends(folder)
    c.llama_backend_init()
    check_defaults(c)
    return Bindings(c, _load_ggml(folder), library_file(folder, "llama"), llama_cpp.__version__, backends)


def _first_that_loads() -> tuple[Path, ModuleType]:
    """The folder that the libraries were taken from, and llama-cpp-python: what was asked for, else what it brought.

    What does not load leaves nothing behind, so another one can still be taken; that is said.
    """
    if _preferred:
        try:
            return Path(_preferred[-1]), _imported(_preferred[-1])
        except EngineUnavailableError as error:  # e.g. OpenVINO was removed, which that build needs
            _say_unused(f"the libraries in {_preferred.pop()}, which `edge-embed tune` chose, are not used", error)
    chosen = builds.choice()
    if chosen.reason != "default":
        try:
            folder = builds.folder_of(chosen) or packaged_folder()
            return folder, _imported(str(folder))
        except EngineUnavailableError as error:
            if chosen.reason == "llama-cpp-python":  # its own variable: nothing else takes the place of what it names
                raise
            _say_unused(f"the engine {chosen.name!r}, {chosen.said}, is not used", error)
    return packaged_folder(), _imported(str(packaged_folder()))


def _say_unused(what: str, error: EngineUnavailableError) -> None:
    warnings.warn(f"{what}: {error.message}", RuntimeWarning, stacklevel=5)


def _imported(folder: str) -> ModuleType:
    """llama-cpp-python, with the libraries of that folder."""
    try:
        with _short_waits(), _environment("LLAMA_CPP_LIB_PATH", folder):
            import llama_cpp
            import llama_cpp.llama_cpp

            return llama_cpp
    except ImportError as error:
        raise EngineUnavailableError(
            f"llama-cpp-python cannot be imported: {error}", hint="install it: pip install llama-cpp-python"
        ) from error
    except (OSError, RuntimeError, FileNotFoundError) as error:
        raise EngineUnavailableError(
            f"llama-cpp-python's shared library cannot be loaded: {error}", hint=_REINSTALL
        ) from error


@contextlib.contextmanager
def _short_waits() -> Iterator[None]:
    """While libgomp is loaded: let a thread that waits for the others go to sleep soon, unless the user decided.

    The threads of a layer meet some 200 times a batch. By default a waiting thread spins for milliseconds, which takes
    the core from the very thread that it waits for when anything else runs on the machine. Measured on two cores
    (benchmarks/LOG.md): 3 % slower when nothing else runs, twice as fast beside one busy process.
    """
    decided = "GOMP_SPINCOUNT" in os.environ or "OMP_WAIT_POLICY" in os.environ
    with _environment("GOMP_SPINCOUNT", "" if decided else SPIN_COUNT):  # read once, when the library is loaded
        yield


@contextlib.contextmanager
def _environment(name: str, value: str) -> Iterator[None]:
    """The variable has the value inside the block; nothing is done where the value is empty."""
    before = os.environ.get(name)
    if value:
        os.environ[name] = value
    try:
        yield
    finally:
        if value and before is None:
            del os.environ[name]
        elif value and before is not None:
            os.environ[name] = before


def default_folder() -> Path:
    """Where the native libraries are unless another folder is preferred; loads nothing.

    Raises:
        EngineUnavailableError: llama-cpp-python is not installed.
    """
    with contextlib.suppress(EngineUnavailableError):  # ``load`` says so
        return builds.folder_of(builds.choice()) or packaged_folder()
    return packaged_folder()


def packaged_folder() -> Path:
    """Where the libraries are that llama-cpp-python brought; loads nothing.

    Raises:
        EngineUnavailableError: it is not installed.
    """
    package = importlib.util.find_spec("llama_cpp")
    if package is None or package.origin is None:
        raise EngineUnavailableError(
            "llama-cpp-python is not installed", hint="install it: pip install llama-cpp-python"
        )
    return Path(package.origin).parent / "lib"


# The folder that ``load`` takes the libraries from, where it is not the default one.
_preferred: list[str] = []


def prefer(folder: str) -> bool:
    """Have the libraries of a folder loaded. False where those of another one are loaded already: there is no way back.

    Args:
        folder: with libllama and the libraries that it needs, of the release that ``TESTED`` names.
    """
    if load.cache_info().currsize:
        return load().library.parent == Path(folder)
    _preferred.append(folder)
    return True


def check_layout(c: Any) -> None:
    """Compare the bindings' structures with ``LAYOUTS``.

    Raises:
        EngineUnavailableError: naming the structure and the first field that differs.
    """
    for name, expected in LAYOUTS.items():
        struct = getattr(c, name, None)
        found = describe_layout(struct) if struct is not None else []
        for want, have in zip(expected.split(), [*found, *["nothing"] * 99], strict=False):
            if want != have:
                raise EngineUnavailableError(
                    f"this llama-cpp-python lays out {name} differently: field {want}, found {have}",
                    hint=f"this release was tested with {TESTED}; {_REINSTALL}",
                )
        if len(found) != len(expected.split()):
            raise EngineUnavailableError(
                f"this llama-cpp-python has more fields in {name}: {found[len(expected.split()) :]}",
                hint=f"this release was tested with {TESTED}; {_REINSTALL}",
            )


def describe_layout(struct: Any) -> list[str]:
    """``name:kind`` of each field of a ctypes structure, in C order."""
    kinds = {
        ctypes.c_int32: "i4", ctypes.c_uint32: "u4", ctypes.c_float: "f4", ctypes.c_bool: "b1", ctypes.c_size_t: "p8",
    }  # fmt: skip
    return [f"{field[0]}:{kinds.get(field[1], f'p{ctypes.sizeof(field[1])}')}" for field in struct._fields_]


def check_defaults(c: Any) -> None:
    """Compare what the shared library reports as defaults with ``DEFAULTS``.

    Raises:
        EngineUnavailableError: the library's structures are not those of the bindings.
    """
    reported = {
        "llama_context_params": c.llama_context_default_params(),
        "llama_model_params": c.llama_model_default_params(),
    }
    for name, fields in DEFAULTS.items():
        for field, expected in fields.items():
            found = getattr(reported[name], field)
            if found != expected:
                raise EngineUnavailableError(
                    f"the llama.cpp library does not fit its bindings: {name}.{field} is {found!r}, not {expected!r}",
                    hint=f"unset LLAMA_CPP_LIB_PATH if it is set, or {_REINSTALL}",
                )


def library_file(folder: Path, stem: str) -> Path:
    """The shared library of that name in a folder, whatever the platform calls it.

    Raises:
        EngineUnavailableError: there is none.
    """
    for name in (f"lib{stem}.so", f"lib{stem}.dylib", f"{stem}.dll", f"lib{stem}.dll"):
        if (folder / name).exists():
            return folder / name
    raise EngineUnavailableError(f"there is no lib{stem} in {folder}", hint=_REINSTALL)


class Ggml(ctypes.CDLL):
    """ggml's functions, in the copies of its libraries that libllama uses.

    A wheel holds no links: each library is there as three files, and one that is opened by another name than libllama's
    is a second copy with a registry of its own, which no model sees. So they are looked for through libllama, which
    brings along what it needs. Windows looks in one library alone, and has one file of each.
    """

    def __init__(self, folder: Path) -> None:
        super().__init__(str(library_file(folder, "llama")))
        self._folder = folder

    def __getitem__(self, name: Any) -> Any:
        with contextlib.suppress(AttributeError):
            return super().__getitem__(name)
        for stem in ("ggml", "ggml-base"):
            with contextlib.suppress(AttributeError):
                return ctypes.CDLL(str(library_file(self._folder, stem)))[name]
        raise AttributeError(f"no library in {self._folder} has {name}")


def _load_backends(folder: Path) -> tuple[str, ...]:
    """Where kernels are libraries of their own (GGML_BACKEND_DL), have the best ones for this processor loaded.

    Raises:
        EngineUnavailableError: there is none for this processor.
    """
    if not any(_CPU_VARIANT.fullmatch(path.name) for path in folder.iterdir()):
        return ()
    ggml = Ggml(folder)
    ggml.ggml_backend_load_all_from_path.argtypes = [ctypes.c_char_p]
    ggml.ggml_backend_load_all_from_path.restype = None
    ggml.ggml_backend_dev_by_type.argtypes, ggml.ggml_backend_dev_by_type.restype = [ctypes.c_int], ctypes.c_void_p
    with heard() as lines:
        ggml.ggml_backend_load_all_from_path(os.fsencode(folder))
    if not ggml.ggml_backend_dev_by_type(0):  # GGML_BACKEND_DEVICE_TYPE_CPU
        raise EngineUnavailableError(
            f"none of the variants in {folder} runs on this processor",
            hint="choose other libraries: edge-embed engine use packaged",
        )
    return tuple(Path(line.rpartition(" backend from ")[2]).name for line in lines if " backend from " in line)


def _load_ggml(folder: Path) -> Ggml:
    lib = Ggml(folder)
    lib.ggml_get_name.argtypes, lib.ggml_get_name.restype = [ctypes.c_void_p], ctypes.c_char_p
    lib.ggml_nbytes.argtypes, lib.ggml_nbytes.restype = [ctypes.c_void_p], ctypes.c_size_t
    lib.ggml_backend_tensor_get.argtypes = [
        ctypes.c_void_p,
        ctypes.c_void_p,
        ctypes.c_size_t,
        ctypes.c_size_t,
    ]
    lib.ggml_backend_tensor_get.restype = None
    return lib


# The library's last complaints, for the messages of our own errors. It logs from any thread.
_complaints: deque[tuple[int, str]] = deque(maxlen=32)
_lock = threading.Lock()
_callbacks: list[Any] = []  # a ctypes callback must outlive the library's use of it


def _capture_log(c: Any) -> None:
    def log(level: int, text: bytes, _: Any) -> None:
        if _heard and level == 2:  # GGML_LOG_LEVEL_INFO
            _heard[-1].append(text.decode("utf-8", "replace").strip())
        if level >= 3:  # GGML_LOG_LEVEL_WARN
            with _lock:
                _complaints.append((level, text.decode("utf-8", "replace").strip()))

    _callbacks.append(c.llama_log_callback(log))
    c.llama_log_set(_callbacks[-1], None)


_heard: list[list[str]] = []


@contextlib.contextmanager
def heard() -> Iterator[list[str]]:
    """The lines of information that the library logs inside the block, whatever thread makes it do so."""
    lines: list[str] = []
    _heard.append(lines)
    try:
        yield lines
    finally:
        _heard.remove(lines)


def last_complaint() -> str:
    """The library's first error since the previous call, else its last warning, or an empty string.

    The first error is the cause; those behind it only say that loading has failed. It is one line, however many the
    library made of it, without a full stop.
    """
    with _lock:
        texts = [text for level, text in _complaints if level == 4] or [text for _, text in _complaints][-1:]  # ERROR
        _complaints.clear()
    return " ".join(texts[0].split()).rstrip(".") if texts else ""
