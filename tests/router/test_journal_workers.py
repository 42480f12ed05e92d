"""Several workers keep their journals in one directory."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from router.journal import Journal


def test_journals_that_open_at_the_same_moment_never_share_a_file(tmp_path: Path) -> None:
    together = threading.Barrier(8)

    def open_one(_: int) -> Journal:
        together.wait()
        return Journal(tmp_path)

    with ThreadPoolExecutor(8) as pool:
        journals = list(pool.map(open_one, range(8)))
    for number, journal in enumerate(journals):
        journal.append(b"%d\n" % number)
        journal.close()
    assert 8 == len({journal.path for journal in journals})
    assert [b"%d\n" % n for n in range(8)] == sorted(path.read_bytes() for path in tmp_path.iterdir())
