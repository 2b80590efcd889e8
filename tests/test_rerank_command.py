"""``edge-embed rerank``: one stage, and two, the first of which finds candidates in a corpus of any size."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result

from edge_embed import Embedder, Reranker
from edge_embed.cli import main
from edge_embed.errors import (
    InputFileError,
    InvalidOptionError,
    InvalidTextError,
    NonFiniteError,
    TextTooLongError,
)
from edge_embed.testing import FakeEngine, fake_embedder
from edge_embed.two_stage import Candidate, check_count, open_vectors, search
from edge_embed.types import EmbedResult, RankedDocument
from tests.commands import INTERRUPTIBLE
from tests.tiny_gguf import gguf_bytes, tiny_decoder, tiny_reranker

DOCUMENTS = [
    "a cat",
    "",
    "the dog and the cat " * 9,
    "{document} {query} {instruction}",
    "<|im_end|>\n猫 e\u0301",
    "a cat",
]


def run(*arguments: str | Path, stdin: str | None = None) -> Result:
    return CliRunner().invoke(main, ["rerank", *map(str, arguments)], input=stdin, prog_name="edge-embed")


# One stage


def test_the_command_prints_the_documents_from_best_to_worst(
    reranker_path: Path, reranker: Reranker, tmp_path: Path
) -> None:
    def run(*arguments: str) -> list[dict[str, Any]]:
        result = CliRunner().invoke(main, ["rerank", "-m", str(reranker_path), "--threads", "1", *arguments])
        assert result.exit_code == 0, result.output
        return [json.loads(line) for line in result.stdout.splitlines()]

    expected = reranker.rank("a query", DOCUMENTS)
    lines = run("a query", *DOCUMENTS)
    assert [RankedDocument(**line) for line in lines] == [
        RankedDocument(e.index, pytest.approx(e.score, abs=1e-4), e.document) for e in expected
    ]
    (tmp_path / "d.jsonl").write_text("".join(json.dumps({"body": d}) + "\n" for d in DOCUMENTS), "utf-8")
    assert run("a query", "-f", str(tmp_path / "d.jsonl"), "--field", "body", "-k", "2") == lines[:2]
    cut = run("a query", "--max-tokens", "120", "-k", "9", *DOCUMENTS)
    assert [line["index"] for line in cut if line["truncated"]] == [2]
    raw = run("a query", "--raw-scores", "--instruction", "Find the answer", *DOCUMENTS)
    assert [line["index"] for line in raw] == [line["index"] for line in lines]
    assert raw[0]["score"] > 1


def test_the_command_says_what_was_cut(reranker_path: Path) -> None:
    result = CliRunner().invoke(
        main, ["rerank", "-m", str(reranker_path), "--max-tokens", "120", "-k", "1", "q", *DOCUMENTS]
    )
    assert "note: 1 of 6 documents was cut, so that the pair has 120 tokens" in result.stderr
    assert len(result.stdout.splitlines()) == 1


def test_show_and_doctor_know_a_reranker(reranker_path: Path) -> None:
    shown = CliRunner().invoke(main, ["show", str(reranker_path)])
    assert shown.exit_code == 0
    assert "of pairs, probabilities" in shown.stdout
    assert "Find the answer" in shown.stdout
    found = json.loads(CliRunner().invoke(main, ["show", "--json", str(reranker_path)]).stdout)
    assert found["rerank"]["activation"] == "sigmoid"
    assert found["problem"] is None
    checked = CliRunner().invoke(main, ["doctor", "-m", str(reranker_path)])
    assert "reranking" in checked.stdout
    assert "second in" in checked.stdout


def test_the_command_refuses_an_embedding_model(qwen3_path: Path) -> None:
    result = CliRunner().invoke(main, ["rerank", "-m", str(qwen3_path), "q", "a"])
    assert result.exit_code == 3
    assert "is an embedding model" in result.stderr


def test_a_lora_adapter_is_added_to_the_reranker(reranker_path: Path, reranker: Reranker, tmp_path: Path) -> None:
    """The scores are those of the merged weights."""
    metadata, tensors = tiny_reranker()
    name, random = "blk.0.attn_q.weight", np.random.default_rng(3)
    a = random.standard_normal((2, tensors[name].shape[1])).astype(np.float32)
    b = random.standard_normal((tensors[name].shape[0], 2)).astype(np.float32)
    adapter = {
        "general.type": "adapter",
        "general.architecture": "qwen3",
        "adapter.type": "lora",
        "adapter.lora.alpha": np.float32(2.0),  # over a rank of 2
    }
    (tmp_path / "a.gguf").write_bytes(gguf_bytes(adapter, {f"{name}.lora_a": a, f"{name}.lora_b": b}))
    merged = {**tensors, name: (tensors[name] + 0.5 * b @ a).astype(np.float16)}
    (tmp_path / "m.gguf").write_bytes(gguf_bytes(metadata, merged))
    with Reranker(tmp_path / "m.gguf", n_threads=1) as other:
        expected = np.asarray(other.predict("a query", DOCUMENTS, raw_scores=True))
    with Reranker(reranker_path, n_threads=1, lora=tmp_path / "a.gguf", lora_scale=0.5) as adapted:
        found = np.asarray(adapted.predict("a query", DOCUMENTS, raw_scores=True))
    plain = np.asarray(reranker.predict("a query", DOCUMENTS, raw_scores=True))
    np.testing.assert_allclose(found, expected, atol=0.02)
    assert np.abs(plain - expected).max() > 0.2
    result = run("-m", reranker_path, "--lora", f"{tmp_path / 'a.gguf'}:0.5", "--raw-scores", "a query", *DOCUMENTS)
    scores = {line["index"]: line["score"] for line in map(json.loads, result.stdout.splitlines())}
    np.testing.assert_allclose([scores[i] for i in range(len(DOCUMENTS))], found, atol=1e-3)


def test_a_limit_under_which_no_pair_fits_is_refused_at_once(reranker_path: Path, reranker: Reranker) -> None:
    """And the smallest that does is named."""
    own = reranker.tokenize("", "a").n_tokens
    for limit in (4, own - 1):
        with pytest.raises(InvalidOptionError, match=f"max_tokens is {limit}, and .* has {own} tokens") as caught:
            Reranker(reranker_path, max_tokens=limit)
        assert caught.value.hint == f"give at least {own}, and as many more as queries and documents need"
    with Reranker(reranker_path, max_tokens=own, n_threads=1) as smallest:
        assert smallest.tokenize("", "a").token_ids.tolist() == reranker.tokenize("", "a").token_ids.tolist()
    result = run("-m", reranker_path, "--max-tokens", "4", "q", "a")
    assert (result.exit_code, f"give at least {own}" in result.stderr) == (2, True)


# The first stage

WORDS = "aa ab ba bb ca cb zz yx".split()
CORPUS = [f"{WORDS[i % 8]} {WORDS[i * 5 % 7]} {'x' * (i % 11)}" for i in range(700)]


class Watched:
    """A fake embedder that remembers how many texts it was given at once."""

    def __init__(self, **options: Any) -> None:
        self.embedder = fake_embedder(FakeEngine(n_embd=16, **options))
        self.sizes: list[int] = []
        embed = self.embedder.embed

        def watched(texts: Sequence[str], **given: Any) -> EmbedResult:
            self.sizes.append(len(texts))
            return embed(texts, **given)

        self.embedder.embed = watched  # type: ignore[method-assign]


def all_of(query: str, texts: list[str], instruction: str | None = None) -> list[tuple[int, float]]:
    """Every text's cosine, the largest first, computed at once."""
    embedder = fake_embedder(FakeEngine(n_embd=16))
    asked = embedder.encode_query([query], instruction=instruction)
    cosines = embedder.similarity(asked, embedder.encode_document(texts))[0]
    return [(int(i), float(cosines[i])) for i in np.argsort(-cosines, kind="stable")]


