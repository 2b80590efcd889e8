"""``edge-embed tokenize`` and ``count-tokens``: the ids that a model gets, without its weights."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edge_embed import Embedder, Reranker
from edge_embed.cli import tokenize as tokenize_command
from edge_embed.errors import InvalidOptionError, InvalidTextError, UnsupportedModelError
from edge_embed.tokens import Tokens
from edge_embed.types import Encoding
from tests.commands import run
from tests.tiny_gguf import bpe_metadata, gguf_bytes, spm_metadata, tiny_decoder

TEXTS = ["the cat sat", "", "naïve café 猫", "in the house and on the mat " * 9]
INSTRUCTED = {
    "edge_embed.prompt.query": "Instruct: find\nQuery:",
    "edge_embed.prompt.document": "doc: ",
    "edge_embed.instruction_template": "Instruct: {instruction}\nQuery:",
}


def lines(*arguments: str | Path, stdin: str | None = None) -> list[dict[str, Any]]:
    result = run("tokenize", *arguments, stdin=stdin)
    assert result.exit_code == 0, result.output
    return [json.loads(line) for line in result.stdout.splitlines()]


@pytest.fixture(scope="module")
def instructed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny causal model with prompts."""
    path = tmp_path_factory.mktemp("tokens") / "instructed.gguf"
    metadata, tensors = tiny_decoder()
    path.write_bytes(gguf_bytes({**metadata, **INSTRUCTED}, tensors))
    return path


@pytest.fixture
def no_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    """A model whose weights are loaded fails the test."""

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("the weights were loaded")

    monkeypatch.setattr("edge_embed.engine.llama.LlamaEngine.__init__", refuse)


def ids_of(encodings: list[Encoding]) -> list[list[int]]:
    return [encoding.token_ids.tolist() for encoding in encodings]


# The ids


def test_the_ids_are_those_that_the_model_gets(bert: Embedder, bert_path: Path, no_engine: None) -> None:
    found = lines("-m", bert_path, *TEXTS)
    expected = [bert.tokenize(text) for text in TEXTS]
    assert [line["token_ids"] for line in found] == ids_of(expected)
    assert [line["index"] for line in found] == [0, 1, 2, 3]
    assert [(line["n_tokens"], line["n_original"], line["truncated"]) for line in found] == [
        (e.n_tokens, e.n_original, e.truncated) for e in expected
    ]


@pytest.mark.parametrize(
    ("options", "prefix"),
    [
        ([], ""),
        (["--query"], "Instruct: find\nQuery:"),
        (["--document"], "doc: "),
        (["--prompt-name", "document"], "doc: "),
        (["--prompt", "x{y} "], "x{y} "),
        (["--instruction", "{instruction}"], "Instruct: {instruction}\nQuery:"),
        (["--query", "--instruction", "t"], "Instruct: t\nQuery:"),
    ],
)
def test_prompts_stand_before_the_texts_as_in_embed(
    options: list[str], prefix: str, qwen3: Embedder, instructed: Path, no_engine: None
) -> None:
    expected = ids_of([qwen3.tokenize(text, prompt=prefix) for text in TEXTS])
    assert expected == ids_of([qwen3.tokenize(prefix + text) for text in TEXTS])
    assert [line["token_ids"] for line in lines("-m", instructed, *options, *TEXTS)] == expected
    counted = run("count-tokens", "-m", instructed, *options, *TEXTS)
    assert counted.stdout.splitlines() == [str(len(ids)) for ids in expected]


def test_a_default_prompt_counts(tmp_path: Path, qwen3: Embedder) -> None:
    metadata, tensors = tiny_decoder()
    metadata = {**metadata, **INSTRUCTED, "edge_embed.default_prompt_name": "document"}
    (tmp_path / "m.gguf").write_bytes(gguf_bytes(metadata, tensors))
    assert lines("-m", tmp_path / "m.gguf", "x")[0]["token_ids"] == qwen3.tokenize("doc: x").token_ids.tolist()
    assert (
        lines("-m", tmp_path / "m.gguf", "--prompt", "", "x")[0]["token_ids"] == qwen3.tokenize("x").token_ids.tolist()
    )


def test_pairs_are_put_together_as_the_reranker_does(reranker_path: Path) -> None:
    with Reranker(reranker_path, n_threads=1) as reranker:
        plain = [reranker.tokenize("a query", text) for text in TEXTS]
        asked = [reranker.tokenize("a query", text, instruction="Find {query}") for text in TEXTS]
    found = lines("-m", reranker_path, "--pair-with", "a query", *TEXTS)
    assert [line["token_ids"] for line in found] == ids_of(plain)
    found = lines("-m", reranker_path, "--pair-with", "a query", "--instruction", "Find {query}", *TEXTS)
    assert [line["token_ids"] for line in found] == ids_of(asked)
    counted = run("count-tokens", "-m", reranker_path, "--pair-with", "a query", *TEXTS)
    assert counted.stdout.splitlines() == [str(encoding.n_original) for encoding in plain]


