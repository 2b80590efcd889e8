"""What was chosen is kept whole or not at all, and reaches the engine."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from edge_embed import Embedder, types
from edge_embed.engine import bindings, tune
from edge_embed.errors import EngineUnavailableError
from edge_embed.types import ModelInfo
from tests.tuning.choices import chosen


def test_a_choice_is_kept_and_forgotten(info: ModelInfo) -> None:
    assert None is tune.choice(info)
    assert tune.keep(info, chosen(n_batch=100))
    assert chosen(n_batch=100) == tune.choice(info)
    assert None is tune.choice(dataclasses.replace(info, pooling="cls"))
    assert tune.forget(info)
    assert not tune.forget(info)
    assert None is tune.choice(info)


def test_a_machine_with_other_cores_is_another_machine(info: ModelInfo, monkeypatch: pytest.MonkeyPatch) -> None:
    tune.keep(info, chosen())
    monkeypatch.setattr(tune, "default_threads", lambda: 96)
    assert None is tune.choice(info)


def test_an_engine_is_made_with_what_was_chosen_unless_the_caller_says_otherwise(
    bert_path: Path, info: ModelInfo
) -> None:
    tune.keep(info, chosen(n_batch=100, n_threads=1))
    with Embedder(bert_path) as embedder:
        assert 100 == embedder.backend.engine.limits.n_batch
        assert 1 == embedder.backend.engine.n_threads  # type: ignore[attr-defined]
        assert (32,) == embedder.encode("a cat").shape
    with Embedder(bert_path, n_batch=200, n_threads=2) as embedder:
        assert 200 == embedder.backend.engine.limits.n_batch
        assert 2 == embedder.backend.engine.n_threads  # type: ignore[attr-defined]


def test_sharing_can_be_chosen_away(qwen3_path: Path, decoder: ModelInfo) -> None:
    tune.keep(decoder, chosen(share_prefixes=False))
    with Embedder(qwen3_path) as embedder:
        assert not embedder.backend.engine.limits.shares_prefixes


def test_kernels_that_the_probe_has_found_to_crash_stay_off(
    bert_path: Path, info: ModelInfo, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: dict[str, object] = {}

    class Recorder:
        def __init__(self, _info: ModelInfo, **options: object) -> None:
            asked.update(options)
            raise EngineUnavailableError("enough")

    tune.keep(info, chosen(use_extra_bufts=True, n_batch=100))
    monkeypatch.setattr("edge_embed.engine.llama.LlamaEngine", Recorder)
    monkeypatch.setattr("edge_embed.engine.probe.probe", lambda *_, **__: tune_probe(False))
    with pytest.raises(EngineUnavailableError, match="enough"):
        Embedder(bert_path)
    assert (False, 100) == (asked["use_extra_bufts"], asked["n_batch"])


def tune_probe(use_extra_bufts: bool) -> object:
    from edge_embed.engine.probe import ProbeResult

    return ProbeResult(use_extra_bufts)


@pytest.fixture
def other_library(tmp_path: Path) -> Path:
    """A folder with copies of the libraries."""
    folder = tmp_path / "other"
    folder.mkdir()
    for file in bindings.load().library.parent.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    return folder


def test_another_library_is_left_where_one_is_loaded_already(info: ModelInfo, other_library: Path) -> None:
    tune.keep(info, chosen(library=str(other_library), n_batch=100))
    assert {"n_threads": 3} == tune.arguments(info, {"n_threads": 3, "n_batch": None})


def test_another_library_is_not_taken_for_an_adapter(info: ModelInfo, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = bindings.load().library.parent
    tune.keep(info, chosen(library=str(folder), n_batch=100))
    assert 100 == tune.arguments(info, {})["n_batch"]
    lora = types.Lora("x.gguf")
    assert {"lora": lora} == tune.arguments(info, {"lora": lora})


def test_another_library_that_was_changed_since_is_not_used(info: ModelInfo, other_library: Path) -> None:
    tune.keep(info, chosen(library=str(other_library)))
    assert tune.choice(info) is not None
    library = bindings.library_file(other_library, "llama")
    os.utime(library, ns=(1, 1))
    assert None is tune.choice(info)
    library.unlink()
    assert None is tune.choice(info)


def in_a_process(info: ModelInfo, cache: Path, printed: str) -> subprocess.CompletedProcess[str]:
    """A process that opens the model as ``e`` and prints the library that it has loaded, and these expressions."""
    program = (
        "import sys; from edge_embed import Embedder; from edge_embed.engine import bindings\n"
        f"e = Embedder(sys.argv[1]); print(bindings.load().library, {printed})"
    )
    return subprocess.run(
        [sys.executable, "-c", program, info.path],
        env={**os.environ, "EDGE_EMBED_CACHE": str(cache)},
        capture_output=True,
        text=True,
        check=True,
    )


def test_a_process_loads_the_library_that_was_chosen(info: ModelInfo, other_library: Path, empty_cache: Path) -> None:
    tune.keep(info, chosen(library=str(other_library), n_batch=100))
    done = in_a_process(info, empty_cache, "e.backend.engine.limits.n_batch, len(e.encode('a'))")
    library = other_library / bindings.load().library.name
    assert f"{library} 100 32\n" == done.stdout


def test_a_library_that_was_chosen_and_does_not_load_any_more_is_left(
    info: ModelInfo, tmp_path: Path, empty_cache: Path
) -> None:
    """OpenVINO, say, was removed, and with it what the chosen build is linked to."""
    (tmp_path / bindings.load().library.name).write_bytes(b"no library")
    tune.keep(info, chosen(library=str(tmp_path), n_batch=100))
    done = in_a_process(info, empty_cache, "len(e.encode('a'))")
    assert f"{bindings.load().library} 32\n" == done.stdout
    assert f"the libraries in {tmp_path}, which `edge-embed tune` chose, are not used" in done.stderr


@pytest.mark.parametrize(
    "damage",
    [
        lambda entry: entry["settings"].update(n_batch=0),
        lambda entry: entry["settings"].update(n_threads="2"),
        lambda entry: entry["settings"].update(share_prefixes=1),
        lambda entry: entry["settings"].update(unheard_of=1),
        lambda entry: entry["settings"].pop("n_ubatch"),
        lambda entry: entry.update(profile="none"),
        lambda entry: entry.pop("files"),
        lambda entry: entry.update(settings=[]),
    ],
)
def test_a_damaged_choice_is_none(
    damage: Callable[[dict[str, object]], object], info: ModelInfo, empty_cache: Path
) -> None:
    tune.keep(info, chosen())
    found = json.loads((empty_cache / "tune.json").read_text())
    for entry in found.values():
        damage(entry)
    (empty_cache / "tune.json").write_text(json.dumps(found))
    assert None is tune.choice(info)


def test_an_interrupt_while_the_cache_is_written_leaves_the_old_one(
    info: ModelInfo, empty_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tune.keep(info, chosen())

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("edge_embed.engine.findings.json.dump", interrupt)
        with pytest.raises(KeyboardInterrupt):
            tune.keep(info, chosen(n_batch=100))
    assert chosen() == tune.choice(info)
    assert ["tune.json"] == [path.name for path in empty_cache.iterdir()]
