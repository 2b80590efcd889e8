"""The low-memory mode: the same vectors, weights that stay the file's pages, and a plan that knows."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path

import numpy as np
import pytest

from edge_embed import Embedder, catalogue, planning
from edge_embed.engine import bindings
from edge_embed.engine.llama import LlamaEngine
from edge_embed.engine.memory_model import MIB, kv_bytes, output_bytes
from edge_embed.engine.plan import Room, make_plan, repacked_share
from edge_embed.engine.shape import ROW, context_shape, has_memory, shares_prefixes, sizes
from edge_embed.gguf_header import read_header
from edge_embed.model_info import read_model_info
from edge_embed.types import ModelInfo
from tests.commands import COMMAND, run

GB = 10**9
BUNDLED = catalogue.resolve(None)
TEXTS = ["a text", "another text, and a longer one: " + "word " * 400, "a third", *(f"number {i}" for i in range(30))]


def info_of(path: Path) -> ModelInfo:
    return read_model_info(read_header(path))


def buffers(info: ModelInfo, *, low_memory: bool) -> dict[str, list[tuple[str, float]]]:
    """Kind of buffer -> where and how large in MiB, as the library says when it loads."""
    with bindings.heard() as lines:
        engine = LlamaEngine(info, n_threads=2, device="cpu", low_memory=low_memory)
        engine.close()
    found: dict[str, list[tuple[str, float]]] = {"model": [], "KV": [], "output": []}
    for line in lines:
        match = re.search(r"(\S+) +(model|KV|output) buffer size = +([0-9.]+) MiB", line)
        if match:
            found[match[2]].append((match[1], float(match[3])))
    return found


@pytest.mark.parametrize("model", ["bundled", "qwen3"])
def test_the_vectors_are_the_same(model: str, qwen3_path: Path) -> None:
    """In other batches and by other kernels: the last digits may differ."""
    path = BUNDLED if model == "bundled" else qwen3_path
    with Embedder(path, n_threads=2) as usual, Embedder(path, n_threads=2, low_memory=True) as small:
        expected, found = usual.encode(TEXTS), small.encode(TEXTS)
        limits = small.backend.engine.limits
    assert (limits.lanes, limits.n_seq_max, limits.n_batch, limits.shares_prefixes) == (1, 8, ROW, False)
    assert np.sum(expected * found, axis=1).min() > 0.999


def test_weights_stay_the_files_pages(qwen3_path: Path) -> None:
    for path in (BUNDLED, qwen3_path):
        kinds = {where for where, _ in buffers(info_of(path), low_memory=True)["model"]}
        assert kinds <= {"CPU", "CPU_Mapped"}


def test_the_plan_is_what_the_engine_makes(qwen3_path: Path) -> None:
    info = info_of(qwen3_path)
    assert info.shape is not None
    usual = sizes(info, low_memory=True)
    context = context_shape(
        info, n_tokens=usual.n_batch, n_seq_max=usual.n_seq_max, n_ubatch=usual.n_ubatch, hidden=True, share=usual.share
    )
    found = buffers(info, low_memory=True)
    assert found["KV"] == [("CPU", pytest.approx(kv_bytes(info.shape, context.n_ctx, "f16") / MIB, abs=0.01))]
    assert found["output"] == [("CPU", pytest.approx(output_bytes(info.shape, context) / MIB, abs=0.01))]
    plan = make_plan(info, Room(4 * GB), low_memory=True)
    assert (plan.n_ctx, plan.n_batch, plan.n_ubatch) == (context.n_ctx, ROW, ROW // 2)


def test_nothing_is_kept_for_beginnings_that_are_not_shared(qwen3_path: Path) -> None:
    info = info_of(qwen3_path)
    assert shares_prefixes(info, hidden=has_memory(info))
    with_room = context_shape(info, n_tokens=256, n_seq_max=8, hidden=True)
    without = context_shape(info, n_tokens=256, n_seq_max=8, hidden=True, share=False)
    assert (without.n_ctx, without.n_kept) == (256, 0)
    assert with_room.n_ctx == 256 + with_room.n_kept > 256


def test_a_plan_for_a_board_is_smaller_and_copies_nothing() -> None:
    entry = catalogue.find("qwen3-embedding-0.6b")
    assert entry is not None
    info = planning.known_model(entry, "q4_k_m")
    usual = make_plan(info, Room(2 * GB), repacked=1.0)
    small = make_plan(info, Room(2 * GB), repacked=1.0, low_memory=True)
    assert small.total < usual.total - 100 * 10**6
    # All that is left of the weights are pages that the system may drop; of the usual plan's, the embeddings' alone.
    assert small.reclaimable == small.host.weights
    assert usual.reclaimable < usual.host.weights // 5
    assert make_plan(info, Room(700 * 10**6), low_memory=True).max_tokens >= 256


def test_an_encoders_plan_has_one_lane() -> None:
    info = info_of(BUNDLED)
    assert info.shape is not None
    share = repacked_share(info.shape)
    usual = make_plan(info, Room(2 * GB), repacked=share)
    small = make_plan(info, Room(2 * GB), repacked=share, low_memory=True)
    assert small.total <= usual.total
    assert small.reclaimable >= usual.reclaimable


def test_the_commands_take_it() -> None:
    done = run(
        "plan", "qwen3-embedding-0.6b", "--type", "q4_k_m", "--ram", "700MB", "--vram", "0", "--low-memory", "--json"
    )
    assert done.exit_code == 0, done.stderr
    found = json.loads(done.stdout)
    assert (found["n_batch"], found["n_ubatch"]) == (256, 128)
    refused = run("plan", "qwen3-embedding-0.6b", "--type", "q8_0", "--ram", "500MB", "--vram", "0")
    assert refused.exit_code == 5
    assert "--low-memory" in refused.stderr
    done = run("embed", "--low-memory", "--device", "cpu", "--gpu-layers", "auto", "-d", "2", "a text")
    assert (done.exit_code, done.stderr) == (0, "")
    wrong = run("embed", "--device", "cuda:7", "a text")
    assert wrong.exit_code == 2
    assert "only cpu" in wrong.stderr
    # In a process of its own: the tests make errors of warnings, the command notes.
    command = [*COMMAND, "embed", "--device", "cuda:7,cpu", "-d", "2", "a text"]
    said = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert said.returncode == 0
    assert "note: there is no cuda:7 here, only cpu: the CPU computes the model" in said.stderr
