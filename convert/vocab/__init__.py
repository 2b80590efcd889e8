"""A tokenizer into ``tokenizer.ggml.*`` keys: WordPiece, byte-level BPE, SentencePiece's unigram and BPE.

Knows the tokenizers and what llama.cpp's vocabulary loader expects of them. Knows nothing of weights.
Every part of a tokenizer is recognized by its content; one that is not known is refused with what was found,
since a tokenizer that is almost right gives vectors that are silently wrong.
"""

from __future__ import annotations

from dataclasses import replace

from edge_embed.errors import UnsupportedCheckpointError

from ..architectures.family import TokenizerKind
from ..checkpoint import Checkpoint, Fields, short
from . import bpe, sentencepiece, unigram, wordpiece
from .model_file import tokenizer_of_model_file
from .tokenizer_json import TOKENIZER_FILE, unsupported
from .vocabulary import Vocabulary, kind_of

__all__ = ["TokenizerKind", "Vocabulary", "read_tokenizer", "read_vocabulary"]

_CONVERTERS = {
    "wordpiece": wordpiece.convert,
    "bpe": bpe.convert,
    "unigram": unigram.convert,
    "sentencepiece": sentencepiece.convert,
}


# Where tokenizers were kept before tokenizer.json: WordPiece, byte-level BPE, SentencePiece of other classes.
_OLDER_FILES = ("vocab.txt", "vocab.json", "spiece.model")


def read_vocabulary(
    checkpoint: Checkpoint, kinds: TokenizerKind | tuple[TokenizerKind, ...], n_rows: int
) -> Vocabulary:
    """The vocabulary of a checkpoint, padded to the ``n_rows`` rows of its embedding matrix.

    Args:
        checkpoint: the folder.
        kinds: the kinds of tokenizer that the family's checkpoints have; which it is, the file says.
        n_rows: rows of the embedding matrix.

    Raises:
        CheckpointError: tokenizer.json is missing or malformed, or has more tokens than the matrix has rows.
        UnsupportedCheckpointError: a part of the tokenizer is not one that is converted.
    """
    config = _config(checkpoint)
    tokenizer = read_tokenizer(checkpoint)
    _check_truncation(tokenizer, config)
    kind = kind_of(tokenizer)
    if kind is None or kind not in ((kinds,) if isinstance(kinds, str) else kinds):
        raise unsupported("model.type", tokenizer.mapping("model").values.get("type"))
    vocabulary = _CONVERTERS[kind](tokenizer, config, n_rows)
    if config.has("auto_map"):
        note = f"{config.file}: auto_map's code is not run: {TOKENIZER_FILE} says what the tokenizer does"
        vocabulary = replace(vocabulary, notes=(*vocabulary.notes, note))
    return vocabulary


def read_tokenizer(checkpoint: Checkpoint) -> Fields:
    """tokenizer.json, or what stands for it where there is only a SentencePiece ``.model`` file.

    Raises:
        CheckpointError: missing or malformed.
        UnsupportedCheckpointError: a ``.model`` file that cannot be read, or of a class that is not known; an older
            format alone.
    """
    if not checkpoint.has(TOKENIZER_FILE):
        made = tokenizer_of_model_file(checkpoint, _config(checkpoint))
        if made is not None:
            return made
        older = next((name for name in _OLDER_FILES if checkpoint.has(name)), None)
        if older is not None:
            raise UnsupportedCheckpointError(
                f"{checkpoint.folder.name} has {older} and no {TOKENIZER_FILE}, and only the latter says all of what a "
                "tokenizer does",
                hint="complete the download, or make it: AutoTokenizer.from_pretrained(folder).save_pretrained(folder)",
            )
    return checkpoint.json(TOKENIZER_FILE)


def _check_truncation(tokenizer: Fields, config: Fields) -> None:
    """A text that is too long loses its end here; an original that cuts at the front gives vectors of other texts."""
    truncation = tokenizer.mapping("truncation", default={})
    for fields, key in ((config, "truncation_side"), (truncation, "direction")):  # the first that is there counts
        if fields.has(key):
            if fields.string(key).lower() != "right":
                raise UnsupportedCheckpointError(
                    f"{fields.file}: {key} is {short(fields.values[key])}: a text that is too long would lose its "
                    "beginning, and here it loses its end",
                    hint=f'write "truncation_side": "right" into {config.file}; a call cuts at the front where it says '
                    'so (truncate="left", which keeps the prompt)',
                )
            return


def _config(checkpoint: Checkpoint) -> Fields:
    name = "tokenizer_config.json"
    return checkpoint.json(name) if checkpoint.has(name) else Fields({}, name)
