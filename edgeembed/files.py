"""Files and folders that edgeembed writes: checked before the work, and written completely or not at all."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import secrets
import shutil
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

from edgeembed.errors import UserError, WriteFailed

DISK_FULL_ERRNOS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
CHUNK_BYTES = 2**20


def check_output_file(path: Path, *, option: str = "--out") -> None:
    """Raises UserError where a file cannot be written to `path`; folders above it may be missing.

    It tries to, and removes what it made. `option` is the command-line option that the message suggests to change.
    """
    with _as_user_error(path, option):
        if path.is_dir():
            raise UserError(f"{path}: is a folder, expected a file name: choose another {option}")
        if path.exists() and not path.is_file():
            raise UserError(f"{path}: is not a regular file: choose another {option}")
        created = make_folders(path.parent)
        try:
            # An existing file is not touched; a new name is tried itself, as it may be too long for the file system.
            probe = path.parent / temporary_name() if os.path.lexists(path) else path
            probe.open("xb").close()
            probe.unlink()
        finally:
            remove_empty_folders(created)


def check_output_folder(path: Path, *, option: str = "--out", replaced: bool = False) -> None:
    """Raises UserError where files cannot be written into the folder `path`, which need not exist yet.

    It tries to, and removes what it made. `replaced`: whether the folder will be written with `whole_folder`.
    """
    with _as_user_error(path, option):
        if path.exists() and not path.is_dir():
            raise UserError(f"{path}: is a file, expected a folder: choose another {option}")
        # A mount point cannot be renamed, and renaming the current folder would move the user's shell along with it.
        if replaced and path.exists() and (os.path.ismount(path) or path.samefile(os.curdir)):
            what = "a mount point" if os.path.ismount(path) else "the current folder"
            raise UserError(f"{path}: is {what}, which another folder cannot replace: name one in it with {option}")
        created = make_folders(path)
        try:
            # `whole_folder` writes beside the folder, so that its parent must be writable too.
            for folder in (path, Path(os.path.realpath(path)).parent) if replaced else (path,):
                probe = folder / temporary_name()
                probe.open("xb").close()
                probe.unlink()
        finally:
            remove_empty_folders(created)


def make_folders(path: Path) -> list[Path]:
    """Makes a folder and the missing ones above it; returns those that it made, the uppermost first."""
    missing: list[Path] = []
    folder = path
    while not folder.exists() and folder != folder.parent:  # on Windows, a missing drive is its own parent
        missing.insert(0, folder)
        folder = folder.parent
    created: list[Path] = []
    try:
        for folder in missing:
            # Another process may have made it meanwhile.
            folder.mkdir(exist_ok=True)
            created.append(folder)
        if not path.is_dir():
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(path))
    except OSError:
        remove_empty_folders(created)
        raise
    return created


def remove_empty_folders(created: list[Path]) -> None:
    """Removes the folders that `make_folders` made, if they are still empty."""
    for folder in reversed(created):
        with contextlib.suppress(OSError):
            folder.rmdir()


def temporary_name(suffix: str = ".tmp") -> str:
    """A new hidden name. It is short, because adding to the final name could exceed the limit of the file system."""
    return f".{os.getpid()}-{secrets.token_hex(4)}{suffix}"


@contextlib.contextmanager
def whole_file(path: Path, *, needed: int | None = None) -> Iterator[BinaryIO]:
    """Yields a hidden file to write to, which takes the place of `path` on leaving the block.

    After an error `path` stays as it was. Raises WriteFailed, which names `path`, where the disk is full; `needed` is
    the size in bytes, where it is known.
    """
    # In the same folder, because a rename is atomic only within one file system.
    temporary = path.parent / temporary_name()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("xb") as file:
            yield file
            file.flush()
            # Before the rename: after a power failure the name must not refer to a file without its content.
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException as error:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise write_failure(error, path, needed=needed) from error  # the temporary file no longer takes space
        raise


def write_failure(error: OSError, path: Path, *, needed: int | None = None) -> OSError:
    """The error to raise for `error`, which writing `path` raised: WriteFailed for a full disk or an unnamed file."""
    if isinstance(error, WriteFailed) or (error.errno not in DISK_FULL_ERRNOS and error.filename is not None):
        return error
    # Some libraries raise an OSError without an errno and without a file name.
    reason = os.strerror(error.errno) if error.errno else str(error)
    sizes = [f"{size_text(needed)} needed"] if needed is not None else []
    if error.errno == errno.ENOSPC and (free := free_bytes(path)) is not None:
        sizes.append(f"{size_text(free)} free")
    remedy = "free some space, or write to another disk, and run the command again"
    figures = f" ({', '.join(sizes)})" if sizes else ""
    return WriteFailed(f"{path}: cannot be written: {reason}{figures}: {remedy}")


@contextlib.contextmanager
def whole_folder(path: Path, *, needed: int | None = None) -> Iterator[Path]:
    """Yields a hidden folder beside `path`, which takes the place of `path` on leaving the block.

    After an error, or where the block itself removed the hidden folder, `path` stays as it was. A process that is
    killed leaves the hidden folder behind. Where `path` is a link, the folder that it points to is replaced.

    Raises WriteFailed, which names `path`, where the disk is full; `needed` is the size in bytes, where it is known.
    """
    target = Path(os.path.realpath(path))
    hidden = target.with_name(temporary_name(".partial"))
    try:
        hidden.mkdir(parents=True)
        yield hidden
        if hidden.exists():
            sync_folder(hidden)
            replace_folder(target, hidden)
            sync_folder(target.parent)
    except BaseException as error:
        shutil.rmtree(hidden, ignore_errors=True)  # before the free space is measured for the message
        if isinstance(error, WriteFailed):
            raise WriteFailed(str(error).replace(str(hidden), str(path))) from error
        if isinstance(error, OSError):
            raise write_failure(error, path, needed=needed) from error
        raise


def replace_folder(path: Path, replacement: Path) -> None:
    """Renames `replacement` to `path` and deletes the folder that was there, which is put back if renaming fails.

    Where it cannot be put back, because another process has made a folder at `path` meanwhile, it stays beside `path`
    under a hidden name: nothing is deleted before the new folder is in its place.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    # A folder that is not empty cannot be replaced by a rename, so the earlier one is moved away first.
    earlier = replacement.with_suffix(".old")
    try:
        if path.exists():
            path.rename(earlier)
        replacement.rename(path)
    except BaseException:  # Ctrl-C between the two renames, too
        if earlier.exists() and not path.exists():
            earlier.rename(path)
        raise
    shutil.rmtree(earlier, ignore_errors=True)


