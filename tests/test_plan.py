"""The memory planner: its sums beside the library's own, what it chooses, what it refuses, and that loading asks it."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result
from hypothesis import given
from hypothesis import strategies as st

from edge_embed import Embedder, catalogue, planning
from edge_embed.cli.app import main
from edge_embed.engine import bindings, devices, fits, simulate
from edge_embed.engine.devices import Gpu, Memory
from edge_embed.engine.fits import check_fits
from edge_embed.engine.llama import LlamaEngine
from edge_embed.engine.memory_model import (
    DEVICES,
    MIB,
    cpu_compute_bytes,
    gpu_need,
    graph_bytes,
    host_need,
    kv_bytes,
    output_bytes,
)
from edge_embed.engine.placement import layers_that_fit
from edge_embed.engine.plan import MemoryPlan, Room, make_plan, repacked_share
from edge_embed.engine.shape import SEQ_MAX, ContextShape, context_shape, has_memory
from edge_embed.errors import EngineMemoryError, InvalidOptionError
from edge_embed.gguf_header import read_header
from edge_embed.model_info import read_model_info
from edge_embed.model_shape import ModelShape
from edge_embed.types import ModelInfo
from tests.tiny_gguf import bpe_metadata, gguf_bytes, tiny_bert, tiny_decoder

GB = 10**9
BUNDLED = catalogue.resolve(None)


def info_of(path: Path) -> ModelInfo:
    return read_model_info(read_header(path))


def shape_of(info: ModelInfo) -> ModelShape:
    assert info.shape is not None
    return info.shape


def known(name: str, ftype: str) -> ModelInfo:
    """A model of the catalogue, as it is planned before it is here."""
    entry = catalogue.find(name)
    assert entry is not None
    return planning.known_model(entry, ftype)


def context_of(info: ModelInfo, n_tokens: int, **options: int) -> ContextShape:
    return context_shape(info, n_tokens=n_tokens, n_seq_max=SEQ_MAX, hidden=has_memory(info), **options)


FOUR_B = known("qwen3-embedding-4b", "q4_k_m")
SMALL = known("qwen3-embedding-0.6b", "q8_0")


# What the shapes are read from


@pytest.mark.parametrize("name", [e.name for e in catalogue.entries() if e.published is not None])
def test_published_numbers_give_the_published_count_of_weights(name: str) -> None:
    """A slip in one of a model's eight numbers would change the sum."""
    entry = catalogue.find(name)
    assert entry is not None
    assert entry.published is not None
    assert entry.published.parameters == entry.parameters
    assert entry.published.hidden == entry.dimensions


def test_qwen3_is_planned_before_it_is_here() -> None:
    names = [entry.name for entry in catalogue.entries() if entry.architecture == "qwen3"]
    assert len(names) == 6
    assert [catalogue.find(name).published is None for name in names] == [False] * 6  # type: ignore[union-attr]


@pytest.mark.parametrize("fixture", ["bert_path", "qwen3_path"])
def test_every_tensor_has_one_place(fixture: str, request: pytest.FixtureRequest) -> None:
    header = read_header(request.getfixturevalue(fixture))
    shape = shape_of(read_model_info(header))
    assert shape.weights_bytes == sum(tensor.n_bytes for tensor in header.tensors.values())
    assert len(shape.layer_bytes) == shape.n_layer
    assert min(shape.layer_bytes) > 0
    assert shape.tied == (fixture == "qwen3_path")


# The sums beside the library's


def wide_decoder(folder: Path, architecture: str, hidden: int, n_ff: int) -> Path:
    path = folder / f"{architecture}-{hidden}-{n_ff}.gguf"
    path.write_bytes(gguf_bytes(*tiny_decoder(architecture, hidden=hidden, n_ff=n_ff, n_ctx=4096)))
    return path


@pytest.mark.parametrize(
    ("architecture", "hidden", "n_ff", "n_tokens", "n_ubatch"),
    [("qwen3", 512, 1024, 512, 512), ("qwen3", 64, 2048, 2048, 512),
     ("qwen3", 512, 1024, 2048, 128), ("llama", 512, 1024, 512, 512)],
)  # fmt: skip
def test_a_decoders_intermediate_results_are_what_llama_cpp_lays_out(
    architecture: str, hidden: int, n_ff: int, n_tokens: int, n_ubatch: int, tmp_path: Path
) -> None:
    info = info_of(wide_decoder(tmp_path, architecture, hidden, n_ff))
    context = context_of(info, n_tokens, n_ubatch=n_ubatch)
    expected = simulate.used(info, context)
    assert expected > MIB
    assert graph_bytes(shape_of(info), context, cached=True) == pytest.approx(expected, rel=0.02)


