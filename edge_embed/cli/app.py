"""The group of commands, and the one place where what goes wrong becomes a message and an exit code."""

from __future__ import annotations

import codecs
import errno
import io
import json
import os
import platform
import sys
import traceback
import warnings
from pathlib import Path
from typing import Any, NoReturn

import click

import edge_embed
from edge_embed.cli.bitext import bitext
from edge_embed.cli.cache import cache
from edge_embed.cli.calibrate import calibrate
from edge_embed.cli.classify import classify
from edge_embed.cli.cluster import cluster
from edge_embed.cli.convert import convert
from edge_embed.cli.dedupe import dedupe
from edge_embed.cli.doctor import doctor
from edge_embed.cli.embed import embed
from edge_embed.cli.engine import engine
from edge_embed.cli.index import index
from edge_embed.cli.mcp import mcp
from edge_embed.cli.models import list_models, show
from edge_embed.cli.plan import plan
from edge_embed.cli.project import project
from edge_embed.cli.pull import pull
from edge_embed.cli.quantize import quantize
from edge_embed.cli.rerank import rerank
from edge_embed.cli.search import search
from edge_embed.cli.serve import serve
from edge_embed.cli.similarity import similarity
from edge_embed.cli.terminal import mute_stdout, note, say_error
from edge_embed.cli.tokenize import count_tokens, tokenize
from edge_embed.cli.tune import tune
from edge_embed.cli.verify import verify
from edge_embed.errors import EdgeEmbedError, OutputFileError, exit_code

# Beside those of ``errors.CODES``. 70 is EX_SOFTWARE of sysexits.h; the others are 128 + SIGINT and 128 + SIGPIPE.
UNEXPECTED, INTERRUPTED, BROKEN_PIPE = 70, 130, 141


class App(click.Group):
    """A group that ends every command in a tidy way, whoever calls it."""

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command; exceptions become messages on stderr, warnings become notes."""
        debug = bool(ctx.params.get("debug"))
        _open_missing_streams()
        _write_in_any_encoding()
        with warnings.catch_warnings():
            shown: set[str] = set()
            warnings.showwarning = lambda message, *_: note(str(message), once=shown)
            try:
                result = super().invoke(ctx)
                sys.stdout.flush()  # a reader that went away is noticed here, not when the interpreter ends
            except EdgeEmbedError as error:
                if debug:
                    traceback.print_exc()
                say_error(error.message, error.hint)
                ctx.exit(exit_code(error))
            except (KeyboardInterrupt, click.Abort):
                click.echo("interrupted", err=True)
                ctx.exit(INTERRUPTED)
            except BrokenPipeError:
                mute_stdout()
                ctx.exit(BROKEN_PIPE)
            except (click.ClickException, click.exceptions.Exit):
                raise
            except OSError as error:
                if error.errno != errno.ENOSPC:
                    _unexpected(ctx, error, debug)
                mute_stdout()
                full = OutputFileError(
                    "cannot write standard output: no space left", hint="free some, or write elsewhere"
                )
                say_error(full.message, full.hint)
                ctx.exit(exit_code(full))
            except Exception as error:
                _unexpected(ctx, error, debug)
            return result


def _open_missing_streams() -> None:
    """A shell may close a stream (``<&-``); Python then has None in its place, on which libraries stumble."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            stream = Path(os.devnull).open(mode, encoding="utf-8")  # noqa: SIM115 - lives as long as we do
            setattr(sys, name, stream)


def _write_in_any_encoding() -> None:
    """What standard output has no letter for (a pipe under Windows is not UTF-8) becomes ``\\u2192``, as on stderr.

    It does so by JSON's rules, which know neither ``\\xe9`` nor ``\\U0001f408``: what is printed may be JSON.
    """
    if isinstance(sys.stdout, io.TextIOWrapper) and sys.stdout.errors == "strict":
        codecs.register_error("edge_embed.json", _escaped)
        sys.stdout.reconfigure(errors="edge_embed.json")


def _escaped(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    return json.dumps(error.object[error.start : error.end])[1:-1], error.end


def _unexpected(ctx: click.Context, error: Exception, debug: bool) -> NoReturn:
    if debug:
        traceback.print_exc()
    say_error(
        f"unexpected {type(error).__name__}: {error}",
        "" if debug else "this is a bug; `edge-embed --debug ...` (or EDGE_EMBED_DEBUG=1) shows where it happened",
    )
    ctx.exit(UNEXPECTED)


def _version(ctx: click.Context, _: click.Parameter, asked: bool) -> None:
    if asked and not ctx.resilient_parsing:
        click.echo(f"edge-embed {edge_embed.__version__} (Python {platform.python_version()})")
        ctx.exit()


@click.group(
    cls=App,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog="""\b
Examples:
  edge-embed embed "a text" "another text"
  edge-embed embed -f articles.jsonl --field body -o vectors.npy
  edge-embed similarity "a cat" "a kitten" "a bank"
  edge-embed rerank -m qwen3-reranker-0.6b "how do bees navigate?" "by the sun" "by bus"
  edge-embed count-tokens -f articles.jsonl --field body --total
  edge-embed pull qwen3-embedding-0.6b
  edge-embed convert ./Qwen3-Embedding-0.6B --type q8_0

\b
Exit codes: 0 done, 1 doctor found a problem or index skipped files, 2 texts or options, 3 model, 4 conversion or
output, 5 engine, 6 download, 7 server, 70 a bug, 130 interrupted, 141 the reader of the output went away.
""",
)
@click.option("--version", is_flag=True, is_eager=True, expose_value=False, callback=_version, help="Show the version.")
@click.option("--debug", is_flag=True, envvar="EDGE_EMBED_DEBUG", help="Show tracebacks; also EDGE_EMBED_DEBUG=1.")
def main(debug: bool) -> None:
    """Embeddings on your own machine, from one quantized GGUF file, offline.

    Data goes to standard output, everything else to standard error. `edge-embed COMMAND -h` has examples.
    """
    del debug  # App.invoke reads it


for _command in (
    embed,
    similarity,
    rerank,
    index,
    search,
    dedupe,
    cluster,
    classify,
    bitext,
    serve,
    mcp,
    tokenize,
    count_tokens,
    convert,
    quantize,
    cache,
    calibrate,
    verify,
    project,
    plan,
    pull,
    show,
    list_models,
    doctor,
    tune,
    engine,
):
    main.add_command(_command)
