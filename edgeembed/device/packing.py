"""Packs a bundle into one zip file, and unpacks it.

Any zip tool opens the file. The same bundle gives the same bytes on every machine: entries are stored uncompressed (as
weights hardly shrink, and compressors differ) with a fixed order and date. `unpack` reads only files in exactly this
form, so that every byte of them is checked.
"""

from __future__ import annotations

import hashlib
import os
import struct
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from edgeembed.device.bundle import PACKED_SUFFIX, read_bundle, regular_file, stored_files
from edgeembed.device.bundle_schema import CARD, MANIFEST, BundleManifest
from edgeembed.device.checksummed_json import MAX_BYTES
from edgeembed.errors import CheckFailed, UserError
from edgeembed.files import whole_file, whole_folder

LOCAL = struct.Struct("<4s5H3L2H")
CENTRAL = struct.Struct("<4s6H3L5H2L")
END = struct.Struct("<4s4H2LH")
LOCAL_MARK, CENTRAL_MARK, END_MARK = b"PK\x03\x04", b"PK\x01\x02", b"PK\x05\x06"
VERSION, MADE_ON_UNIX, UTF8_NAMES, STORED = 20, 3 << 8, 0x800, 0
MIDNIGHT, FIRST_DAY = 0, 1 << 5 | 1  # 1 January 1980, the first date that the format can express
# A regular file, readable by everyone, whatever the permissions on this machine.
MODE = 0o100644 << 16
# The zip format without its 64-bit extension.
MAX_PACKED_BYTES = 2**32 - 1
CHUNK_BYTES = 2**20


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One file in the zip, and its headers."""

    name: str
    size: int
    crc: int

    def header_fields(self) -> tuple[int, ...]:
        """The fields that the local and the central header share."""
        name_bytes = len(self.name.encode())
        return (VERSION, UTF8_NAMES, STORED, MIDNIGHT, FIRST_DAY, self.crc, self.size, self.size, name_bytes)

    def local_header(self) -> bytes:
        """The header before the file's content."""
        return LOCAL.pack(LOCAL_MARK, *self.header_fields(), 0) + self.name.encode()

    def central_header(self, offset: int) -> bytes:
        """The header in the central directory; `offset` is the position of the local header."""
        rest = (0, 0, 0, 0, MODE, offset)  # no extra field, no comment, first disk, no internal attributes
        return CENTRAL.pack(CENTRAL_MARK, MADE_ON_UNIX | VERSION, *self.header_fields(), *rest) + self.name.encode()


def pack(folder: Path, out: Path) -> int:
    """Verifies a bundle and writes it as one file, whole or not at all. Returns the size in bytes."""
    manifest = read_bundle(folder)
    if not out.name.endswith(".zip"):
        raise UserError(f"{out}: expected a name that ends in {PACKED_SUFFIX}")
    if out.is_dir():
        raise UserError(f"{out}: is a folder: choose another --out")
    # bundle.json comes first, so that `unpack` knows all sizes before it writes anything else.
    checksums = {MANIFEST: None, **{file.path: file.sha256 for file in stored_files(manifest)}}
    if os.path.lexists(folder / CARD):
        checksums.setdefault(CARD, None)  # an older bundle.json does not list the card
    with whole_file(out) as sink:
        entries = [append_file(sink, folder, name, sha256) for name, sha256 in checksums.items()]
        sink.write(central_directory(entries))
        size = sink.tell()
        if size > MAX_PACKED_BYTES:
            raise UserError(f"{folder}: {size} bytes, one packed file holds {MAX_PACKED_BYTES}: copy the folder")
    return size


def append_file(sink: BinaryIO, folder: Path, name: str, sha256: str | None) -> Entry:
    """Appends a file of the bundle and verifies its checksum on the way."""
    path = regular_file(folder, name)
    with path.open("rb") as source:
        # The size of the open file, which may have been replaced since.
        size = os.fstat(source.fileno()).st_size
        if sink.tell() + size > MAX_PACKED_BYTES:
            raise UserError(f"{path}: {size} bytes, one packed bundle holds {MAX_PACKED_BYTES}: copy the folder")
        start = sink.tell()
        sink.write(Entry(name=name, size=size, crc=0).local_header())  # overwritten once the CRC is known
        entry = Entry(name=name, size=size, crc=copy_verified(source, sink, size, sha256, path))
        sink.seek(start)
        sink.write(entry.local_header())
        sink.seek(0, os.SEEK_END)
    return entry


def central_directory(entries: list[Entry]) -> bytes:
    """The end of a zip file: all headers again, with the offsets of their entries."""
    offset, headers = 0, b""
    for entry in entries:
        headers += entry.central_header(offset)
        offset += len(entry.local_header()) + entry.size
    return headers + END.pack(END_MARK, 0, 0, len(entries), len(entries), len(headers), offset, 0)


