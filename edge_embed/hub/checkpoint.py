"""Checkpoints of the hub, in the cache that programs of Hugging Face share: what a conversion needs, and no more."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from edge_embed.errors import HubNotFoundError, HubUnavailableError, UnsupportedCheckpointError

from .failures import endpoint, typed_errors
from .repository import Reference, RepoFile, Repository, hub_cache, license_of
from .transfer import Advance, check_space, download

# What a conversion reads: by name in the root, and in the folders of a sentence-transformers model (1_Pooling).
_ROOT = frozenset(
    {
        "README.md", "config.json", "modules.json", "config_sentence_transformers.json", "tokenizer.json",
        "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "vocab.txt", "vocab.json",
        "merges.txt", "tokenizer.model", "sentencepiece.bpe.model", "spiece.model", "model.safetensors.index.json",
        "sentence_bert_config.json", "sentence_roberta_config.json", "sentence_distilbert_config.json",
        "sentence_camembert_config.json", "sentence_albert_config.json", "sentence_xlm-roberta_config.json",
        "sentence_xlnet_config.json", "chat_template.jinja",
    }
)  # fmt: skip
_MODULE = re.compile(r"\d+_[A-Za-z]+")
_SHARD = re.compile(r"model-\d{5}-of-\d{5}\.safetensors")
_PICKLES = (".bin", ".pt", ".pth", ".ckpt")


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A checkpoint on this machine: its folder, and where it is from."""

    folder: Path
    repository: str
    revision: str
    license: str


def checkpoint_files(repository: Repository) -> tuple[list[RepoFile], list[RepoFile]]:
    """What a conversion needs: small files, and weights. Chosen by name alone.

    Raises:
        UnsupportedCheckpointError: an adapter, or weights only as pickle.
        HubNotFoundError: nothing that looks like a checkpoint.
    """
    by_path = {file.path: file for file in repository.files}
    if "adapter_config.json" in by_path and "config.json" not in by_path:
        raise UnsupportedCheckpointError(
            f"{repository.name} is an adapter, not a whole model", hint="convert its base model, and merge it there"
        )
    small = [file for file in repository.files if _is_wanted(file.path)]
    weights = []
    for folder in sorted({str(PurePosixPath(path).parent) for path in by_path}):
        if folder != "." and not _MODULE.fullmatch(folder):
            continue
        here = [file for file in repository.files if str(PurePosixPath(file.path).parent) == folder]
        names = {PurePosixPath(file.path).name: file for file in here}
        found = [names["model.safetensors"]] if "model.safetensors" in names else []
        found = found or [file for name, file in sorted(names.items()) if _SHARD.fullmatch(name)]
        pickles = [name for name in names if name.endswith(_PICKLES) and name != "training_args.bin"]
        if pickles and not found:
            raise UnsupportedCheckpointError(
                f"{repository.name} has its weights only as pickle ({pickles[0]}); loading a pickle runs whatever code "
                "is in it, so it is refused and was not downloaded",
                hint="some repositories have safetensors in a pull request: --revision refs/pr/NUMBER; or pull a GGUF",
            )
        weights += found
    if "config.json" not in by_path and not any(path.endswith("/config.json") for path in by_path):
        ready = any(path.lower().endswith(".gguf") for path in by_path)
        raise HubNotFoundError(
            f"{repository.name} holds no checkpoint: there is no config.json",
            hint=f"it has ready GGUF files: edge-embed pull {repository.name}" if ready else "",
        )
    if not weights:
        raise HubNotFoundError(f"{repository.name} holds no weights in safetensors")
    return small, weights


def _is_wanted(path: str) -> bool:
    folder, name = str(PurePosixPath(path).parent), PurePosixPath(path).name
    return name in _ROOT and (folder == "." or (_MODULE.fullmatch(folder) is not None and name != "README.md"))


def missing(repository: Repository, files: Sequence[RepoFile]) -> list[RepoFile]:
    """Those of the files that are not in the cache yet."""
    return [file for file in files if not _in_cache(repository, file.path)]


def _in_cache(repository: Repository, path: str) -> bool:
    return (_storage(repository.name) / "snapshots" / repository.commit / path).is_file()


def fetch_into_cache(repository: Repository, files: Sequence[RepoFile], advance: Advance) -> Snapshot:
    """Have these files in the cache, as every program that uses huggingface-hub would.

    Raises:
        HubAccessError, HubUnavailableError, DownloadError, DiskSpaceError: what the download may end with.
    """
    storage = _storage(repository.name)
    needed = missing(repository, files)
    check_space(storage, sum(file.size for file in needed))
    for file in needed:
        blob = storage / "blobs" / file.digest
        if not blob.is_file():
            download(repository, file, blob, advance)
        _link(repository, file)
    if repository.asked != repository.commit:
        _remember(storage / "refs" / repository.asked, repository.commit)
    return Snapshot(storage / "snapshots" / repository.commit, repository.name, repository.commit, repository.license)


def _remember(reference: Path, commit: str) -> None:
    """Note which commit a branch or tag was, as the library does: so it is found without a connection."""
    with contextlib.suppress(OSError):  # a cache that cannot be written to has served its purpose
        if not reference.is_file() or reference.read_text(encoding="utf-8") != commit:
            reference.parent.mkdir(parents=True, exist_ok=True)
            reference.write_text(commit, encoding="utf-8")


def cached(reference: Reference) -> Snapshot:
    """The checkpoint that the cache holds, without a connection.

    Raises:
        HubUnavailableError: it is not there.
    """
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.repocard import metadata_load

    found = try_to_load_from_cache(
        reference.repository, "config.json", cache_dir=hub_cache(), revision=reference.revision
    )
    if not isinstance(found, str) or not any(Path(found).parent.rglob("*.safetensors")):
        name = reference.repository + (f" at {reference.revision}" if reference.revision else "")
        raise HubUnavailableError(
            f"{name} is not in the cache ({hub_cache()}), or only in part, and only the cache may be used",
            hint="do without --offline and HF_HUB_OFFLINE once, with a connection",
        )
    folder = Path(found).parent
    card: Mapping[str, Any] = {}
    if (folder / "README.md").is_file():
        with contextlib.suppress(Exception):  # a card that is no YAML names no licence
            card = metadata_load(folder / "README.md") or {}
    return Snapshot(folder, reference.repository, folder.name, license_of(card))


def _storage(repository: str) -> Path:
    return hub_cache() / f"models--{repository.replace('/', '--')}"


def _link(repository: Repository, file: RepoFile) -> None:
    """Let the library put the downloaded blob where a snapshot has it: by a link, or a copy where there are none."""
    from huggingface_hub import hf_hub_download

    with typed_errors(repository.name, repository.commit):
        hf_hub_download(
            repository.name, file.path, revision=repository.commit, cache_dir=hub_cache(), endpoint=endpoint()
        )