@pytest.mark.parametrize(("hidden", "n_ff"), [(256, 64), (256, 1024), (64, 2048)])
def test_an_encoders_intermediate_results_are_what_llama_cpp_lays_out(hidden: int, n_ff: int, tmp_path: Path) -> None:
    path = tmp_path / "bert.gguf"
    path.write_bytes(gguf_bytes(*tiny_bert(hidden=hidden, n_ff=n_ff, n_ctx=512)))
    info = info_of(path)
    context = context_of(info, 512)
    predicted = graph_bytes(shape_of(info), context, cached=False) / simulate.used(info, context)
    assert 0.99 < predicted < 1.17


def test_keys_results_and_copies_are_what_llama_cpp_allocates(qwen3_path: Path) -> None:
    """All of it is in the library's log when it really loads."""
    for path in (qwen3_path, BUNDLED):
        info = info_of(path)
        with bindings.heard() as lines:
            engine = LlamaEngine(info, n_batch=256, gpu_layers=0)
            engine.close()
        found: dict[str, list[tuple[str, float]]] = {"model": [], "KV": [], "output": []}
        for line in lines:
            match = re.search(r"(\S+) +(model|KV|output) buffer size = +([0-9.]+) MiB", line)
            if match:
                found[match[2]].append((match[1], float(match[3])))
        shape, context = shape_of(info), context_of(info, 256)
        copies = [mib for kind, mib in found["model"] if kind not in ("CPU", "CPU_Mapped")]
        share = repacked_share(shape) * sum(shape.layer_bytes) / MIB
        assert sum(copies) == pytest.approx(share, abs=0.02)
        if has_memory(info):
            assert found["KV"] == [("CPU", pytest.approx(kv_bytes(shape, context.n_ctx, "f16") / MIB, abs=0.01))]
        # A new context has room for a result of each sequence; encoders then make it as long as the batch.
        first = replace(context, n_outputs_max=context.n_seq_max)
        assert found["output"] == [("CPU", pytest.approx(output_bytes(shape, first) / MIB, abs=0.01))]


def test_q8_0_keys_take_what_their_blocks_take() -> None:
    shape = shape_of(SMALL)
    assert kv_bytes(shape, 1024, "q8_0") * 32 == kv_bytes(shape, 1024, "f16") * 17
    assert kv_bytes(shape, 1024, "f16") == 1024 * 28 * 2 * 1024 * 2  # cells, layers, keys and values, 8 x 128, bytes
    assert kv_bytes(shape, 1, "f16") == kv_bytes(shape, 256, "f16")


def test_the_peak_of_a_process_is_near_the_prediction() -> None:
    """benchmarks/memory.py has the table. Here are other Pythons and other kernels: a fifth either way."""
    child = (
        "import sys\nfrom edge_embed import Embedder\nfrom edge_embed.engine.devices import peak_rss_bytes\n"
        "with Embedder(gpu_layers=0) as e:\n"
        "    e.encode([f'the {i}th of some short texts that fill more than one batch' for i in range(99)])\n"
        "    print(peak_rss_bytes())"
    )
    peak = int(subprocess.run([sys.executable, "-c", child], capture_output=True, text=True, check=True).stdout)
    info = info_of(BUNDLED)
    need = host_need(
        shape_of(info),
        context_of(info, 384),
        cached=False,
        repacked=repacked_share(shape_of(info)),
        n_tokens=384,
    )
    assert peak == pytest.approx(need.total, rel=0.2)


# What is chosen


@pytest.mark.parametrize("kind", ["CUDA", "Vulkan", "ROCm"])
def test_4b_in_q4_k_m_with_batches_of_2048_fits_into_4_gb_of_vram(kind: str) -> None:
    found = make_plan(FOUR_B, Room(16 * GB, 4 * GB, DEVICES[kind]), n_batch=2048)
    assert (found.device, found.gpu_layers) == (kind, 37)
    assert (found.n_batch, found.kv_type) == (2048, "f16")
    assert found.n_ctx >= 2048
    assert found.max_tokens >= 2048
    assert found.gpu.total <= 4 * GB
    assert not found.notes


def test_4b_in_q4_k_m_with_batches_of_2048_fits_into_4_gb_of_ram() -> None:
    for room in (Room(4 * GB), Room(4 * GB, 4 * GB, DEVICES["Metal"])):
        found = make_plan(FOUR_B, room, n_batch=2048)
        assert (found.n_batch, found.n_ubatch, found.kv_type) == (2048, 512, "f16")
        assert found.n_ctx >= 2048
        shared = found.gpu.total if room.device else 0
        assert found.host.firm + shared <= 4 * GB
        assert not found.notes
        if room.device is None:
            assert 2.1 * GB < found.weights_bytes < 2.5 * GB


