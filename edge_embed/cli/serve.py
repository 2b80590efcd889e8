"""``edge-embed serve``: one HTTP endpoint for the clients of other programs."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Final

import click

from edge_embed.cli.options import (
    AT_LEAST_1,
    BATCH_TOKENS,
    KV_TYPES,
    Command,
    device_option,
    gpu_layers_option,
    grouped,
    low_memory_option,
)
from edge_embed.cli.recipe import n_bytes
from edge_embed.cli.terminal import note
from edge_embed.durations import seconds_of
from edge_embed.errors import InvalidOptionError
from edge_embed.server.settings import ORIGINS, ModelOptions, ServerSettings

DEFAULTS: Final = ServerSettings()


def _seconds(_: click.Context, __: click.Parameter, value: str) -> float:
    """``300``, ``5m``, ``1h30m``; below 0 is for ever."""
    try:
        return seconds_of(value)
    except InvalidOptionError as error:
        raise click.BadParameter(f"{error.message}: {error.hint}") from None


def _time(flag: str, default: str, what: str, *, name: str | None = None) -> Callable[[Command], Command]:
    """Adds an option that takes a length of time; the command gets seconds, by the flag's name or another."""
    return click.option(
        flag, *filter(None, [name]), default=default, show_default=True, metavar="TIME", callback=_seconds, help=what
    )


def _most(flag: str, what: str, default: int | None = None) -> Callable[[Command], Command]:
    """Adds an option that takes a limit."""
    return click.option(
        flag, type=AT_LEAST_1, default=default, show_default=default is not None, metavar="N", help=what
    )


def _settings_file(context: click.Context, _: click.Parameter, value: Path | None) -> Path | None:
    """Values of a TOML file stand in for flags that are not given."""
    if value is None:
        return None
    from edge_embed.cli.serve_file import read_settings

    names = {option.name: option for option in context.command.params if option.name not in (None, "config", "help")}
    try:
        context.default_map = {**(context.default_map or {}), **read_settings(value, names)}
    except ValueError as error:
        raise click.BadParameter(f"{value}: {error}") from None
    return value


def _keys(given: tuple[str, ...], path: Path | None) -> tuple[str, ...]:
    """The keys that were given, and those of a file, one a line."""
    if path is None:
        return given
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise click.ClickException(f"--api-key-file: {path}: {error}") from None
    found = tuple(line.strip() for line in lines if line.strip() and not line.startswith("#"))
    if not found:
        raise click.ClickException(f"--api-key-file: {path} has no key")
    return (*given, *found)


