"""The command line: data on stdout, everything else on stderr, an exit code that says what happened."""

from __future__ import annotations

import base64
import csv
import hashlib
import io
import json
import os
import signal
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import click
import numpy as np
import pytest
from click.testing import CliRunner, Result

from edge_embed import catalogue, convert, files, types
from edge_embed.cli import conversion, main, options, output, terminal
from edge_embed.cli import embed as embed_command
from edge_embed.cli.app import BROKEN_PIPE, INTERRUPTED, UNEXPECTED
from edge_embed.engine import probe
from edge_embed.engine.report import compiled_features
from edge_embed.errors import InputFileError, ModelNotFoundError, exit_code
from edge_embed.testing import FakeEngine, fake_embedder
from tests.checkpoints import build_tiny_bert
from tests.tiny_gguf import gguf_bytes, tiny_decoder

COMMAND = [sys.executable, "-m", "edge_embed.cli"]
# A process that a shell started in the background ignores interrupts, and so do its children.
INTERRUPTIBLE = (
    "import signal; signal.signal(signal.SIGINT, signal.default_int_handler); from edge_embed.cli import main; main()"
)
TEXTS = ["a cat sleeps", "", "naïve café 猫", "the bank raised rates"]


def run(*arguments: str | Path, stdin: str | bytes | None = None) -> Result:
    return CliRunner().invoke(main, list(map(str, arguments)), input=stdin, prog_name="edge-embed")


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeEngine]:
    """Commands that load a model get this FakeEngine, which survives each of them."""
    engine = FakeEngine()
    monkeypatch.setattr(engine, "close", lambda: None)
    monkeypatch.setattr("edge_embed.embedder.Embedder", lambda *_, **__: fake_embedder(engine))
    return engine


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


# Errors


def test_an_error_is_a_message_a_hint_and_an_exit_code() -> None:
    """And nothing on stdout."""
    result = run("embed", "-m", "no-such-model", "x")
    assert result.exit_code == exit_code(ModelNotFoundError("x")) == 3
    assert result.stderr.startswith("error: ")
    assert "\nhint: " in result.stderr
    assert "Traceback" not in result.stderr
    assert result.stdout == ""


def test_a_mistake_in_the_last_line_is_found_first(fake: FakeEngine, tmp_path: Path) -> None:
    """Before the model runs, and with nothing on stdout."""
    (tmp_path / "a.jsonl").write_text('"x"\n' * 500 + "{\n")
    result = run("embed", "-f", tmp_path / "a.jsonl")
    assert (result.exit_code, result.stdout) == (2, "")
    assert "line 501" in result.stderr
    assert fake.batches == []


def test_overflow_names_the_text(monkeypatch: pytest.MonkeyPatch) -> None:
    """By its position in the whole input."""
    engine = FakeEngine(poison=3 + ord("~"))
    monkeypatch.setattr("edge_embed.embedder.Embedder", lambda *_, **__: fake_embedder(engine))
    result = run("embed", stdin="x\n" * 100 + "~\n")
    assert result.exit_code == 5
    assert "1 text(s): 100" in result.stderr


def test_a_bug_is_one_line_unless_debugging(monkeypatch: pytest.MonkeyPatch) -> None:
    """Exit code 70, the type, and the way to the traceback."""

    def broken(*_: object, **__: object) -> None:
        raise ZeroDivisionError("oh")

    monkeypatch.setattr("edge_embed.embedder.Embedder", broken)
    result = run("embed", "x")
    assert result.exit_code == UNEXPECTED
    assert "error: unexpected ZeroDivisionError: oh" in result.stderr
    assert "--debug" in result.stderr
    assert "Traceback" not in result.stderr
    assert "Traceback" in run("--debug", "embed", "x").stderr
    monkeypatch.setenv("EDGE_EMBED_DEBUG", "1")
    assert "Traceback" in run("embed", "x").stderr


