"""Downloads from a small hub on this machine: what is fetched, checked, resumed, refused, and what is said about it."""

from __future__ import annotations

import errno
import shutil
from pathlib import Path

import numpy as np
import pytest

from edge_embed import Embedder, convert, errors, hub, keys
from edge_embed.hub import transfer
from edge_embed.paths import models_dir
from tests.commands import run
from tests.converting import edited, metadata, small_qwen3
from tests.hub_server import TOKEN, HubServer

NAME = "Org/Tiny-Model"
WEIGHTS = "model.safetensors"
READY = "Org/Tiny-GGUF"
CONVERT = ("convert", "--no-verify")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Qwen3, some 290 kB."""
    return small_qwen3(tmp_path_factory.mktemp("hub") / "checkpoint")


@pytest.fixture(scope="module")
def gguf(checkpoint: Path) -> bytes:
    """The same as a GGUF."""
    return convert.convert(checkpoint, checkpoint.parent / "ready.gguf").path.read_bytes()


def files_below(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


# Checkpoints


@pytest.mark.parametrize("sharded", [False, True])
def test_a_repository_converts_as_its_folder_does(server: HubServer, tmp_path: Path, sharded: bool) -> None:
    """Byte for byte, with repository, commit and licence in the file; and its vectors are the folder's."""
    folder = small_qwen3(tmp_path / "checkpoint", sharded=sharded)
    commit = server.add(NAME, folder, license="mit")
    result = run(*CONVERT, NAME, "-o", tmp_path / "hub.gguf")
    assert result.exit_code == 0, result.stderr
    convert.convert(folder, tmp_path / "own.gguf", name="Tiny-Model", repository=NAME, revision=commit, license="mit")
    assert (tmp_path / "hub.gguf").read_bytes() == (tmp_path / "own.gguf").read_bytes()
    found = metadata(tmp_path / "hub.gguf")
    assert found[keys.SOURCE_REPOSITORY] == NAME
    assert found[keys.SOURCE_REVISION] == commit
    assert found["general.license"] == "mit"
    with Embedder(tmp_path / "hub.gguf", n_threads=1) as ours, Embedder(tmp_path / "own.gguf", n_threads=1) as own:
        np.testing.assert_array_equal(ours.encode(["a text"]), own.encode(["a text"]))


def test_the_size_is_said_before_the_download(server: HubServer, checkpoint: Path, tmp_path: Path) -> None:
    """On stderr, with the commit and the licence; the second time nothing is left to download."""
    commit = server.add(NAME, checkpoint)
    said = run(*CONVERT, NAME, "-o", tmp_path / "a.gguf").stderr
    assert f"{NAME} at {commit[:12]}, licence apache-2.0: " in said
    assert "kB to download" in said
    server.requests.clear()
    assert "all of it is in the cache" in run(*CONVERT, NAME, "-o", tmp_path / "b.gguf").stderr
    assert [request.method for request in server.requests] == ["GET"]


def test_only_what_a_conversion_needs_is_fetched(server: HubServer, checkpoint: Path, tmp_path: Path) -> None:
    """No pickle, no other runtime's weights, no code, no picture."""
    files = {path: (checkpoint / path).read_bytes() for path in files_below(checkpoint)}
    others = ("pytorch_model.bin", "onnx/model.onnx", "openvino/openvino_model.bin", "modeling.py", "a.png", "a.gguf")
    server.add(NAME, {**files, **dict.fromkeys(others, b"x"), "2_Other/model.onnx": b"x"})
    assert run(*CONVERT, NAME, "-o", tmp_path / "a.gguf").exit_code == 0
    assert server.fetched() == [WEIGHTS]
    assert set(server.fetched(large=False)) == {*files, "README.md"} - {WEIGHTS}


