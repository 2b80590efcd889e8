"""One ``edge-embed convert`` beside llama.cpp's two steps: wall time, peak memory and size of what lies between.

    python -m benchmarks.convert_speed --size 4b --work FOLDER --llama-cpp DIR --peer-python PYTHON

``--llama-cpp`` is a source tree of llama.cpp (the source archive of llama-cpp-python has one under ``vendor``), and
``--peer-python`` an interpreter with torch and transformers, which its ``convert_hf_to_gguf.py`` needs. Its quantizer
is called through llama-cpp-python. Without these two only edge-embed is measured.

The checkpoint has the published shapes of Qwen3-Embedding and random weights in bfloat16; it is written to FOLDER (8 GB
for 4B, and as much again for llama.cpp's intermediate file) and removed in the end. Every step is a process of its own.
Peak memory is what the system reports for it (``ru_maxrss``): pages of mapped files count, the page cache does not.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
GB = 1e9


@dataclass(frozen=True)
class Shape:
    """A model of the family, as its config.json has it."""

    hidden: int
    layers: int
    heads: int
    ff: int
    rows: int
    shards: int


# Source: config.json of Qwen/Qwen3-Embedding-0.6B, -4B and -8B; all have 8 key/value heads of 128.
SHAPES = {
    "0.6b": Shape(1024, 28, 16, 3072, 151669, 1),
    "4b": Shape(2560, 36, 32, 9728, 151665, 2),
    "8b": Shape(4096, 36, 32, 12288, 151665, 4),
}
KV_HEADS, HEAD_DIM = 8, 128


def main() -> None:
    """Build, measure, print a table, remove."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=SHAPES, default="0.6b")
    parser.add_argument("--work", type=Path, required=True, help="a folder with room for all of it")
    parser.add_argument("--type", default="q4_k_m")
    parser.add_argument("--runs", type=int, default=1, help="how often each is run, in turn")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--llama-cpp", type=Path)
    parser.add_argument("--peer-python")
    parser.add_argument("--keep", action="store_true", help="leave the checkpoint, for another run")
    parser.add_argument("--build", metavar="FOLDER", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.build:
        build(arguments.build, SHAPES[arguments.size])
        return
    folder = arguments.work / f"Qwen3-Embedding-{arguments.size.upper()}"
    try:
        if not folder.exists():
            # In a child: the peak of this process would count as that of every process it starts.
            again = [sys.executable, "-m", "benchmarks.convert_speed", "--size", arguments.size, "--work", "."]
            subprocess.run([*again, "--build", folder], check=True, cwd=ROOT)
        compare(folder, arguments)
    finally:
        if not arguments.keep:
            shutil.rmtree(folder, ignore_errors=True)


def compare(folder: Path, arguments: argparse.Namespace) -> None:
    """Run ours and theirs in turn and print a line for each."""
    work, threads = arguments.work, str(arguments.threads)
    ours, between, theirs = (work / f"{name}.gguf" for name in ("ours", "between", "theirs"))
    edge_embed = Path(sys.executable).with_name("edge-embed")
    convert = [edge_embed, "convert", folder, "-o", ours, "--type", arguments.type, "--threads", threads, "--no-verify"]
    print("| run | step | wall s | CPU s | peak MB | file GB |\n|---|---|---|---|---|---|", flush=True)
    try:
        for run in range(1, arguments.runs + 1):
            own = measured(convert)
            report(run, "edge-embed convert", own, ours)
            if not arguments.llama_cpp or not arguments.peer_python:
                continue
            script = arguments.llama_cpp / "convert_hf_to_gguf.py"
            first = measured([arguments.peer_python, script, folder, "--outtype", "bf16", "--outfile", between])
            report(run, "convert_hf_to_gguf.py", first, between)
            quantizer = f"{threads}, {str(between)!r}, {str(theirs)!r}, {arguments.type!r}"
            second = measured([sys.executable, "-c", f"{QUANTIZE}\nquantize({quantizer})"])
            report(run, "llama_model_quantize", second, theirs)
            wall, cpu, peak = first[0] + second[0], first[1] + second[1], max(first[2], second[2])
            print(
                f"| {run} | both | {wall:.1f} ({wall / own[0]:.2f} times edge-embed) | "
                f"{cpu:.1f} ({cpu / own[1]:.2f} times) | {peak:.0f} | |",
                flush=True,
            )
        loads(edge_embed, ours)
    finally:
        for path in (ours, between, theirs):
            path.unlink(missing_ok=True)


def measured(command: list[object]) -> tuple[float, float, float]:
    """Wall seconds, CPU seconds and peak megabytes of a process; an error where it fails."""
    started = time.perf_counter()
    process = subprocess.Popen([str(part) for part in command], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    assert process.stderr is not None
    complaints = process.stderr.read()
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    seconds = time.perf_counter() - started
    if process.returncode:
        sys.exit(f"{command[0]} failed: {complaints.decode(errors='replace')[-2000:]}")
    return seconds, usage.ru_utime + usage.ru_stime, usage.ru_maxrss * 1024 / 1e6


def report(run: int, step: str, figures: tuple[float, float, float], file: Path) -> None:
    """A line of the table."""
    wall, cpu, peak = figures
    print(f"| {run} | {step} | {wall:.1f} | {cpu:.1f} | {peak:.0f} | {file.stat().st_size / GB:.2f} |", flush=True)


def loads(edge_embed: Path, model: Path) -> None:
    """The result gives a vector."""
    done = subprocess.run(
        [edge_embed, "embed", "a text", "-m", model], capture_output=True, text=True, check=True, cwd=model.parent
    )
    print(f"\nit loads: a vector of {len(json.loads(done.stdout)[0])} values")


QUANTIZE = """
def quantize(threads, source, target, kind):
    import ctypes, sys
    from llama_cpp import llama_cpp as c
    callback = c.llama_log_callback(lambda *_: None)
    c.llama_log_set(callback, None)
    params = c.llama_model_quantize_default_params()
    params.nthread = threads
    params.ftype = getattr(c, "LLAMA_FTYPE_MOSTLY_" + kind.upper())
    sys.exit(c.llama_model_quantize(source.encode(), target.encode(), ctypes.byref(params)))
"""


# ---------------------------------------------------------------- the checkpoint


def tensors(shape: Shape) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Names and shapes in the order of the published files."""
    yield "embed_tokens.weight", (shape.rows, shape.hidden)
    q, kv = shape.heads * HEAD_DIM, KV_HEADS * HEAD_DIM
    for i in range(shape.layers):
        layer = f"layers.{i}."
        yield layer + "input_layernorm.weight", (shape.hidden,)
        yield layer + "mlp.down_proj.weight", (shape.hidden, shape.ff)
        yield layer + "mlp.gate_proj.weight", (shape.ff, shape.hidden)
        yield layer + "mlp.up_proj.weight", (shape.ff, shape.hidden)
        yield layer + "post_attention_layernorm.weight", (shape.hidden,)
        yield layer + "self_attn.k_norm.weight", (HEAD_DIM,)
        yield layer + "self_attn.k_proj.weight", (kv, shape.hidden)
        yield layer + "self_attn.o_proj.weight", (shape.hidden, q)
        yield layer + "self_attn.q_norm.weight", (HEAD_DIM,)
        yield layer + "self_attn.q_proj.weight", (q, shape.hidden)
        yield layer + "self_attn.v_proj.weight", (kv, shape.hidden)
    yield "norm.weight", (shape.hidden,)


def build(folder: Path, shape: Shape) -> None:
    """Write the checkpoint, a tensor at a time."""
    import numpy as np

    sys.path.insert(0, str(ROOT))
    from tests.checkpoints import build_tiny_qwen3

    folder.mkdir(parents=True)
    build_tiny_qwen3(folder, dtype="bf16")  # the real tokenizer and the files of sentence-transformers
    (folder / "model.safetensors").unlink()
    config = json.loads((folder / "config.json").read_text())
    config |= {
        "hidden_size": shape.hidden, "num_hidden_layers": shape.layers, "num_attention_heads": shape.heads,
        "num_key_value_heads": KV_HEADS, "head_dim": HEAD_DIM, "intermediate_size": shape.ff, "vocab_size": shape.rows,
        "max_position_embeddings": 40960, "max_window_layers": shape.layers, "architectures": ["Qwen3ForCausalLM"],
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config, indent=1))
    pooling = json.loads((folder / "1_Pooling" / "config.json").read_text())
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(pooling | {"word_embedding_dimension": shape.hidden}))
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    tokenizer["added_tokens"] = [token for token in tokenizer["added_tokens"] if token["id"] < shape.rows]
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer, ensure_ascii=False))

    listed = list(tensors(shape))
    n_values = sum(int(np.prod(size)) for _, size in listed)
    files: list[list[tuple[str, tuple[int, ...]]]] = [[] for _ in range(shape.shards)]
    done = 0
    for name, size in listed:
        files[min(done * shape.shards // n_values, shape.shards - 1)].append((name, size))
        done += int(np.prod(size))
    random = np.random.Generator(np.random.PCG64(0))
    weight_map = {}
    for number, part in enumerate(files, start=1):
        file = f"model-{number:05d}-of-{len(files):05d}.safetensors" if len(files) > 1 else "model.safetensors"
        weight_map |= {name: file for name, _ in part}
        header, offset = {}, 0
        for name, size in part:
            end = offset + 2 * int(np.prod(size))
            header[name] = {"dtype": "BF16", "shape": list(size), "data_offsets": [offset, end]}
            offset = end
        encoded = json.dumps(header).encode()
        with (folder / file).open("wb") as out:
            out.write(len(encoded).to_bytes(8, "little") + encoded)
            for _, size in part:
                left, norm = int(np.prod(size)), len(size) == 1
                while left:
                    values = random.standard_normal(min(left, 2**22), dtype=np.float32)
                    values = 1 + values * 0.05 if norm else values * np.float32(0.02)
                    (values.view(np.uint32) >> 16).astype("<u2").tofile(out)
                    left -= len(values)
    if len(files) > 1:
        index = {"metadata": {"total_size": 2 * n_values}, "weight_map": weight_map}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index))


if __name__ == "__main__":
    main()