def test_warnings_are_notes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Once, in our own words, without a line of source."""

    def slow(*_: object, **__: object) -> object:
        for _ in range(2):
            warnings.warn("slower kernels are used", RuntimeWarning, stacklevel=1)
        return fake_embedder()

    monkeypatch.setattr("edge_embed.embedder.Embedder", slow)
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        result = run("embed", "x")
    assert result.stderr == "note: slower kernels are used\n"


@pytest.mark.parametrize("error", [RuntimeError("no"), KeyboardInterrupt()])
def test_a_failure_leaves_no_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, error: BaseException) -> None:
    """The old file stays as it was, and the half-written one is gone."""
    engine = FakeEngine()
    whole = engine.decode

    def fails_later(batch: types.Batch, stop: object = None) -> types.Float32Array:
        if len(engine.batches) >= 20:
            raise error
        return whole(batch)

    monkeypatch.setattr(engine, "decode", fails_later)
    monkeypatch.setattr("edge_embed.embedder.Embedder", lambda *_, **__: fake_embedder(engine))
    target = tmp_path / "v.npy"
    target.write_bytes(b"old")
    result = run("embed", "-o", target, stdin="".join(f"{i}\n" for i in range(500)))
    assert result.exit_code == (INTERRUPTED if isinstance(error, KeyboardInterrupt) else UNEXPECTED)
    assert len(engine.batches) >= 20
    assert [path.name for path in tmp_path.iterdir()] == ["v.npy"]
    assert target.read_bytes() == b"old"


def test_a_file_is_replaced_through_its_link(fake: FakeEngine, tmp_path: Path) -> None:
    """The link stays a link."""
    (tmp_path / "link.json").symlink_to(tmp_path / "real.json")
    assert run("embed", "x", "-o", tmp_path / "link.json").exit_code == 0
    assert (tmp_path / "link.json").is_symlink()
    np.testing.assert_array_equal(READERS["json"]((tmp_path / "real.json").read_bytes()), expected(["x"]))


def test_output_that_cannot_be_written(fake: FakeEngine, tmp_path: Path) -> None:
    """Is an error before the model is loaded; so is writing over the input."""
    result = run("embed", "x", "-o", tmp_path / "none" / "v.json")
    assert result.exit_code == 4
    assert "cannot write" in result.stderr
    (tmp_path / "a.jsonl").write_text('"x"\n')
    assert run("embed", "-f", tmp_path / "a.jsonl", "-o", tmp_path / "a.jsonl").exit_code == 2
    assert (tmp_path / "a.jsonl").read_text() == '"x"\n'


# Similarity


def test_similarity_for_people(fake: FakeEngine) -> None:
    """Aligned, within 80 columns, without colours where there is no terminal."""
    result = run("similarity", "a cat", "猫" * 60, "x\x1b[31m\ny " * 30, "")
    lines = result.stdout.splitlines()
    assert len(lines) == 5
    assert "\x1b" not in result.stdout
    assert {terminal.width(line) for line in lines} == {terminal.width(lines[0])}
    assert terminal.width(lines[0]) <= 80
    assert lines[1].startswith("1  a cat ")
    assert "…" in lines[2]
    assert "(empty)" in lines[4]


def test_similarity_of_many_texts_comes_in_panels(fake: FakeEngine) -> None:
    """Every pair is shown, and no line is wider than a page."""
    result = run("similarity", *(f"text number {i}" for i in range(20)))
    assert max(map(len, result.stdout.splitlines())) <= 80
    assert result.stdout.count("1.00") >= 20
    assert len(result.stdout.splitlines()) == 3 * 21 + 2


def test_similarity_for_programs(fake: FakeEngine) -> None:
    """As JSON, as rows of numbers, and as one number for two texts."""
    found = json.loads(run("similarity", "--json", *TEXTS).stdout)
    wanted = expected(TEXTS) @ expected(TEXTS).T
    assert found["texts"] == TEXTS
    np.testing.assert_allclose(found["similarity"], wanted, atol=1e-6)
    rows = [line.split("\t") for line in run("similarity", "--plain", *TEXTS).stdout.splitlines()]
    np.testing.assert_allclose(np.array(rows, dtype=float), wanted, atol=1e-6)
    assert run("similarity", "--plain", "a", "b", "--table").exit_code == 2
    assert float(run("similarity", "--plain", *TEXTS[::2]).stdout) == pytest.approx(wanted[0, 2], abs=1e-6)
    assert run("similarity", stdin="one\ntwo\n").exit_code == 0


def test_similarity_needs_two_texts(fake: FakeEngine) -> None:
    result = run("similarity", "alone")
    assert result.exit_code == 2
    assert "at least two" in result.stderr


@pytest.mark.parametrize(
    ("environment", "coloured"),
    [({}, True), ({"NO_COLOR": "1"}, False), ({"TERM": "dumb"}, False), ({"NO_COLOR": ""}, True)],
)
def test_colours_are_for_terminals(
    monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], coloured: bool
) -> None:
    """That want them."""
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm-256color")
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    tty = type("Terminal", (io.StringIO,), {"isatty": lambda _: True})()
    assert terminal.colours(tty) is coloured
    assert terminal.colours(io.StringIO()) is False


# Models


def test_show_reads_the_bundled_model() -> None:
    """For people, as JSON, and with every key."""
    assert "mean (from the file)" in run("show").stdout
    found = json.loads(run("show", "--json", "--metadata").stdout)
    assert found["dimensions"] == 384
    assert found["pooling"] == "mean"
    assert found["problem"] is None
    assert sum(found["tensor_types"].values()) == 101
    assert len(found["metadata"]["tokenizer.ggml.tokens"]) == 7
    assert "tokenizer.ggml.tokens" in run("show", catalogue.DEFAULT_MODEL, "--metadata").stdout


def test_show_refuses_what_is_no_model(tmp_path: Path) -> None:
    (tmp_path / "x.gguf").write_bytes(b"no model at all, but long enough")
    result = run("show", tmp_path / "x.gguf")
    assert result.exit_code == 3
    assert result.stdout == ""


def test_show_describes_what_cannot_be_run(tmp_path: Path) -> None:
    """What the header says on stdout, the reason on stderr."""
    metadata, tensors = tiny_decoder()
    del metadata["qwen3.pooling_type"]
    unknown = {key.replace("qwen3.", "unknown."): value for key, value in metadata.items()}
    (tmp_path / "x.gguf").write_bytes(gguf_bytes({**unknown, "general.architecture": "unknown"}, tensors))
    result = run("show", tmp_path / "x.gguf")
    assert result.exit_code == 0
    assert "unknown" in result.stdout
    assert "cannot be run" in result.stderr
    assert "architecture" in json.loads(run("show", tmp_path / "x.gguf", "--json").stdout)["problem"]


def test_show_names_the_eds_token(qwen3_path: Path) -> None:
    """Its text and its id."""
    found = json.loads(run("show", qwen3_path, "--json").stdout)
    assert found["pooling"] == "last"
    assert isinstance(found["eds_token"], str)
    assert f"({found['eds_token_id']}) ends every text" in run("show", qwen3_path).stdout


def test_convert_says_what_became_of_the_weights(tmp_path: Path) -> None:
    """And what is written can be shown and used."""
    folder = build_tiny_bert(tmp_path / "tiny")
    target = tmp_path / "tiny.gguf"
    result = run(
        "convert", folder, "-o", target, "--type", "Q4_K_M", "--license", "mit", "--name", "Tiny", "--progress"
    )
    assert result.exit_code == 0, result.stderr
    assert hashlib.sha256(target.read_bytes()).hexdigest() in result.stdout
    assert "rows of 64 do not divide by 256" in result.stdout
    assert "bits each" in result.stdout
    found = json.loads(run("show", target, "--json").stdout)
    assert (found["name"], found["license"], found["recipe"]) == ("Tiny", "mit", "q4_k_m")
    assert f"{len(found['fallbacks'])} tensors got another type" in result.stdout
    assert run("similarity", "a", "b", "-m", target, "--threads", "1").exit_code == 0


def test_convert_of_no_checkpoint(tmp_path: Path) -> None:
    """Exit code 4, a hint, no file."""
    result = run("convert", tmp_path, "-o", tmp_path / "x.gguf")
    assert result.exit_code == 4
    assert "hint: " in result.stderr
    assert list(tmp_path.iterdir()) == []


def test_list_names_the_default() -> None:
    assert catalogue.DEFAULT_MODEL in run("list").stdout
    found = {entry["name"]: entry for entry in json.loads(run("list", "--json").stdout)}
    assert found[catalogue.DEFAULT_MODEL]["default"] is True
    assert Path(found[catalogue.DEFAULT_MODEL]["path"]).is_file()


# The real thing, in processes of its own


def test_doctor_finds_a_working_machine() -> None:
    """Every check passes, the engine included."""
    done = subprocess.run([*COMMAND, "doctor", "--json"], capture_output=True, text=True, check=False)
    found = json.loads(done.stdout)
    assert done.returncode == 0, done.stdout
    assert found["ok"] is True
    assert {"versions", "CPU", "threads", "library", "model", "probe", "embedding"} <= {
        check["name"] for check in found["checks"]
    }


def test_doctor_says_what_is_broken() -> None:
    """The exit code says that something is, the hint what to do."""
    result = run("doctor", "--model", "no-such-model", "--json")
    found = json.loads(result.stdout)
    assert result.exit_code == 1
    assert found["ok"] is False
    assert found["checks"][-1]["name"] == "model"
    assert found["checks"][-1]["hint"]


def test_doctor_says_that_the_fastest_kernels_crash(monkeypatch: pytest.MonkeyPatch, bert_path: Path) -> None:
    """Works, but slowly: exit code 0 and the way to mend it."""
    crashes = probe.ChildResult(True, "it died of SIGILL")
    monkeypatch.setattr(probe, "run_child", lambda _, fast: crashes if fast else probe.ChildResult(False))
    result = run("doctor", "-m", bert_path, "--fresh", "--json")
    found = {check["name"]: check for check in json.loads(result.stdout)["checks"]}
    assert result.exit_code == 0
    assert found["probe"]["status"] == "slow"
    assert "SIGILL" in found["probe"]["detail"]
    assert found["probe"]["hint"]
    monkeypatch.setattr(probe, "run_child", lambda *_: crashes)
    result = run("doctor", "-m", bert_path, "--fresh")
    assert result.exit_code == 1
    assert "fail  probe" in result.stdout


def test_embed_with_the_bundled_model(tmp_path: Path) -> None:
    """The same vectors as the library's, and stderr silent."""
    from edge_embed import Embedder

    (tmp_path / "a.txt").write_text("\n".join(TEXTS) + "\n")
    done = subprocess.run([*COMMAND, "embed", "-f", tmp_path / "a.txt"], capture_output=True, check=True)
    with Embedder() as embedder:
        np.testing.assert_allclose(READERS["json"](done.stdout), embedder.encode(TEXTS), atol=1e-5)
    assert done.stderr == b""


