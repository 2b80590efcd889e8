"""A causal language model as a reranker: its head of two rows, and the template that a pair is put to it in.

Qwen3-Reranker answers *yes* or *no*, and a score is the probability of yes among the two. Two rows of the output matrix
are all that this needs. llama.cpp wants them as ``cls.output.weight``, yes first, with a softmax behind it. A model
that was trained with one output instead has the sigmoid of its logit as score, which is the softmax over that logit and
zero: its second row is zeros, and llama.cpp computes it as faithfully.

Knows config.json, modules.json's LogitScore and chat templates. Knows nothing of quantization or files. That a model is
a reranker is said by its own files or by the caller, never guessed from a name.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from edge_embed import keys
from edge_embed.errors import CheckpointError, InvalidOptionError, UnsupportedCheckpointError
from edge_embed.types import Float32Array

from .architectures.family import Family, PlannedTensor, SkippedTensor, in_memory, plain_name
from .architectures.qwen3 import QWEN3, QWEN3_CROSS, RERANK_INSTRUCTION, RERANK_TEMPLATE
from .checkpoint import READABLE, Checkpoint, Fields, TensorRef, is_encodable, read_text, short
from .container.entries import text, texts
from .modules import Modules, read_whole
from .vocab import Vocabulary
from .vocab.tokenizer_json import TOKENIZER_FILE, added_tokens

LABELS = ("yes", "no")
_HEAD = "cls.output.weight"

# A Jinja template that only puts texts in places. Each expression is one of these; anything else is not understood.
_MESSAGES = r"messages\s*\|\s*selectattr\(\s*(['\"])role\1\s*,\s*(['\"])eq\2\s*,\s*(['\"])(?P<role>\w+)\3\s*\)\s*\|\s*"
_FORMS = (
    re.compile(
        _MESSAGES + r"map\(\s*attribute\s*=\s*(['\"])content\5\s*\)\s*\|\s*first"
        r"(\s*\|\s*default\(\s*(?P<default>'[^'\n]*'|\"[^\"\n]*\")\s*\))?"
    ),
    re.compile(r"\(\s*" + _MESSAGES + r"first\s*\)\s*\.\s*content"),
)
_MAX_TEMPLATE = 1 << 16
_SLOTS = {"query": "{query}", "document": "{document}", "system": "{instruction}"}


@dataclass(frozen=True, slots=True)
class Head:
    """How a causal model scores a pair.

    Attributes:
        tokens: ids whose rows of the output matrix are the head, yes and no; no is None where yes alone counts.
            None for a model that has a head of one output.
        template: with ``{query}``, ``{document}`` and ``{instruction}``.
        instruction: fills ``{instruction}`` where a call gives none, or None for a template without it.
        notes: what was decided without the checkpoint saying so, one sentence each.
    """

    tokens: tuple[int, int | None] | None
    template: str
    instruction: str | None
    notes: tuple[str, ...]


def is_reranker(folder: Path, modules: Modules) -> bool:
    """Whether the files around a checkpoint make it a reranker."""
    return read_whole(folder).values.get("model_type") == "CrossEncoder" or modules.logit_score is not None


def read_head(family: Family, folder: Path, modules: Modules, checkpoint: Checkpoint, *, asked: bool) -> Head | None:
    """The head of a causal reranker; None for every other model.

    Args:
        family: the model's.
        folder: the root, where config_sentence_transformers.json lies.
        modules: what modules.json lists.
        checkpoint: the transformer's own folder.
        asked: whether the caller says that it is a Qwen3-Reranker.

    Raises:
        InvalidOptionError: the caller says so of another model.
        CheckpointError, UnsupportedCheckpointError: its files contradict each other, or what they say is not converted.
    """
    whole = read_whole(folder)
    if family not in (QWEN3, QWEN3_CROSS):
        if asked:
            raise InvalidOptionError(
                f"{family.classes[0]} is not a model that --reranker is about",
                hint="it makes a Qwen3-Reranker of a Qwen3 checkpoint; cross-encoders are recognized by themselves",
            )
        if modules.logit_score is not None:
            raise UnsupportedCheckpointError(f"modules.json: LogitScore is converted for {QWEN3.classes[1]} only")
        return None
    if family is QWEN3 and not (asked or is_reranker(folder, modules)):
        return None
    if asked and modules.pooling is not None:
        raise InvalidOptionError("--reranker was asked for, and modules.json makes it an embedding model")
    notes: list[str] = []
    tokenizer = checkpoint.json(TOKENIZER_FILE)
    tokens = None if family is QWEN3_CROSS else _tokens(tokenizer, modules.logit_score)
    template, instruction = _template(checkpoint, asked, notes)
    _check_special_tokens(template, tokenizer, checkpoint.config.integer("vocab_size", low=1))
    name = whole.values.get("default_prompt_name")
    prompts = whole.mapping("prompts", default={}).values
    if isinstance(name, str) and isinstance(prompts.get(name), str) and instruction is not None:
        instruction = prompts[name] or instruction  # sentence-transformers' prompts are what stands in its place
    if instruction is not None and any(part in instruction for part in (*_SLOTS.values(), "\0")):
        raise UnsupportedCheckpointError(f"the instruction {short(instruction)} has a slot or a NUL in it")
    if "Identity" in str(whole.values.get("activation_fn")):
        notes.append(
            f"{whole.file}: activation_fn is Identity, so the original's scores are logits; here and in llama.cpp they "
            "are the probabilities of yes, whose log-odds those logits are"
        )
    return Head(tokens, template, instruction, tuple(notes))


def with_head(
    head: Head,
    family: Family,
    checkpoint: Checkpoint,
    source: TensorRef,
    planned: tuple[PlannedTensor, ...],
    skipped: tuple[SkippedTensor, ...],
    vocabulary: Vocabulary,
) -> tuple[tuple[PlannedTensor, ...], tuple[SkippedTensor, ...], Vocabulary]:
    """The plan with the head's two rows in it, and the vocabulary's metadata with the template.

    No token is put behind a pair: the template says how it ends.
    """
    yes_id, no_id = (0, None) if head.tokens is None else head.tokens
    yes = _row(source, yes_id, checkpoint)
    no = np.zeros_like(yes) if no_id is None else _row(source, no_id, checkpoint)
    tensor = in_memory(_HEAD, np.stack([yes, no]))
    kept = tuple(s for s in skipped if s.name != source.name)
    used = [s for s in skipped if s.name == source.name]
    kept += tuple(SkippedTensor(s.name, f"two of its rows are {_HEAD}") for s in used if head.tokens is not None)
    bare = vocabulary.without_eds()
    key_values = [
        *bare.key_values,
        texts(f"{family.arch}.classifier.output_labels", list(LABELS)),
        texts("tokenizer.chat_templates", ["rerank"]),
        # llama.cpp's server knows {query} and {document} only
        text("tokenizer.chat_template.rerank", head.template.replace("{instruction}", head.instruction or "", 1)),
        text(keys.RERANK_TEMPLATE, head.template),
        *([text(keys.RERANK_INSTRUCTION, head.instruction)] if head.instruction is not None else []),
    ]
    changed = replace(bare, key_values=tuple(key_values), notes=bare.notes + head.notes)
    return (*planned, tensor), tuple(sorted(kept, key=lambda s: s.name)), changed


def head_source(head: Head, family: Family, checkpoint: Checkpoint) -> TensorRef:
    """The tensor that the head is taken from.

    Raises:
        CheckpointError: it is missing.
        UnsupportedCheckpointError: a classifier's with several outputs.
    """
    by_name = {plain_name(family, name): ref for name, ref in checkpoint.tensors.items()}
    if head.tokens is None:
        return _score(by_name)
    tied = checkpoint.config.boolean("tie_word_embeddings", default=False)
    source = "embed_tokens.weight" if tied else "lm_head.weight"
    if source not in by_name:
        raise CheckpointError(f"tensor {source!r} is missing, and tie_word_embeddings is {str(tied).lower()}")
    return by_name[source]


def _tokens(tokenizer: Fields, logit_score: Fields | None) -> tuple[int, int | None]:
    """The ids of yes and no: what the LogitScore module says, else the tokens of those spellings."""
    if logit_score is not None:
        no = logit_score.integer("false_token_id") if logit_score.has("false_token_id") else None
        return logit_score.integer("true_token_id"), no
    vocab = tokenizer.mapping("model").mapping("vocab")
    missing = [label for label in LABELS if label not in vocab.values]
    if missing:
        raise UnsupportedCheckpointError(
            f"{TOKENIZER_FILE}: {' and '.join(missing)} is not a single token, and a reranker's score is read from it"
        )
    return vocab.integer(LABELS[0]), vocab.integer(LABELS[1])


def _check_special_tokens(template: str, tokenizer: Fields, n_rows: int) -> None:
    """The vocabulary leaves out tokens beyond the matrix; in a template they would become ordinary text."""
    for token in added_tokens(tokenizer):
        if token.id >= n_rows and token.content in template:
            raise CheckpointError(
                f"{TOKENIZER_FILE}: {short(token.content)} is in the template and has the id {token.id}, and the "
                f"embedding matrix has {n_rows} rows"
            )


def _row(matrix: TensorRef, row: int, checkpoint: Checkpoint) -> Float32Array:
    n_embd = checkpoint.config.integer("hidden_size", low=1)
    if len(matrix.shape) != 2 or matrix.shape[1] != n_embd:
        raise CheckpointError(
            f"{matrix.file}: tensor {matrix.name!r} has shape {list(matrix.shape)}, and config.json makes its rows "
            f"{n_embd} wide"
        )
    if row >= matrix.n_rows:
        raise CheckpointError(f"{matrix.file}: tensor {matrix.name!r} has {matrix.n_rows} rows and none for {row}")
    if matrix.dtype not in READABLE:
        raise CheckpointError(
            f"{matrix.file}: tensor {matrix.name!r} has dtype {matrix.dtype}, expected one of {', '.join(READABLE)}"
        )
    values: Float32Array = checkpoint.read_rows(matrix, row, 1)[0]
    return values


def _score(by_name: Mapping[str, TensorRef]) -> TensorRef:
    """The one row of a sequence classifier."""
    ref = by_name.get("score.weight")
    if ref is None:
        raise CheckpointError("tensor 'score.weight' is missing")
    if len(ref.shape) == 2 and ref.shape[0] > 1:
        raise UnsupportedCheckpointError(
            f"{ref.file}: the head (tensor {ref.name!r}) has {ref.shape[0]} outputs: it sorts into classes, and a "
            "reranker has one"
        )
    return ref


def _template(checkpoint: Checkpoint, asked: bool, notes: list[str]) -> tuple[str, str | None]:
    """The template of a pair and its instruction: Qwen3-Reranker's where the caller says so, else the checkpoint's."""
    where, source = _pair_template(checkpoint)
    if asked:
        if source is not None:
            notes.append(f"{where} is left out: --reranker takes the template of Qwen3-Reranker's model card")
        return RERANK_TEMPLATE, RERANK_INSTRUCTION
    if source is None:
        raise UnsupportedCheckpointError(
            f"{checkpoint.folder.name} is a cross-encoder, and {where}",
            hint="if it is a Qwen3-Reranker: --reranker takes the template of its model card",
        )
    return plain_template(source, where)


def _pair_template(checkpoint: Checkpoint) -> tuple[str, str | None]:
    """The chat template that sentence-transformers puts pairs in, and where it is written; None and why, if none."""
    name = "sentence_bert_config.json"
    settings = checkpoint.json(name) if checkpoint.has(name) else Fields({}, name)
    if "message" not in settings.mapping("modality_config", default={}).values:
        return f"{name} does not put pairs into a chat template (modality_config has no message)", None
    options = settings.mapping("processing_kwargs", default={}).mapping("chat_template", default={}).values
    if set(options) - {"add_generation_prompt"}:
        return f"{name} sets {short(sorted(options))} for its chat template, which is not converted", None
    where, source = _chat_template(checkpoint)
    if source is None or not re.search(r"(['\"])role\1\s*,\s*(['\"])eq\2\s*,\s*(['\"])query\3", source):
        return "it has no chat template with places for a query and a document", None
    return where, source


def _chat_template(checkpoint: Checkpoint) -> tuple[str, str | None]:
    """Where the chat template is written, and its text; None where there is none."""
    if checkpoint.has("chat_template.jinja"):
        return "chat_template.jinja", read_text(checkpoint.folder, "chat_template.jinja")
    if checkpoint.has("tokenizer_config.json"):
        config = checkpoint.json("tokenizer_config.json")
        value = config.values.get("chat_template")
        return f"{config.file}: chat_template", value if isinstance(value, str) else None
    return "", None


def plain_template(source: str, where: str) -> tuple[str, str | None]:
    """A Jinja template that only puts a query, a document and a system message in their places, as text with slots.

    Args:
        source: the template, with messages of the roles ``query``, ``document`` and perhaps ``system``.
        where: its file, for messages.

    Returns:
        The text with ``{query}``, ``{document}`` and ``{instruction}``, and the instruction by default.

    Raises:
        UnsupportedCheckpointError: it does more than that.
    """
    instruction: str | None = None

    def slot(match: re.Match[str]) -> str:
        nonlocal instruction
        form = next((found for found in (form.fullmatch(match[1]) for form in _FORMS) if found), None)
        if form is None or form["role"] not in _SLOTS:
            raise UnsupportedCheckpointError(f"{where}: {short(match[0])} is not an expression that is converted")
        default = form.groupdict().get("default")
        if (form["role"] == "system") != (default is not None):
            raise UnsupportedCheckpointError(
                f"{where}: {short(match[0])}: expected a default for the role system, and for no other"
            )
        if default is not None:
            instruction = _literal(default, where)
        return _SLOTS[form["role"]]

    if len(source) > _MAX_TEMPLATE or "\0" in source:
        raise UnsupportedCheckpointError(f"{where} is no template of a pair: {len(source)} characters")
    if "{%" in source or "{#" in source or "{{-" in source or "-}}" in source:
        raise UnsupportedCheckpointError(
            f"{where} has statements, comments or trimmed white space, and none is run here",
            hint="--reranker takes the template of Qwen3-Reranker's model card",
        )
    outside = re.split(r"\{\{.*?\}\}", source, flags=re.DOTALL)
    if any(slot in part for part in outside for slot in _SLOTS.values()):
        raise UnsupportedCheckpointError(f"{where} has a text like {{query}} beside its expressions")
    found = re.sub(r"\{\{\s*(.*?)\s*\}\}", slot, source, flags=re.DOTALL)
    if "{{" in found:
        raise UnsupportedCheckpointError(f"{where} has an expression that does not end")
    found = found.removesuffix("\n")  # as Jinja does
    counts = {name: found.count(name) for name in _SLOTS.values()}
    if counts["{query}"] != 1 or counts["{document}"] != 1 or counts["{instruction}"] > 1:
        raise UnsupportedCheckpointError(f"{where} does not have one query, one document and at most one instruction")
    if found.rindex("{document}") < max(found.rfind("{query}"), found.rfind("{instruction}")):
        raise UnsupportedCheckpointError(f"{where} has the document before the query: a long one could not be cut")
    return found, instruction


def _literal(quoted: str, where: str) -> str:
    """A string literal of Jinja, whose escapes are Python's."""
    try:
        value = str(ast.literal_eval(quoted))
    except (SyntaxError, ValueError):
        raise UnsupportedCheckpointError(f"{where}: {short(quoted)} is not a string that is converted") from None
    if "\0" in value or not is_encodable(value):
        raise UnsupportedCheckpointError(f"{where}: {short(quoted)} holds a character that a GGUF cannot")
    return value