def found_by(candidates: Sequence[Candidate]) -> list[tuple[int, float]]:
    return [(candidate.index, candidate.cosine) for candidate in candidates]


@pytest.mark.parametrize("n", [1, 7, 100, 700, 5000])
def test_the_nearest_are_found_a_step_at_a_time(n: int) -> None:
    """The same as from all vectors at once; of equal cosines, of which there are many here, the earlier text."""
    watched = Watched()
    found = search(watched.embedder, "aa zz", iter(CORPUS), n)
    assert found_by(found.candidates) == all_of("aa zz", CORPUS)[:n]
    assert [candidate.document for candidate in found.candidates] == [CORPUS[c.index] for c in found.candidates]
    assert (found.n_texts, found.n_truncated) == (700, 0)
    assert max(watched.sizes) <= 128
    assert sum(watched.sizes) == 701


def test_an_instruction_frames_the_query() -> None:
    found = search(fake_embedder(FakeEngine(n_embd=16)), "aa", CORPUS, 5, instruction="find {query}")
    assert found_by(found.candidates) == all_of("aa", CORPUS, "find {query}")[:5]


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("width", [16, 5])
def test_vectors_that_are_ready_are_used(dtype: str, width: int, tmp_path: Path) -> None:
    """Also cut ones; the corpus is not embedded again."""
    vectors = fake_embedder(FakeEngine(n_embd=16)).encode_document(CORPUS * 7, truncate_dim=width, precision=dtype)  # type: ignore[arg-type]
    np.save(tmp_path / "v.npy", vectors)
    watched = Watched()
    found = search(watched.embedder, "aa zz", iter(CORPUS * 7), 50, vectors=open_vectors(tmp_path / "v.npy"))
    assert watched.sizes == [1]
    asked = fake_embedder(FakeEngine(n_embd=16)).encode_query(["aa zz"], truncate_dim=width)
    cosines = watched.embedder.similarity(asked, vectors)[0]
    best = np.argsort(-cosines, kind="stable")[:50]
    assert [c.index for c in found.candidates] == best.tolist()
    assert [c.cosine for c in found.candidates] == cosines[best].tolist()
    assert [c.document for c in found.candidates] == [(CORPUS * 7)[i] for i in best]
    assert found.n_texts == 4900


