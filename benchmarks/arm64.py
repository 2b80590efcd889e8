"""The runtime on arm64, where there is no such machine: this checkout under qemu, beside the same on this processor.

    python -m benchmarks.arm64 --work FOLDER --engine FOLDER [--cpu cortex-a76 ...] [--types f16 q8_0 q4_0]

The engine is a build for arm64, made here by the cross compiler: ``cmake --preset rpi5``, ``cmake --build --preset
rpi5``, then ``build/rpi5/bin``. In ``--work`` grows a root of Debian's arm64 packages with Python, which are
downloaded with apt's own resolver and unpacked, so neither privileges nor a change of this system are needed; beside it
the wheels that edge-embed needs. Everything in the child is arm64 code: Python, NumPy, tokenizers, llama.cpp.

Needs on this machine ``qemu-aarch64-static`` (Debian's qemu-user-static) and apt. all-MiniLM-L6-v2 is converted to each
type, and the vectors of the golden texts are compared. The exit code is 1 where a cosine is below its limit.
``--cpu`` is qemu's name of a processor: a Cortex-A72 has no dot products, and a build that uses them (``rpi5``) ends
there by an illegal instruction, which the table says. ``cpu-arm64`` has variants; the line below says which was loaded.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from importlib.metadata import requires
from pathlib import Path
from typing import Any, Final

import numpy as np
from packaging.requirements import Requirement

from benchmarks.machine import machine_line
from edge_embed import Embedder
from edge_embed.convert import convert
from tests.golden_texts import TEXTS
from tests.oracle import minilm_folder, package_folder

LIMITS: Final = {"f32": 0.9999, "f16": 0.9999, "bf16": 0.9999, "q8_0": 0.999, "q4_0": 0.999}
"""Lowest cosine of a text's two vectors, by the type of the weights."""
PACKAGES: Final = ("python3.11-minimal", "libpython3.11-stdlib", "libgomp1", "libstdc++6")
PYTHON: Final = "3.11"  # Debian 12's
PLATFORMS: Final = (
    "manylinux_2_34_aarch64",
    "manylinux_2_28_aarch64",
    "manylinux_2_17_aarch64",
    "manylinux2014_aarch64",
)
CHECKOUT: Final = Path(__file__).resolve().parent.parent

# What runs under emulation: one model after another, as the shell and Python users run it.
CHILD: Final = """
import json, platform, sys, time
import numpy as np
from edge_embed import Embedder
from edge_embed.engine import bindings
done = {}
for name, path in json.loads(sys.argv[1]).items():
    started = time.perf_counter()
    with Embedder(path, n_threads=1) as model:
        np.save(sys.argv[2] + "/" + name + ".npy", model.encode(json.loads(sys.argv[3])))
    done[name] = time.perf_counter() - started
lib = bindings.load()
maps = open("/proc/self/maps").read().split()
parts = sorted({one.rpartition("/")[2] for one in maps if "libggml-cpu" in one})
told = lib.c.llama_print_system_info().decode()
print(json.dumps({"machine": platform.machine(), "seconds": done, "parts": parts, "told": told}))
"""


