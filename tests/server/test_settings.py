"""Where settings come from: flags before the environment, this before the file; each is in the help."""

from __future__ import annotations

import re
from dataclasses import fields
from pathlib import Path
from typing import Any

import click
import pytest

from edge_embed.cli.serve import serve
from edge_embed.errors import ServerSettingsError, exit_code
from edge_embed.server import running, start
from edge_embed.server.settings import ORIGINS, ModelOptions, ServerSettings
from edge_embed.server.token_ids import ENCODINGS, read_table
from tests import commands


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The command, and what it would have started: settings and models, or what it said instead."""
    started: dict[str, Any] = {}
    build = start.build

    def remember(served: Any, settings: Any, options: Any, **rest: Any) -> Any:
        started.update(settings=settings, served=[one.name for one in served], options=options, **rest)
        return build(served, settings, options, **rest)

    monkeypatch.setattr(start, "build", remember)
    monkeypatch.setattr(running, "run", lambda *_: None)

    def invoke(*arguments: str, env: dict[str, str] | None = None) -> dict[str, Any]:
        started.clear()
        result = commands.run("serve", "--port", "0", *arguments, env=env)
        return {**started, "code": result.exit_code, "output": result.output}

    return invoke


def test_a_flag_wins_over_the_environment_and_this_over_the_file(run: Any, tmp_path: Path) -> None:
    file = tmp_path / "serve.toml"
    file.write_text('max-texts = 10\nmax-requests = 10\ntimeout = 10\nmodels = ["all-minilm-l6-v2"]\n')
    variables = {"EDGE_EMBED_SERVE_MAX_REQUESTS": "20", "EDGE_EMBED_SERVE_TIMEOUT": "20"}
    settings = run("--config", str(file), "--timeout", "30", env=variables)["settings"]
    assert (settings.max_texts, settings.max_requests, settings.timeout) == (10, 20, 30)
    from_variable = run(env={**variables, "EDGE_EMBED_SERVE_CONFIG": str(file)})["settings"]
    assert (from_variable.max_texts, from_variable.max_requests, from_variable.timeout) == (10, 20, 20)


def test_every_option_has_a_variable_and_a_line_of_help() -> None:
    options = [option for option in serve.params if isinstance(option, click.Option)]
    assert all(option.help for option in options)
    assert {option.envvar for option in options} >= {"EDGE_EMBED_SERVE_API_KEY", "EDGE_EMBED_SERVE_ORIGIN"}
    for option in options:
        assert option.envvar == "EDGE_EMBED_SERVE_" + option.opts[0][2:].replace("-", "_").upper()


def test_the_readme_names_options_that_are_there() -> None:
    readme = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
    section = readme.split("\n## Server\n")[1].split("\n## ")[0]
    flags = {flag for option in serve.params for flag in (*option.opts, *option.secondary_opts)}
    named = set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", section))
    assert named
    assert named <= {*flags, "--help"}


def test_every_setting_can_be_said(run: Any, tmp_path: Path) -> None:
    """By a file, which has all of them in other than their default values."""
    file = tmp_path / "all.toml"
    table = tmp_path / "tiny.tiktoken"
    table.write_text("YQ== 0\n")
    file.write_text(f"""
host = "127.0.0.2"
api-key = ["a", "b"]
origin = ["https://notes.example"]
trusted-host = ["embed.example"]
max-texts = 11
max-request-tokens = 12
max-body-size = "13MB"
max-requests = 14
max-connections = 15
max-queued-texts = 16
max-queued-tokens = 17
timeout = "18s"
header-timeout = 19
body-timeout = "1m"
idle-timeout = 21.5
drain = "22s"
truncate = false
prompt-name = "query"
token-encoding = "{table}"
docs = false
log = "json"
""")
    settings = run("--config", str(file), "--prompt-name", "query")["settings"]
    default = ServerSettings()
    unchanged = {
        field.name for field in fields(settings) if getattr(settings, field.name) == getattr(default, field.name)
    }
    assert unchanged == {"uds", "prompt"}  # one excludes host and port, the other prompt_name
    assert settings.api_keys == ("a", "b")
    assert settings.origins == (*ORIGINS, "https://notes.example")
    assert (settings.max_body_bytes, settings.body_timeout, settings.idle_timeout) == (13_000_000, 60.0, 21.5)


def test_what_is_not_said_is_the_default(run: Any) -> None:
    started = run()
    assert started["settings"] == ServerSettings(port=0)
    assert started["options"] == ModelOptions()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("no-such = 1", "'no-such' is not an option"),
        ("port = [1, 2]", "takes one value"),
        ("timeout = 'soon'", "soon"),
        ("max-texts = 0", "0 is not in the range"),
        ("port", "="),
        ("[server]\nport = 1", "'server' is not an option"),
        ("port = 2026-01-01", "not a word or a number"),
    ],
)
def test_a_wrong_file_is_said(run: Any, tmp_path: Path, text: str, said: str) -> None:
    file = tmp_path / "wrong.toml"
    file.write_text(text)
    found = run("--config", str(file))
    assert found["code"] != 0
    assert said in found["output"]


def test_keys_come_from_a_file(run: Any, tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_text("# of the notes application\nkey-one\n\nkey-two\n")
    assert run("--api-key-file", str(file), "--api-key", "zero")["settings"].api_keys == ("zero", "key-one", "key-two")
    file.write_text("\n")
    assert "has no key" in run("--api-key-file", str(file))["output"]


def test_several_values_of_a_variable_are_separated_by_spaces(run: Any) -> None:
    found = run(env={"EDGE_EMBED_SERVE_API_KEY": "one two", "EDGE_EMBED_SERVE_MODELS": "mine=all-minilm-l6-v2"})
    assert found["settings"].api_keys == ("one", "two")
    assert found["served"] == ["mine"]


@pytest.mark.parametrize(
    "wrong",
    [{"max_texts": 0}, {"max_connections": 0}, {"timeout": float("inf")}, {"timeout": 0.0}, {"header_timeout": -1.0},
     {"drain_seconds": float("nan")}, {"max_texts": 9, "max_queued_texts": 8}, {"prompt": "a", "prompt_name": "b"}]
)  # fmt: skip
def test_settings_that_cannot_be_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ServerSettingsError):
        ServerSettings(**wrong)


# Tables of tokens


def test_a_table_that_is_not_here_says_where_it_would_be(
    run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(tmp_path))
    with pytest.raises(ServerSettingsError, match="is not on this machine") as error:
        read_table("cl100k_base")
    assert str(tmp_path / ENCODINGS["cl100k_base"]) in error.value.message
    assert "tiktoken.get_encoding" in error.value.hint
    found = run("--token-encoding", "cl100k_base")
    assert found["code"] == exit_code(error.value)
    assert error.value.message in found["output"]


@pytest.mark.parametrize("text", ["", "no table", "YQ== 0 1", "!!! 0", "YQ== -1"])
def test_a_file_that_is_no_table_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "file").write_text(text)
    with pytest.raises(ServerSettingsError, match="not a table"):
        read_table(str(tmp_path / "file"))
    with pytest.raises(ServerSettingsError, match="not a table"):
        read_table("no_such_base")