def unpack(file: Path, out: Path) -> BundleManifest:
    """Unpacks a file that `pack` wrote into a folder, whole or not at all; a bundle that is there is replaced.

    Raises CheckFailed for a file that differs in any byte from what `pack` writes for that bundle.
    """
    if not file.is_file():
        raise UserError(f"{file}: {'not a file' if os.path.lexists(file) else 'no such file'}: name a packed bundle")
    if out.exists() and not (out / MANIFEST).is_file() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{out}: exists and is not a bundle: choose another --out")
    with whole_folder(out, needed=file.stat().st_size) as folder, file.open("rb") as source:
        return unpack_into(folder, source, file)


def unpack_into(folder: Path, source: BinaryIO, file: Path) -> BundleManifest:
    """Writes bundle.json and the files that it lists, each of the size that it says. Raises CheckFailed otherwise."""
    # bundle.json has a checksum inside, and holds those of the other files.
    first = next_entry(source, MANIFEST, file)
    if first.size > MAX_BYTES:
        raise CheckFailed(f"{file}: its {MANIFEST} has {first.size} bytes, at most {MAX_BYTES} are read: do not use it")
    extract(source, first, None, folder, file)
    try:
        manifest = read_bundle(folder)
    except (UserError, CheckFailed) as error:
        raise type(error)(str(error).replace(str(folder), str(file))) from None
    entries, size = [first], os.fstat(source.fileno()).st_size
    for stored in stored_files(manifest):
        # Before extracting, so that a file that was cut off is reported as such.
        if size - source.tell() < stored.bytes:
            raise CheckFailed(f"{file}: ends within {stored.path!r}: it was cut off, copy it again")
        entry = next_entry(source, stored.path, file)
        if entry.size != stored.bytes:
            size_text = f"{stored.path!r} has {entry.size} bytes"
            raise CheckFailed(f"{file}: {size_text}, its {MANIFEST} says {stored.bytes}: do not use it")
        extract(source, entry, stored.sha256, folder, file)
        entries.append(entry)
    if manifest.card is None and peek_name(source) == CARD:
        entries.append(next_entry(source, CARD, file))
        extract(source, entries[-1], None, folder, file)
    if (more := peek_name(source)) is not None:
        raise CheckFailed(f"{file}: holds {more!r}, which its {MANIFEST} does not list: do not use it")
    # The zip directory follows from the entries, so that it is compared, not parsed.
    expected = central_directory(entries)
    if source.read(len(expected) + 1) != expected:
        raise CheckFailed(f"{file}: its zip directory does not fit its files: it was changed or cut off, copy it again")
    return manifest


def next_entry(source: BinaryIO, name: str, file: Path) -> Entry:
    """Reads the header of the entry that must come next. Raises CheckFailed for another one."""
    start = source.tell()
    next_name = peek_name(source)
    if next_name != name:
        what = "no entry" if next_name is None else repr(next_name)
        raise CheckFailed(f"{file}: holds {what} where {name!r} is expected: not a whole file of `artifacts pack`")
    fields = LOCAL.unpack(source.read(LOCAL.size))
    entry = Entry(name=name, size=fields[8], crc=fields[6])
    expected = entry.local_header()
    source.seek(start)
    if source.read(len(expected)) != expected:
        why = "is compressed" if fields[3] != STORED else "has a changed header"
        raise CheckFailed(
            f"{file}: {name!r} {why}: `edgeembed artifacts pack` stores files uncompressed, pack it again"
        )
    return entry


def peek_name(source: BinaryIO) -> str | None:
    """The name of the entry at the current position, which stays the same; None where no entry starts there."""
    start = source.tell()
    header = source.read(LOCAL.size)
    name = None
    if len(header) == LOCAL.size and header.startswith(LOCAL_MARK):
        name = source.read(LOCAL.unpack(header)[9]).decode("utf-8", "backslashreplace")
    source.seek(start)
    return name


def extract(source: BinaryIO, entry: Entry, sha256: str | None, folder: Path, file: Path) -> None:
    """Writes the content of an entry into the folder. Raises CheckFailed where it is not what was packed."""
    target = folder / entry.name
    target.parent.mkdir(parents=True, exist_ok=True)
    with target.open("xb") as sink:
        crc = copy_verified(source, sink, entry.size, sha256, file / entry.name)
        sink.flush()
        os.fsync(sink.fileno())
    if crc != entry.crc:
        raise CheckFailed(f"{file}: {entry.name!r} was changed: copy the packed bundle again")


def copy_verified(source: BinaryIO, sink: BinaryIO, size: int, sha256: str | None, path: Path) -> int:
    """Copies `size` bytes and returns their CRC-32. Raises CheckFailed for fewer bytes and for another SHA-256."""
    crc, digest, left = 0, hashlib.sha256(), size
    while left:
        chunk = source.read(min(CHUNK_BYTES, left))
        if not chunk:
            raise CheckFailed(f"{path}: ends {left} bytes early: it was cut off, copy it again")
        sink.write(chunk)
        digest.update(chunk)
        crc = zlib.crc32(chunk, crc)
        left -= len(chunk)
    if sha256 is not None and digest.hexdigest() != sha256:
        actual = digest.hexdigest()[:12]
        raise CheckFailed(f"{path}: sha256 is {actual}..., {MANIFEST} says {sha256[:12]}...: do not use it")
    return crc
