"""``edge-embed show`` and ``edge-embed list``: what is in a model file, and which models there are.

Only headers are read. ``show`` asks the engine's library which devices there are; no model is loaded.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final

import click

from edge_embed import keys
from edge_embed.catalogue import DEFAULT_MODEL, CatalogueEntry, entries, recommended_type, resolve
from edge_embed.cli.terminal import facts, say_error, say_json, shorten, size, table
from edge_embed.errors import EdgeEmbedError, ModelError
from edge_embed.store import stored

if TYPE_CHECKING:
    from edge_embed.gguf_header import GgufHeader
    from edge_embed.projection import Projection
    from edge_embed.types import ModelInfo, RerankInfo

VERIFY: Final = keys.PREFIX + "verify."
SHOWN_ITEMS, SHOWN_CHARACTERS = 6, 100  # of an array, of a string


@click.command(
    epilog="""\b
Examples:
  edge-embed show
  edge-embed show qwen3-0.6b-q8_0.gguf
  edge-embed show model.gguf --metadata
  edge-embed show model.gguf --json | jq .dimensions
"""
)
@click.argument("model", required=False)
@click.option("--json", "as_json", is_flag=True, help="JSON instead of a table.")
@click.option("--metadata", is_flag=True, help="Every metadata key as it is in the file, arrays shortened.")
def show(model: str | None, as_json: bool, metadata: bool) -> None:
    """Show what is in a model file and how it would be run.

    MODEL is a GGUF file or a name of `edge-embed list`; the bundled model by default.
    """
    from edge_embed.gguf_header import read_header
    from edge_embed.model_info import read_model_info

    header = read_header(resolve(model))
    problem: ModelError | None = None
    info: ModelInfo | None = None
    try:
        info = read_model_info(header)
    except ModelError as error:  # not one that can be run as it is: what the header says is shown all the same
        problem = error
    described = _describe(header, info)
    if metadata:
        described = {**described, "metadata": {key: _short(value) for key, value in header.metadata.items()}}
    if as_json:
        say_json({**described, "problem": problem.message if problem else None})
        return
    for line in facts(_readable(described, header, info)):
        click.echo(line)
    if metadata:
        click.echo()
        for line in facts({key: str(value) for key, value in described["metadata"].items()}):
            click.echo(line)
    if problem:
        say_error(f"it cannot be run as it is: {problem.message}", problem.hint)


def _describe(header: GgufHeader, info: ModelInfo | None) -> dict[str, Any]:
    """What ``--json`` prints. Without ``info``, what the header says by itself."""
    found = header.metadata
    types: dict[str, int] = {}
    for tensor in header.tensors.values():
        types[tensor.type_name] = types.get(tensor.type_name, 0) + 1
    described: dict[str, Any] = {
        "path": str(header.path),
        "name": found.get("general.name"),
        "architecture": found.get("general.architecture"),
        "size_bytes": header.size_bytes,
        "tensor_types": dict(sorted(types.items(), key=lambda item: -item[1])),
        "license": found.get("general.license"),
        "recipe": found.get(keys.RECIPE),
        "fallbacks": found.get(keys.FALLBACKS, []),
        "source_repository": found.get(keys.SOURCE_REPOSITORY),
        "source_revision": found.get(keys.SOURCE_REVISION),
        "source_sha256": found.get(keys.SOURCE_SHA256),
        "verification": {key[len(VERIFY) :]: _short(value) for key, value in found.items() if key.startswith(VERIFY)},
    }
    described["projection"] = _projection(header, info)
    if info is None:
        return described
    from edge_embed.engine import tune  # it loads no library

    eds = info.eds_token_id
    return {
        **described,
        "name": info.name,
        "layers": info.n_layer,
        "dimensions": info.n_embd,
        "context": info.n_ctx_train,
        "max_tokens": info.max_tokens,
        "vocabulary": info.n_vocab,
        "pooling": info.pooling,
        "pooling_source": info.pooling_source,
        "eds_token_id": eds,
        "eds_token": None if eds is None else found["tokenizer.ggml.tokens"][eds],
        "normalize": info.normalize,
        "unicode_normalization": info.unicode_normalization,
        "prompts": info.prompts,
        "default_prompt_name": info.default_prompt_name,
        "instruction_template": info.instruction_template,
        "mrl_dimensions": list(info.mrl_dimensions),
        "rerank": None
        if info.rerank is None
        else {
            "activation": info.rerank.activation,
            "instruction": info.rerank.instruction,
            "template": info.rerank.template,
        },
        "repairs": list(info.repairs),
        **_device(info),
        "tuned": tune.summary(info) or None,
    }


def _device(info: ModelInfo) -> dict[str, Any]:
    """Where it would be computed, and a sentence where that is not what was asked for, or not possible."""
    from edge_embed.engine.outlook import outlook

    try:
        placed = outlook(info)
    except EdgeEmbedError as error:
        return {"device": None, "device_note": error.message}
    return {"device": placed.device, "device_note": placed.note or None}


def _readable(described: Mapping[str, Any], header: GgufHeader, info: ModelInfo | None) -> dict[str, str]:
    """The same for people: absent things are left out, except where their absence says something."""
    rows: dict[str, Any] = {
        "file": described["path"],
        "name": described["name"],
        "architecture": described["architecture"],
        "size": f"{size(header.size_bytes)} in {len(header.tensors)} tensors",
        "types": ", ".join(f"{count} {kind}" for kind, count in described["tensor_types"].items()),
    }
    if info is not None:
        eds = described["eds_token"]
        rows |= {
            "dimensions": str(info.n_embd)
            + (f", trained to be cut to {', '.join(map(str, info.mrl_dimensions))}" if info.mrl_dimensions else ""),
            "layers": str(info.n_layer),
            "max tokens": f"{info.max_tokens:,} of {info.n_ctx_train:,} positions",
            "vocabulary": f"{info.n_vocab:,} tokens",
            "pooling": f"{info.pooling} (from the {info.pooling_source})",
            "EDS token": f"{eds!r} ({info.eds_token_id}) ends every text" if eds is not None else None,
            **(_vectors(info) if info.rerank is None else _scores(info.rerank)),
            "Unicode": info.unicode_normalization if info.unicode_normalization != "none" else "as it is",
            "prompts": "\n".join(
                f"{name}{' (default)' if name == info.default_prompt_name else ''}: {shorten(repr(prompt), 96)}"
                for name, prompt in info.prompts.items()
            )
            or "none",
            "instructions": None if info.instruction_template is None else repr(info.instruction_template),
        }
    rows |= {
        "projection": described["projection"] and _learned(described["projection"]),
        "licence": described["license"] or "not recorded",
        "source": described["source_repository"],
        "revision": described["source_revision"],
        "weights": described["source_sha256"] and f"sha256 {described['source_sha256']}",
        "recipe": described["recipe"],
        "fallbacks": "\n".join(map(str, _short(described["fallbacks"]))),
        "verified": "\n".join(f"{name}: {value}" for name, value in described["verification"].items()),
        "repairs": "\n".join(info.repairs) if info is not None else None,
        "device": "\n".join(filter(None, (described.get("device"), described.get("device_note")))),
        "tuned": described.get("tuned"),
    }
    return {name: str(value) for name, value in rows.items() if value}


def _projection(header: GgufHeader, info: ModelInfo | None) -> dict[str, Any] | None:
    """The learned projection that a model holds, or that the file is; None where there is none, or no sound one."""
    from edge_embed.metadata import Metadata
    from edge_embed.projection_file import TYPE, has_projection, projection_inside, read_projection

    found: Projection | None = None
    with contextlib.suppress(ModelError):
        if header.metadata.get("general.type") == TYPE:
            found = read_projection(header)
        elif info is not None and has_projection(info):
            found = projection_inside(Metadata(header), info.dense[-1].n_in)
    if found is None:
        return None
    return {"in": found.n_in, "out": found.n_out, "centered": found.centered, "texts": found.n_texts}


def _vectors(info: ModelInfo) -> dict[str, str]:
    return {"vectors": "unit length" if info.normalize else "not normalized"}


def _learned(projection: Mapping[str, Any]) -> str:
    sizes = f"{projection['in']} values to at most {projection['out']}"
    return (
        f"learned on {projection['texts']:,} texts, {sizes}, mean {'taken off' if projection['centered'] else 'kept'}"
    )


def _scores(rerank: RerankInfo) -> dict[str, str | None]:
    return {
        "scores": "of pairs, probabilities" if rerank.activation == "sigmoid" else "of pairs, logits",
        "instruction": rerank.instruction,
        "template": rerank.template and repr(rerank.template),
    }


def _short(value: Any) -> Any:
    """A metadata value of bounded length."""
    if isinstance(value, list) and len(value) > SHOWN_ITEMS:
        return [*map(_short, value[:SHOWN_ITEMS]), f"... {len(value):,} in all"]
    if isinstance(value, str) and len(value) > SHOWN_CHARACTERS:
        return f"{value[:SHOWN_CHARACTERS]}... {len(value):,} characters in all"
    return value


@click.command(
    name="list",
    epilog="""\b
