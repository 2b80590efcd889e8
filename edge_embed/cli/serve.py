"""``edge-embed serve``: one HTTP endpoint for the clients of other programs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from edge_embed.cli.options import AT_LEAST_1, KV_TYPES
from edge_embed.cli.recipe import n_bytes
from edge_embed.cli.terminal import note
from edge_embed.durations import seconds_of
from edge_embed.errors import InvalidOptionError


def _seconds(_: click.Context, __: click.Parameter, value: str | None) -> float | None:
    """``300``, ``5m``, ``1h30m``; below 0 is for ever."""
    try:
        return None if value is None else seconds_of(value)
    except InvalidOptionError as error:
        raise click.BadParameter(f"{error.message}: {error.hint}") from None


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
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on; 0.0.0.0 for all.")
@click.option("--port", type=click.IntRange(0, 65535), default=11435, show_default=True, help="Port to listen on.")
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
@click.option("--download", is_flag=True, help="Fetch known models that are missing, when they are first asked for.")
@click.option(
    "--keep-alive",
    default="-1",
    show_default=True,
    metavar="TIME",
    callback=_seconds,
    help="How long an unused model stays in memory: 300, 5m; -1 for always.",
)
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
    default=True,
    show_default=True,
    help="Whether a text above the model's limit loses its end, where a request does not say.",
)
@click.option("--max-tokens", type=AT_LEAST_1, metavar="N", help="Most tokens of a text; the model's limit by default.")
@click.option(
    "--max-texts", type=AT_LEAST_1, default=2048, show_default=True, metavar="N", help="Most texts of a request."
)
@click.option("--max-request-tokens", type=AT_LEAST_1, metavar="N", help="Most tokens of a request.")
@click.option(
    "--max-body-size", metavar="SIZE", callback=n_bytes, default="32MB", show_default=True, help="Longest body."
)
@click.option(
    "--max-requests", type=AT_LEAST_1, default=512, show_default=True, metavar="N", help="Most requests at a time."
)
@click.option(
    "--max-connections",
    type=AT_LEAST_1,
    default=1024,
    show_default=True,
    metavar="N",
    help="Most connections at a time; an idle one makes room.",
)
@click.option(
    "--max-queued-texts",
    type=AT_LEAST_1,
    default=16_384,
    show_default=True,
    metavar="N",
    help="Most texts that may wait for a model.",
)
@click.option(
    "--max-queued-tokens",
    type=AT_LEAST_1,
    default=8_000_000,
    show_default=True,
    metavar="N",
    help="Most tokens that may wait for a model.",
)
@click.option(
    "--timeout",
    default="10m",
    show_default=True,
    metavar="TIME",
    callback=_seconds,
    help="After which a request is given up.",
)
@click.option(
    "--header-timeout",
    default="10s",
    show_default=True,
    metavar="TIME",
    callback=_seconds,
    help="Within which the head of a request must be here.",
)
@click.option(
    "--body-timeout",
    default="30s",
    show_default=True,
    metavar="TIME",
    callback=_seconds,
    help="Within which a body must be here; longer for a large one that keeps coming.",
)
@click.option(
    "--idle-timeout",
    default="75s",
    show_default=True,
    metavar="TIME",
    callback=_seconds,
    help="How long a connection may be silent, and an answer unread.",
)
@click.option(
    "--drain",
    default="30s",
    show_default=True,
    metavar="TIME",
    callback=_seconds,
    help="How long accepted requests may take once the server is told to end; a second signal ends it at once.",
)
@click.option(
    "--origin",
    "origins",
    multiple=True,
    metavar="ORIGIN",
    help="A page that may ask from a browser, beside local ones and app://obsidian.md; * for all; repeatable.",
)
@click.option(
    "--trusted-host",
    "hosts",
    multiple=True,
    metavar="NAME",
    help="A name that a local server without keys goes by, beside localhost and addresses; repeatable.",
)
@click.option("--docs/--no-docs", default=True, show_default=True, help="Whether /docs and /openapi.json are there.")
@click.option(
    "--token-encoding",
    metavar="NAME",
    help="What lists of token ids are in: cl100k_base, o200k_base (from tiktoken's cache) or a .tiktoken file; the "
    "model's own ids by default.",
)
@click.option(
    "--log",
    type=click.Choice(("plain", "json", "off")),
    default="plain",
    show_default=True,
    help="A line for each request on standard error, never with its texts.",
)
@click.option("--threads", "n_threads", type=click.IntRange(1, 512), metavar="N", help="CPU threads of a model.")
@click.option("--batch-tokens", "n_batch", type=AT_LEAST_1, metavar="N", help="Tokens that a model is given at once.")
@click.option(
    "--gpu-layers", type=click.IntRange(-1), metavar="N", help="Layers on the GPU; as many as fit by default."
)
@click.option(
    "--kv-type", type=click.Choice(KV_TYPES), default="f16", show_default=True, help="Type of keys and values."
)
@click.option("--deterministic", is_flag=True, help="The same text gives the same bits in any company; slower.")
@click.option("--cache", is_flag=True, help="Keep vectors for the next time (see `edge-embed cache`).")
def serve(models: tuple[str, ...], **options: Any) -> None:
    """Serve models over HTTP, for the clients of OpenAI, Ollama, TEI, LM Studio, Cohere and Jina.

    MODEL is a GGUF file or a name of `edge-embed list`, perhaps as NAME=MODEL; all that are on this machine by
    default. The first embedding model, and the first reranker, answer requests that name none. A request's model may
    be NAME:query or NAME:document for the model's prompts. `http://HOST:PORT/docs` describes the routes.
    """
    try:
        from edge_embed.server.running import run
    except ImportError as error:
        raise click.ClickException(
            f"the server's packages are missing ({error.name}): pip install 'edge-embed[server]'"
        ) from None
    from edge_embed.registry import FOREVER
    from edge_embed.server.opening import ModelOptions
    from edge_embed.server.running import address, close, listen, notify_systemd
    from edge_embed.server.settings import ORIGINS, ServerSettings
    from edge_embed.server.start import build, served_models

    settings = ServerSettings(
        host=options["host"],
        port=options["port"],
        uds=options["uds"],
        api_keys=_keys(options["api_keys"], options["api_key_file"]),
        origins=(*ORIGINS, *options["origins"]),
        hosts=options["hosts"],
        max_texts=options["max_texts"],
        max_request_tokens=options["max_request_tokens"],
        max_body_bytes=options["max_body_size"],
        max_requests=options["max_requests"],
        max_connections=options["max_connections"],
        max_queued_texts=options["max_queued_texts"],
        max_queued_tokens=options["max_queued_tokens"],
        timeout=options["timeout"],
        header_timeout=options["header_timeout"],
        body_timeout=options["body_timeout"],
        idle_timeout=options["idle_timeout"],
        drain_seconds=options["drain"],
        truncate=options["truncate"],
        prompt=options["prompt"],
        prompt_name=options["prompt_name"],
        token_encoding=options["token_encoding"],
        docs=options["docs"],
        log=options["log"],
    )
    served = served_models(
        models, folder=options["models_dir"], aliases=options["aliases"], download=options["download"]
    )
    model_options = ModelOptions(
        n_threads=options["n_threads"],
        n_batch=options["n_batch"],
        gpu_layers=options["gpu_layers"],
        kv_type=options["kv_type"],
        deterministic=options["deterministic"],
        max_tokens=options["max_tokens"],
        cache=options["cache"] or None,
    )
    keep_alive = options["keep_alive"]
    app = build(
        served,
        settings,
        model_options,
        memory_limit=options["memory_limit"],
        keep_alive=FOREVER if keep_alive is None else keep_alive,
    )
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
