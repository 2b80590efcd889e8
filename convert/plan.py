"""What a checkpoint folder becomes, before any weight is read: its tensors under their new names, and their metadata.

checkpoint -> family -> head -> tensors -> vocabulary -> settings. ``convert`` writes a plan, ``verify`` holds a file
against one. Knows the order of these steps and nothing of types, files and quantization.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from edge_embed import keys
from edge_embed.types import Pooling

from .architectures import family_of
from .architectures.family import Family, Hyper, PlannedTensor, SkippedTensor, plan_tensors
from .checkpoint import Checkpoint, Fields
from .container.entries import KeyValue, flag, text, uint
from .dense import plan_dense
from .lora.merge import MergedCheckpoint
from .modules import Modules, Settings, read_modules, read_settings
from .reranker import Head, head_source, read_head, with_head
from .vocab import Vocabulary, read_vocabulary

_POOLING_TYPES: dict[Pooling, int] = {"none": 0, "mean": 1, "cls": 2, "last": 3, "rank": 4}  # llama.h


@dataclass(frozen=True, slots=True)
class Plan:
    """A checkpoint as the converter understands it.

    Attributes:
        folder: the root, with modules.json.
        modules: what modules.json lists.
        checkpoint: the transformer's own folder, opened.
        family: its data sheet.
        hyper: its hyper-parameters.
        head: how a causal reranker scores, or None.
        tensors: what is written, in order.
        skipped: what is left out, with the reason.
        vocabulary: the tokenizer's part.
        settings: pooling, prompts, limits.
        key_values: all metadata that describes the model; not its name, source and types.
        notes: what was decided without the checkpoint saying so, one sentence each.
    """

    folder: Path
    modules: Modules
    checkpoint: Checkpoint
    family: Family
    hyper: Hyper
    head: Head | None
    tensors: tuple[PlannedTensor, ...]
    skipped: tuple[SkippedTensor, ...]
    vocabulary: Vocabulary
    settings: Settings
    key_values: tuple[KeyValue, ...]
    notes: tuple[str, ...]


@contextlib.contextmanager
def opened_plan(
    folder: Path, *, merge_lora: Path | None = None, reranker: bool = False, pooling: Pooling | None = None
) -> Iterator[Plan]:
    """The plan of a folder, whose weights can be read inside the context.

    Args:
        folder: as ``save_pretrained`` writes it.
        merge_lora: folder of a PEFT adapter that is added to the weights.
        reranker: that a Qwen3 checkpoint is a Qwen3-Reranker, where it does not say so itself.
        pooling: mean, cls or last, for a checkpoint that does not say.

    Raises:
        CheckpointError, UnsupportedCheckpointError: what is in the folder.
        InvalidOptionError: an option that contradicts the checkpoint.
    """
    modules = read_modules(folder)
    with _opened(modules.transformer, merge_lora) as checkpoint:
        family = family_of(checkpoint.config)
        # config.json may name its class alone; the reference and the original's tokenizer go by model_type.
        named = {**checkpoint.config.values, "model_type": family.model_type}
        checkpoint.config = Fields(named, checkpoint.config.file)
        head = read_head(family, folder, modules, checkpoint, asked=reranker)
        hyper = family.hyper(checkpoint.config)
        tensors, skipped = plan_tensors(family, hyper, checkpoint.tensors)
        dense = plan_dense(family.arch, modules.dense, hyper.n_embd)
        tensors += dense.tensors
        vocabulary = read_vocabulary(checkpoint, family.tokenizer, hyper.n_rows)
        source = None
        if head is not None:
            source = head_source(head, family, checkpoint)
            tensors, skipped, vocabulary = with_head(head, family, checkpoint, source, tensors, skipped, vocabulary)
        left_out: tuple[str, ...] = ()
        if isinstance(checkpoint, MergedCheckpoint):
            left_out = checkpoint.left_out(skipped, None if source is None else source.name)
        settings = read_settings(
            folder,
            modules,
            checkpoint,
            n_embd=hyper.n_embd,
            max_positions=hyper.max_positions,
            default_pooling="rank" if head is not None else family.default_pooling,
            asked_pooling=pooling,
            lowercase=vocabulary.lowercase,
        )
        if vocabulary.assumed_eds and settings.pooling != "last":
            vocabulary = vocabulary.without_eds()  # a mean would be one of a token that the original does not see
        if head is not None:
            settings = replace(settings, activation="sigmoid")  # llama.cpp's softmax over the two rows
        yield Plan(
            folder=folder,
            modules=modules,
            checkpoint=checkpoint,
            family=family,
            hyper=hyper,
            head=head,
            tensors=tensors,
            skipped=skipped,
            vocabulary=vocabulary,
            settings=settings,
            key_values=(
                *hyper.key_values,
                uint(f"{family.arch}.pooling_type", _POOLING_TYPES[settings.pooling]),
                *vocabulary.key_values,
                *dense.key_values,
                *_own(settings),
            ),
            notes=left_out + checkpoint.notes + hyper.notes + dense.notes + settings.notes + vocabulary.notes,
        )


def mrl_entries(dimensions: Sequence[int]) -> list[KeyValue]:
    """The sizes that vectors may be cut to."""
    return [KeyValue(keys.MRL_DIMENSIONS, list(dimensions), uint("", 0).kind)] if dimensions else []


def _opened(folder: Path, merge_lora: Path | None) -> Checkpoint:
    return Checkpoint(folder) if merge_lora is None else MergedCheckpoint(folder, merge_lora)


def _own(settings: Settings) -> list[KeyValue]:
    """What the runtime needs and the standard has no key for."""
    entries = [
        uint(keys.VERSION, 1),
        uint(keys.MAX_TOKENS, settings.max_tokens),
        flag(keys.NORMALIZE, settings.normalize),
        *(text(keys.PROMPT + name, prompt) for name, prompt in settings.prompts.items()),
    ]
    if settings.default_prompt_name is not None:
        entries.append(text(keys.DEFAULT_PROMPT_NAME, settings.default_prompt_name))
    if settings.instruction_template is not None:
        entries.append(text(keys.INSTRUCTION_TEMPLATE, settings.instruction_template))
    if settings.activation is not None:
        entries.append(text(keys.RERANK_ACTIVATION, settings.activation))
    return entries
