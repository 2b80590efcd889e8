"""Hugging Face checkpoints into GGUF files: ``convert(folder, output, ftype="q8_0")``.

The converter shares only the GGUF file, its key names and the exceptions with the runtime, and needs no torch.
"""

from __future__ import annotations

from .blocks.types import RECIPES
from .convert import convert
from .lora.adapter import convert_adapter
from .writing import ConversionReport, TensorReport

FTYPES: tuple[str, ...] = tuple(RECIPES)

__all__ = ["FTYPES", "ConversionReport", "TensorReport", "convert", "convert_adapter"]