def test_as_many_layers_as_fit_go_to_the_gpu() -> None:
    counts = []
    for vram in (0.5, 1, 1.5, 2, 3, 4, 8):
        room = Room(16 * GB, int(vram * GB), DEVICES["CUDA"])
        found = make_plan(FOUR_B, room)
        counts.append(found.gpu_layers)
        assert found.gpu.total <= room.vram
        if found.gpu_layers < 37:
            context = context_of(FOUR_B, 512)
            more = gpu_need(
                shape_of(FOUR_B), context, cached=True, gpu_layers=found.gpu_layers + 1, device=DEVICES["CUDA"]
            )
            assert more.total > room.vram
    assert counts == sorted(counts)
    assert counts[0] == 0
    assert counts[-1] == 37
    assert len(set(counts)) >= 5


def test_a_gpu_takes_weights_off_main_memory() -> None:
    whole = make_plan(FOUR_B, Room(16 * GB))
    some = make_plan(FOUR_B, Room(16 * GB, 2 * GB, DEVICES["CUDA"]))
    most = make_plan(FOUR_B, Room(16 * GB, 8 * GB, DEVICES["CUDA"]))
    assert whole.host.firm > some.host.firm > most.host.firm
    assert most.host.kv == 0
    assert most.gpu.kv == whole.host.kv
    assert some.host.kv + some.gpu.kv == whole.host.kv


def test_first_batches_become_smaller_then_keys_become_q8_0() -> None:
    roomy = make_plan(SMALL, Room(16 * GB), n_batch=4096)
    assert (roomy.n_batch, roomy.n_ubatch, roomy.kv_type, roomy.notes) == (4096, 512, "f16", ())
    ram, seen = roomy.host.firm, [roomy]
    while True:
        ram -= 4 * MIB
        try:
            found = make_plan(SMALL, Room(ram), n_batch=4096)
        except EngineMemoryError:
            break
        assert found.host.firm <= ram
        if (found.n_batch, found.n_ubatch, found.kv_type) != (seen[-1].n_batch, seen[-1].n_ubatch, seen[-1].kv_type):
            seen.append(found)
    f16 = [(p.n_batch, p.n_ubatch) for p in seen if p.kv_type == "f16"]
    q8_0 = [(p.n_batch, p.n_ubatch) for p in seen if p.kv_type == "q8_0"]
    assert [p.kv_type for p in seen] == ["f16"] * len(f16) + ["q8_0"] * len(q8_0)
    assert f16 == sorted(f16, reverse=True)
    assert (f16[0], f16[-1]) == ((4096, 512), (256, 128))
    assert len(f16) >= 4
    assert q8_0
    assert all(p.notes for p in seen[1:])


def test_q8_0_is_chosen_where_nothing_else_fits_and_said() -> None:
    needed = make_plan(SMALL, Room(None), max_tokens=16384).host.firm
    found = make_plan(SMALL, Room(needed - 500 * MIB), max_tokens=16384)
    assert found.kv_type == "q8_0"
    assert found.max_tokens >= 16384
    assert any("q8_0" in note and "16,384" in note for note in found.notes)
    with pytest.raises(EngineMemoryError):
        make_plan(SMALL, Room(needed - 500 * MIB), max_tokens=16384, kv_type="f16")
    assert make_plan(SMALL, Room(16 * GB), kv_type="q8_0").kv_type == "q8_0"


def test_an_encoder_has_no_keys_to_make_smaller() -> None:
    info = info_of(BUNDLED)
    assert make_plan(info, Room(GB)).kv_bytes == 0
    with pytest.raises(InvalidOptionError, match="q8_0"):
        make_plan(info, Room(GB), kv_type="q8_0")


def test_a_text_that_must_fit_is_held_in_the_context() -> None:
    found = make_plan(SMALL, Room(16 * GB), max_tokens=8192)
    assert found.n_ctx >= 8192
    assert found.n_batch == 512
    assert found.max_tokens >= 8192
    with pytest.raises(InvalidOptionError, match="40000"):
        make_plan(SMALL, Room(16 * GB), max_tokens=40000)


# What is refused


