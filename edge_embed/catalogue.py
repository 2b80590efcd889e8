"""The models that edge-embed knows by name: one TOML file each in ``models/``, and the default that ships with it.

Names are found here, on this machine alone: nothing is downloaded. It also tells which type suits a memory, and which
known model a GGUF of somebody else's is.
"""

from __future__ import annotations

import contextlib
import difflib
import functools
import os
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any, Final

from edge_embed import keys
from edge_embed.errors import InvalidOptionError, ModelMissingError, ModelNotFoundError
from edge_embed.model_shape import Published
from edge_embed.store import StoredModel, record_of, stored

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

DEFAULT_MODEL: Final = "all-minilm-l6-v2"

_NAME: Final = re.compile(r"[a-z0-9][a-z0-9.-]{0,99}")

# Bits of one weight in a file of that type. The mixes (_k_m and the like) keep some matrices in more bits than their
# name says; theirs are the averages over the Qwen3 family, and a few percent off for others.
BITS: Final[Mapping[str, float]] = {
    "f32": 32.0, "f16": 16.0, "bf16": 16.0, "q8_0": 8.5, "q6_k": 6.6, "q5_k_m": 5.75, "q5_k_s": 5.6, "q5_1": 6.0,
    "q5_0": 5.6, "q4_k_m": 4.95, "q4_k_s": 4.7, "q4_1": 5.0, "q4_0": 4.6, "iq4_xs": 4.4, "iq4_nl": 4.6,
    "q3_k_l": 4.4, "q3_k_m": 4.1, "q3_k_s": 3.7, "q2_k": 3.2,
}  # fmt: skip
# What is offered, the most exact first. More than 8 bits make a vector no better that anybody could measure, fewer
# than 4 make it worse than a smaller model would be.
LADDER: Final = ("q8_0", "q6_k", "q5_k_m", "q4_k_m")


@dataclass(frozen=True, slots=True)
class ReadyFiles:
    """A repository with ready GGUFs of a model.

    Attributes:
        repository: its name on the hub.
        official: whether the model's own publisher made it.
        types: the types that it had when this was written; what it has now is asked when it is used.
    """

    repository: str
    official: bool
    types: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class CatalogueEntry:
    """One known model.

    Attributes:
        name: the short name.
        title: the name that its publisher uses, ``general.name`` of its files.
        repository: where its original weights are published.
        license: SPDX identifier, or the name of the publisher's own terms.
        gated: whether these have to be accepted on the hub before a download.
        kind: ``embedding`` or ``reranker``.
        architecture: ``general.architecture`` of its files.
        pooling: how its hidden states are pooled.
        dimensions: size of its vectors.
        max_tokens: most tokens of one text.
        parameters: weights in its file.
        mrl_dimensions: sizes that its vectors may be cut to.
        prompts: prompt name -> text.
        instruction_template: text with ``{instruction}``, or None.
        ready: a repository of GGUF files, or None where it is always converted.
        note: what else one should know, or an empty string.
        path: the GGUF where it ships with edge-embed, else None.
        ftype: the type of that GGUF, or an empty string.
        size_bytes: size of that GGUF.
        sha256: its digest, or an empty string.
        ollama: what it is called in Ollama's library; a name without a tag means the tag ``latest`` there.
        published: what its memory is computed from before it is here, or None where that was not written down.
    """

    name: str
    title: str
    repository: str
    license: str
    gated: bool
    kind: str
    architecture: str
    pooling: str
    dimensions: int
    max_tokens: int
    parameters: int
    mrl_dimensions: tuple[int, ...]
    prompts: Mapping[str, str]
    instruction_template: str | None
    ready: ReadyFiles | None
    note: str
    path: Path | None
    ftype: str
    size_bytes: int
    sha256: str
    ollama: tuple[str, ...]
    published: Published | None

    def size(self, ftype: str) -> int:
        """About how many bytes its file has in that type."""
        return approximate_size(self.parameters, ftype)


def approximate_size(parameters: int, ftype: str) -> int:
    """About how many bytes a file of so many weights has in that type."""
    return round(parameters * BITS[ftype] / 8)