def remove_folder(path: Path) -> None:
    """Deletes a folder. It is renamed first, so that a half deleted one is never taken for a whole one."""
    hidden = path.with_name(temporary_name(".old"))
    path.rename(hidden)
    shutil.rmtree(hidden)


def sha256_of(path: str | Path) -> str:
    """The SHA-256 of a file's bytes in hexadecimal; raises OSError where it cannot be read."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:  # hashlib.file_digest came with Python 3.11
        while chunk := file.read(CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


def free_bytes(path: Path) -> int | None:
    """Free space in bytes on the disk of `path`; None where the system does not say."""
    # The path itself may not exist yet: the nearest folder above it that does lies on the same disk.
    for folder in (path, *path.absolute().parents):
        with contextlib.suppress(OSError):
            return shutil.disk_usage(folder).free
    return None


def size_text(count: int) -> str:
    """A number of bytes with a unit, for example 12.3 kB."""
    for unit, size in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if count >= size:
            return f"{count / size:.3g} {unit}"
    return f"{count} bytes"


@contextlib.contextmanager
def _as_user_error(path: Path, option: str) -> Iterator[None]:
    """Turns an OSError into a UserError that names the path and the reason; a full disk stays a WriteFailed."""
    try:
        yield
    except OSError as error:
        if error.errno in DISK_FULL_ERRNOS:
            raise write_failure(error, path) from None
        # The system reports "Not a directory" without saying which part of the path is a file.
        blocking = next((above for above in path.parents if os.path.lexists(above) and not above.is_dir()), None)
        reason = f"{blocking} is not a folder" if blocking else error.strerror or str(error)
        raise UserError(f"{path}: cannot be written ({reason}): choose another {option}") from None


def write_atomically(path: Path, content: str | bytes) -> None:
    """Writes a whole file or nothing. Raises WriteFailed where the disk is full."""
    encoded = content.encode() if isinstance(content, str) else content
    with whole_file(path, needed=len(encoded)) as file:
        file.write(encoded)


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Writes an indented JSON object, whole or not at all."""
    write_atomically(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def read_json(path: Path) -> dict[str, Any]:
    """Reads a JSON object. Raises UserError where the file is missing or holds anything else."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: not valid JSON ({error})") from None
    if not isinstance(value, dict):
        raise UserError(f"{path}: expected a JSON object")
    return value


def cache_folder() -> Path:
    """The user's cache folder, for files that can be computed again."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "edgeembed"


def sync_folder(path: Path) -> None:
    """Makes renames inside a folder durable. On Windows, where a folder cannot be opened, it does nothing."""
    if sys.platform == "win32":
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
