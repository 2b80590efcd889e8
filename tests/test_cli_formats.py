"""What `edge-embed embed` writes and reads: every format gives back the same vectors, every file the same texts."""

from __future__ import annotations

import base64
import csv
import io
import json
from collections.abc import Callable, Iterator
from pathlib import Path

import click
import numpy as np
import pytest

from edge_embed import files, types
from edge_embed.cli import embed as embed_command
from edge_embed.cli import options, output
from edge_embed.errors import InputFileError
from edge_embed.testing import FakeEngine, fake_embedder
from tests.commands import run

TEXTS = ["a cat sleeps", "", "naïve café 猫", "the bank raised rates"]


def expected(texts: list[str]) -> np.ndarray:
    return fake_embedder().encode(texts)


# Formats of vectors

READERS: dict[str, Callable[[bytes], np.ndarray]] = {
    "json": lambda data: np.array(json.loads(data), dtype=np.float32),
    "jsonl": lambda data: np.array([json.loads(line)["embedding"] for line in data.splitlines()], dtype=np.float32),
    "csv": lambda data: np.array(list(csv.reader(io.StringIO(data.decode()))), dtype=np.float32),
    "npy": lambda data: np.load(io.BytesIO(data)),
    "f32": lambda data: np.frombuffer(data, dtype="<f4").reshape(-1, 16),
    "base64": lambda data: np.stack([np.frombuffer(base64.b64decode(x), dtype="<f4") for x in data.split()]),
}


@pytest.mark.parametrize("output_format", output.OUTPUT_FORMATS)
def test_every_format_gives_back_the_same_vectors(fake: FakeEngine, tmp_path: Path, output_format: str) -> None:
    """Bit for bit, through standard output and through a file."""
    result = run("embed", "--output-format", output_format, *TEXTS)
    assert result.exit_code == 0, result.stderr
    np.testing.assert_array_equal(READERS[output_format](result.stdout_bytes), expected(TEXTS))
    assert run("embed", "-o", tmp_path / f"v.{output_format}", *TEXTS).exit_code == 0
    assert (tmp_path / f"v.{output_format}").read_bytes() == result.stdout_bytes


@pytest.mark.parametrize("precision", options.PRECISIONS)
@pytest.mark.parametrize("output_format", ["json", "npy", "base64"])
def test_every_precision_keeps_its_values(fake: FakeEngine, precision: types.Precision, output_format: str) -> None:
    """Texts of digits and bytes of values both read back as the library's own result."""
    wanted = fake_embedder().encode(TEXTS, precision=precision)
    result = run("embed", "--precision", precision, "--output-format", output_format, *TEXTS)
    data = result.stdout_bytes
    if output_format == "json":
        found = np.array(json.loads(data)).astype(wanted.dtype)
    elif output_format == "npy":
        found = np.load(io.BytesIO(data))
    else:
        found = np.stack([np.frombuffer(base64.b64decode(line), dtype=wanted.dtype) for line in data.split()])
    np.testing.assert_array_equal(found, wanted)
    assert found.dtype == wanted.dtype


@pytest.mark.parametrize("output_format", output.OUTPUT_FORMATS)
def test_many_steps_are_one_output(fake: FakeEngine, tmp_path: Path, output_format: str) -> None:
    """More texts than one step holds come out whole and in order."""
    texts = [f"text {i}" for i in range(300)]
    (tmp_path / "in.txt").write_text("\n".join(texts) + "\n")
    result = run("embed", "-f", tmp_path / "in.txt", "--output-format", output_format)
    np.testing.assert_array_equal(READERS[output_format](result.stdout_bytes), expected(texts))


def test_steps_depend_on_the_texts_alone() -> None:
    """And hold each text once, in order."""
    texts = ["x" * (i % 50) for i in range(5000)]
    steps = list(embed_command._steps(texts))
    assert [text for step in steps for text in step] == texts
    assert [len(step) for step in steps[:3]] == [64, 128, 256]
    assert max(map(len, steps)) <= 1024
    assert list(embed_command._steps([])) == [[]]


@pytest.mark.parametrize(("output_format", "data"), [("json", b"[]\n"), ("jsonl", b""), ("f32", b""), ("csv", b"")])
def test_no_texts_are_no_vectors(fake: FakeEngine, output_format: str, data: bytes) -> None:
    """An empty input is said to be one, and is not an error."""
    result = run("embed", "--output-format", output_format, stdin="")
    assert (result.exit_code, result.stdout_bytes) == (0, data)
    assert "no texts" in result.stderr


