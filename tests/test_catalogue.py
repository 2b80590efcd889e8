"""Models by name: what each file in ``models/`` must say, how names are found, which type suits which memory."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edge_embed import catalogue, keys, provision, store
from edge_embed.errors import (
    InvalidOptionError,
    ModelMissingError,
    ModelNotFoundError,
    OutputFileError,
    UnsupportedModelError,
)
from edge_embed.gguf_header import read_header
from edge_embed.model_info import read_model_info
from edge_embed.paths import cache_dir, models_dir
from edge_embed.prompts import INSTRUCTION_SLOT
from edge_embed.store import StoredModel
from tests.tiny_gguf import gguf_bytes, tiny_bert, tiny_decoder

MODELS = Path(__file__).parent.parent / "models"
TABLES = {path.stem: catalogue.tomllib.loads(path.read_text("utf-8")) for path in sorted(MODELS.glob("*.toml"))}
# field -> (its type, whether it must be there)
SCHEMA: dict[str, tuple[type, bool]] = {
    "name": (str, True),
    "repository": (str, True),
    "license": (str, True),
    "kind": (str, True),
    "architecture": (str, True),
    "pooling": (str, True),
    "dimensions": (int, True),
    "max_tokens": (int, True),
    "parameters": (int, True),
    "ollama": (list, False),
    "mrl_dimensions": (list, False),
    "prompts": (dict, False),
    "instruction_template": (str, False),
    "gated": (bool, False),
    "gguf": (dict, False),
    "shape": (dict, False),
    "note": (str, False),
    "normalize": (bool, False),
    "file": (str, False),
    "ftype": (str, False),
    "size": (int, False),
    "sha256": (str, False),
    "source": (dict, False),
}


@pytest.fixture(autouse=True)
def own_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty models folder."""
    monkeypatch.setenv("EDGE_EMBED_HOME", str(tmp_path / "home"))
    return tmp_path / "home" / "models"


# The files


@pytest.mark.parametrize("name", TABLES)
def test_every_file_keeps_to_the_schema(name: str) -> None:
    """Every field is known and of its type, none that is needed is missing, and they agree with each other."""
    table = TABLES[name]
    assert set() == table.keys() - SCHEMA.keys()
    assert set() == {field for field, (_, needed) in SCHEMA.items() if needed} - table.keys()
    assert {} == {field: value for field, value in table.items() if type(value) is not SCHEMA[field][0]}
    assert table["kind"] in ("embedding", "reranker")
    assert table["pooling"] in (("rank",) if table["kind"] == "reranker" else ("mean", "cls", "last"))
    assert 1 <= table["dimensions"] <= 8192
    assert 64 <= table["max_tokens"] <= 2**17
    assert 10**6 <= table["parameters"] <= 10**10
    sizes = table.get("mrl_dimensions", [])
    assert sizes == sorted(set(sizes))
    assert all(1 <= size <= table["dimensions"] for size in sizes)
    assert all(type(text) is str for text in table.get("prompts", {}).values())
    assert INSTRUCTION_SLOT in table.get("instruction_template", INSTRUCTION_SLOT)
    assert table.get("gated", False) == (table["license"] == "gemma")


@pytest.mark.parametrize("name", TABLES)
def test_the_file_is_called_as_its_repository(name: str) -> None:
    """That is how a name is found without reading every file."""
    table = TABLES[name]
    assert name == table["name"].lower()
    assert name == table["repository"].partition("/")[2].lower()
    ready = table.get("gguf")
    if ready is not None:
        assert ready.keys() == {"repository", "official", "types"}
        assert f"{name}-gguf" == ready["repository"].partition("/")[2].lower()
        assert set(ready["types"]) <= catalogue.BITS.keys()
        same_owner = ready["repository"].partition("/")[0] == table["repository"].partition("/")[0]
        assert ready["official"] == same_owner


def test_names_in_ollamas_library_are_as_its_clients_write_them_and_of_one_model_each() -> None:
    """Such a name asks for this model and no other, so none may be another model's own."""
    names = [name for table in TABLES.values() for name in table.get("ollama", [])]
    assert len(names) == len(set(names))
    assert set() == set(names) & TABLES.keys()
    assert all(re.fullmatch(r"[a-z0-9-]+(:[a-z0-9.-]+)?", name) for name in names)


