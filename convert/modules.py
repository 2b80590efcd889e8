"""The sentence-transformers part of a checkpoint: modules, pooling, prompts, limits.

Knows modules.json and the small JSON files around it, in the spellings of sentence-transformers 2 to 6.
Knows nothing of tensors or tokenizers. A module or an option that the runtime would not compute is refused by
name: leaving it out would give vectors of another model.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeGuard

from edge_embed.errors import CheckpointError, InvalidOptionError, UnsupportedCheckpointError
from edge_embed.types import Activation, Dense, Pooling

from .checkpoint import Checkpoint, Fields, is_inner_path, read_json, read_json_list, short
from .dense import check_chain, read_dense

_BOOLEANS = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_lasttoken": "lasttoken",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
}
_POOLINGS: Mapping[str, Pooling] = {"cls": "cls", "mean": "mean", "lasttoken": "last"}
_ACTIVATIONS: Mapping[str, Activation] = {
    "torch.nn.modules.activation.Sigmoid": "sigmoid",
    "torch.nn.modules.linear.Identity": "identity",
}
# The names that sentence-transformers has had for one file, in the order that it looks for them; the first one counts.
_LIMIT_FILES = (
    "sentence_bert_config.json",
    "sentence_roberta_config.json",
    "sentence_distilbert_config.json",
    "sentence_camembert_config.json",
    "sentence_albert_config.json",
    "sentence_xlm-roberta_config.json",
    "sentence_xlnet_config.json",
)
_SANE_LENGTH = 2**24  # transformers writes 10**30 where a tokenizer has no limit
# The instruction format of Qwen3-Embedding, e5-instruct and others; the end is kept as the model has it.
_INSTRUCTION = re.compile(r"Instruct: (?P<task>[^\n{}]+)\n(?P<end>Query: ?)")


@dataclass(frozen=True, slots=True)
class Modules:
    """What modules.json lists: the transformer's folder, the pooling module's config and what comes behind it.

    Attributes:
        transformer: folder of config.json, the weights and the tokenizer.
        pooling: config of the pooling module, or None without modules.json.
        normalize: whether vectors are made unit length (true where there is no modules.json).
        alone: whether it lists the transformer and nothing else, as that of a cross-encoder does.
        logit_score: config of the module that makes a causal model a reranker, or None.
        dense: the Dense modules between pooling and Normalize.
    """

    transformer: Path
    pooling: Fields | None
    normalize: bool
    alone: bool = False
    logit_score: Fields | None = None
    dense: tuple[Dense, ...] = ()

    def vector_size(self, n_embd: int) -> int:
        """The size of the vectors, where hidden states have ``n_embd`` values."""
        return check_chain(self.dense, n_embd)


@dataclass(frozen=True, slots=True)
class Settings:
    """How texts become vectors beyond the network itself.

    Attributes:
        pooling: how hidden states become one vector.
        normalize: whether vectors are made unit length.
        max_tokens: most tokens of a text, special tokens included.
        prompts: prompt name -> text.
        default_prompt_name: the prompt used when none is asked for, or None.
        instruction_template: the query prompt with ``{instruction}`` for its task, or None.
        mrl_dimensions: sizes that the vectors may be cut to, where the checkpoint says.
        activation: what makes a score of a cross-encoder's logit; None for an embedding model.
        notes: what was decided without the checkpoint saying so, one sentence each.
    """

    pooling: Pooling
    normalize: bool
    max_tokens: int
    prompts: Mapping[str, str]
    default_prompt_name: str | None
    instruction_template: str | None
    mrl_dimensions: tuple[int, ...]
    activation: Activation | None
    notes: tuple[str, ...]


def read_modules(folder: Path) -> Modules:
    """Walk modules.json in order: Transformer, Pooling, perhaps some Dense and perhaps Normalize.

    Raises:
        CheckpointError: malformed, or a path that leaves the folder.
        UnsupportedCheckpointError: another module or another order.
    """
    if not folder.is_dir():
        raise CheckpointError(f"{folder} is not a folder", hint="pass the folder of a downloaded checkpoint")
    if not (folder / "modules.json").is_file():
        return Modules(folder, None, True)
    kinds: list[str] = []
    paths: list[str] = []
    for number, entry in enumerate(read_json_list(folder, "modules.json")):
        if not isinstance(entry, dict):
            raise CheckpointError(f"modules.json: entry {number} is not an object")
        fields = Fields(entry, f"modules.json: entry {number}")
        path, kind = fields.string("path", default=""), fields.string("type")
        if not is_inner_path(path):
            raise CheckpointError(f"modules.json: path {short(path)} leaves the folder")
        short_kind = kind.rpartition(".")[2]
        known = ("Transformer", "Pooling", "Dense", "Normalize", "LogitScore")
        if not kind.startswith("sentence_transformers.") or short_kind not in known:
            raise UnsupportedCheckpointError(
                f"modules.json: module {short(kind)} is not converted, and without it the vectors would differ"
            )
        kinds.append(short_kind)
        paths.append(path)
    if kinds == ["Transformer"]:
        return Modules(folder / paths[0], None, False, alone=True)
    if kinds == ["Transformer", "LogitScore"]:
        logit_score = Fields(read_json(folder / paths[1], "config.json").values, f"{paths[1]}/config.json")
        return Modules(folder / paths[0], None, False, alone=True, logit_score=logit_score)
    normalize = kinds[-1:] == ["Normalize"]
    inner = kinds[2:-1] if normalize else kinds[2:]
    if kinds[:2] != ["Transformer", "Pooling"] or set(inner) - {"Dense"}:
        raise UnsupportedCheckpointError(
            f"modules.json: the modules are {', '.join(kinds) or 'none'}; "
            "expected Transformer, Pooling, perhaps some Dense and perhaps Normalize"
        )
    pooling = read_json(folder / paths[1], "config.json")
    return Modules(
        folder / paths[0],
        Fields(pooling.values, f"{paths[1]}/config.json".lstrip("/")),
        normalize,
        dense=tuple(read_dense(folder, path) for path in paths[2 : 2 + len(inner)]),
    )


def read_settings(
    folder: Path,
    modules: Modules,
    checkpoint: Checkpoint,
    *,
    n_embd: int,
    max_positions: int,
    default_pooling: Pooling | None,
    asked_pooling: Pooling | None,
    lowercase: bool | None,
) -> Settings:
    """Everything that the small JSON files say, checked against the model.

    Args:
        folder: the root, where config_sentence_transformers.json lies.
        modules: what ``read_modules`` found there.
        checkpoint: the transformer's own folder.
        n_embd: size of the hidden state.
        max_positions: most tokens that the model has positions for.
        default_pooling: the family's, for a checkpoint without modules.json.
        asked_pooling: the caller's, for a checkpoint without modules.json.
        lowercase: whether the tokenizer lowercases; None where it has no such step.

    Raises:
        CheckpointError, UnsupportedCheckpointError: as described in the module.
        InvalidOptionError: ``asked_pooling`` contradicts the checkpoint.
    """
    notes: list[str] = []
    pooling = _pooling(modules, n_embd, default_pooling, asked_pooling, notes)
    whole = read_whole(folder)
    ranks = pooling == "rank"
    expected = "CrossEncoder" if ranks else "SentenceTransformer"
    kind = whole.string("model_type", default=expected)
    if kind != expected:
        raise UnsupportedCheckpointError(f"{whole.file}: model_type is {short(kind)}, expected {expected}")
    prompts = _prompts(whole)
    default_name = whole.string("default_prompt_name") if whole.has("default_prompt_name") else None
    if default_name is not None and default_name not in prompts:
        raise CheckpointError(f"{whole.file}: default_prompt_name {default_name!r} is not among the prompts")
    if modules.pooling is not None and not modules.pooling.boolean("include_prompt", default=True):
        if any(prompts.values()):
            raise UnsupportedCheckpointError(
                f"{modules.pooling.file}: include_prompt is false: the prompt's tokens are left out of the mean, "
                "which llama.cpp cannot do"
            )
        notes.append("include_prompt is false, and there are no prompts for it to leave out")
    return Settings(
        pooling=pooling,
        normalize=modules.normalize,
        max_tokens=_max_tokens(checkpoint, max_positions, lowercase, ranks),
        prompts=prompts,
        default_prompt_name=default_name,
        instruction_template=instruction_template(prompts.get("query", "")),
        mrl_dimensions=_mrl_dimensions(checkpoint.config, modules.vector_size(n_embd)),
        activation=_activation(whole, checkpoint.config) if ranks else None,
        notes=tuple(notes),
    )


def read_whole(folder: Path) -> Fields:
    """config_sentence_transformers.json; without fields where there is none."""
    name = "config_sentence_transformers.json"
    return read_json(folder, name) if (folder / name).is_file() else Fields({}, name)


def pooling_mode(config: Fields) -> Pooling:
    """The pooling of a Pooling module's config, in either spelling; UnsupportedCheckpointError for the others."""
    modes: list[Any]
    if config.has("pooling_mode"):
        value = config.values["pooling_mode"]
        modes = value if isinstance(value, list) else [value]
    else:
        modes = [mode for key, mode in _BOOLEANS.items() if config.boolean(key, default=False)]
    if len(modes) == 1 and isinstance(modes[0], str) and modes[0] in _POOLINGS:
        return _POOLINGS[modes[0]]
    found = " and ".join(short(mode) for mode in modes) or "none"
    raise UnsupportedCheckpointError(
        f"{config.file}: the pooling is {found}; converted are mean, cls or lasttoken, one of them"
    )


