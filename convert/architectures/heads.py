"""What the heads of cross-encoders have in common: one output, whose label the file names.

Knows config.json's labels. Knows nothing of the tensors of a head; those are lines of each family's sheet.
"""

from __future__ import annotations

from dataclasses import replace

from edge_embed.errors import UnsupportedCheckpointError

from ..checkpoint import Fields
from ..container.entries import KeyValue, texts
from .family import Hyper


def with_score(config: Fields, hyper: Hyper, arch: str, *added: KeyValue) -> Hyper:
    """The hyper-parameters of an encoder with a head of one output: the symbol ``labels`` and the label's name.

    Raises:
        UnsupportedCheckpointError: the head has several outputs.
    """
    labels = config.mapping("id2label").values if config.has("id2label") else {"0": "LABEL_0", "1": "LABEL_1"}
    names = [str(label) for label in labels.values()]
    if len(names) != 1:  # transformers leaves two labels of no meaning out of config.json
        raise UnsupportedCheckpointError(
            f"{config.file}: the head sorts into {len(names)} classes, and a reranker scores with one output"
        )
    return replace(
        hyper,
        sizes={**hyper.sizes, "labels": 1},
        key_values=(*hyper.key_values, *added, texts(f"{arch}.classifier.output_labels", names)),
    )
