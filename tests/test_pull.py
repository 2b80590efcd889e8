"""Ready GGUF files and models by name: chosen, pinned, verified; and what happens where one is missing."""

from __future__ import annotations

import hashlib
import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from edge_embed import Embedder, convert, errors, keys, provision, store
from edge_embed.cli import main
from edge_embed.cli import pull as pull_command
from edge_embed.paths import models_dir
from tests.checkpoints import build_tiny_bert
from tests.converting import metadata, small_qwen3
from tests.hub_server import HubServer

READY = "Org/Tiny-GGUF"


@pytest.fixture(scope="module")
def gguf(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """A tiny Qwen3, some 160 kB."""
    folder = tmp_path_factory.mktemp("hub")
    return convert.convert(small_qwen3(folder / "checkpoint"), folder / "ready.gguf").path.read_bytes()


def run(*arguments: str) -> Result:
    return CliRunner().invoke(main, arguments, prog_name="edge-embed")


# Ready files


@pytest.fixture
def ready(server: HubServer, gguf: bytes) -> str:
    """A repository with several GGUFs; its commit."""
    files = {"tiny-Q8_0.gguf": gguf, "tiny-f16.gguf": gguf[:-32] + b"\1" * 32, "sub/tiny-UD-Q4_K_XL.gguf": b"x"}
    return server.add(READY, {**files, "mmproj-f16.gguf": b"x", "big-00001-of-00002.gguf": b"x"})


@pytest.mark.parametrize(
    ("wanted", "file"),
    [
        ("Q8_0", "tiny-Q8_0.gguf"),
        ("f16", "tiny-f16.gguf"),
        ("FP16", "tiny-f16.gguf"),
        ("q4_k_xl", "sub/tiny-UD-Q4_K_XL.gguf"),
        ("tiny-Q8_0.gguf", "tiny-Q8_0.gguf"),
        ("sub/tiny-UD-Q4_K_XL.gguf", "sub/tiny-UD-Q4_K_XL.gguf"),
    ],
)
def test_pull_by_type_and_by_file(server: HubServer, ready: str, wanted: str, file: str) -> None:
    """The file, whole, with a record of where it is from."""
    result = run("pull", f"{READY}:{wanted}")
    assert result.exit_code == 0, result.stderr
    path = models_dir() / READY / file
    data = server.repos[READY].revisions["main"].files[file]
    assert path.read_bytes() == data
    record = store.record_of(path)
    assert record is not None
    assert (record.repository, record.revision, record.file) == (READY, ready, file)
    assert record.sha256 == hashlib.sha256(data).hexdigest()
    assert server.fetched() == [file]


def test_what_is_ambiguous_lists_the_choices(server: HubServer, ready: str, gguf: bytes) -> None:
    result = run("pull", READY)
    assert result.exit_code == 2
    for part in (f"tiny-Q8_0.gguf ({len(gguf) / 1000:.1f} kB)", "tiny-f16.gguf", "sub/tiny-UD-Q4_K_XL.gguf"):
        assert part in result.stderr
    assert "mmproj" not in result.stderr
    missing = run("pull", f"{READY}:q6_k")
    assert missing.exit_code == 6
    assert "it has: " in missing.stderr
    assert server.fetched() == []


def test_files_in_parts_and_none_at_all(server: HubServer) -> None:
    server.add(READY, {"big-00001-of-00002.gguf": b"x"})
    assert "those in parts are not read" in run("pull", READY).stderr
    server.add("Org/None", {"a.txt": b"x"})
    assert "edge-embed convert Org/None" in run("pull", "Org/None").stderr


def test_an_address_names_a_repository_and_no_type(server: HubServer, gguf: bytes) -> None:
    server.add("Org/One-GGUF", {"one-q8_0.gguf": gguf})
    for address in ("hf://Org/One-GGUF", "https://huggingface.co/Org/One-GGUF"):
        result = run("pull", address)
        assert result.exit_code == 0, result.stderr
        assert "one-q8_0.gguf" in result.stdout


def test_a_pulled_model_is_found_by_name(server: HubServer, ready: str) -> None:
    """By its short name and type, its repository, its file; and it is listed."""
    assert run("pull", f"{READY}:q8_0").exit_code == 0
    rows = {row["name"]: row for row in json.loads(run("list", "--here", "--json").stdout)}
    assert rows["tiny:q8_0"]["repository"] == READY
    for name in ("tiny", "tiny:q8_0", READY, f"{READY}:Q8_0", f"{READY}:tiny-Q8_0.gguf", "tiny-Q8_0"):
        result = run("embed", "-m", name, "a text")
        assert result.exit_code == 0, result.stderr
        assert len(json.loads(result.stdout)[0]) == 64
    assert run("pull", f"{READY}:f16").exit_code == 0
    both = run("embed", "-m", "tiny", "a text")
    assert both.exit_code == 3
    assert "tiny:f16" in both.stderr
    assert "tiny:q8_0" in both.stderr


def test_a_second_pull_verifies(server: HubServer, ready: str) -> None:
    assert run("pull", f"{READY}:q8_0").exit_code == 0
    server.requests.clear()
    result = run("pull", f"{READY}:q8_0")
    assert result.exit_code == 0
    assert "(verified)" in result.stdout
    updated = run("pull", f"{READY}:q8_0", "--update")  # to what is here already
    assert "(verified)" in updated.stdout
    assert "to download" not in updated.stderr
    assert server.fetched() == []


def test_what_changed_upstream_is_said_and_taken_only_when_asked(server: HubServer, ready: str, gguf: bytes) -> None:
    assert run("pull", f"{READY}:q8_0").exit_code == 0
    new = server.add(READY, {"tiny-Q8_0.gguf": gguf + b"\0" * 32})
    path = models_dir() / READY / "tiny-Q8_0.gguf"
    result = run("pull", f"{READY}:q8_0")
    assert result.exit_code == 0
    assert f"has another tiny-Q8_0.gguf since commit {new[:12]}" in result.stderr
    assert "--update" in result.stderr
    assert path.read_bytes() == gguf
    assert run("pull", f"{READY}:q8_0", "--update").exit_code == 0
    assert path.read_bytes() == gguf + b"\0" * 32
    record = store.record_of(path)
    assert record is not None
    assert record.revision == new


def test_a_damaged_file_is_fetched_again_from_its_commit(server: HubServer, ready: str, gguf: bytes) -> None:
    """Not the newest one: the pin counts."""
    assert run("pull", f"{READY}:q8_0").exit_code == 0
    path = models_dir() / READY / "tiny-Q8_0.gguf"
    path.write_bytes(b"damaged")
    server.add(READY, {"tiny-Q8_0.gguf": b"newer"})
    offline = run("pull", f"{READY}:q8_0", "--offline")
    assert offline.exit_code == 6
    assert "is damaged" in offline.stderr
    result = run("pull", f"{READY}:q8_0")
    assert result.exit_code == 0, result.stderr
    assert "was damaged and has been replaced" in result.stderr
    assert path.read_bytes() == gguf


def test_pull_offline_verifies_and_asks_nobody(server: HubServer, ready: str) -> None:
    assert run("pull", f"{READY}:q8_0").exit_code == 0
    server.requests.clear()
    assert "(verified)" in run("pull", f"{READY}:q8_0", "--offline").stdout
    assert run("pull", f"{READY}:f16", "--offline").exit_code == 6
    assert server.requests == []


def test_many_at_once_fetch_it_once(server: HubServer, ready: str, gguf: bytes) -> None:
    with ThreadPoolExecutor(4) as pool:
        pulled = list(pool.map(lambda _: provision.pull(f"{READY}:q8_0"), range(4)))
    assert len({each.model for each in pulled}) == 1
    assert sum(each.fetched for each in pulled) == 1
    assert server.fetched() == ["tiny-Q8_0.gguf"]
    assert pulled[0].model.path.read_bytes() == gguf
    assert not list(models_dir().rglob("*.part"))


def test_the_bundled_model_needs_no_pull(server: HubServer) -> None:
    result = run("pull", "all-minilm-l6-v2")
    assert result.exit_code == 0
    assert "ships with edge-embed" in result.stderr
    assert result.stdout.strip().endswith(".gguf")
    assert server.requests == []


# Known models that are missing


@pytest.fixture
def known(server: HubServer, gguf: bytes, tmp_path: Path) -> HubServer:
    """A hub with the ready files of one known model and the weights of another."""
    server.add("Qwen/Qwen3-Embedding-0.6B-GGUF", {"Qwen3-Embedding-0.6B-Q8_0.gguf": gguf})
    server.add("BAAI/bge-small-en-v1.5", build_tiny_bert(tmp_path / "bge", pooling="cls", prompts={}), license="mit")
    return server


def test_a_missing_model_is_not_downloaded_unasked(known: HubServer) -> None:
    result = run("embed", "-m", "qwen3-embedding-0.6b", "x")
    assert result.exit_code == 3
    assert "edge-embed pull qwen3-embedding-0.6b" in result.stderr
    assert "--yes or EDGE_EMBED_DOWNLOAD=1" in result.stderr
    with pytest.raises(errors.ModelMissingError, match=r"edge-embed pull qwen3-embedding-0\.6b"):
        Embedder("qwen3-embedding-0.6b")
    assert known.requests == []


@pytest.mark.parametrize("way", ["option", "environment", "python", "python environment"])
def test_a_ready_file_is_pulled_where_there_is_one(known: HubServer, monkeypatch: pytest.MonkeyPatch, way: str) -> None:
    if "environment" in way:
        monkeypatch.setenv("EDGE_EMBED_DOWNLOAD", "1")
    if "python" in way:
        Embedder("qwen3-embedding-0.6b:q8_0", download=None if "environment" in way else True).close()
    else:
        option = ["--yes"] if way == "option" else []
        result = run("embed", "-m", "qwen3-embedding-0.6b:q8_0", *option, "x")
        assert result.exit_code == 0, result.stderr
        assert "kB to download: Qwen3-Embedding-0.6B-Q8_0.gguf from Qwen/Qwen3-Embedding-0.6B-GGUF" in result.stderr
    assert known.fetched() == ["Qwen3-Embedding-0.6B-Q8_0.gguf"]
    known.requests.clear()
    Embedder("qwen3-embedding-0.6b").close()  # which is here now, under its name alone
    assert known.requests == []


def test_an_update_keeps_the_type_that_is_here(known: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    assert run("pull", "qwen3-embedding-0.6b:q8_0").exit_code == 0
    monkeypatch.setattr(provision, "suitable_type", lambda _: "q4_k_m")
    result = run("pull", "qwen3-embedding-0.6b", "--update")
    assert result.exit_code == 0, result.stderr
    assert "Qwen3-Embedding-0.6B-Q8_0.gguf" in result.stdout


def test_weights_are_converted_where_there_is_no_ready_file(known: HubServer) -> None:
    """To the type that was named, under the short name, with where it is from."""
    result = run("embed", "-m", "bge-small-en-v1.5:f16", "--yes", "--query", "x")
    assert result.exit_code == 0, result.stderr
    assert "the weights of BAAI/bge-small-en-v1.5" in result.stderr
    assert "they become about 66.7 MB of f16" in result.stderr
    path = models_dir() / "bge-small-en-v1.5" / "bge-small-en-v1.5-F16.gguf"
    found = metadata(path)
    assert found["general.name"] == "bge-small-en-v1.5"
    assert found["general.license"] == "mit"
    assert found[keys.SOURCE_REPOSITORY] == "BAAI/bge-small-en-v1.5"
    assert "bge-small-en-v1.5:f16" in run("list", "--here").stdout
    verified = run("pull", "bge-small-en-v1.5:f16")
    assert "(verified)" in verified.stdout


def test_a_revision_that_can_be_none_is_refused(known: HubServer) -> None:
    result = run("pull", "bge-small-en-v1.5:f16", "--revision", "../../x")
    assert result.exit_code == 2
    assert "cannot be a revision" in result.stderr
    assert known.requests == []


def test_a_person_is_asked_on_a_terminal(known: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """And may say no."""
    terminal = type("Terminal", (), {"isatty": lambda _: True, "write": lambda *_: None, "flush": lambda _: None})()
    monkeypatch.setattr(pull_command.sys, "stdin", terminal)
    monkeypatch.setattr(pull_command.sys, "stderr", terminal)
    asked: list[str] = []

    def answer(question: str, **_: object) -> bool:
        asked.append(question)
        return len(asked) > 1

    monkeypatch.setattr(pull_command.click, "confirm", answer)
    with pytest.raises(errors.ModelMissingError):
        pull_command.ensure("qwen3-embedding-0.6b", yes=False)
    assert known.fetched() == []
    path = pull_command.ensure("qwen3-embedding-0.6b", yes=False)
    assert isinstance(path, Path)
    assert path.is_file()
    assert asked == ["download it now?"] * 2


def test_a_model_that_is_too_large_for_the_machine_is_not_begun(
    known: HubServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(provision, "machine_memory", lambda: 4 * 10**9)
    result = run("pull", "qwen3-embedding-8b")
    assert result.exit_code == 2
    assert "qwen3-embedding-8b takes about 5.9 GB" in result.stderr
    assert "qwen3-embedding-8b:q4_k_m" in result.stderr
    assert known.requests == []
