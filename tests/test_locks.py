"""A folder in use is refused to a second process, which is told by whom, and free again however the first one ends."""

from __future__ import annotations

import errno
import io
import json
import logging
import os
import platform
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from edgeembed import locks
from edgeembed.errors import UserError
from edgeembed.locks import check_unlocked, locked

HOLDER = (
    "import sys, time; from pathlib import Path; from edgeembed.locks import locked\n"
    "with locked(Path(sys.argv[1]), instead='choose another --out'):\n"
    "    print('held', flush=True); {then}\n"
)
ANOTHER = "choose another --out"


@pytest.fixture
def holder(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process that holds `tmp_path / "run"`."""
    code = HOLDER.format(then="time.sleep(60)")
    process = subprocess.Popen([sys.executable, "-c", code, str(tmp_path / "run")], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.wait()
    process.stdout.close()


def test_the_second_process_is_told_who_holds_the_folder(tmp_path: Path, holder: subprocess.Popen[str]) -> None:
    who = rf"process {holder.pid} on {re.escape(platform.node())} since 2\d\d\d-"
    told = rf"run: in use by {who}.*: wait until it has ended, or {ANOTHER}"
    with pytest.raises(UserError, match=told), locked(tmp_path / "run", instead=ANOTHER):
        pass
    with pytest.raises(UserError, match=told):
        check_unlocked(tmp_path / "run", instead=ANOTHER)
    assert (tmp_path / "run" / locks.LOCK_NAME).is_file()  # the one who was refused takes nothing away


@pytest.mark.parametrize("how", ["SIGKILL", "SIGTERM", "SIGINT"])
def test_a_folder_is_free_however_its_holder_ends(tmp_path: Path, holder: subprocess.Popen[str], how: str) -> None:
    holder.send_signal(signal.Signals[how])
    holder.wait()
    check_unlocked(tmp_path / "run", instead=ANOTHER)
    with locked(tmp_path / "run", instead=ANOTHER):
        facts = json.loads((tmp_path / "run" / locks.LOCK_NAME).read_text())
        assert (facts["pid"], facts["host"]) == (os.getpid(), platform.node())
    assert not (tmp_path / "run" / locks.LOCK_NAME).exists()


def test_nothing_is_left_of_a_lock_and_a_folder_made_for_it(tmp_path: Path) -> None:
    with locked(tmp_path / "new" / "run", instead=ANOTHER):
        assert [path.name for path in (tmp_path / "new" / "run").iterdir()] == [locks.LOCK_NAME]
    assert list(tmp_path.iterdir()) == []
    with locked(tmp_path / "new" / "run", instead=ANOTHER):
        (tmp_path / "new" / "run" / "config.yaml").touch()
    assert [path.name for path in (tmp_path / "new" / "run").iterdir()] == ["config.yaml"]
    check_unlocked(tmp_path / "nowhere", instead=ANOTHER)
    assert not (tmp_path / "nowhere").exists()


def test_a_second_thread_of_the_same_process_is_refused(tmp_path: Path) -> None:
    told: list[str] = []

    def second() -> None:
        try:
            with locked(tmp_path, instead=ANOTHER):
                told.append("not refused")
        except UserError as error:
            told.append(str(error))

    with locked(tmp_path, instead=ANOTHER):
        thread = threading.Thread(target=second)
        thread.start()
        thread.join()
    assert f"in use by process {os.getpid()}" in told[0]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="without fork no child inherits a lock")
def test_a_forked_worker_does_not_keep_the_lock_of_a_killed_process(tmp_path: Path) -> None:
    # Both write a line, the child 0 once it is at work; in one call each, so that neither lies within the other.
    then = "import os; os.write(1, b'%d\\n' % os.fork()); time.sleep(60)"
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER.format(then=then), str(tmp_path)],
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    process.stdout.readline()
    child = max(int(process.stdout.readline()) for _ in range(2))
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    try:
        os.kill(child, 0)  # it still lives
        check_unlocked(tmp_path, instead=ANOTHER)
    finally:
        os.kill(child, signal.SIGKILL)
        process.stdout.close()


def test_where_nothing_can_be_locked_work_goes_on_with_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def unsupported(_file: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(locks, "_lock", unsupported)
    with caplog.at_level(logging.WARNING), locked(tmp_path, instead=ANOTHER):
        pass
    assert "cannot be locked here (No locks available): let no second process write to it" in caplog.text


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"pid": 5}', b"\xff\xfe"])
def test_a_holder_that_left_no_readable_name_is_another_process(tmp_path: Path, content: bytes) -> None:
    with locked(tmp_path, instead=ANOTHER):
        (tmp_path / locks.LOCK_NAME).write_bytes(content)
        with pytest.raises(UserError, match="in use by another process"):
            check_unlocked(tmp_path, instead=ANOTHER)


class FullDisk(io.FileIO):
    """A file on a disk that has no room for its content."""

    def write(self, _content: object) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_full_disk_is_named_and_nothing_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Path, "open", lambda path, *_, **__: FullDisk(path, "a+"))
    told = r"run/\.lock: cannot be written: No space left on device .*free some space"
    with pytest.raises(OSError, match=told), locked(tmp_path / "new" / "run", instead=ANOTHER):
        pass
    assert not (tmp_path / "new").exists()
