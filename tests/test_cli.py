"""The command line: data on stdout, everything else on stderr, an exit code that says what happened."""

from __future__ import annotations

import hashlib
import io
import json
import warnings
from pathlib import Path

import click
import numpy as np
import pytest

from edge_embed import catalogue, convert, types
from edge_embed.cli import conversion, main, options, terminal
from edge_embed.cli.app import INTERRUPTED, UNEXPECTED
from edge_embed.engine.report import compiled_features
from edge_embed.errors import ModelNotFoundError, exit_code
from edge_embed.testing import FakeEngine, fake_embedder
from tests.checkpoints import build_tiny_bert
from tests.commands import run
from tests.tiny_gguf import gguf_bytes, tiny_decoder

TEXTS = ["a cat sleeps", "", "naïve café 猫", "the bank raised rates"]


def expected(texts: list[str]) -> np.ndarray:
    return fake_embedder().encode(texts)


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
    np.testing.assert_array_equal(
        np.array(json.loads((tmp_path / "real.json").read_bytes()), dtype=np.float32), expected(["x"])
    )


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
