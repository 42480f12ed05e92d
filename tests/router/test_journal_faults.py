"""The usage journal when its disk is full or nothing can be opened: no record is lost, and it says so."""

from __future__ import annotations

import asyncio
import contextlib
import os
import resource
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from router import journal as module
from router.journal import PENDING_LIMIT_BYTES, Journal
from tests.scarcity import no_descriptor_left
from wire.settings import SettingsError

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small disk needs root")
LINES = [b'{"event_id":"%06d"}\n' % number for number in range(40_000)]


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """64 KiB and eight files, the directory among them."""
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=64k,nr_inodes=8", "none", str(tmp_path)], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip(f"cannot mount here: {mounted.stderr.decode()}")
    yield tmp_path
    subprocess.run(["umount", "-l", str(tmp_path)], check=True)


@contextlib.contextmanager
def files_no_larger_than(size: int) -> Iterator[None]:
    """What a full disk is to a process, without privileges: a write beyond it fails, the part before it is done."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def written(directory: Path) -> bytes:
    return b"".join(path.read_bytes() for path in sorted(directory.glob("usage-*.jsonl")))


@needs_root
def test_records_of_a_full_disk_wait_in_memory_and_are_written_in_order_when_there_is_room(small_disk: Path) -> None:
    filler = small_disk / "somebody-elses.log"
    filler.write_bytes(b"x" * 40_000)
    journal = Journal(small_disk)
    for line in LINES[:2_000]:
        journal.append(line)
    assert journal.blocked
    assert 2_000 == journal.written + journal.pending
    filler.unlink()
    journal.append(LINES[2_000])
    assert (False, 0, 0) == (journal.blocked, journal.pending, journal.lost)
    journal.close()
    assert b"".join(LINES[:2_001]) == written(small_disk)


@needs_root
def test_a_router_starts_on_a_disk_that_is_full_already(small_disk: Path) -> None:
    for number in range(7):
        (small_disk / f"{number}").touch()
    journal = Journal(small_disk)
    journal.append(LINES[0])
    assert (True, 1) == (journal.blocked, journal.pending)
    (small_disk / "0").unlink()
    journal.append(LINES[1])
    journal.close()
    assert b"".join(LINES[:2]) == written(small_disk)


def test_a_line_that_was_cut_by_the_end_of_the_room_is_completed_before_the_next(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    with files_no_larger_than(3 * len(LINES[0]) + 5):
        for line in LINES[:10]:
            journal.append(line)
        assert (True, 3, 7) == (journal.blocked, journal.written, journal.pending)
    journal.append(LINES[10])
    journal.close()
    assert b"".join(LINES[:11]) == written(tmp_path)


def test_beyond_the_limit_of_memory_new_records_are_dropped_and_counted(tmp_path: Path) -> None:
    journal, line = Journal(tmp_path), b"x" * (PENDING_LIMIT_BYTES // 8 - 1) + b"\n"
    with files_no_larger_than(0):
        for _ in range(10):
            journal.append(line)
        assert (8, 2) == (journal.pending, journal.lost)
    journal.close()
    assert 8 == journal.written


def test_a_router_that_must_leave_while_the_disk_is_full_says_its_records_to_the_log(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    journal = Journal(tmp_path)
    with files_no_larger_than(0):
        journal.append(LINES[0])
        journal.append(LINES[1])
        journal.close()
    said = [record.getMessage() for record in caplog.records if "unwritten" in record.getMessage()]
    assert [f"unwritten usage record: {line.decode().rstrip()}" for line in LINES[:2]] == said


def test_a_segment_that_cannot_be_followed_by_another_serves_on(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    journal.append(LINES[0])
    first = journal.path
    with no_descriptor_left():
        journal._turn()
        assert journal.blocked
    assert first == journal.path
    journal.append(LINES[1])
    assert not journal.blocked
    journal._turn()
    journal.append(LINES[2])
    journal.close()
    assert first != journal.path
    assert b"".join(LINES[:3]) == written(tmp_path)


async def test_the_task_that_syncs_outlives_a_rotation_that_fails(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    journal.append(b"x" * (module.SEGMENT_BYTES + 1))
    async with asyncio.TaskGroup() as group:
        task = group.create_task(journal.run())
        with no_descriptor_left():
            async with asyncio.timeout(10.0):
                while not journal.blocked:
                    await asyncio.sleep(0.01)
        assert not task.done()
        task.cancel()
    journal.close()


def test_a_directory_that_can_never_be_written_is_an_error_of_the_start(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(SettingsError, match="choose another place with --data-dir"):
        Journal(tmp_path / "file" / "journal")