def test_the_models_that_people_ask_for_are_known() -> None:
    wanted = "qwen3-embedding-0.6b qwen3-embedding-4b qwen3-embedding-8b qwen3-reranker-0.6b qwen3-reranker-4b"
    wanted += " qwen3-reranker-8b all-minilm-l6-v2 bge-m3 bge-reranker-v2-m3 multilingual-e5-small"
    wanted += " embeddinggemma-300m gte-modernbert-base nomic-embed-text-v1.5 bge-small-en-v1.5"
    assert set() == set(wanted.split()) - TABLES.keys()
    assert list(TABLES) == [entry.name for entry in catalogue.entries()]


@pytest.mark.parametrize("said", ["qwen3-embedding-4b", "Qwen3-Embedding-4B", "Qwen/Qwen3-Embedding-4B"])
def test_a_model_is_found_by_name_and_by_repository(said: str) -> None:
    entry = catalogue.find(said)
    assert entry is not None
    assert entry.name == "qwen3-embedding-4b"
    assert catalogue.find("Qwen/Qwen3-Embedding-4B-GGUF") is entry


@pytest.mark.parametrize("said", ["", "qwen3", "Other/Qwen3-Embedding-4B", "../all-minilm-l6-v2", "a\0b", "x" * 5000])
def test_what_is_not_known_is_not_found(said: str) -> None:
    assert catalogue.find(said) is None


# Types


@pytest.mark.parametrize(
    ("name", "gigabytes", "ftype"),
    [
        ("qwen3-embedding-4b", 16, "q8_0"),
        ("qwen3-embedding-4b", 8, "q5_k_m"),
        ("qwen3-embedding-4b", 4, None),
        ("qwen3-embedding-8b", 16, "q6_k"),
        ("qwen3-embedding-8b", 8, None),
        ("qwen3-embedding-0.6b", 2, "q8_0"),
        ("all-minilm-l6-v2", 0.5, "q8_0"),
    ],
)
def test_the_type_suits_the_memory(name: str, gigabytes: float, ftype: str | None) -> None:
    entry = catalogue.find(name)
    assert entry is not None
    assert ftype == catalogue.recommended_type(entry.parameters, int(gigabytes * 10**9))


def test_more_memory_never_means_a_lesser_type() -> None:
    """And what is recommended takes no more than half of it."""
    for parameters in (10**7, 6 * 10**8, 4 * 10**9, 8 * 10**9):
        found = [catalogue.recommended_type(parameters, memory) for memory in range(10**8, 40 * 10**9, 10**8)]
        ranks = [len(catalogue.LADDER) if t is None else catalogue.LADDER.index(t) for t in found]
        assert ranks == sorted(ranks, reverse=True)
        for memory, ftype in zip(range(10**8, 40 * 10**9, 10**8), found, strict=True):
            assert ftype is None or catalogue.memory_needed(parameters, ftype) <= memory / 2


def test_sizes_are_about_right() -> None:
    """Of files that exist: the bundled one here, and Qwen's own Q4_K_M of 2.5 GB."""
    bundled, large = catalogue.find("all-minilm-l6-v2"), catalogue.find("qwen3-embedding-4b")
    assert bundled is not None
    assert large is not None
    assert bundled.size("q8_0") == pytest.approx(bundled.size_bytes, rel=0.1)
    assert large.size("q4_k_m") == pytest.approx(2.5e9, rel=0.02)


def test_a_machine_too_small_is_told_what_to_do() -> None:
    entry = catalogue.find("qwen3-embedding-8b")
    assert entry is not None
    assert provision.suitable_type(entry, 16 * 10**9) == "q6_k"
    with pytest.raises(InvalidOptionError, match=r"8b takes about 5\.9 GB.*\n.*insist: qwen3-embedding-8b:q4_k_m"):
        provision.suitable_type(entry, 8 * 10**9)


@pytest.mark.parametrize(
    ("said", "name", "ftype"), [("a", "a", None), ("a:Q4_K_M", "a", "q4_k_m"), ("o/r:fp16", "o/r", "f16")]
)
def test_a_type_stands_behind_a_colon(said: str, name: str, ftype: str | None) -> None:
    assert (name, ftype) == catalogue.split_type(said)


# Names on this machine


def put(folder: Path, name: str = "own", ftype: str = "q8_0", **changes: Any) -> StoredModel:
    """A stored model with its record."""
    path = folder / f"{name}-{ftype}.gguf"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"GGUF")
    values: dict[str, Any] = {
        "name": name, "ftype": ftype, "repository": f"Org/{name}", "revision": "0" * 40, "file": path.name,
        "sha256": store.sha256(path), "size_bytes": 4, "license": "mit", "path": path,
    }  # fmt: skip
    model = StoredModel(**{**values, **changes})
    store.record(model)
    return model