def test_a_tokenizer_that_is_not_rebuilt_is_the_library_s_own(tmp_path: Path) -> None:
    """Its vocabulary is loaded, and nothing else: the ids are those of the whole model."""
    path = tmp_path / "mpt.gguf"
    path.write_bytes(gguf_bytes(*tiny_decoder(vocabulary=bpe_metadata("mpt"))))
    with Embedder(path, n_threads=1) as embedder:
        expected = ids_of([embedder.tokenize(text) for text in TEXTS])
    tokens = Tokens(path)
    assert ids_of([tokens.encode(text) for text in TEXTS]) == expected
    assert tokens.count(TEXTS) == [len(ids) for ids in expected]


def test_no_native_library_is_loaded_where_the_tokenizer_is_rebuilt(bert_path: Path, instructed: Path) -> None:
    code = (
        "import sys; from edge_embed.tokens import Tokens\n"
        "for path in sys.argv[1:]: Tokens(path).count(['a text'])\n"
        "sys.exit('llama_cpp' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code, bert_path, instructed], check=False).returncode == 0


@pytest.mark.parametrize("kind", ["bert", "qwen3", "library"])
def test_counting_many_is_counting_each(kind: str, bert_path: Path, qwen3_path: Path, tmp_path: Path) -> None:
    """Long texts too, which are tokenized in slices, and texts that end inside a slice."""
    path = {"bert": bert_path, "qwen3": qwen3_path}.get(kind, tmp_path / "mpt.gguf")
    if kind == "library":
        path.write_bytes(gguf_bytes(*tiny_decoder(vocabulary=bpe_metadata("mpt"))))
    tokens = Tokens(path)
    for texts in (TEXTS, [*TEXTS, "the cat and e\u0301 " * 9000], []):
        assert tokens.count(texts, prefix="a: ") == [tokens.encode(t, prefix="a: ").n_original for t in texts]


# What is printed


def test_the_output_for_people_shows_each_piece(instructed: Path) -> None:
    result = run("tokenize", "--pretty", "-m", instructed, 'the "\n', "猫\\")
    assert result.stdout == (
        "text 0: 6 tokens\n"
        ' 83  "t"\n'
        '258  "he"\n'
        '220  " "\n'
        '  1  "\\""\n'
        '198  "\\n"\n'
        '276  "<|endoftext|>"  special\n'
        "\n"
        "text 1: 5 tokens\n"
        '163  "\\xe7"\n'
        '234  "\\x8c"\n'
        '104  "\\xab"\n'
        ' 59  "\\\\"\n'
        '276  "<|endoftext|>"  special\n'
    )


def test_tokens_are_spelled_as_the_original_vocabulary_does(bert_path: Path, tmp_path: Path) -> None:
    """llama.cpp marks the beginnings of words, where WordPiece marks what goes on."""
    (found,) = lines("-m", bert_path, "the sitting cats")
    assert found["tokens"][0] == "[CLS]"
    assert found["tokens"][1] == "the"
    assert found["tokens"][-2:] == ["##s", "[SEP]"]
    path = tmp_path / "spm.gguf"
    path.write_bytes(gguf_bytes(*tiny_decoder("llama", spm_metadata())))
    (found,) = lines("-m", path, "--pooling", "mean", "the ☃")
    assert found["tokens"][0] == "<s>"
    assert "▁" in found["tokens"]
    assert found["tokens"][-4:] == ["<0xE2>", "<0x98>", "<0x83>", "</s>"]
    shown = run("tokenize", "--pretty", "-m", path, "--pooling", "mean", "the ☃").stdout.splitlines()
    assert [line.strip().split("  ", 1)[1] for line in shown[-5:]] == [
        '" "', '"\\xe2"', '"\\x98"', '"\\x83"', '"</s>"  special',
    ]  # fmt: skip


def test_what_was_cut_is_said(instructed: Path) -> None:
    result = run("tokenize", "-m", instructed, "--max-tokens", "8", *TEXTS)
    found = [json.loads(line) for line in result.stdout.splitlines()]
    assert [line["truncated"] for line in found] == [False, False, True, True]
    assert found[3]["n_tokens"] == 8 < found[3]["n_original"]
    assert "note: 2 of 4 texts were cut to 8 tokens" in result.stderr
    pretty = run("tokenize", "--pretty", "-m", instructed, "--max-tokens", "8", TEXTS[3])
    assert f"text 0: 8 tokens, cut from {found[3]['n_original']}\n" in pretty.stdout
    refused = run("tokenize", "-m", instructed, "--max-tokens", "8", "--truncate", "error", "a", TEXTS[3])
    assert refused.exit_code == 2
    assert f"text 1 has {found[3]['n_original']} tokens, and the limit is 8" in refused.stderr


def test_counts_are_of_whole_texts_and_the_long_ones_are_said(instructed: Path) -> None:
    whole = [line["n_original"] for line in lines("-m", instructed, *TEXTS)]
    result = run("count-tokens", "-m", instructed, "--max-tokens", "8", *TEXTS)
    assert result.stdout.splitlines() == [str(n) for n in whole]
    assert "note: 2 of 4 texts have more than 8 tokens" in result.stderr
    total = run("count-tokens", "-m", instructed, "--total", *TEXTS)
    assert total.stdout == f"{sum(whole)}\n"
    assert total.stderr == ""


def test_files_and_pipes_are_read_as_elsewhere(bert_path: Path, tmp_path: Path) -> None:
    (tmp_path / "in.jsonl").write_text("".join(json.dumps({"body": text}) + "\n" for text in TEXTS))
    expected = run("count-tokens", "-m", bert_path, *TEXTS).stdout
    assert run("count-tokens", "-m", bert_path, "-f", tmp_path / "in.jsonl", "--field", "body").stdout == expected
    assert run("count-tokens", "-m", bert_path, stdin="\n".join(TEXTS) + "\n").stdout == expected
    empty = run("count-tokens", "-m", bert_path, "--total", stdin="")
    assert (empty.stdout, empty.stderr) == ("0\n", "note: the input holds no texts\n")
    empty = run("tokenize", "-m", bert_path, stdin="")
    assert (empty.stdout, empty.stderr) == ("", "note: the input holds no texts\n")


def test_counts_come_while_the_input_is_still_open(bert_path: Path) -> None:
    """So a pipe without an end, or a file larger than memory, is counted as it comes."""
    command = [sys.executable, "-m", "edge_embed.cli", "count-tokens", "-m", str(bert_path)]
    n = tokenize_command.AT_ONCE
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write("the cat\n" * n)
        process.stdin.flush()
        assert [process.stdout.readline() for _ in range(n)] == ["4\n"] * n
        process.stdin.write("the\n")
        process.stdin.close()
        assert process.stdout.read() == "3\n"
    assert process.returncode == 0


# What is refused


def test_what_cannot_be_tokenized_is_refused(bert_path: Path, instructed: Path, reranker_path: Path) -> None:
    for command in ("tokenize", "count-tokens"):
        result = run(command, "-m", reranker_path, "a")
        assert result.exit_code == 2
        assert "is a reranker" in result.stderr
        assert "--pair-with" in result.stderr
        result = run(command, "-m", bert_path, "--pair-with", "q", "a")
        assert result.exit_code == 3
        assert "is an embedding model" in result.stderr
        for option in (["--query"], ["--prompt", "x"], ["--pooling", "mean"]):
            result = run(command, "-m", reranker_path, "--pair-with", "q", *option, "a")
            assert result.exit_code == 2
            assert "--pair-with is for rerankers" in result.stderr
        result = run(command, "-m", instructed, "--query", "--prompt", "x", "a")
        assert "contradict each other" in result.stderr
        result = run(command, "-m", bert_path, "--instruction", "x", "a")
        assert "no template for instructions" in result.stderr


def test_a_text_that_is_none_is_named_by_its_place(bert_path: Path, reranker_path: Path) -> None:
    tokens = Tokens(bert_path)
    with pytest.raises(InvalidTextError, match="text 7 holds a lone surrogate"):
        tokens.count(["a", "\ud800"], first=6)
    with pytest.raises(InvalidTextError, match="text 3 is int"):
        tokens.encode(3, index=3)  # type: ignore[arg-type]
    with pytest.raises(UnsupportedModelError, match="is an embedding model"):
        tokens.encode_pair("a", "b")
    with pytest.raises(InvalidOptionError, match="is a reranker"):
        Tokens(reranker_path).count(["a"])


def test_pieces_of_any_vocabulary_can_be_shown(qwen3_path: Path) -> None:
    """Every id, those of no text among them."""
    tokens = Tokens(qwen3_path)
    every = Encoding(np.arange(tokens.info.n_vocab, dtype=np.int32), tokens.info.n_vocab)
    pieces = list(tokens.pieces(every))
    assert [piece.token_id for piece in pieces] == list(range(tokens.info.n_vocab))
    assert [piece.token for piece in pieces if piece.special] == ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    assert all(piece.shown.isprintable() for piece in pieces)
    assert len({piece.shown for piece in pieces}) == len(pieces)