def test_a_refusal_says_what_is_needed_what_is_there_and_what_would_fit() -> None:
    with pytest.raises(EngineMemoryError) as caught:
        make_plan(FOUR_B, Room(4 * GB), max_tokens=32768)
    message, hint = caught.value.message, caught.value.hint
    assert "32,768" in message
    assert "4.00 GB available" in message
    needed = re.search(r"takes ([0-9.]+) GB of main memory", message)
    assert needed is not None
    assert float(needed[1]) > 4
    longest = int(re.search(r"max_tokens of ([0-9,]+)", hint)[1].replace(",", ""))  # type: ignore[index]
    assert 4096 < longest < 32768
    assert make_plan(FOUR_B, Room(4 * GB), max_tokens=longest).host.firm <= 4 * GB
    with pytest.raises(EngineMemoryError):
        make_plan(FOUR_B, Room(4 * GB), max_tokens=longest + 512)


def test_weights_that_are_larger_than_everything_are_refused() -> None:
    info, room = known("qwen3-embedding-8b", "q8_0"), Room(4 * GB, 4 * GB, DEVICES["CUDA"])
    with pytest.raises(EngineMemoryError, match=r"7\.41 GB weights"):
        make_plan(info, room)
    with pytest.raises(EngineMemoryError, match=r"GPU's memory \(4\.00 GB available\)") as caught:
        make_plan(info, room, gpu_layers=-1)
    assert "fewer gpu_layers" in caught.value.hint


@given(
    ram=st.integers(100 * 10**6, 12 * GB),
    vram=st.integers(0, 8 * GB),
    kind=st.sampled_from(sorted(DEVICES)),
    n_batch=st.sampled_from([None, 256, 2048, 8192]),
    max_tokens=st.sampled_from([None, 300, 5000, 32768]),
)
def test_a_plan_fits_or_is_refused(ram: int, vram: int, kind: str, n_batch: int | None, max_tokens: int | None) -> None:
    room = Room(ram, vram, DEVICES[kind] if vram else None)
    try:
        found = make_plan(FOUR_B, room, n_batch=n_batch, max_tokens=max_tokens)
    except EngineMemoryError:
        with pytest.raises(EngineMemoryError, match="available"):
            make_plan(FOUR_B, room, n_batch=128, max_tokens=max_tokens, kv_type="q8_0", gpu_layers=0)
        return
    assert found.gpu.total <= vram
    assert found.host.firm + (found.gpu.total if room.device and room.device.shares_memory else 0) <= ram
    assert found.max_tokens >= (max_tokens or 0)
    assert found.explain()
    again = make_plan(FOUR_B, room, n_batch=n_batch, max_tokens=found.max_tokens)
    assert again.max_tokens >= found.max_tokens


# At load


def test_a_context_that_does_not_fit_is_refused_with_the_length_that_does() -> None:
    context = context_of(SMALL, 32768)
    check_fits(SMALL, context, available=16 * GB)
    with pytest.raises(EngineMemoryError, match=r"33,280 tokens .* 1\.00 GB are available") as caught:
        check_fits(SMALL, context, available=GB, loaded=True)
    longest = int(caught.value.hint.split()[0].replace(",", ""))
    assert 1024 < longest < 32768
    check_fits(SMALL, context_of(SMALL, longest), available=GB, loaded=True)


def test_weights_count_until_they_are_loaded() -> None:
    context = context_of(SMALL, 512)
    check_fits(SMALL, context, available=400 * MIB, loaded=True)
    with pytest.raises(EngineMemoryError, match="weights"):
        check_fits(SMALL, context, available=400 * MIB)
    check_fits(SMALL, context, available=600 * MIB, gpu_layers=-1)


def test_what_is_not_known_is_not_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    context = context_of(SMALL, 32768)
    check_fits(replace(SMALL, shape=None), context, available=1)
    monkeypatch.setattr(devices, "memory", lambda: Memory(None, None))
    check_fits(SMALL, context)
    monkeypatch.setattr(devices, "memory", lambda: Memory(1, 1))
    monkeypatch.setenv(fits.NO_CHECK, "1")
    check_fits(SMALL, context)


def test_loading_refuses_before_the_library_reads_anything(monkeypatch: pytest.MonkeyPatch, qwen3_path: Path) -> None:
    monkeypatch.setattr(devices, "memory", lambda: Memory(32 * MIB, 32 * MIB))
    monkeypatch.setattr(bindings.load().c, "llama_model_load_from_file", lambda *_: pytest.fail("it was loaded"))
    with pytest.raises(EngineMemoryError, match="available"):
        LlamaEngine(info_of(qwen3_path))


