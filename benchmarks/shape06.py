"""The models that the benchmarks of the 0.6B shape run on, made once in a folder and found there again.

    python -m benchmarks.shape06 --work FOLDER [--type q4_k_m bf16 f16 q8_0] [--reranker-type q4_k_m bf16]

A checkpoint of Qwen3-Embedding-0.6B's published shape with random bfloat16 weights and the real tokenizer
(``convert_speed``), and GGUFs of it. Speed and parity do not depend on what weights mean; their texts' vectors lie far
apart all the same (cosines around 0), so a parity figure says something. The reranker is the same checkpoint with the
files of Qwen3-Reranker around its weights: they are linked, not copied. FOLDER grows to 3 GB with the default types.
"""

from __future__ import annotations

import argparse
import json
import lzma
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
# Modules.json and its companions say "embedding model", and that tokenizer.json ends every text with the EDS token.
_OF_THE_EMBEDDER = ("modules.json", "1_Pooling", "2_Normalize", "config_sentence_transformers.json", "tokenizer.json")


@dataclass(frozen=True)
class Shape06:
    """Where the files lie; a method that names a GGUF makes it if it is not there."""

    work: Path

    @property
    def checkpoint(self) -> Path:
        """The embedding model's folder, as the hub has it."""
        return self.work / "ckpt"

    @property
    def reranker_checkpoint(self) -> Path:
        """The reranker's."""
        return self.work / "reranker"

    def make_checkpoints(self) -> None:
        """Write what is missing. In a child: the weights would count as this process's peak memory."""
        self.work.mkdir(parents=True, exist_ok=True)
        if not self.checkpoint.exists():
            part = self.work / "ckpt.part"
            shutil.rmtree(part, ignore_errors=True)
            build = [sys.executable, "-m", "benchmarks.convert_speed", "--size", "0.6b", "--work", ".", "--build"]
            subprocess.run([*build, part.resolve()], check=True, cwd=ROOT)
            part.rename(self.checkpoint)
        if not self.reranker_checkpoint.exists():
            part = self.work / "reranker.part"
            shutil.rmtree(part, ignore_errors=True)
            part.mkdir()
            for path in self.checkpoint.iterdir():
                if path.name not in _OF_THE_EMBEDDER:
                    (part / path.name).symlink_to(path.resolve())
            (part / "tokenizer.json").write_text(_plain_tokenizer(), encoding="utf-8")
            part.rename(self.reranker_checkpoint)

    def embedder(self, ftype: str) -> Path:
        """The embedding model as a GGUF."""
        path = self.work / f"Qwen3-0.6B-{ftype.upper()}.gguf"
        return self._converted(self.checkpoint, path, ftype, "Qwen3-Embedding-0.6B")

    def reranker(self, ftype: str) -> Path:
        """The reranker as a GGUF."""
        path = self.work / f"Qwen3-Reranker-0.6B-{ftype.upper()}.gguf"
        return self._converted(self.reranker_checkpoint, path, ftype, "Qwen3-Reranker-0.6B", "--reranker")

    def _converted(self, checkpoint: Path, path: Path, ftype: str, name: str, *more: str) -> Path:
        if not path.exists():
            self.make_checkpoints()
            edge_embed = Path(sys.executable).with_name("edge-embed")
            command = [edge_embed, "convert", checkpoint, "-o", path, "--type", ftype, "--name", name, "--no-verify"]
            done = subprocess.run([*map(str, command), *more], capture_output=True, text=True, check=False)
            if done.returncode:
                sys.exit(f"{path.name} was not made: {done.stderr}")
        return path


def _plain_tokenizer() -> str:
    """Qwen3's tokenizer.json as the reranker has it: nothing is put behind a text."""
    from tests.checkpoints import DATA

    tokenizer = json.loads(lzma.decompress((DATA / "qwen3-tokenizer.json.xz").read_bytes()))
    return json.dumps(tokenizer, ensure_ascii=False)


def main() -> None:
    """Make what is missing and say where it lies."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--type", nargs="*", default=["q4_k_m", "bf16", "f16"])
    parser.add_argument("--reranker-type", nargs="*", default=["q4_k_m", "bf16"])
    options = parser.parse_args()
    shape = Shape06(options.work)
    shape.make_checkpoints()
    paths = [*map(shape.embedder, options.type), *map(shape.reranker, options.reranker_type)]
    for path in [shape.checkpoint, shape.reranker_checkpoint, *paths]:
        print(path)


if __name__ == "__main__":
    main()
