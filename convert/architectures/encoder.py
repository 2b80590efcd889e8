"""What the data sheets of the encoders share: sizes, and the entries of the metadata that all of them have.

Knows config.json's fields, whose names differ. Knows no tensors.
"""

from __future__ import annotations

from dataclasses import dataclass

from ..checkpoint import Fields
from ..container.entries import KeyValue, flag, real, uint

# erf, and the names of the tanh approximation that llama.cpp computes for all of them
GELUS = ("gelu", "gelu_new", "gelu_pytorch_tanh", "gelu_fast")


@dataclass(frozen=True, slots=True)
class Sizes:
    """Sizes of an encoder; ``n_rows`` is that of the token embeddings, ``n_ff`` the width between the layers' ends."""

    n_embd: int
    n_head: int
    n_layer: int
    n_ff: int
    n_rows: int

    @property
    def symbols(self) -> dict[str, int]:
        """What the shapes of every sheet are written in."""
        return {"rows": self.n_rows, "embd": self.n_embd, "ff": self.n_ff}


def read_sizes(
    config: Fields,
    *,
    n_embd: str = "hidden_size",
    n_head: str = "num_attention_heads",
    n_layer: str = "num_hidden_layers",
    n_ff: str = "intermediate_size",
) -> Sizes:
    """The sizes under these names, each within what a model can have."""
    width = config.integer(n_embd, low=1, high=2**20)
    return Sizes(
        n_embd=width,
        n_head=config.integer(n_head, low=1, high=width),
        n_layer=config.integer(n_layer, low=1, high=512),
        n_ff=config.integer(n_ff, low=1, high=2**20),
        n_rows=config.integer("vocab_size", low=1),
    )


def entries(arch: str, sizes: Sizes, *, n_positions: int, epsilon: float) -> tuple[KeyValue, ...]:
    """The entries of an encoder, which looks both ways."""
    return (
        uint(f"{arch}.block_count", sizes.n_layer),
        uint(f"{arch}.context_length", n_positions),
        uint(f"{arch}.embedding_length", sizes.n_embd),
        uint(f"{arch}.feed_forward_length", sizes.n_ff),
        uint(f"{arch}.attention.head_count", sizes.n_head),
        real(f"{arch}.attention.layer_norm_epsilon", epsilon),
        flag(f"{arch}.attention.causal", False),
    )