Examples:
  edge-embed list
  edge-embed list --here
  edge-embed list --json | jq '.[].name'
""",
)
@click.option("--here", is_flag=True, help="Only what is on this machine.")
@click.option("--json", "as_json", is_flag=True, help="JSON instead of a table.")
def list_models(here: bool, as_json: bool) -> None:
    """List the models that are known by name, and those that were pulled.

    Any GGUF file can be used by its path as well. For what is not here, the type that suits this machine's memory and
    its size are shown; `edge-embed pull NAME` fetches that, `edge-embed pull NAME:TYPE` another one.
    """
    listed = _listed()
    if here:
        listed = [row for row in listed if row["path"] is not None]
    if as_json:
        say_json(listed)
        return
    for line in table(
        [
            (
                row["name"] + (" (default)" if row["default"] else ""),
                str(row["dimensions"] or ""),
                f"{row['max_tokens']:,}" if row["max_tokens"] else "",
                "yes" if row["path"] else "",
                row["type"] or "too large",
                size(row["size_bytes"]) if row["path"] else f"~{size(row['size_bytes'])}" if row["size_bytes"] else "",
                row["license"] + (", gated" if row["gated"] else ""),
                row["path"] or row["repository"],
            )
            for row in listed
        ],
        head=("name", "dims", "tokens", "here", "type", "size", "licence", "where"),
        right=(1, 2, 5),
    ):
        click.echo(line)


def _listed() -> list[dict[str, Any]]:
    """A row for each file that is here, and one for each known model that is not."""
    from edge_embed.provision import machine_memory

    memory = machine_memory()
    pulled = stored()
    rows = []
    for entry in entries():
        own = [model for model in pulled if model.name == entry.name]
        if entry.path is not None:
            rows.append(_row(entry, entry.name, entry.ftype, entry.size_bytes, str(entry.path)))
        rows += [_row(entry, f"{entry.name}:{m.ftype}", m.ftype, m.size_bytes, str(m.path)) for m in own]
        if entry.path is None and not own:
            ftype = recommended_type(entry.parameters, memory)
            rows.append(_row(entry, entry.name, ftype, entry.size(ftype) if ftype else None, None))
    known = {entry.name for entry in entries()}
    for model in pulled:
        if model.name not in known:
            name = f"{model.name}:{model.ftype}" if model.ftype else model.name
            rows.append(
                {
                    **dict.fromkeys(rows[0]),
                    "name": name,
                    "default": False,
                    "gated": False,
                    "repository": model.repository,
                    "license": model.license,
                    "type": model.ftype or "?",
                    "size_bytes": model.size_bytes,
                    "path": str(model.path),
                }
            )
    return rows


def _row(entry: CatalogueEntry, name: str, ftype: str | None, n_bytes: int | None, path: str | None) -> dict[str, Any]:
    return {
        "name": name,
        "default": name == DEFAULT_MODEL,
        "kind": entry.kind,
        "repository": entry.repository,
        "license": entry.license,
        "gated": entry.gated,
        "dimensions": entry.dimensions,
        "max_tokens": entry.max_tokens,
        "parameters": entry.parameters,
        "type": ftype,
        "size_bytes": n_bytes,
        "path": path,
    }