def test_vectors_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    embedder = fake_embedder(FakeEngine(n_embd=16))
    good = np.ones((3, 16), np.float32)
    for n_texts in (2, 4):
        with pytest.raises(InvalidOptionError, match=f"there are {n_texts} texts and 3 vectors"):
            search(embedder, "a", iter(CORPUS[:n_texts]), 3, vectors=good)
    with pytest.raises(InvalidOptionError, match="the vectors have 17 values, and those of fake 16"):
        search(embedder, "a", CORPUS[:3], 3, vectors=np.ones((3, 17), np.float32))
    broken = good.copy()
    broken[2, 4] = np.nan
    with pytest.raises(InvalidOptionError, match="vector 2 of the corpus is not finite"):
        search(embedder, "a", CORPUS[:3], 3, vectors=broken)
    with pytest.raises(InvalidOptionError, match="the number of candidates is 0"):
        search(embedder, "a", CORPUS[:3], 0)
    for name, array in (("1d", np.ones(3, np.float32)), ("int8", np.ones((3, 2), np.int8)), ("f8", np.ones((3, 2)))):
        np.save(tmp_path / f"{name}.npy", array)
        with pytest.raises(InputFileError, match="expected float16 or float32") as caught:
            open_vectors(tmp_path / f"{name}.npy")
        assert "edge-embed embed --document" in caught.value.hint
    np.save(tmp_path / "objects.npy", np.array([{}], dtype=object))
    np.savez(tmp_path / "many.npz", good)
    (tmp_path / "text.npy").write_text("[1, 2]")
    (tmp_path / "empty.npy").write_bytes(b"")
    for name in ("objects.npy", "many.npz", "text.npy", "empty.npy"):
        with pytest.raises(InputFileError, match=name):
            open_vectors(tmp_path / name)
    with pytest.raises(InputFileError, match="cannot be read: No such file"):
        open_vectors(tmp_path / "missing.npy")
    check_count(3, 3)


