"""Folders that one process at a time writes to: a run that trains, a store that is filled.

The operating system holds the lock and frees it when the process ends, however it ends.
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

NAME = ".lock"
LOCKED_BYTE = 2**30  # Windows lets nobody read a locked byte: it lies behind what the file says
HELD: set[FileIO] = set()


@contextlib.contextmanager
def locked(folder: Path, *, instead: str) -> Iterator[None]:
    """Within the block no other process, and no other thread, gets past `locked` with this folder.

    Raises UserError that names the process which holds it; `instead` is what the user can do other than wait. A folder
    that is made for the lock goes with it unless something was put in. Raises WriteFailed where the disk is full.
    """
    created = make_folders(folder)
    try:
        file = _acquire(folder, instead)
        try:
            yield
        finally:
            _release(file, folder / NAME)
    finally:
        remove_empty_folders(created)


def check_unlocked(folder: Path, *, instead: str) -> None:
    """Raises UserError where another process holds a folder now: a quick answer before long work."""
    if os.path.lexists(folder / NAME):  # for a name that no file can have, too
        with locked(folder, instead=instead):
            pass


def _acquire(folder: Path, instead: str) -> FileIO:
    path = folder / NAME
    while True:
        file = path.open("a+b", buffering=0)  # a buffer that the disk has no room for would fail again on closing
        try:
            _lock(file)
        except (BlockingIOError, PermissionError):
            holder = _holder(file)
            file.close()
            raise UserError(f"{folder}: in use by {holder}: wait until it has ended, or {instead}") from None
        except OSError as error:
            log.warning("%s: cannot be locked here (%s): let no second process write to it", folder, error.strerror)
        HELD.add(file)
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(file.fileno()), path.stat()):
                break
        _close(file)  # the process that held it removed the file between our two calls
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
    HELD.discard(file)
    file.close()


def _holder(file: FileIO) -> str:
    """Who holds a lock, by what it wrote into the file."""
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


def _forget_in_child() -> None:
    """A forked child, a decoding worker, shares the lock: it must not outlive the process that took it."""
    for file in HELD:
        file.close()
    HELD.clear()


if sys.platform != "win32":
    os.register_at_fork(after_in_child=_forget_in_child)