def instruction_template(prompt: str) -> str | None:
    """``Instruct: {instruction}`` with the prompt's own ending, where the prompt has that form, else None."""
    match = _INSTRUCTION.fullmatch(prompt)
    return f"Instruct: {{instruction}}\n{match['end']}" if match else None


def _pooling(
    modules: Modules, n_embd: int, default: Pooling | None, asked: Pooling | None, notes: list[str]
) -> Pooling:
    if modules.pooling is not None:
        pooling = pooling_mode(modules.pooling)
        for key in ("word_embedding_dimension", "embedding_dimension"):
            if modules.pooling.has(key) and modules.pooling.integer(key) != n_embd:
                raise modules.pooling.error(key, f"hidden_size {n_embd}")
        if asked not in (None, pooling):
            raise InvalidOptionError(f"pooling {asked!r} was asked for, and the checkpoint has {pooling!r}")
        return pooling
    if default == "rank":
        if asked is not None:
            raise InvalidOptionError(f"pooling {asked!r} was asked for, and a cross-encoder scores by its head")
        return default
    if modules.alone:
        raise UnsupportedCheckpointError(
            "modules.json: the modules are Transformer alone: nothing says how its hidden states become one vector"
        )
    if asked is not None:
        if asked not in ("mean", "cls", "last"):
            raise InvalidOptionError(f"pooling {asked!r} cannot be converted", hint="one of: mean, cls, last")
        return asked
    if default is not None:
        notes.append(f"no modules.json: pooling {default} is the family's usual one")
        return default
    raise UnsupportedCheckpointError(
        "there is no modules.json, so nothing says how hidden states become one vector",
        hint="pass pooling: mean, cls or last, as the model's card says",
    )