def test_a_text_that_is_too_long_for_the_memory_leaves_the_engine_usable(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    path = wide_decoder(tmp_path, "qwen3", 64, 64)
    with Embedder(path, n_threads=1) as embedder:
        before = embedder.encode("a short text")
        monkeypatch.setattr(devices, "memory", lambda: Memory(MIB, MIB))
        with pytest.raises(EngineMemoryError, match=r"tokens would fit|even the smallest"):
            embedder.encode("word " * 3000)
        monkeypatch.undo()
        assert np.allclose(embedder.encode("a short text"), before, atol=1e-5)
        assert embedder.encode("word " * 3000).shape == before.shape


def fake_gpu(free: int, kind: str = "CUDA") -> Gpu:
    return Gpu("GPU0", "a card", kind, 2 * free, free, kind == "Metal")


@pytest.mark.parametrize(
    ("gpu", "expected"), [(fake_gpu(24 * GB), -1), (fake_gpu(100 * 10**6), 0), (fake_gpu(GB, "SOMETHING"), -1)]
)
def test_loading_asks_how_many_layers_fit(gpu: Gpu, expected: int) -> None:
    assert layers_that_fit(FOUR_B, context_of(FOUR_B, 512), [gpu]) == expected


def test_loading_takes_no_more_layers_than_all_gpus_hold_together() -> None:
    context = context_of(FOUR_B, 512)
    layers = layers_that_fit(FOUR_B, context, [fake_gpu(GB), fake_gpu(2 * GB)])
    assert 1 < layers < 37

    def need(count: int) -> int:
        return gpu_need(
            shape_of(FOUR_B), context, cached=True, gpu_layers=count, device=DEVICES["CUDA"], n_gpus=2
        ).total

    assert need(layers) <= 3 * GB < need(layers + 1)


# The command


def run(*arguments: str | Path) -> Result:
    return CliRunner().invoke(main, ["plan", *map(str, arguments)], prog_name="edge-embed")


def test_the_command_plans_the_bundled_model() -> None:
    done = run("--vram", "0")
    assert done.exit_code == 0, done.output
    assert "main memory" in done.stdout
    assert "256 tokens" in done.stdout
    assert "lays out" in done.stdout


def test_the_command_plans_a_known_model_that_is_not_here_for_hardware_that_is_not_here() -> None:
    name = ("qwen3-embedding-4b", "--type", "q4_k_m", "--batch-tokens", 2048)
    found = json.loads(run(*map(str, name), "--vram", "4GB", "--ram", "8GB", "--json").stdout)
    assert (found["device"], found["gpu_layers"], found["n_batch"]) == ("CUDA", 37, 2048)
    assert found["gpu_memory"]["total"] <= 4 * GB
    assert found["available_gpu_bytes"] == 4 * GB
    parts = ("weights", "kv", "compute", "output", "overhead")
    assert found["total_bytes"] == sum(found[f"{part}_bytes"] for part in parts)
    vulkan = json.loads(run(*map(str, name), "--vram", "4GB", "--backend", "vulkan", "--json").stdout)
    assert vulkan["device"] == "Vulkan"
    assert vulkan["gpu_memory"]["overhead"] < found["gpu_memory"]["overhead"]
    unnamed = run("qwen3-embedding-4b:q4_k_m", "--vram", "4GB", "--ram", "8GB")
    assert "all 36 layers and the output on CUDA" in unnamed.stdout
    assert "q4_k_m" in unnamed.stdout


def test_the_command_refuses_with_numbers() -> None:
    done = run("qwen3-embedding-8b", "--type", "q8_0", "--ram", "4GB", "--vram", "0")
    assert done.exit_code == 5
    assert "7.41 GB weights" in done.stderr
    assert "4.00 GB available" in done.stderr
    assert done.stdout == ""


@pytest.mark.parametrize(
    "arguments",
    [("nonsense", "--type", "q4_k_m"), ("qwen3-embedding-4b", "--type", "q9"), ("bge-m3", "--type", "q8_0"),
     ("--ram", "much"), ("--backend", "abacus")],
)  # fmt: skip
def test_what_cannot_be_planned_is_said(arguments: tuple[str, ...]) -> None:
    done = run(*arguments)
    assert done.exit_code == 2
    assert done.stdout == ""
    assert "Traceback" not in done.stderr


def test_a_plan_in_python_says_what_the_command_says(qwen3_path: Path) -> None:
    found = planning.plan(str(qwen3_path), vram=0)
    assert isinstance(found.plan, MemoryPlan)
    assert found.ftype is None
    assert found.laid_out is not None
    assert found.predicted > 0
    shape = shape_of(found.info)
    context = context_of(found.info, 512)
    assert found.plan.host.compute == cpu_compute_bytes(shape, context, cached=True)
    assert shape.n_vocab == len(bpe_metadata()["tokenizer.ggml.tokens"])