def test_a_record_is_read_as_it_was_written(own_home: Path) -> None:
    assert store.stored() == []
    second, first = put(own_home / "b", "b"), put(own_home / "a", "a", file=None)
    assert store.stored() == [first, second]
    first.path.unlink()
    assert store.stored() == [second]


@pytest.mark.parametrize("damage", ["", "[]", "{}", '{"name": 3}', "{", "\xff", "[" * 100_000])
def test_a_record_that_cannot_be_read_is_a_warning(own_home: Path, damage: str) -> None:
    """The other models are still found."""
    good, bad = put(own_home / "a", "a"), put(own_home / "b", "b")
    bad.path.with_name(bad.path.name + ".json").write_bytes(damage.encode("latin-1"))
    with pytest.warns(UserWarning, match="cannot be used"):
        assert store.stored() == [good]


@pytest.mark.parametrize("field", [f.name for f in fields(StoredModel) if f.name != "path"])
def test_a_field_of_the_wrong_type_is_found(own_home: Path, field: str) -> None:
    model = put(own_home)
    record = model.path.with_name(model.path.name + ".json")
    record.write_text(json.dumps({**json.loads(record.read_text()), field: [1]}))
    with pytest.warns(UserWarning, match=field):
        assert store.record_of(model.path) is None


def test_a_record_that_cannot_be_written_is_an_error(own_home: Path) -> None:
    model = put(own_home)
    (model.path.parent / f"{model.path.name}.json").unlink()
    (model.path.parent / f"{model.path.name}.json").mkdir()
    with pytest.raises(OutputFileError):
        store.record(model)
    assert not list(own_home.rglob("*.part"))


def test_a_stored_model_is_resolved(own_home: Path) -> None:
    """By name, repository and file, with a type where there are several."""
    small = put(own_home)
    for name in ("own", "OWN", "own:q8_0", "Org/own", "Org/own:q8_0", "Org/own:own-q8_0.gguf", "own-q8_0.gguf"):
        assert catalogue.resolve(name) == small.path
    large = put(own_home, ftype="f16")
    assert catalogue.resolve("own:f16") == large.path
    with pytest.raises(ModelNotFoundError, match="several files") as caught:
        catalogue.resolve("own")
    assert "own:q8_0" in caught.value.hint
    assert "own:f16" in caught.value.hint


def test_a_known_model_has_its_types(own_home: Path) -> None:
    """The bundled file keeps the bare name; a type that is not here is missing, not another one."""
    name = catalogue.DEFAULT_MODEL
    bundled = catalogue.resolve(None)
    other = put(own_home, name, "f16")
    assert catalogue.resolve(name) == catalogue.resolve(f"{name}:q8_0") == bundled
    assert catalogue.resolve(f"{name}:f16") == other.path
    with pytest.raises(ModelMissingError, match=f"edge-embed pull {name}:q6_k"):
        catalogue.resolve(f"{name}:Q6_K")
    with pytest.raises(InvalidOptionError, match="'q9' is not a type"):
        catalogue.resolve(f"{name}:q9")
    with pytest.raises(ModelMissingError, match="edge-embed pull qwen3-embedding-4b"):
        catalogue.resolve("Qwen/Qwen3-Embedding-4B")


def test_files_come_first_and_folders_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder that is called like a model does not hide it."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "all-minilm-l6-v2").mkdir()
    (tmp_path / "checkpoint").mkdir()
    assert catalogue.resolve("all-minilm-l6-v2").suffix == ".gguf"
    with pytest.raises(ModelNotFoundError, match="edge-embed convert checkpoint"):
        catalogue.resolve("checkpoint")
    (tmp_path / "qwen3-embedding-4b").write_bytes(b"GGUF")
    assert catalogue.resolve("qwen3-embedding-4b") == Path("qwen3-embedding-4b")


def test_a_slip_is_told_what_may_be_meant() -> None:
    with pytest.raises(ModelNotFoundError, match=r"did you mean qwen3-embedding-4b or "):
        catalogue.resolve("qwen3-embeding-4b")
    with pytest.raises(ModelNotFoundError, match="\n`edge-embed list` shows"):
        catalogue.resolve("zzz")


@pytest.mark.parametrize("name", ["Org/Other", "Org/Other:q8_0"])
def test_a_repository_that_is_not_here_comes_with_the_commands(name: str) -> None:
    with pytest.raises(ModelNotFoundError, match=f"edge-embed pull {name}.*edge-embed convert Org/Other`"):
        catalogue.resolve(name)


