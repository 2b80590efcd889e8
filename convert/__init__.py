"""Hugging Face checkpoints into GGUF files: ``convert(folder, output, ftype="q8_0")``.

The converter shares only the GGUF file, its key names and the exceptions with the runtime, and needs no torch.
"""

from __future__ import annotations

from .adapter import convert_adapter
from .convert import ConversionReport, TensorReport, convert
from .quantize import RECIPES

FTYPES: tuple[str, ...] = tuple(RECIPES)

__all__ = ["FTYPES", "ConversionReport", "TensorReport", "convert", "convert_adapter"]