def test_progress_is_never_on_stdout(tmp_path: Path) -> None:
    """Asked for, it goes to stderr; the output is the same."""
    (tmp_path / "a.txt").write_text("".join(f"text {i}\n" for i in range(100)))
    command = [*COMMAND, "embed", "--threads", "1", "-f", tmp_path / "a.txt", "--output-format", "csv"]
    with_it = subprocess.run([*command, "--progress"], capture_output=True, check=True)
    without = subprocess.run([*command, "--no-progress"], capture_output=True, check=True)
    assert with_it.stdout == without.stdout
    assert without.stderr == b""


@pytest.mark.skipif(os.name == "nt", reason="pipes and signals of POSIX")
def test_a_reader_that_goes_away_is_no_error() -> None:
    """As with `| head`: nothing on stderr."""
    process = subprocess.Popen(
        [*COMMAND, "embed", "--threads", "1", "--output-format", "csv"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert process.stdout is not None
    process.stdout.close()
    assert process.stdin is not None
    process.stdin.write(b"".join(b"%d\n" % i for i in range(200)))
    process.stdin.close()
    assert process.stderr is not None
    assert process.stderr.read() == b""
    process.stderr.close()
    assert process.wait() == BROKEN_PIPE


@pytest.mark.skipif(os.name == "nt", reason="pipes and signals of POSIX")
def test_an_interrupt_is_a_short_line(tmp_path: Path) -> None:
    """Exit code 130, no traceback, nothing left of the output."""
    process = subprocess.Popen(
        [sys.executable, "-c", INTERRUPTIBLE, "embed", "-o", tmp_path / "v.npy"],
        stdin=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert process.stdin is not None
    assert process.stderr is not None
    while not (tmp_path / "v.npy.part").exists() and process.poll() is None:  # it is in the midst of its work
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    process.wait()
    process.stdin.close()
    stderr = process.stderr.read()
    process.stderr.close()
    assert (process.returncode, stderr.strip()) == (INTERRUPTED, b"interrupted")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs Linux's always full device")
def test_a_full_disk_is_an_error() -> None:
    """Exit code 4 and the system's reason, on standard output as well."""
    with Path("/dev/full").open("wb") as full:
        done = subprocess.run(
            [*COMMAND, "embed", "x"],
            stdout=full,
            stderr=subprocess.PIPE,
            check=False,
            text=True,
            stdin=subprocess.DEVNULL,
        )
    assert done.returncode == 4
    assert done.stderr.startswith("error: cannot write standard output: ")
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize("arguments", [["--help"], ["embed", "-h"], ["--version"], ["list"]])
def test_help_loads_nothing_heavy(arguments: list[str]) -> None:
    """No NumPy, no engine, no tokenizers, no converter."""
    code = (
        "import sys\nfrom edge_embed.cli import main\n"
        f"try: main({arguments!r})\nexcept SystemExit: pass\n"
        "heavy = {'numpy', 'llama_cpp', 'tokenizers', 'gguf', 'edge_embed.convert'} & set(sys.modules)\n"
        "sys.exit(str(heavy) if heavy else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


# Help


def commands() -> list[tuple[str, click.Command]]:
    return [("", main), *sorted(main.commands.items())]


@pytest.mark.parametrize(("name", "command"), commands())
def test_every_command_and_option_has_help(name: str, command: click.Command) -> None:
    """A sentence for each, examples, and -h as well as --help."""
    assert command.help
    assert command.epilog
    assert "Examples:" in command.epilog
    for parameter in command.params:
        if isinstance(parameter, click.Option):
            assert parameter.help, parameter.name
            assert parameter.help.rstrip("]").endswith("."), parameter.help
    arguments = [name] if name else []
    assert run(*arguments, "-h").stdout == run(*arguments, "--help").stdout != ""


def test_choices_are_those_of_the_library() -> None:
    """They are spelled out in the command line so that help is quick."""
    assert options.PRECISIONS == types.PRECISIONS
    assert options.KV_TYPES == types.KV_TYPES
    assert options.TRUNCATIONS == types.TRUNCATIONS
    assert conversion.TYPES == convert.FTYPES


# Words and numbers


def test_compiled_features_of_system_info() -> None:
    """Entries of any backend, except those that are 0."""
    assert compiled_features("CPU : AVX2 = 1 | FMA = 0 | CUDA : ARCHS = 890 | ") == {"AVX2", "ARCHS"}


@pytest.mark.parametrize(
    ("entries", "own"),
    [
        ({"AVX2"}, {"EDGE_EMBED_ATTENTION"}),
        ({"AVX2", "AVX512_VNNI"}, {"EDGE_EMBED_ATTENTION", "EDGE_EMBED_PRODUCTS"}),
        ({"AVX2", "AVX_VNNI"}, {"EDGE_EMBED_ATTENTION", "EDGE_EMBED_PRODUCTS"}),
        (set(), set()),
    ],
)
def test_our_kernels_are_named_where_they_were_compiled(entries: set[str], own: set[str]) -> None:
    """They take an Arm library's hook: on x86 its entry is theirs, on Arm it is not."""
    info = "CPU : " + "".join(f"{name} = 1 | " for name in sorted(entries | {"SSE3", "KLEIDIAI"}))
    assert compiled_features(info) == entries | {"SSE3"} | own
    assert compiled_features("CPU : NEON = 1 | KLEIDIAI = 1 | ") == {"NEON", "KLEIDIAI"}


@pytest.mark.parametrize(
    ("text", "limit", "short"),
    [("abc", 3, "abc"), ("abcd", 3, "ab…"), ("a\tb\nc", 9, "a b c"), ("猫猫猫", 4, "猫…"), ("\x1b[2Jx", 9, "[2Jx")],
)
def test_shortened_texts_fit_and_are_harmless(text: str, limit: int, short: str) -> None:
    assert terminal.shorten(text, limit) == short
    assert terminal.width(short) <= limit


@pytest.mark.parametrize(
    ("n_bytes", "shown"), [(12, "12 B"), (1500, "1.5 kB"), (25_283_040, "25.3 MB"), (2.5e9, "2.50 GB")]
)
def test_sizes(n_bytes: float, shown: str) -> None:
    assert terminal.size(n_bytes) == shown