def test_folders_follow_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert models_dir() == tmp_path / "home" / "models"
    monkeypatch.delenv("EDGE_EMBED_HOME")
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    monkeypatch.delenv("EDGE_EMBED_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert models_dir() == tmp_path / "data" / "edge-embed" / "models"
    assert cache_dir() == tmp_path / "cache" / "edge-embed"


# Other people's files


def qwen3_file(path: Path, **metadata: Any) -> Path:
    """A tiny decoder that says it is of the 0.6B's width."""
    values, tensors = tiny_decoder(hidden=1024, layers=1)
    values = {key: value for key, value in values.items() if not key.startswith(keys.PREFIX)}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gguf_bytes({**values, **metadata}, tensors))
    return path


@pytest.mark.parametrize(
    "said",
    [
        {"general.name": "Qwen3-Embedding-0.6B"},
        {"general.name": "Qwen3 Embedding 0.6B"},
        {"general.name": "x", "general.repo_url": "https://huggingface.co/Qwen/Qwen3-Embedding-0.6B"},
        {"general.name": "x", keys.SOURCE_REPOSITORY: "Qwen/Qwen3-Embedding-0.6B"},
    ],
)
def test_what_a_known_models_file_lacks_is_filled_in(tmp_path: Path, said: dict[str, Any]) -> None:
    """Prompts, instructions and MRL sizes, and it is said that they are."""
    info = read_model_info(read_header(qwen3_file(tmp_path / "a.gguf", **said)))
    assert info.prompts["query"].startswith("Instruct: Given a web search query")
    assert info.instruction_template == "Instruct: {instruction}\nQuery:"
    assert info.mrl_dimensions[0] == 32
    assert sum("Qwen/Qwen3-Embedding-0.6B" in repair for repair in info.repairs) == 2


def test_a_pulled_file_is_known_by_its_record(own_home: Path) -> None:
    path = qwen3_file(own_home / "a.gguf", **{"general.name": "x"})
    assert catalogue.identify(path, read_header(path).metadata) is None
    store.record(StoredModel("x", "f32", "Qwen/Qwen3-Embedding-0.6B-GGUF", "0" * 40, "a.gguf", "0" * 64, 1, "", path))
    entry = catalogue.identify(path, read_header(path).metadata)
    assert entry is not None
    assert entry.name == "qwen3-embedding-0.6b"


@pytest.mark.parametrize(
    "said",
    [
        {"general.name": "My Qwen3-Embedding-0.6B"},
        {"general.name": "Qwen3-Embedding-4B"},  # of another width
        {"general.name": "bge-m3"},  # of another architecture
    ],
)
def test_where_there_is_doubt_nothing_is_filled_in(tmp_path: Path, said: dict[str, Any]) -> None:
    info = read_model_info(read_header(qwen3_file(tmp_path / "a.gguf", **said)))
    assert (info.prompts, info.mrl_dimensions) == ({}, ())


def test_what_the_file_says_is_kept(tmp_path: Path) -> None:
    path = qwen3_file(
        tmp_path / "a.gguf",
        **{"general.name": "Qwen3-Embedding-0.6B", keys.PROMPT + "own": "Own: "},
        **{keys.MRL_DIMENSIONS: np.array([64], np.uint32)},
    )
    info = read_model_info(read_header(path))
    assert (info.prompts, info.mrl_dimensions) == ({"own": "Own: "}, (64,))


def test_a_known_models_pooling_is_known(tmp_path: Path) -> None:
    """Where the file does not say; any other such file is refused."""
    metadata, tensors = tiny_bert(hidden=384)
    del metadata["bert.pooling_type"]
    path = tmp_path / "a.gguf"
    path.write_bytes(gguf_bytes({**metadata, "general.name": "bge-small-en-v1.5"}, tensors))
    info = read_model_info(read_header(path))
    assert (info.pooling, info.pooling_source) == ("cls", "catalogue")
    path.write_bytes(gguf_bytes({**metadata, "general.name": "other"}, tensors))
    with pytest.raises(UnsupportedModelError, match="pooling"):
        read_model_info(read_header(path))


@pytest.mark.parametrize("module", ["edge_embed", "edge_embed.embedder", "edge_embed.cli"])
def test_the_hubs_library_is_loaded_on_first_use(module: str) -> None:
    """It takes a quarter of a second, and no model that is here needs it."""
    code = f"import {module}, sys; sys.exit('huggingface_hub' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
