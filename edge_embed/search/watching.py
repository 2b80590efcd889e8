"""Follow changes of folders: an update after each burst of them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from edge_embed.search.indexing import Indexer
from edge_embed.search.types import Report

_STEP_MS = 500  # a burst of changes has ended when nothing came for so long


def watch(indexer: Indexer, roots: Sequence[str]) -> Iterator[Report]:
    """Reports: of the update at the start, then of those that changed something. Ends with the caller's interest.

    Args:
        indexer: of the database.
        roots: absolute paths from ``scan.root_of``.

    Raises:
        The errors of ``Indexer.update``.
    """
    from watchfiles import watch as changes

    inside = indexer.database_folder
    first, n_skipped = True, 0
    # A scan finds out what changed, events only say when to look. What changes during an update is the next burst,
    # and the watch is on before the first update begins.
    for events in changes(
        *roots, watch_filter=lambda _, path: not path.startswith(inside), step=_STEP_MS, yield_on_timeout=True,
        rust_timeout=_STEP_MS, raise_interrupt=True, ignore_permission_denied=True,
    ):  # fmt: skip
        if not events and not first:
            continue
        report = indexer.update(roots)
        if first or report.n_updated or report.n_removed or len(report.skipped) != n_skipped:
            yield report
        first, n_skipped = False, len(report.skipped)