def _prompts(whole: Fields) -> dict[str, str]:
    prompts = dict(whole.mapping("prompts", default={}).values)
    for name, text in prompts.items():
        if not isinstance(text, str):
            raise CheckpointError(f"{whole.file}: prompt {name!r} is {short(text)}, expected a string")
    return prompts


def _activation(whole: Fields, config: Fields) -> Activation:
    """What sentence-transformers applies to a cross-encoder's one logit; the sigmoid where nothing is said."""
    inner = config.mapping("sentence_transformers", default={})
    for fields, key in (
        (whole, "activation_fn"),
        (inner, "activation_fn"),
        (config, "sbert_ce_default_activation_function"),  # before sentence-transformers 4
    ):
        if fields.has(key):
            name = fields.string(key)
            if name in _ACTIVATIONS:
                return _ACTIVATIONS[name]
            raise UnsupportedCheckpointError(
                f"{fields.file}: {key} is {short(name)}, and only a sigmoid or none is applied to scores"
            )
    return "sigmoid"


def _max_tokens(checkpoint: Checkpoint, max_positions: int, lowercase: bool | None, ranks: bool) -> int:
    limit: int | None = None
    for name in _LIMIT_FILES:
        if not checkpoint.has(name):
            continue
        fields = checkpoint.json(name)
        if fields.boolean("do_lower_case", default=False) and not lowercase:
            raise UnsupportedCheckpointError(f"{name}: do_lower_case, and the tokenizer does not lowercase")
        expected = ("sequence-classification", "text-generation") if ranks else ("feature-extraction",)
        task = fields.string("transformer_task", default=expected[0])
        if task not in expected:
            raise UnsupportedCheckpointError(
                f"{name}: transformer_task is {short(task)}, expected {' or '.join(expected)}"
            )
        if fields.has("max_seq_length"):
            limit = fields.integer("max_seq_length", low=1, high=2**53)
        break
    if limit is None and checkpoint.has("tokenizer_config.json"):
        value = checkpoint.json("tokenizer_config.json").values.get("model_max_length")
        # A number without meaning (1e30, null) says that the tokenizer knows no limit.
        if isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= _SANE_LENGTH:
            limit = value
    return max_positions if limit is None else min(limit, max_positions)


def _mrl_dimensions(config: Fields, n_embd: int) -> tuple[int, ...]:
    sizes = config.values.get("matryoshka_dimensions")
    if sizes is None:
        return ()
    if not are_dimensions(sizes, n_embd):
        raise config.error("matryoshka_dimensions", f"a list of integers from 1 to {n_embd}")
    return tuple(sorted(set(sizes)))


def are_dimensions(sizes: Any, n_embd: int) -> TypeGuard[list[int]]:
    """Whether this is a list of sizes that vectors of ``n_embd`` can be cut to."""
    return isinstance(sizes, list) and all(type(s) is int and 1 <= s <= n_embd for s in sizes)
