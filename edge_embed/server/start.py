"""From what the command line says to a server that runs."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from starlette.applications import Starlette

from edge_embed import catalogue, store
from edge_embed.errors import EdgeEmbedError, ServerSettingsError
from edge_embed.gguf_header import read_header
from edge_embed.planning import memory_of
from edge_embed.registry import FOREVER, Kind, Registry, Served
from edge_embed.search.database import Database
from edge_embed.server.app import create_app
from edge_embed.server.log import AccessLog
from edge_embed.server.metrics import Metrics
from edge_embed.server.opening import ModelOpener
from edge_embed.server.searching import searched
from edge_embed.server.settings import ModelOptions, ServerSettings
from edge_embed.server.token_ids import read_table


def served_models(
    models: Sequence[str],
    *,
    folder: Path | None = None,
    aliases: Sequence[str] = (),
    download: bool = False,
) -> list[Served]:
    """The models that are served, in the order in which they answer requests that name none.

    A known model also answers to the names that clients of other programs send: those of its repositories, and that of
    Ollama's library. Where two of them could have such a name, the first one has it.

    Args:
        models: files or names of ``edge-embed list``, each perhaps as ``NAME=MODEL``. Where there are none and no
            folder, every model that is on this machine, the bundled one first.
        folder: whose GGUF files are served, too.
        aliases: ``ALIAS=NAME``: other names of served models.
        download: whether known models that are missing may be fetched, on first use.

    Raises:
        ServerSettingsError: an alias of nothing, a folder that is none.
        ModelError: a file that is not there, or not a GGUF.
    """
    found = [_served(model, download=download) for model in models]
    if folder is not None:
        if not folder.is_dir():
            raise ServerSettingsError(f"{folder} is not a folder", hint="--models-dir takes a folder of GGUF files")
        found += [_served(str(path)) for path in sorted(folder.glob("*.gguf"))]
    if not models and folder is None:
        found = [_served(catalogue.DEFAULT_MODEL), *(_served(str(model.path)) for model in store.stored())]
    named: dict[str, Served] = {}
    for one in found:
        named.setdefault(one.name.lower(), one)
    own: dict[str, list[str]] = {name: [] for name in named}
    for alias in aliases:
        other, equals, name = alias.partition("=")
        target = named.get(name.lower())
        if not equals or not other or target is None:
            raise ServerSettingsError(
                f"the alias {alias!r} is not ALIAS=NAME of a served model", hint=f"served: {', '.join(named)}"
            )
        own[name.lower()].append(other)
    taken = {*named, *(other.lower() for others in own.values() for other in others)}
    return [replace(one, aliases=(*own[name], *_free(one.aliases, taken))) for name, one in named.items()]


def _free(names: Sequence[str], taken: set[str]) -> list[str]:
    """The names that no other model has; from now on they are taken."""
    found = []
    for name in names:
        if name.lower() not in taken:
            taken.add(name.lower())
            found.append(name)
    return found


def _served(model: str, *, download: bool = False) -> Served:
    own, equals, target = model.partition("=")
    if not equals or Path(model).is_file():
        own, target = "", model
    path = Path(target)
    if not path.is_file():
        entry = catalogue.find(target.partition(":")[0])
        if entry is None:
            catalogue.resolve(target)  # says what is wrong, before anything is started
        return Served(own or target, target, _known_names(entry), download)
    try:
        entry = catalogue.identify(path, read_header(path).metadata)
    except EdgeEmbedError:
        entry = None  # its own requests are told what is wrong with it
    name = own or (entry.name if entry else path.stem)
    return Served(name, target, (path.stem, path.name, *_known_names(entry)))


def _known_names(entry: catalogue.CatalogueEntry | None) -> tuple[str, ...]:
    """What clients may call a known model."""
    if entry is None:
        return ()
    ready = () if entry.ready is None else (entry.ready.repository,)
    return (entry.name, entry.repository, *ready, *entry.ollama)


def build(
    served: Sequence[Served],
    settings: ServerSettings,
    options: ModelOptions,
    *,
    memory_limit: int | None = None,
    keep_alive: float = FOREVER,
    database: Path | None = None,
) -> Starlette:
    """The application that serves these models; the first one is loaded before it takes requests.

    With a database, ``/v1/search`` answers from it.

    Raises:
        ServerSettingsError: the table of the token encoding is not here, or the model of the database is not served.
        DatabaseMissingError, DatabaseFileError: the database.
        InvalidOptionError: no model, or two of a name.
    """
    metrics = Metrics()
    registry = Registry(
        served,
        ModelOpener(options, settings, metrics),
        memory_of=functools.partial(
            memory_of, device=options.device, gpu_layers=options.gpu_layers, low_memory=options.low_memory
        ),
        memory_limit=memory_limit,
        keep_alive=keep_alive,
    )
    table = None if settings.token_encoding is None else read_table(settings.token_encoding)
    log = AccessLog(settings.log)
    search = None if database is None else searched(Database(database), served)
    return create_app(
        registry, settings, metrics, log=log, warm_up=_first_kind(served), token_table=table, search=search
    )


def _first_kind(served: Sequence[Served]) -> tuple[Kind, ...]:
    """What the first model is for: it is loaded before requests are taken, the others on first use."""
    for one in served:
        with contextlib.suppress(EdgeEmbedError):
            return (one.kind,)
    return ()
