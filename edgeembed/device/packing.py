"""A bundle as one file that travels: a zip that any tool opens, of which one bundle gives the same bytes anywhere.

Entries are stored, as weights hardly shrink and compressors differ. Every byte of the file follows from the bundle:
`unpack` reads no zip but this one, so that there is nothing in it that goes unchecked.
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
MIDNIGHT, FIRST_DAY = 0, 1 << 5 | 1  # 1 January 1980, where the format's time begins
MODE = 0o100644 << 16
MAX_PACKED = 2**32 - 1
CHUNK = 2**20


@dataclass(frozen=True, kw_only=True)
class Entry:
    name: str
    size: int
    crc: int

    def facts(self) -> tuple[int, ...]:
        """What both headers of a file say."""
        name_bytes = len(self.name.encode())
        return (VERSION, UTF8_NAMES, STORED, MIDNIGHT, FIRST_DAY, self.crc, self.size, self.size, name_bytes)

    def local(self) -> bytes:
        return LOCAL.pack(LOCAL_MARK, *self.facts(), 0) + self.name.encode()

    def central(self, offset: int) -> bytes:
        rest = (0, 0, 0, 0, MODE, offset)  # no extra field, no comment, first disk, no internal attributes
        return CENTRAL.pack(CENTRAL_MARK, MADE_ON_UNIX | VERSION, *self.facts(), *rest) + self.name.encode()


def pack(folder: Path, out: Path) -> int:
    """Writes a bundle, whole and verified, as one file that appears whole or not at all. Returns its size in bytes."""
    manifest = read_bundle(folder)
    if not out.name.endswith(".zip"):
        raise UserError(f"{out}: expected a name that ends in {PACKED_SUFFIX}")
    if out.is_dir():
        raise UserError(f"{out}: is a folder: choose another --out")
    checksums = {MANIFEST: None, **{file.path: file.sha256 for file in stored_files(manifest)}}
    if os.path.lexists(folder / CARD):
        checksums.setdefault(CARD, None)  # of a bundle without a seal
    with whole_file(out) as sink:
        entries = [store(sink, folder, name, sha256) for name, sha256 in checksums.items()]
        sink.write(directory(entries))
        size = sink.tell()
        if size > MAX_PACKED:
            raise UserError(f"{folder}: {size} bytes, one packed file holds {MAX_PACKED}: copy the folder")
    return size


def store(sink: BinaryIO, folder: Path, name: str, sha256: str | None) -> Entry:
    """Appends a file of the bundle, which is verified as it is copied."""
    path = regular_file(folder, name)
    with path.open("rb") as source:
        size = os.fstat(source.fileno()).st_size
        if sink.tell() + size > MAX_PACKED:
            raise UserError(f"{path}: {size} bytes, one packed bundle holds {MAX_PACKED}: copy the folder")
        start = sink.tell()
        sink.write(Entry(name=name, size=size, crc=0).local())
        entry = Entry(name=name, size=size, crc=copy(source, sink, size, sha256, path))
        sink.seek(start)
        sink.write(entry.local())
        sink.seek(0, os.SEEK_END)
    return entry


def directory(entries: list[Entry]) -> bytes:
    """What stands at the end of a zip: its entries again, with where they start."""
    offset, headers = 0, b""
    for entry in entries:
        headers += entry.central(offset)
        offset += len(entry.local()) + entry.size
    return headers + END.pack(END_MARK, 0, 0, len(entries), len(entries), len(headers), offset, 0)


def unpack(file: Path, out: Path) -> BundleManifest:
    """Unpacks what `pack` wrote into a folder that appears whole or not at all; a bundle that was there is replaced.

    Raises CheckFailed for a file that differs in any byte from what `pack` writes for the bundle in it.
    """
    if not file.is_file():
        raise UserError(f"{file}: {'not a file' if os.path.lexists(file) else 'no such file'}: name a packed bundle")
    if out.exists() and not (out / MANIFEST).is_file() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{out}: exists and is not a bundle: choose another --out")
    with whole_folder(out, needed=file.stat().st_size) as folder, file.open("rb") as source:
        return unpack_into(folder, source, file)


def unpack_into(folder: Path, source: BinaryIO, file: Path) -> BundleManifest:
    """Writes the files that bundle.json lists, each no longer than it says; nothing else in the zip is followed."""
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
        if size - source.tell() < stored.bytes:
            raise CheckFailed(f"{file}: ends within {stored.path!r}: it was cut off, copy it again")
        entry = next_entry(source, stored.path, file)
        if entry.size != stored.bytes:
            found = f"{stored.path!r} has {entry.size} bytes"
            raise CheckFailed(f"{file}: {found}, its {MANIFEST} says {stored.bytes}: do not use it")
        extract(source, entry, stored.sha256, folder, file)
        entries.append(entry)
    if manifest.card is None and peek_name(source) == CARD:
        entries.append(next_entry(source, CARD, file))
        extract(source, entries[-1], None, folder, file)
    if (more := peek_name(source)) is not None:
        raise CheckFailed(f"{file}: holds {more!r}, which its {MANIFEST} does not list: do not use it")
    expected = directory(entries)
    if source.read(len(expected) + 1) != expected:
        raise CheckFailed(f"{file}: its directory is not that of its files: it was changed or cut off, copy it again")
    return manifest


def next_entry(source: BinaryIO, name: str, file: Path) -> Entry:
    """The header that must come next. Raises CheckFailed for any other."""
    start = source.tell()
    found = peek_name(source)
    if found != name:
        what = "no entry" if found is None else repr(found)
        raise CheckFailed(f"{file}: holds {what} where {name!r} is expected: not a whole file of `artifacts pack`")
    fields = LOCAL.unpack(source.read(LOCAL.size))
    entry = Entry(name=name, size=fields[8], crc=fields[6])
    expected = entry.local()
    source.seek(start)
    if source.read(len(expected)) != expected:
        why = "is compressed" if fields[3] != STORED else "has a changed header"
        raise CheckFailed(f"{file}: {name!r} {why}: `edgeembed artifacts pack` stores files plainly, pack it again")
    return entry


def peek_name(source: BinaryIO) -> str | None:
    """The name of the entry that starts here; None where none does."""
    start = source.tell()
    header = source.read(LOCAL.size)
    name = None
    if len(header) == LOCAL.size and header.startswith(LOCAL_MARK):
        name = source.read(LOCAL.unpack(header)[9]).decode("utf-8", "backslashreplace")
    source.seek(start)
    return name


def extract(source: BinaryIO, entry: Entry, sha256: str | None, folder: Path, file: Path) -> None:
    target = folder / entry.name
    target.parent.mkdir(parents=True, exist_ok=True)
    with target.open("xb") as sink:
        crc = copy(source, sink, entry.size, sha256, file / entry.name)
        sink.flush()
        os.fsync(sink.fileno())
    if crc != entry.crc:
        raise CheckFailed(f"{file}: {entry.name!r} was changed: copy the packed bundle again")


def copy(source: BinaryIO, sink: BinaryIO, size: int, sha256: str | None, path: Path) -> int:
    """Copies `size` bytes and returns their CRC-32. Raises CheckFailed where there are fewer, or the sha256 differs."""
    crc, digest, left = 0, hashlib.sha256(), size
    while left:
        chunk = source.read(min(CHUNK, left))
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
