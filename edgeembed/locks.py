"""A lock on a folder that only one process at a time may write to: a training run, a store of teacher embeddings.

It is a lock of the operating system on a file in the folder, which ends with the process, however that ends.
"""

from __future__ import annotations

import contextlib
import datetime
import json
import logging
import os
import platform
import sys
from collections.abc import Iterator
from io import FileIO
from pathlib import Path

from edgeembed.errors import UserError
from edgeembed.files import make_folders, remove_empty_folders, write_failure

if sys.platform == "win32":
    import msvcrt
else:
    import fcntl

log = logging.getLogger(__name__)

LOCK_NAME = ".lock"
LOCKED_BYTE = 2**30  # on Windows nobody can read a locked byte, so it lies behind the content
OPEN_LOCK_FILES: set[FileIO] = set()
"""Those of this process, so that a forked child can close its copies."""


@contextlib.contextmanager
def locked(folder: Path, *, instead: str) -> Iterator[None]:
    """Holds the lock of a folder within the block, against other processes and other threads.

    Raises UserError where it is held already: the message names the process that holds it, and `instead` says what the
    user can do other than wait. Raises WriteFailed where the disk is full. A folder that had to be made for the lock is
    removed afterwards if it is still empty.
    """
    created = make_folders(folder)
    try:
        file = _acquire(folder, instead)
        try:
            yield
        finally:
            _release(file, folder / LOCK_NAME)
    finally:
        remove_empty_folders(created)


def check_unlocked(folder: Path, *, instead: str) -> None:
    """Raises UserError where another process holds the lock of a folder now: a quick check before long work."""
    # Without a lock file nobody holds the lock, and taking it would make a folder that does not exist yet.
    if os.path.lexists(folder / LOCK_NAME):  # `lexists` is False, not an error, for a name that no file can have
        with locked(folder, instead=instead):
            pass


def _acquire(folder: Path, instead: str) -> FileIO:
    path = folder / LOCK_NAME
    while True:
        file = path.open("a+b", buffering=0)  # on a full disk, a buffer would fail again when it is closed
        try:
            _lock(file)
        except (BlockingIOError, PermissionError):
            holder = _holder(file)
            file.close()
            raise UserError(f"{folder}: in use by {holder}: wait until it has ended, or {instead}") from None
        except OSError as error:
            log.warning("%s: cannot be locked here (%s): let no second process write to it", folder, error.strerror)
        # From here on this process holds the lock, or the file system has no locks at all.
        OPEN_LOCK_FILES.add(file)
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(file.fileno()), path.stat()):
                break
        _close(file)  # the process that held the lock removed the file between open and lock: try again
    # For the error message of the next process that wants the lock.
    facts = {
        "pid": os.getpid(),
        "host": platform.node(),
        "since": datetime.datetime.now().isoformat(sep=" ", timespec="seconds"),
        "command": " ".join(["edgeembed", *[word for word in sys.argv[1:] if not word.startswith("-")][:1]]),
    }
    try:
        file.truncate(0)
        file.write(json.dumps(facts).encode())
    except OSError as error:
        _release(file, path)
        raise write_failure(error, path) from error
    return file


def _release(file: FileIO, path: Path) -> None:
    if sys.platform == "win32":  # where an open file cannot be removed
        _close(file)
    with contextlib.suppress(OSError):
        path.unlink()
    _close(file)


def _close(file: FileIO) -> None:
    OPEN_LOCK_FILES.discard(file)
    file.close()


def _holder(file: FileIO) -> str:
    """The process that holds a lock, from what it wrote into the lock file."""
    try:
        file.seek(0)
        facts = json.loads(file.read())
        return f"process {facts['pid']} on {facts['host']} since {facts['since']} ({facts['command']})"
    except (OSError, ValueError, KeyError, TypeError):
        return "another process"


def _lock(file: FileIO) -> None:
    """Raises BlockingIOError or PermissionError where the file is locked, OSError where it cannot be."""
    if sys.platform == "win32":
        file.seek(LOCKED_BYTE)
        msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
    else:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


def _close_in_child() -> None:
    """Closes the lock files in a forked child, such as a data worker, which would hold the locks longer."""
    for file in OPEN_LOCK_FILES:
        file.close()
    OPEN_LOCK_FILES.clear()


if sys.platform != "win32":
    os.register_at_fork(after_in_child=_close_in_child)