def test_npy_of_no_texts_has_its_width(fake: FakeEngine) -> None:
    """Zero rows of the right size."""
    assert np.load(io.BytesIO(run("embed", "--output-format", "npy", stdin="").stdout_bytes)).shape == (0, 16)


def test_f32_refuses_other_precisions(fake: FakeEngine) -> None:
    result = run("embed", "--output-format", "f32", "--precision", "int8", "x")
    assert result.exit_code == 2
    assert "npy" in result.stderr


def test_binary_is_not_written_to_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    """It would garble the terminal; the message says what to do."""
    monkeypatch.setattr("sys.stdout", type("Terminal", (), {"isatty": lambda _: True})())
    with pytest.raises(click.UsageError, match="--output"):
        output.choose_format(None, "npy")
    assert output.choose_format(None, "base64") == "base64"


def test_an_unknown_extension_asks_for_the_format(fake: FakeEngine, tmp_path: Path) -> None:
    result = run("embed", "-o", tmp_path / "v.xyz", "x")
    assert result.exit_code == 2
    assert "--output-format" in result.stderr
    assert list(tmp_path.iterdir()) == []


# Texts

JSONL = '{"id": 1, "text": "one", "body": "eins"}\n\n{"id": 2, "text": "two", "body": "zwei"}\r\n'
CSV = 'id,text,body\r\n1,"one, or\n1",eins\r\n2,two,"zw""ei"\r\n'


@pytest.mark.parametrize(
    ("name", "data", "field", "texts"),
    [
        ("a.txt", b"one\n\ntwo\r\nthree", None, ["one", "", "two", "three"]),
        ("a.txt", b"\xef\xbb\xbfone\n", None, ["one"]),
        ("a", "na\u2028ïve\x0bline\n".encode(), None, ["na\u2028ïve\x0bline"]),
        ("a.jsonl", JSONL.encode(), None, ["one", "two"]),
        ("a.ndjson", JSONL.encode(), "body", ["eins", "zwei"]),
        ("a.jsonl", b'\xef\xbb\xbf"one"\n"\\u732b"\n""\n', None, ["one", "猫", ""]),
        ("a.csv", CSV.encode(), None, ["one, or\n1", "two"]),
        ("a.csv", CSV.encode(), "body", ["eins", 'zw"ei']),
        ("a.csv", b"title\nonly\n", None, ["only"]),
        ("a.tsv", b"x\ttext\n1\ta, b\n", None, ["a, b"]),
        ("a.csv", b"", None, []),
        ("a.csv", b"text\n" + b"x" * 200_000 + b"\n", None, ["x" * 200_000]),
    ],
)
def test_texts_of_files(tmp_path: Path, name: str, data: bytes, field: str | None, texts: list[str]) -> None:
    """Each format, each field, each kind of line end, with and without a BOM."""
    (tmp_path / name).write_bytes(data)
    assert list(files.read_file(tmp_path / name, field=field)) == texts


@pytest.mark.parametrize(
    ("name", "data", "field", "parts"),
    [
        ("a.txt", b"one\nt\xe9o\n", None, ["line 2", "byte 2", "0xe9", "UTF-8"]),
        ("a.txt", "one".encode("utf-16"), None, ["line 1", "iconv -f UTF-16"]),
        ("a.txt", b"\x1f\x8b\x08", None, ["gzip -dc"]),
        ("a.txt", b"one\n", "text", ["no field", "--input-format"]),
        ("a.jsonl", b'"one"\n{"text": \n', None, ["line 2", "not JSON"]),
        ("a.jsonl", b"[" * 100_000, None, ["line 1", "not JSON"]),
        ("a.jsonl", b'{"title": "x", "id": 2}\n', None, ["line 1", "'text'", "--field: title, id"]),
        ("a.jsonl", b'{"text": "x", "id": 2}\n', "id", ["line 1", "a number"]),
        ("a.jsonl", b'{"text": null}\n', None, ["line 1", "null"]),
        ("a.jsonl", b'"x"\n', "body", ["line 1", "'body'"]),
        ("a.jsonl", b'"\\ud800"\n', None, ["line 1", "surrogate"]),
        ("a.csv", b"title,id\nx,2\n", None, ["line 1", "'text'", "--field: title, id"]),
        ("a.csv", b"text,text\nx,y\n", None, ["twice"]),
        ("a.csv", b"text,id\nx,2\nx, y,3\n", None, ["line 3", "3 cells", "2 columns"]),
        ("a.csv", b'text,id\n"x,2\n', None, ["line 2"]),
        ("a.json", b"[]", None, ["--input-format", "jq"]),
        ("a.pdf", b"%PDF", None, ["'.pdf'", "--input-format"]),
    ],
)
def test_what_is_wrong_with_a_file_is_said(
    tmp_path: Path, name: str, data: bytes, field: str | None, parts: list[str]
) -> None:
    """By file, line and what to do."""
    (tmp_path / name).write_bytes(data)
    with pytest.raises(InputFileError) as caught:
        list(files.read_file(tmp_path / name, field=field))
    for part in [str(tmp_path / name), *parts]:
        assert part in str(caught.value)


