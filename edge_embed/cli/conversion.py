"""Options that the commands which make and check GGUF files share, each a decorator of its own."""

from __future__ import annotations

from typing import Final

import click

from edge_embed.cli.options import AT_LEAST_1, POOLINGS

# edge_embed.convert.FTYPES, spelled out because importing it loads NumPy; a test compares them.
TYPES: Final = (
    "f32",
    "f16",
    "bf16",
    "q8_0",
    "q6_k",
    "q5_k_m",
    "q5_k_s",
    "q4_k_m",
    "q4_k_s",
    "iq4_xs",
    "q4_0",
    "q3_k_m",
)
TYPE: Final = click.Choice(TYPES, case_sensitive=False)


def pair(value: str) -> tuple[str, str]:
    """``REGEX=TYPE`` in two."""
    pattern, found, kind = value.rpartition("=")
    if not found or not pattern:
        raise click.BadParameter(f"{value!r} is not REGEX=TYPE")
    return pattern, kind


tensor_type_option = click.option(
    "--tensor-type",
    "overrides",
    metavar="REGEX=TYPE",
    multiple=True,
    callback=lambda _ctx, _param, values: [pair(value) for value in values],
    help="Another type for the matrices whose name matches, e.g. attn_v=f16; repeat it, the first match counts.",
)
pooling_option = click.option(
    "--pooling", type=click.Choice(POOLINGS), help="For a checkpoint that does not say how it is pooled."
)
offline_option = click.option(
    "--offline", is_flag=True, help="Use only what the Hugging Face cache holds; also HF_HUB_OFFLINE=1."
)
quantizing_threads_option = click.option(
    "--threads", type=AT_LEAST_1, metavar="N", help="Threads that quantize, if not all physical cores."
)
progress_option = click.option(
    "--progress/--no-progress",
    default=True,
    help="Show progress on stderr, or not: a bar on a terminal, a line now and then elsewhere.",
)
