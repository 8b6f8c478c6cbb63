"""Which files below a folder are images: one set of rules for import, embedding and every other command."""

from __future__ import annotations

import functools
import logging
import os
import stat
from dataclasses import dataclass, field
from pathlib import Path

from PIL import Image

from edgeembed.errors import UserError
from edgeembed.texts import printable

log = logging.getLogger(__name__)

NOT_READ = frozenset({"BUFR", "EPS", "GRIB", "HDF5", "IPTC", "MPEG", "PALM", "PDF", "WMF"})
"""Formats that Pillow registers and that are not taken for images: EPS is a program that Ghostscript would run, WMF is
drawn on Windows only, IPTC is a container of news agencies, and the others have no decoder in Pillow."""

FOLDERS_OF_PROGRAMS = frozenset(
    {
        "__macosx",
        "__pycache__",
        "$recycle.bin",
        "@eadir",
        "lost+found",
        "system volume information",
        ".@__thumb",
        ".appledouble",
        ".cache",
        ".dropbox.cache",
        ".ds_store",
        ".fseventsd",
        ".git",
        ".github",
        ".hg",
        ".idea",
        ".ipynb_checkpoints",
        ".picasaoriginals",
        ".spotlight-v100",
        ".svn",
        ".thumbnails",
        ".trash",
        ".trashes",
        ".venv",
        ".vscode",
    }
)
"""In lower case. Any other folder may be a class, `.net` beside `java` too."""

PROGRAM = "folder that a program keeps for itself"
HIDDEN = "hidden file"
LOOP = "link back to a folder above it"
REPEATED = "link to a folder that is listed already"
BROKEN = "link whose target is missing"
SPECIAL = "neither a file nor a folder"
UNREADABLE = "folder that cannot be read"
NO_SUFFIX = "file without a suffix"

MOST_REASONS = 20  # named in one line; a folder of numbered suffixes has thousands


@dataclass
class LeftOut:
    """What was left out, by reason: how many, and the first of each."""

    counts: dict[str, int] = field(default_factory=dict)
    first: dict[str, str] = field(default_factory=dict)

    def add(self, reason: str, name: str) -> None:
        self.counts[reason] = self.counts.get(reason, 0) + 1
        self.first[reason] = min(self.first.get(reason, name), name)

    def __str__(self) -> str:
        """In one line: `3 left out: hidden file: 2 (first a/.b.png); .txt, ...: 1 (first notes.txt)`."""
        reasons = sorted(self.counts, key=lambda reason: (-self.counts[reason], reason))
        parts = [f"{reason}: {self.counts[reason]} (first {self.first[reason]})" for reason in reasons[:MOST_REASONS]]
        if more := reasons[MOST_REASONS:]:
            parts.append(f"{len(more)} more reasons: {sum(self.counts[reason] for reason in more)}")
        return printable(f"{sum(self.counts.values())} left out: {'; '.join(parts)}")


@dataclass(frozen=True, kw_only=True)
class ImageListing:
    """The image files below a folder, sorted, and what else is there."""

    folder: Path
    files: list[Path]
    left_out: LeftOut

    def log_left_out(self) -> None:
        if self.left_out.counts:
            log.warning("%s: %s", printable(str(self.folder)), self.left_out)


@functools.cache
def image_suffixes() -> frozenset[str]:
    """In lower case with the dot: those of every format that the installed Pillow opens, but for `NOT_READ`."""
    Image.init()
    known = Image.registered_extensions().items()
    return frozenset(suffix for suffix, name in known if name in Image.OPEN and name not in NOT_READ)


def find_images(folder: Path) -> list[Path]:
    """Every image file below a folder, sorted; one line in the log counts what else is there."""
    listing = list_images(folder)
    listing.log_left_out()
    return listing.files


def list_images(folder: Path) -> ImageListing:
    """Every image file below a folder, by its suffix; nothing is opened.

    Links are followed. A folder that is reached again, through a link, is not listed again: links that lead back to a
    folder above them would never end. Two links to one folder outside are both followed.
    Raises UserError for what is not a folder that can be read.
    """
    if not folder.is_dir():
        raise UserError(f"{printable(str(folder))}: {'is a file, expected a' if folder.exists() else 'no such'} folder")
    try:
        os.scandir(folder).close()
    except OSError as error:
        raise UserError(f"{printable(str(folder))}: cannot be read ({error.strerror})") from None
    listing = ImageListing(folder=folder, files=[], left_out=LeftOut())
    inside: set[tuple[int, int]] = set()
    for link in _list_tree(listing, folder, inside, set()):
        outside: set[tuple[int, int]] = set()
        links = [link]
        while links:
            found = links.pop(0)
            if _leads_back(found, folder):
                listing.left_out.add(LOOP, _name(listing, found))
            else:
                links += _list_tree(listing, found, outside, inside)
    listing.files.sort()
    return listing


def _list_tree(
    listing: ImageListing, top: Path, listed: set[tuple[int, int]], listed_before: set[tuple[int, int]]
) -> list[Path]:
    """Lists a folder and those below it; returns the links to folders among them, which it does not follow."""
    links: list[Path] = []
    folders = [top]
    while folders:
        folder = folders.pop()
        try:
            status = os.stat(folder)
            identity = (status.st_dev, status.st_ino)
            if identity in listed or identity in listed_before:
                listing.left_out.add(REPEATED, _name(listing, folder))
                continue
            listed.add(identity)
            with os.scandir(folder) as entries:
                present = list(entries)
        except OSError:
            listing.left_out.add(UNREADABLE, _name(listing, folder))
            continue
        for entry in present:
            path = folder / entry.name
            try:
                mode = entry.stat().st_mode
            except OSError:
                listing.left_out.add(BROKEN, _name(listing, path))
                continue
            if stat.S_ISDIR(mode) and entry.name.lower() in FOLDERS_OF_PROGRAMS:
                listing.left_out.add(PROGRAM, _name(listing, path))
            elif stat.S_ISDIR(mode):
                (links if entry.is_symlink() else folders).append(path)
            elif not stat.S_ISREG(mode):
                listing.left_out.add(SPECIAL, _name(listing, path))
            elif reason := _no_image(entry.name):
                listing.left_out.add(reason, _name(listing, path))
            else:
                listing.files.append(path)
    return sorted(links)


def _no_image(name: str) -> str | None:
    """Why a file is not taken for an image, judged by its name. macOS keeps resource files as `._name`."""
    suffix = os.path.splitext(name)[1].lower()
    if name.startswith("."):
        return HIDDEN
    if not suffix:
        return NO_SUFFIX
    return None if suffix in image_suffixes() else f"{suffix}, no image format that is read here"


def _leads_back(link: Path, root: Path) -> bool:
    """Whether a link's target holds the link itself, or the folder that is being listed."""
    target = os.path.realpath(link)
    inner = (os.path.realpath(link.parent), os.path.realpath(root))
    return any(_common(folder, target) == target for folder in inner)


def _common(folder: str, target: str) -> str | None:
    try:
        return os.path.commonpath([folder, target])
    except ValueError:  # two drives of Windows
        return None


def _name(listing: ImageListing, path: Path) -> str:
    return path.relative_to(listing.folder).as_posix()