def test_files_that_cannot_be_opened(tmp_path: Path) -> None:
    """No such file, and a folder."""
    for path in (tmp_path / "none.txt", tmp_path):
        with pytest.raises(InputFileError, match="cannot be read"):
            list(files.read_file(path, input_format="txt"))


def test_reading_holds_one_record_at_a_time() -> None:
    """An endless stream is no obstacle."""

    def endless() -> Iterator[bytes]:
        while True:
            yield b'{"text": "x"}\n'

    texts = files.read_stream(endless(), "endless", input_format="jsonl")
    assert [next(texts) for _ in range(3)] == ["x", "x", "x"]


@pytest.mark.parametrize("arguments", [(), ("-",), ("-f", "-")])
def test_lines_of_standard_input(fake: FakeEngine, arguments: tuple[str, ...]) -> None:
    """Blank lines are texts, so that vector i is line i."""
    result = run("embed", *arguments, stdin="\n".join(TEXTS) + "\n")
    np.testing.assert_array_equal(READERS["json"](result.stdout_bytes), expected(TEXTS))


def test_fields_of_standard_input(fake: FakeEngine) -> None:
    result = run("embed", "--input-format", "jsonl", "--field", "body", stdin=JSONL)
    np.testing.assert_array_equal(READERS["json"](result.stdout_bytes), expected(["eins", "zwei"]))


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (("x", "-f", "a.txt"), "not both"),
        (("x", "--field", "body"), "--field"),
        (("x", "--query", "--document"), "contradict"),
        (("x", "--prompt", "a", "--prompt-name", "query"), "contradict"),
        (("x", "--document", "--instruction", "a"), "contradict"),
        (("x", "--dimensions", "0"), "--dimensions"),
        (("x", "--truncate", "middle"), "--truncate"),
    ],
)
def test_options_that_contradict(fake: FakeEngine, arguments: tuple[str, ...], part: str) -> None:
    """Are refused before a model is loaded."""
    result = run("embed", *arguments)
    assert result.exit_code == 2
    assert part in result.stderr
    assert result.stdout == ""


@pytest.mark.parametrize(
    ("arguments", "prefix"),
    [
        ((), ""),
        (("--query",), "query: "),
        (("--document",), "passage: "),
        (("--prompt-name", "query"), "query: "),
        (("--prompt", "p: "), "p: "),
        (("--instruction", "find"), "Instruct: find\nQuery:"),
        (("--query", "--instruction", "find"), "Instruct: find\nQuery:"),
    ],
)
def test_prompts(fake: FakeEngine, arguments: tuple[str, ...], prefix: str) -> None:
    """Each option puts the right text before the input."""
    result = run("embed", "x", *arguments)
    np.testing.assert_array_equal(READERS["json"](result.stdout_bytes), expected([prefix + "x"]))


def test_dimensions_and_length(fake: FakeEngine) -> None:
    result = run("embed", "a text", "-d", "4", "--no-normalize")
    wanted = fake_embedder().encode(["a text"], truncate_dim=4, normalize=False)
    np.testing.assert_array_equal(READERS["json"](result.stdout_bytes), wanted)


def test_truncation_is_noted(monkeypatch: pytest.MonkeyPatch) -> None:
    """On stderr, with the number of texts and the way to refuse it."""
    monkeypatch.setattr("edge_embed.embedder.Embedder", lambda *_, **__: fake_embedder(max_tokens=8))
    result = run("embed", "short", "rather too long", "x" * 30)
    assert "note: 2 of 3 texts were cut to 8 tokens; --truncate error" in result.stderr
    refused = run("embed", "--truncate", "error", stdin="short\n" * 200 + "rather too long\n")
    assert refused.exit_code == 2
    assert "text 200 has 17 tokens" in refused.stderr