def test_a_text_that_fails_is_named_by_its_place_in_the_corpus() -> None:
    texts = [*CORPUS[:300], "y" * 600]
    with pytest.raises(TextTooLongError) as caught:
        search(fake_embedder(FakeEngine(n_embd=16)), "a", texts, 3, truncate="error")
    assert caught.value.index == 300
    cut = search(fake_embedder(FakeEngine(n_embd=16)), "a", texts, 3)
    assert (cut.n_texts, cut.n_truncated) == (301, 1)
    with pytest.raises(NonFiniteError) as poisoned:
        search(fake_embedder(FakeEngine(n_embd=16, poison=3 + ord("#"))), "a", [*CORPUS[:200], "#"], 3)
    assert poisoned.value.indices == (200,)
    with pytest.raises(InvalidTextError, match=r"text 130 is int"):
        search(fake_embedder(FakeEngine(n_embd=16)), "a", [*CORPUS[:130], 3], 3)  # type: ignore[list-item]


# Two stages

BODY = ["the cat sat on the mat", "a dog", "", "in the house and on the mat " * 40, "猫", "the cat"] * 5


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("corpus") / "corpus.jsonl"
    file.write_text("".join(json.dumps({"body": text}) + "\n" for text in BODY), "utf-8")
    return file


@pytest.fixture(scope="module")
def embedder_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With prompts, and a template for instructions."""
    metadata, tensors = tiny_decoder()
    own = {
        "edge_embed.prompt.query": "query: ",
        "edge_embed.prompt.document": "doc: ",
        "edge_embed.instruction_template": "Instruct: {instruction}\nQuery:",
    }
    file = tmp_path_factory.mktemp("embedder") / "embedder.gguf"
    file.write_bytes(gguf_bytes({**metadata, **own}, tensors))
    return file


@pytest.mark.parametrize("instruction", [None, "Find cats"])
def test_candidates_are_found_and_reranked(
    instruction: str | None, reranker_path: Path, reranker: Reranker, embedder_path: Path, corpus: Path, tmp_path: Path
) -> None:
    with Embedder(embedder_path, n_threads=1) as embedder:
        vectors = embedder.encode_document(BODY)
        cosines = embedder.similarity(embedder.encode_query(["the cat"], instruction=instruction), vectors)[0]
    best = np.argsort(-cosines, kind="stable")
    options = [
        "--embedder",
        embedder_path,
        "--reranker",
        reranker_path,
        "--threads",
        "1",
        "-f",
        corpus,
        "--field",
        "body",
    ]
    options += ["--instruction", instruction] if instruction else []
    result = run("the cat", *options, "--candidates", "12", "-k", "4", "--no-progress")
    assert result.exit_code == 0, result.output
    found = [json.loads(line) for line in result.stdout.splitlines()]
    assert len(found) == 4
    assert [list(line) for line in found] == [["index", "score", "cosine", "document", "truncated"]] * 4
    scores = np.asarray(reranker.predict("the cat", BODY, instruction=instruction))
    assert {line["index"] for line in found} <= set(best[:14].tolist())  # of a few that are all but equally near
    for line in found:
        assert line["document"] == BODY[line["index"]]
        assert line["cosine"] == pytest.approx(cosines[line["index"]], abs=1e-3)
        assert line["score"] == pytest.approx(scores[line["index"]], abs=1e-3)
    assert [line["score"] for line in found] == sorted((line["score"] for line in found), reverse=True)
    np.save(tmp_path / "v.npy", vectors)
    ready = run("the cat", *options, "--candidates", "12", "-k", "4", "--vectors", tmp_path / "v.npy")
    assert [json.loads(line)["index"] for line in ready.stdout.splitlines()] == [line["index"] for line in found]


def test_both_stages_show_their_progress(
    reranker_path: Path, embedder_path: Path, corpus: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of as many texts as there are, and as many pairs as there are different candidates."""
    counted: dict[tuple[str, bool], int] = {}

    def advance(self: Any, n: int) -> None:
        counted[self._label, self._enabled] = counted.get((self._label, self._enabled), 0) + n

    monkeypatch.setattr("edge_embed.progress.Progress.advance", advance)
    options = [
        "--embedder",
        embedder_path,
        "-m",
        reranker_path,
        "-f",
        corpus,
        "--field",
        "body",
        "--threads",
        "1",
        "--progress",
    ]
    assert run("q", *options, "--candidates", "30").exit_code == 0
    assert {key: n for key, n in counted.items() if key[1]} == {("embedding", True): 30, ("reranking", True): 6}