@pytest.mark.parametrize(
    "spelling",
    [
        "{}@refs/pr/1",
        "{} --revision refs/pr/1",
        "https://huggingface.co/{}/tree/refs%2Fpr%2F1",
        "hf.co/{}@refs/pr/1",
        "hf://{}@refs/pr/1",
    ],
)
def test_a_revision_is_pinned_to_its_commit(server: HubServer, checkpoint: Path, tmp_path: Path, spelling: str) -> None:
    old = server.add(NAME, checkpoint, revision="refs/pr/1")
    changed = shutil.copytree(checkpoint, tmp_path / "changed")
    edited(changed / "config.json", rms_norm_eps=1e-5)
    assert server.add(NAME, changed) != old
    assert run(*CONVERT, *spelling.format(NAME).split(), "-o", tmp_path / "a.gguf").exit_code == 0
    assert metadata(tmp_path / "a.gguf")[keys.SOURCE_REVISION] == old


def test_pickles_are_refused_before_anything_is_fetched(server: HubServer, checkpoint: Path, tmp_path: Path) -> None:
    files = {path: (checkpoint / path).read_bytes() for path in files_below(checkpoint) if path != WEIGHTS}
    server.add(NAME, {**files, "pytorch_model.bin": b"x" * 1000})
    result = run(*CONVERT, NAME, "-o", tmp_path / "a.gguf")
    assert result.exit_code == 4
    assert "pickle (pytorch_model.bin)" in result.stderr
    assert "runs whatever code" in result.stderr
    assert [request.method for request in server.requests] == ["GET"]


@pytest.mark.parametrize(
    ("path", "fields", "part"),
    [
        ("config.json", {"model_type": "t5"}, "t5"),
        ("modules.json", {}, "modules.json"),
    ],
)
def test_what_cannot_be_converted_is_refused_before_its_weights_are_fetched(
    server: HubServer, checkpoint: Path, tmp_path: Path, path: str, fields: dict[str, str], part: str
) -> None:
    folder = shutil.copytree(checkpoint, tmp_path / "changed")
    if fields:
        edited(folder / path, **fields)
    else:
        (folder / path).write_text("{}")
    server.add(NAME, folder)
    result = run(*CONVERT, NAME, "-o", tmp_path / "a.gguf")
    assert result.exit_code == 4
    assert part in result.stderr
    assert server.fetched() == []


@pytest.mark.parametrize(
    ("files", "part"),
    [
        ({"a.txt": b"x"}, "no config.json"),
        ({"a.gguf": b"x"}, f"edge-embed pull {NAME}"),
        ({"config.json": b"{}"}, "no weights in safetensors"),
        ({"config.json": b"{}", "onnx/model.onnx": b"x"}, "no weights in safetensors"),
    ],
)
def test_a_repository_without_a_checkpoint_is_named(server: HubServer, files: dict[str, bytes], part: str) -> None:
    server.add(NAME, files)
    result = run(*CONVERT, NAME)
    assert result.exit_code == 6
    assert part in result.stderr


def test_an_adapter_is_refused(server: HubServer) -> None:
    server.add(NAME, {"adapter_config.json": b"{}", "adapter_model.safetensors": b"x"})
    assert run(*CONVERT, NAME).exit_code == 4