def memory_needed(parameters: int, ftype: str) -> int:
    """About how much memory a model takes while it runs: its weights, a quarter on top for the work, and 50 MB."""
    return round(1.25 * approximate_size(parameters, ftype)) + 50 * 10**6


def recommended_type(parameters: int, memory_bytes: int) -> str | None:
    """The most exact type that takes no more than half of a memory; None where even the smallest takes more.

    Half, because the machine has other things to do, and a model that is paged out and in again is of no use.
    """
    return next((t for t in LADDER if 2 * memory_needed(parameters, t) <= memory_bytes), None)


def entries() -> list[CatalogueEntry]:
    """All known models, by name."""
    folder = resources.files("edge_embed.models")
    names = sorted(item.name for item in folder.iterdir() if item.name.endswith(".toml"))
    return [entry for name in names if (entry := _load(name.removesuffix(".toml"))) is not None]


def find(name: str) -> CatalogueEntry | None:
    """The known model with that short name, or with that repository, of weights or of ready files; in any case."""
    entry = _load(_short(name))
    return entry if entry is not None and name.lower() in _names(entry) else None


def _short(name: str) -> str:
    """The short name that a repository's model would have: every file in ``models/`` is called so."""
    return name.lower().rpartition("/")[2].removesuffix("-gguf")


@functools.lru_cache(maxsize=256)
def _load(name: str) -> CatalogueEntry | None:
    """One file of ``models/``; the others need not be read to find it."""
    file = resources.files("edge_embed.models") / f"{name}.toml"
    if not _NAME.fullmatch(name) or not file.is_file():
        return None
    return _entry(name, tomllib.loads(file.read_text(encoding="utf-8")))


def _names(entry: CatalogueEntry) -> set[str]:
    own = {entry.name, entry.repository.lower()}
    return own | {entry.ready.repository.lower()} if entry.ready else own


def split_type(name: str) -> tuple[str, str | None]:
    """``NAME:TYPE`` in two, the type in small letters; None for a name without one.

    Raises:
        InvalidOptionError: what stands behind the colon is not a type.
    """
    base, colon, ftype = name.rpartition(":")
    if not colon:
        return name, None
    ftype = {"fp16": "f16", "fp32": "f32"}.get(ftype.lower(), ftype.lower())
    if ftype not in BITS:
        raise InvalidOptionError(f"{name!r}: {ftype!r} is not a type", hint=f"known types: {', '.join(BITS)}")
    return base, ftype


def resolve(model: str | Path | None) -> Path:
    """The file on this machine behind a name or a path; the bundled default for None.

    A name is the short name of a known model, the name of a pulled one, or a repository; with ``:TYPE`` behind it
    where there are several.

    Raises:
        ModelMissingError: a known model that has not been pulled yet.
        ModelNotFoundError: neither a file nor a known name.
        InvalidOptionError: a name that several files have, or ``:TYPE`` that is no type.
    """
    if model is None:
        model = DEFAULT_MODEL
    if not isinstance(model, (str, Path)):
        raise ModelNotFoundError(
            f"a model is a file or a name, not {type(model).__name__}", hint="`edge-embed list` shows the names"
        )
    path = Path(model)
    with contextlib.suppress(OSError, RuntimeError, ValueError):  # no name of a file, or ~ of nobody: not found below
        path = path.expanduser()
        if path.is_file():
            return path
    name = str(model)
    if name.lower() == DEFAULT_MODEL and (shipped := find(name)) is not None and shipped.path is not None:
        return shipped.path  # the usual case, without a look into the models folder
    base, ftype = split_type(name) if find(name.rpartition(":")[0]) else (name, None)
    if (here := _here(base, ftype)) is not None:
        return here
    if (entry := find(base)) is not None:
        wanted = f"{entry.name}:{ftype}" if ftype else entry.name
        raise ModelMissingError(
            f"{wanted} is known ({entry.repository}), but it is not on this machine",
            hint=f"fetch it with `edge-embed pull {wanted}`; --yes or download=True does so when it is used",
        )
    if os.path.isdir(path):  # noqa: PTH112 - Path.is_dir raises for names too long for a file
        raise ModelNotFoundError(
            f"{path} is a folder, not a GGUF file", hint=f"convert it first: edge-embed convert {path}"
        )
    raise ModelNotFoundError(f"there is no model file {name!r} and no model of that name", hint=_advice(name))


