"""A run that is killed again and again, at moments of chance, leaves the rows of an undisturbed one."""

from __future__ import annotations

import random
import subprocess
import sys
from pathlib import Path

from edge_embed.search.database import Database
from edge_embed.search.indexing import Indexer
from edge_embed.search.scan import root_of
from edge_embed.testing import fake_embedder
from tests.search.making import FAKE_RECORD, rows_of

KILLS = 4


def test_killed_at_random_and_continued_gives_the_same_rows(tmp_path: Path, folder: Path) -> None:
    for number in range(120):
        (folder / f"{number}.txt").write_text(f"A text that has the number {number}, and says little else.")
    long = "\n\n".join(f"A paragraph that is number {number} of many." for number in range(400))
    (folder / "77-long.txt").write_text(long)
    command = [sys.executable, "-m", "tests.search.making", str(tmp_path / "killed"), str(folder)]
    chance = random.Random(7)
    counts = []
    for _ in range(KILLS):
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[2]) as process:
            assert process.stdout is not None
            assert "begins" == process.stdout.readline().strip()
            try:
                process.wait(chance.uniform(0.4, 1.6))
            except subprocess.TimeoutExpired:
                process.kill()
        with Database(tmp_path / "killed") as database:
            counts.append(database.count())
    assert counts == sorted(counts)  # what was done is never lost
    done = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parents[2])
    assert done.returncode == 0, done.stderr
    with Database(tmp_path / "killed") as killed, Database(tmp_path / "undisturbed", FAKE_RECORD) as undisturbed:
        Indexer(undisturbed, fake_embedder()).update([root_of(folder)])
        assert rows_of(undisturbed) == rows_of(killed)
        assert {path: record.n_chunks for path, record in undisturbed.files().items()} == {
            path: record.n_chunks for path, record in killed.files().items()
        }