def test_no_room_is_found_before_the_weights_are_fetched(
    server: HubServer, checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both numbers are said."""
    server.add(NAME, checkpoint)
    free = transfer.SPARE + 100_000
    monkeypatch.setattr(transfer.shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10**9, 0, free))
    result = run(*CONVERT, NAME)
    assert result.exit_code == 6
    assert "has 67.2 MB free" in result.stderr
    assert server.fetched() == []


# Access


def test_a_gated_repository_says_what_to_do(server: HubServer, checkpoint: Path) -> None:
    server.add(NAME, checkpoint, gated=True)
    result = run(*CONVERT, NAME)
    assert result.exit_code == 6
    assert f"{NAME} is gated" in result.stderr
    assert f"{server.url}/{NAME}" in result.stderr
    assert "HF_TOKEN" in result.stderr
    assert server.fetched() == []


def test_terms_of_a_known_model_are_said(server: HubServer, checkpoint: Path) -> None:
    """Before its download."""
    server.add("google/embeddinggemma-300m", checkpoint, gated=True, license="gemma")
    result = run(*CONVERT, "embeddinggemma-300m")
    assert result.exit_code == 6
    assert "licence gemma" in result.stderr
    assert "accept them on the model's page" in result.stderr


def test_a_token_opens_it_and_stays_with_the_hub(
    server: HubServer, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The host that keeps the large files is not shown the token."""
    server.add(NAME, checkpoint, gated=True)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    result = run(*CONVERT, NAME, "-o", tmp_path / "a.gguf")
    assert result.exit_code == 0, result.stderr
    storage = [request for request in server.requests if request.path.startswith("/storage/")]
    assert storage
    assert not any(request.token for request in storage)
    assert all(request.token for request in server.requests if request not in storage)


def test_what_is_not_there_is_named(server: HubServer, checkpoint: Path) -> None:
    """Repository, revision; a private one is not told from one that does not exist."""
    server.add("Org/Private", checkpoint, private=True)
    server.add(NAME, checkpoint)
    for name in ("Org/None", "Org/Private"):
        with pytest.raises(errors.HubNotFoundError, match=f"no repository {name}.*or it is private"):
            hub.inspect(hub.parse_reference(name))
    with pytest.raises(errors.HubNotFoundError, match=f"{NAME} has no revision 'v9'"):
        hub.inspect(hub.parse_reference(NAME, "v9"))


def test_no_connection_is_an_error_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    result = run(*CONVERT, NAME)
    assert result.exit_code == 6
    assert "http://127.0.0.1:9 cannot be reached" in result.stderr
    assert "--offline" in result.stderr


@pytest.mark.parametrize("way", ["option", "environment"])
def test_offline_uses_the_cache_alone(
    server: HubServer, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    """With the same bytes, and without a request; what the cache lacks is an error."""
    server.add(NAME, checkpoint, license="mit")
    server.add(NAME, checkpoint, revision="v1")
    for revision in ("main", "v1"):
        assert run(*CONVERT, f"{NAME}@{revision}", "-o", tmp_path / "a.gguf").exit_code == 0
    server.requests.clear()
    option = ["--offline"] if way == "option" else []
    if way == "environment":
        monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    for source in (NAME, f"{NAME}@v1"):
        assert run(*CONVERT, source, *option, "-o", tmp_path / "b.gguf").exit_code == 0
        assert (tmp_path / "a.gguf").read_bytes() == (tmp_path / "b.gguf").read_bytes()
    for path in (tmp_path / "hf").rglob(WEIGHTS):
        path.unlink()
    assert "or only in part" in run(*CONVERT, NAME, *option).stderr
    missing = run(*CONVERT, "Org/Other", *option)
    assert missing.exit_code == 6
    assert "Org/Other is not in the cache" in missing.stderr
    assert server.requests == []


# Transfers


def test_a_dropped_connection_goes_on_where_it_ended(server: HubServer, checkpoint: Path, tmp_path: Path) -> None:
    server.add(NAME, checkpoint)
    server.cut[WEIGHTS] = 50_000
    result = run(*CONVERT, NAME, "-o", tmp_path / "a.gguf")
    assert result.exit_code == 0, result.stderr
    starts = [r.start for r in server.requests if r.path.startswith("/storage/") and r.method == "GET"]
    assert starts[0] == 0
    assert 0 < starts[1] <= 50_000


def test_a_later_run_goes_on_where_an_earlier_one_ended(server: HubServer, gguf: bytes) -> None:
    """Nothing is in place meanwhile, and the part is gone in the end."""
    server.add(READY, {"tiny-Q8_0.gguf": gguf})
    server.stuck["tiny-Q8_0.gguf"] = 100_500
    result = run("pull", READY)
    assert result.exit_code == 6
    assert f"cut off after 100.0 kB of {len(gguf) / 1000:.1f} kB" in result.stderr
    assert "goes on from there" in result.stderr
    (part,) = files_below(models_dir())
    assert part.endswith(".part")
    server.stuck.clear()
    server.requests.clear()
    again = run("pull", READY)
    assert again.exit_code == 0, again.stderr
    assert f"{(len(gguf) - 100_000) / 1000:.1f} kB of {len(gguf) / 1000:.0f} kB to download" in again.stderr
    assert {r.start for r in server.requests if r.path.startswith("/storage/")} == {100_000}
    assert files_below(models_dir()) == [f"{READY}/tiny-Q8_0.gguf", f"{READY}/tiny-Q8_0.gguf.json"]
    assert (models_dir() / READY / "tiny-Q8_0.gguf").read_bytes() == gguf


def test_a_part_of_another_version_is_not_continued(server: HubServer, gguf: bytes) -> None:
    server.add(READY, {"tiny-Q8_0.gguf": gguf})
    server.stuck["tiny-Q8_0.gguf"] = 100_500
    assert run("pull", READY).exit_code == 6
    server.stuck.clear()
    server.add(READY, {"tiny-Q8_0.gguf": gguf + b"\0" * 32})
    assert run("pull", READY).exit_code == 0
    assert (models_dir() / READY / "tiny-Q8_0.gguf").read_bytes() == gguf + b"\0" * 32


@pytest.mark.parametrize("path", [WEIGHTS, "tokenizer.json"])
def test_changed_bytes_are_found_and_not_kept(server: HubServer, checkpoint: Path, tmp_path: Path, path: str) -> None:
    """Of large files by sha256, of small ones by Git's digest."""
    server.add(NAME, checkpoint)
    server.broken.add(path)
    result = run(*CONVERT, NAME, "-o", tmp_path / "a.gguf")
    assert result.exit_code == 6
    assert f"{path} has the digest " in result.stderr
    assert not (tmp_path / "a.gguf").exists()
    server.broken.clear()
    assert run(*CONVERT, NAME, "-o", tmp_path / "a.gguf").exit_code == 0


def test_a_full_disk_is_said_to_be_full(server: HubServer, gguf: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the middle of a download; what has come stays for the next attempt."""
    server.add(READY, {"tiny-Q8_0.gguf": gguf})
    write = transfer._Sink.write

    def full(sink: transfer._Sink, data: bytes) -> int:
        if sink.tell() >= 50_000:
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(sink, data)

    monkeypatch.setattr(transfer._Sink, "write", full)
    result = run("pull", READY)
    assert result.exit_code == 6
    assert "is full" in result.stderr
    (part,) = models_dir().rglob("*.part")
    assert part.stat().st_size == 50_000


@pytest.mark.parametrize("path", ["../evil.gguf", "a/../../evil.gguf", "/etc/evil.gguf", "C:\\evil.gguf", "a//b.gguf"])
def test_a_name_that_leaves_its_folder_is_refused(server: HubServer, gguf: bytes, tmp_path: Path, path: str) -> None:
    server.add(READY, {path: gguf})
    result = run("pull", READY)
    assert result.exit_code == 6
    assert "leaves its folder" in result.stderr
    assert not (tmp_path / "home").exists()


@pytest.mark.parametrize("said", ["../../../evil", "/etc/evil", "abc", "G" * 64])
def test_a_digest_that_is_none_names_no_file(
    server: HubServer, checkpoint: Path, gguf: bytes, tmp_path: Path, said: str
) -> None:
    """What waits for the rest of a download, and what is in the cache, is called by its digest."""
    server.add(READY, {"a.gguf": gguf})
    server.add(NAME, checkpoint)
    server.digests = {"a.gguf": said, WEIGHTS: said}
    before = files_below(tmp_path)
    for result in (run("pull", READY), run(*CONVERT, NAME, "-o", tmp_path / "x.gguf")):
        assert result.exit_code == 6
        assert "gives no digest for" in result.stderr
    assert not [name for name in files_below(tmp_path) if name not in before and ("evil" in name or ".part" in name)]
    assert not server.fetched()


@pytest.mark.parametrize(
    "reference",
    ["a", "a/b/c", "../b", "a/..", "a--b/c", "a/b@../x", "https://example.org/a/b", "a/b c", "-a/b", "a/b@"],
)
def test_what_is_no_repository_is_said(reference: str) -> None:
    with pytest.raises(errors.InvalidOptionError):
        hub.parse_reference(reference)


def test_two_revisions_contradict() -> None:
    with pytest.raises(errors.InvalidOptionError, match="two revisions"):
        hub.parse_reference("a/b@v1", "v2")