def _advice(name: str) -> str:
    if name.count("/") == 1 and not name.startswith((".", "/", "~")) and not name.endswith(".gguf"):
        repository = name.partition(":")[0]
        return (
            f"if it is a repository: `edge-embed pull {name}` fetches a ready GGUF from it, "
            f"`edge-embed convert {repository}` makes one of its weights"
        )
    close = difflib.get_close_matches(name[:100].lower(), [entry.name for entry in entries()], 3, 0.7)
    meant = f"did you mean {' or '.join(close)}? " if close else ""
    return f"{meant}`edge-embed list` shows the known names; or give a GGUF file"


def _here(name: str, ftype: str | None) -> Path | None:
    """The one file on this machine that has the name (and type); None where there is none."""
    entry = find(name)
    if entry is not None and entry.path is not None and ftype in (None, entry.ftype):
        return entry.path
    same = [model for model in stored() if _is_called(model, name, entry) and ftype in (None, model.ftype)]
    if len(same) > 1:
        choices = ", ".join(f"{model.name}:{model.ftype} ({model.path})" for model in same)
        raise ModelNotFoundError(f"{name} is the name of several files", hint=f"name one: {choices}")
    return same[0].path if same else None


def _is_called(model: StoredModel, name: str, entry: CatalogueEntry | None) -> bool:
    if entry is not None:
        return model.name == entry.name
    own = (model.name, model.repository, model.path.name, model.path.stem)
    typed = (f"{model.name}:{model.ftype}", f"{model.repository}:{model.ftype}", f"{model.repository}:{model.file}")
    return name.lower() in (said.lower() for said in own + typed)


def identify(path: Path, metadata: Mapping[str, Any]) -> CatalogueEntry | None:
    """The known model that a GGUF is, where that is beyond doubt.

    Its record or its metadata must name the repository, or ``general.name`` the model; and what is known of the
    architecture and the size of the vectors must agree with the file.
    """
    record = record_of(path)
    said = [record.repository if record else None, metadata.get(keys.SOURCE_REPOSITORY)]
    said += [metadata.get(key) for key in ("general.repo_url", "general.source.repo_url", "general.name")]
    entry = next((found for value in said if isinstance(value, str) if (found := _named(value)) is not None), None)
    if entry is None or metadata.get("general.architecture") != entry.architecture:
        return None
    return entry if metadata.get(f"{entry.architecture}.embedding_length") == entry.dimensions else None


def _named(said: str) -> CatalogueEntry | None:
    """The model with that repository, address of a repository, or title (whose hyphens some converters take out)."""
    name = said.lower().rstrip("/").removeprefix("https://huggingface.co/").replace(" ", "-")
    return find(name)


def _entry(name: str, table: dict[str, Any]) -> CatalogueEntry:
    path = Path(str(resources.files("edge_embed.models") / str(table.get("file", ""))))
    ready = table.get("gguf")
    shipped = "file" in table and path.is_file()
    return CatalogueEntry(
        name=name,
        title=table["name"],
        repository=table["repository"],
        license=table["license"],
        gated=table.get("gated", False),
        kind=table["kind"],
        architecture=table["architecture"],
        pooling=table["pooling"],
        dimensions=table["dimensions"],
        max_tokens=table["max_tokens"],
        parameters=table["parameters"],
        mrl_dimensions=tuple(table.get("mrl_dimensions", ())),
        prompts=table.get("prompts", {}),
        instruction_template=table.get("instruction_template"),
        ready=ReadyFiles(ready["repository"], ready["official"], tuple(ready["types"])) if ready else None,
        note=table.get("note", ""),
        path=path if shipped else None,
        ftype=table.get("ftype", ""),
        size_bytes=path.stat().st_size if shipped else 0,
        sha256=table.get("sha256", "") if shipped else "",
        ollama=tuple(table.get("ollama", ())),
        published=Published(**table["shape"]) if "shape" in table else None,
    )
