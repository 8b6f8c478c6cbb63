"""Lists the image files below a folder, by the same rules in every command."""

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

UNSUPPORTED_FORMATS = frozenset({"BUFR", "EPS", "GRIB", "HDF5", "IPTC", "MPEG", "PALM", "PDF", "WMF"})
"""Formats that Pillow registers but that are not read: EPS is a program that Ghostscript would run, WMF is rendered on
Windows only, IPTC is a container of news agencies, and the others have no decoder in Pillow."""

PROGRAM_FOLDERS = frozenset(
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
"""Folders that are skipped, in lower case. Any other one may be the name of a class, even `.net`."""

PROGRAM = "folder that a program keeps for itself"
HIDDEN = "hidden file"
LOOP = "link back to a folder above it"
REPEATED = "link to a folder that is listed already"
BROKEN = "link whose target is missing"
SPECIAL = "neither a file nor a folder"
UNREADABLE = "folder that cannot be read"
NO_SUFFIX = "file without a suffix"

MAX_LISTED_REASONS = 20  # in one line; a folder with numbered suffixes has thousands of reasons


@dataclass
class SkippedFiles:
    """How many files and folders were left out for each reason, and the first name of each."""

    counts: dict[str, int] = field(default_factory=dict)
    first: dict[str, str] = field(default_factory=dict)

    def add(self, reason: str, name: str) -> None:
        """Counts one more for a reason."""
        self.counts[reason] = self.counts.get(reason, 0) + 1
        self.first[reason] = min(self.first.get(reason, name), name)

    def __str__(self) -> str:
        """For example `3 left out: hidden file: 2 (first a/.b.png); .txt, ...: 1 (first notes.txt)`."""
        reasons = sorted(self.counts, key=lambda reason: (-self.counts[reason], reason))
        parts = [
            f"{reason}: {self.counts[reason]} (first {self.first[reason]})" for reason in reasons[:MAX_LISTED_REASONS]
        ]
        if more := reasons[MAX_LISTED_REASONS:]:
            parts.append(f"{len(more)} more reasons: {sum(self.counts[reason] for reason in more)}")
        return printable(f"{sum(self.counts.values())} left out: {'; '.join(parts)}")


@dataclass(frozen=True, kw_only=True)
class ImageListing:
    """The image files below a folder, sorted, and what was left out."""

    folder: Path
    files: list[Path]
    left_out: SkippedFiles

    def log_left_out(self) -> None:
        """Logs one line that counts what was left out, if anything was."""
        if self.left_out.counts:
            log.warning("%s: %s", printable(str(self.folder)), self.left_out)


@functools.cache
def image_suffixes() -> frozenset[str]:
    """Suffixes, in lower case with the dot, of the formats that Pillow opens, except `UNSUPPORTED_FORMATS`."""
    Image.init()
    known = Image.registered_extensions().items()
    return frozenset(suffix for suffix, name in known if name in Image.OPEN and name not in UNSUPPORTED_FORMATS)


def find_images(folder: Path) -> list[Path]:
    """Every image file below a folder, sorted; one line in the log counts what was left out."""
    listing = list_images(folder)
    listing.log_left_out()
    return listing.files


def list_images(folder: Path) -> ImageListing:
    """Every image file below a folder, recognised by its suffix; no file is opened.

    Links are followed. A folder inside that a link leads to again is not listed twice, and a link to a folder above
    itself is not followed, because it would never end. Two links to the same folder outside are both followed.
    Raises UserError for a path that is not a folder or cannot be read.
    """
    if not folder.is_dir():
        raise UserError(f"{printable(str(folder))}: {'is a file, expected a' if folder.exists() else 'no such'} folder")
    try:
        # Folders further down that cannot be read are only counted; the one that was named must be readable.
        os.scandir(folder).close()
    except OSError as error:
        raise UserError(f"{printable(str(folder))}: cannot be read ({error.strerror})") from None
    listing = ImageListing(folder=folder, files=[], left_out=SkippedFiles())
    inside: set[tuple[int, int]] = set()  # device and inode of each listed folder
    for link in _list_tree(listing, folder, inside, set()):
        # Folders outside are recorded for each link separately: two links may lead to the same one.
        outside: set[tuple[int, int]] = set()
        links = [link]
        while links:
            next_link = links.pop(0)
            if _leads_back(next_link, folder):
                listing.left_out.add(LOOP, _name(listing, next_link))
            else:
                links += _list_tree(listing, next_link, outside, inside)
    # The order of a directory differs between file systems; sorted, it is the same everywhere.
    listing.files.sort()
    return listing


def _list_tree(
    listing: ImageListing, top: Path, listed: set[tuple[int, int]], listed_before: set[tuple[int, int]]
) -> list[Path]:
    """Lists a folder and those below it; returns the links to folders that it met and did not follow."""
    links: list[Path] = []
    folders = [top]
    while folders:
        folder = folders.pop()
        try:
            status = os.stat(folder)
            # The same folder may be reached by several paths; device and inode identify it.
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
            # `entry.stat()` follows links, so that a link counts as what it points to.
            if stat.S_ISDIR(mode) and entry.name.lower() in PROGRAM_FOLDERS:
                listing.left_out.add(PROGRAM, _name(listing, path))
            elif stat.S_ISDIR(mode):
                (links if entry.is_symlink() else folders).append(path)
            elif not stat.S_ISREG(mode):
                listing.left_out.add(SPECIAL, _name(listing, path))
            elif reason := _reason_to_skip(entry.name):
                listing.left_out.add(reason, _name(listing, path))
            else:
                listing.files.append(path)
    return sorted(links)


def _reason_to_skip(name: str) -> str | None:
    """Why a file is not listed, by its name; None for an image. (macOS stores resource forks as `._name`.)"""
    # By suffix, because opening every file of a large folder would take minutes.
    suffix = os.path.splitext(name)[1].lower()
    if name.startswith("."):
        return HIDDEN
    if not suffix:
        return NO_SUFFIX
    return None if suffix in image_suffixes() else f"{suffix}, no image format that is read here"


def _leads_back(link: Path, root: Path) -> bool:
    """Whether a link's target contains the link itself, or the folder that is being listed."""
    target = os.path.realpath(link)
    inner = (os.path.realpath(link.parent), os.path.realpath(root))
    return any(_common(folder, target) == target for folder in inner)


def _common(folder: str, target: str) -> str | None:
    """The innermost folder that contains both; None where there is none."""
    try:
        return os.path.commonpath([folder, target])
    except ValueError:  # two drives on Windows
        return None


def _name(listing: ImageListing, path: Path) -> str:
    """The path relative to the listed folder, with forward slashes."""
    return path.relative_to(listing.folder).as_posix()