def test_what_each_stage_cut_is_said(reranker_path: Path, embedder_path: Path, corpus: Path) -> None:
    options = ["--embedder", embedder_path, "-m", reranker_path, "-f", corpus, "--field", "body", "--threads", "1"]
    result = run("q", *options, "--max-tokens", "200", "--candidates", "30")
    assert "were cut, so that the pair has 200 tokens" in result.stderr
    assert "to be embedded" not in result.stderr
    assert len(result.stdout.splitlines()) == 30
    empty = run("q", "--embedder", embedder_path, "-m", reranker_path, stdin="")
    assert (empty.exit_code, empty.stdout, empty.stderr) == (0, "", "note: the input holds no documents\n")


def test_as_many_are_reranked_as_are_to_be_printed(reranker_path: Path, embedder_path: Path) -> None:
    lines = "".join(f"{i}\n" for i in range(130))
    options = ["--embedder", embedder_path, "-m", reranker_path, "--threads", "1"]
    for more, n in (([], 100), (["-k", "120"], 120)):
        assert len(run("q", *options, *more, stdin=lines).stdout.splitlines()) == n


@pytest.mark.parametrize(
    ("options", "code", "said"),
    [
        (["--candidates", "5"], 2, "--candidates is about finding candidates"),
        (["--vectors", "v.npy"], 2, "--vectors is about finding candidates"),
        (["--embedder", "{embedder}", "--candidates", "5", "-k", "6"], 2, "--top-k 6 of --candidates 5"),
        (["--embedder", "{reranker}"], 3, "is a reranker"),
        (["--embedder", "{embedder}", "-m", "{embedder}"], 3, "is an embedding model"),
        (["--embedder", "{embedder}", "--max-tokens", "5"], 2, "give at least"),
        (["--embedder", "{embedder}", "--vectors", "missing.npy"], 2, "cannot be read"),
        (["--embedder", "no-such-model"], 3, "no-such-model"),
    ],
)
def test_what_does_not_fit_together_is_refused(
    options: list[str], code: int, said: str, reranker_path: Path, embedder_path: Path, corpus: Path
) -> None:
    named = [option.format(reranker=reranker_path, embedder=embedder_path) for option in options]
    result = run("q", "-m", reranker_path, *named, "-f", corpus, "--field", "body")
    assert result.exit_code == code, result.output
    assert said in result.stderr
    assert result.stdout == ""


def test_what_goes_wrong_in_the_second_stage_does_so_before_the_first(
    reranker_path: Path, embedder_path: Path, corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And so does a file of vectors that belongs to another corpus."""

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("the first stage began")

    monkeypatch.setattr("edge_embed.embedder.Embedder", refuse)
    np.save(tmp_path / "v.npy", np.ones((7, 32), np.float32))
    options = ["-m", reranker_path, "--embedder", embedder_path, "-f", corpus, "--field", "body"]
    for more, said in (
        (["--instruction", "x" * 5000], "leaves no room"),
        (["--vectors", tmp_path / "v.npy"], "there are 30 texts and 7 vectors"),
    ):
        result = run("q", *options, *more)
        assert result.exit_code == 2, result.output
        assert said in result.stderr


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
def test_an_interrupt_ends_it_tidily(reranker_path: Path, embedder_path: Path, tmp_path: Path) -> None:
    """In the midst of the first stage: exit code 130, one line, no output."""
    pipe = tmp_path / "corpus.txt"
    os.mkfifo(pipe)
    command = [
        sys.executable,
        "-c",
        INTERRUPTIBLE,
        "rerank",
        "q",
        "--embedder",
        embedder_path,
        "-m",
        reranker_path,
        "-f",
        pipe,
    ]
    with (
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process,
        pipe.open("wb") as writer,  # waits until the other end is opened, which the first stage does
    ):
        writer.write(b"a cat\n" * 300)
        writer.flush()
        process.send_signal(signal.SIGINT)
        output, errors = process.communicate()
    assert (process.returncode, output, errors.strip()) == (130, b"", b"interrupted")