@click.command(
    epilog="""\b
Examples:
  edge-embed serve
  edge-embed serve qwen3-embedding-0.6b qwen3-reranker-0.6b --api-key-file keys.txt
  edge-embed serve notes-embed=./my-model.gguf --keep-alive 5m --memory-limit 4GB
  edge-embed serve --uds /run/edge-embed/socket
  edge-embed serve --config /etc/edge-embed.toml

\b
Every option may come from the environment (EDGE_EMBED_SERVE_PORT=8080, EDGE_EMBED_SERVE_API_KEY=...) or from the
TOML file (port = 8080, api-key = ["..."], models = ["qwen3-embedding-0.6b"]). A flag wins over the environment, and
this over the file. Several values in a variable are separated by spaces.
""",
)
@click.argument("models", nargs=-1, metavar="[MODEL...]", envvar="EDGE_EMBED_SERVE_MODELS")
@click.option(
    "--config",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    is_eager=True,
    callback=_settings_file,
    expose_value=False,
    help="TOML file with values for these options.",
)
@click.option("--host", default=DEFAULTS.host, show_default=True, help="Address to listen on; 0.0.0.0 for all.")
@click.option(
    "--port", type=click.IntRange(0, 65535), default=DEFAULTS.port, show_default=True, help="Port to listen on."
)
@click.option("--uds", metavar="PATH", help="Listen on a Unix socket instead.")
@click.option(
    "--api-key",
    "api_keys",
    multiple=True,
    metavar="KEY",
    help="A key that requests must bring; repeatable. Whoever lists this machine's processes sees it: the environment "
    "and --api-key-file keep it to yourself.",
)
@click.option(
    "--api-key-file", type=click.Path(path_type=Path, exists=True, dir_okay=False), help="A file with a key a line."
)
@click.option(
    "--models-dir", type=click.Path(path_type=Path, file_okay=False), help="Serve every GGUF of a folder, too."
)
@click.option(
    "--alias", "aliases", multiple=True, metavar="ALIAS=NAME", help="Another name for a served model; repeatable."
)
@click.option(
    "--db",
    type=click.Path(path_type=Path),
    help="A database of `edge-embed index`: /v1/search answers from it, and the page has a search box.",
)
@click.option("--download", is_flag=True, help="Fetch known models that are missing, when they are first asked for.")
@_time("--keep-alive", "-1", "How long an unused model stays in memory: 300, 5m; -1 for always.")
@click.option(
    "--memory-limit",
    metavar="SIZE",
    callback=n_bytes,
    help="What loaded models may take together, e.g. 4GB; the one used longest ago makes room.",
)
@click.option("--prompt", help="Text put before inputs, where a request says nothing about that.")
@click.option("--prompt-name", metavar="NAME", help="The model's prompt of that name instead.")
@click.option(
    "--truncate/--no-truncate",
    default=DEFAULTS.truncate,
    show_default=True,
    help="Whether a text above the model's limit loses its end, where a request does not say.",
)
@_most("--max-tokens", "Most tokens of a text; the model's limit by default.")
@_most("--max-texts", "Most texts of a request.", DEFAULTS.max_texts)
@_most("--max-request-tokens", "Most tokens of a request.")
@click.option(
    "--max-body-size",
    "max_body_bytes",
    metavar="SIZE",
    callback=n_bytes,
    default="32MB",
    show_default=True,
    help="Longest body.",
)
@_most("--max-requests", "Most requests at a time.", DEFAULTS.max_requests)
@_most("--max-connections", "Most connections at a time; an idle one makes room.", DEFAULTS.max_connections)
@_most("--max-queued-texts", "Most texts that may wait for a model.", DEFAULTS.max_queued_texts)
@_most("--max-queued-tokens", "Most tokens that may wait for a model.", DEFAULTS.max_queued_tokens)
@_time("--timeout", "10m", "After which a request is given up.")
@_time("--header-timeout", "10s", "Within which the head of a request must be here.")
@_time("--body-timeout", "30s", "Within which a body must be here; longer for a large one that keeps coming.")
@_time("--idle-timeout", "75s", "How long a connection may be silent, and an answer unread.")
@_time(
    "--drain",
    "30s",
    "How long accepted requests may take once the server is told to end; a second signal ends it at once.",
    name="drain_seconds",
)
@click.option(
    "--origin",
    "origins",
    multiple=True,
    metavar="ORIGIN",
    callback=lambda _context, _option, value: (*ORIGINS, *value),
    help="A page that may ask from a browser, beside local ones and app://obsidian.md; * for all; repeatable.",
)
@click.option(
    "--trusted-host",
    "hosts",
    multiple=True,
    metavar="NAME",
    help="A name that a local server without keys goes by, beside localhost and addresses; repeatable.",
)
@click.option(
    "--docs/--no-docs",
    default=DEFAULTS.docs,
    show_default=True,
    help="Whether /docs and /openapi.json are there.",
)
@click.option(
    "--token-encoding",
    metavar="NAME",
    help="What lists of token ids are in: cl100k_base, o200k_base (from tiktoken's cache) or a .tiktoken file; the "
    "model's own ids by default.",
)
@click.option(
    "--log",
    type=click.Choice(("plain", "json", "off")),
    default=DEFAULTS.log,
    show_default=True,
    help="A line for each request on standard error, never with its texts.",
)
@click.option("--threads", "n_threads", type=click.IntRange(1, 512), metavar="N", help="CPU threads of a model.")
@click.option("--batch-tokens", "n_batch", type=AT_LEAST_1, metavar="N", help=BATCH_TOKENS)
@device_option()
@gpu_layers_option()
@low_memory_option()
@click.option(
    "--kv-type", type=click.Choice(KV_TYPES), default="f16", show_default=True, help="Type of keys and values."
)
@click.option("--deterministic", is_flag=True, help="The same text gives the same bits in any company; slower.")
@click.option(
    "--cache",
    is_flag=True,
    callback=lambda _context, _option, value: value or None,
    help="Keep vectors for the next time (see `edge-embed cache`).",
)
@functools.partial(grouped, "settings", ServerSettings)
@functools.partial(grouped, "options", ModelOptions)
def serve(
    models: tuple[str, ...],
    settings: ServerSettings,
    options: ModelOptions,
    *,
    api_key_file: Path | None,
    models_dir: Path | None,
    aliases: tuple[str, ...],
    db: Path | None,
    download: bool,
    keep_alive: float,
    memory_limit: int | None,
) -> None:
    """Serve models over HTTP, for the clients of OpenAI, Ollama, TEI, LM Studio, Cohere and Jina.

    MODEL is a GGUF file or a name of `edge-embed list`, perhaps as NAME=MODEL; all that are on this machine by
    default. The first embedding model, and the first reranker, answer requests that name none. The first model is
    loaded at the start, which ends where the machine has no room for it; the others when they are asked for. A
    request's model may be NAME:query or NAME:document for the model's prompts. `http://HOST:PORT/docs` describes the
    routes.
    """
    try:
        from edge_embed.server.running import run
    except ImportError as error:
        raise click.ClickException(
            f"the server's packages are missing ({error.name}): pip install 'edge-embed[server]'"
        ) from None
    from edge_embed.server.running import address, close, listen, notify_systemd
    from edge_embed.server.start import build, served_models

    settings = replace(settings, api_keys=_keys(settings.api_keys, api_key_file))
    served = served_models(models, folder=models_dir, aliases=aliases, download=download)
    app = build(served, settings, options, memory_limit=memory_limit, keep_alive=keep_alive, database=db)
    listening = listen(settings)  # an address that is taken is said before models are loaded
    where = address(listening)

    def announce() -> None:
        note(f"serving {', '.join(one.name for one in served)} on {where}")
        notify_systemd("READY=1")

    app.state.gate.announce = announce
    if not settings.is_local and not settings.api_keys:
        note(
            f"WARNING: {where} can be reached from other machines, and there is no key: anybody there can use this "
            "server. Set one (--api-key-file), or listen on 127.0.0.1"
        )
    try:
        run(app, settings, listening)
    finally:
        close(listening, settings)


def _name_variables(command: click.Command) -> None:
    """Each option's variable is its flag's name, whatever the parameter is called in Python."""
    for option in command.params:
        if isinstance(option, click.Option):
            option.envvar = "EDGE_EMBED_SERVE_" + option.opts[0].lstrip("-").replace("-", "_").upper()


_name_variables(serve)