def main() -> int:
    """Make the root, run, compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="a folder that is filled, and used again")
    parser.add_argument("--engine", type=Path, required=True, help="a build's bin folder")
    parser.add_argument("--cpu", nargs="+", default=["cortex-a76"], help="as `qemu-aarch64-static -cpu help` has it")
    parser.add_argument("--texts", type=int, default=16, help="so many of the golden texts")
    parser.add_argument("--types", nargs="+", default=["f16", "q8_0", "q4_0"], choices=sorted(LIMITS))
    options = parser.parse_args()
    work = options.work.resolve()
    python = make_root(work)
    engine = installed(work, options.engine)
    texts = list(TEXTS)[: options.texts]
    models = {ftype: str(model(work, ftype)) for ftype in options.types}
    here = {name: vectors(path, texts) for name, path in models.items()}
    print(f"{machine_line()}\n{options.engine}, {len(texts)} texts\n")
    print("| processor | type | min cosine | mean cosine | seconds | |\n|---|---|---|---|---|---|", flush=True)
    good = True
    for cpu in options.cpu:
        found, why = run(python, engine, cpu, models, texts, work)
        if found is None:
            print(f"| {cpu} | | | | | {why} |", flush=True)
            good = False
            continue
        for name, expected in here.items():
            cosines = (expected * np.load(work / "out" / f"{name}.npy")).sum(axis=1, dtype=np.float64)
            verdict = "" if cosines.min() >= LIMITS[name] else f"below {LIMITS[name]}"
            good &= not verdict
            print(
                f"| {cpu} | {name} | {cosines.min():.6f} | {cosines.mean():.6f} | {found['seconds'][name]:.0f} | "
                f"{verdict} |",
                flush=True,
            )
        print(f"\n{found['machine']}, {', '.join(found['parts'])}: {' '.join(found['told'].split())}\n", flush=True)
    return 0 if good else 1


def model(work: Path, ftype: str) -> Path:
    """all-MiniLM-L6-v2 in a type."""
    path = work / f"minilm-{ftype}.gguf"
    if not path.exists():
        convert(minilm_folder(), path, ftype=ftype, verify=False)
    return path


def installed(work: Path, made: Path) -> Path:
    """A copy of the build, as ``edge-embed engine add`` makes it."""
    environment = {**os.environ, "EDGE_EMBED_HOME": str(work / "home")}
    command = [Path(sys.executable).with_name("edge-embed"), "engine", "add", made, "--name", "emulated"]
    subprocess.run(command, env=environment, check=True)
    return work / "home" / "engines" / "emulated"


def vectors(path: str, texts: list[str]) -> Any:
    """Of texts on this processor, float32 ``[n, d]``."""
    with Embedder(path) as embedder:
        return embedder.encode(texts)


def run(
    python: Path, engine: Path, cpu: str, models: dict[str, str], texts: list[str], work: Path
) -> tuple[dict[str, Any] | None, str]:
    """What the child says, or None and why it ended."""
    (work / "out").mkdir(exist_ok=True)
    environment = {
        "PATH": os.environ["PATH"],
        "HOME": str(work / "home"),
        "QEMU_CPU": cpu,
        "EDGE_EMBED_ENGINE": str(engine),
        "PYTHONPATH": os.pathsep.join(map(str, (CHECKOUT, work / "site"))),
        "PYTHONDONTWRITEBYTECODE": "1",
    }
    started = time.monotonic()
    command = [str(python), "-c", CHILD, json.dumps(models), str(work / "out"), json.dumps(texts)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    print(f"{cpu}: {time.monotonic() - started:.0f} s", file=sys.stderr, flush=True)
    if done.returncode:
        last = [line for line in done.stderr.splitlines() if line.strip()][-1:]
        return None, f"ended with code {done.returncode}: {''.join(last)[:200]}"
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found, ""


# ---------------------------------------------------------------- a root of arm64 programs


def make_root(work: Path) -> Path:
    """Python for arm64 with what edge-embed needs, as a program that this machine can run."""
    qemu = shutil.which("qemu-aarch64-static")
    if qemu is None:
        raise SystemExit("qemu-aarch64-static is missing: apt install qemu-user-static")
    program = work / "python-arm64"
    if not program.exists():
        work.mkdir(parents=True, exist_ok=True)
        _unpack_debian(work)
        _install_wheels(work / "site")
        # Python starts its children by the name that it was started by, so that name is this program's.
        program.write_text(
            f"#!/bin/sh\nPYTHONHOME={work}/root/usr exec {qemu} -L {work}/root -0 {program} "
            f'{work}/root/usr/bin/python{PYTHON} "$@"\n'
        )
        program.chmod(0o755)
    return program


def _unpack_debian(work: Path) -> None:
    """Packages of this machine's Debian for arm64, chosen and checked by apt, in folders of its own."""
    state, archives, root = work / "apt", work / "apt" / "archives", work / "root"
    for folder in (state / "lists" / "partial", archives / "partial", root):
        folder.mkdir(parents=True, exist_ok=True)
    (state / "status").touch()
    settings = {
        "APT::Architecture": "arm64",
        "APT::Architectures": "arm64",
        "Dir::State": state,
        "Dir::State::lists": state / "lists",
        "Dir::State::status": state / "status",
        "Dir::Cache": state,
        "Dir::Cache::archives": archives,
        "Debug::NoLocking": "1",
        "APT::Sandbox::User": "",
    }
    apt = ["apt-get", "-q", "-y", *(f"-o{name}={value}" for name, value in settings.items())]
    subprocess.run([*apt, "update"], check=True, stdout=sys.stderr)
    install = ["install", "--download-only", "--no-install-recommends", *PACKAGES]
    subprocess.run([*apt, *install], check=True, stdout=sys.stderr)
    for package in sorted(archives.glob("*.deb")):
        subprocess.run(["dpkg-deb", "-x", package, root], check=True)


def _install_wheels(site: Path) -> None:
    """What edge-embed and llama-cpp-python need, for arm64; of the latter its Python files, without a library."""
    wanted = {
        str(Requirement(text)).split(";")[0].strip()
        for package in ("edge-embed", "llama-cpp-python")
        for text in requires(package) or ()
        if Requirement(text).name != "llama-cpp-python" and _is_needed(Requirement(text))
    }
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "install", "--no-compile", "--target", str(site)]
    platforms = [f"--platform={platform}" for platform in PLATFORMS]
    subprocess.run(
        [*pip, *platforms, "--only-binary=:all:", f"--python-version={PYTHON}", *sorted(wanted)],
        check=True,
        stdout=sys.stderr,
    )
    ignored = shutil.ignore_patterns("lib", "*.so", "__pycache__")
    shutil.copytree(package_folder("llama_cpp"), site / "llama_cpp", ignore=ignored)


def _is_needed(requirement: Requirement) -> bool:
    return requirement.marker is None or requirement.marker.evaluate({"python_version": PYTHON, "extra": ""})


if __name__ == "__main__":
    sys.exit(main())
