"""Text in any encoding: files as editors and shells save them, file names that are not UTF-8, names for one line.

Text files are UTF-8, with or without a byte order mark, or UTF-16 as PowerShell writes it.
"""

from __future__ import annotations

import codecs
import re
from pathlib import Path

from edgeembed.errors import UserError

MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),  # begins with the mark of UTF-16
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)


SAVE_AS_UTF8 = "save it as UTF-8"
CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")


def read_text(path: Path) -> str:
    """The text of a file, with line ends as \\n. Raises UserError for a file that cannot be read or is no such text."""
    try:
        return decode_text(path.read_bytes(), source=str(path))
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from None


def decode_text(content: bytes, *, source: str, remedy: str = SAVE_AS_UTF8) -> str:
    """A file's text, with line ends as \\n. Raises UserError that names `source`, the line and `remedy`."""
    encoding = next((encoding for mark, encoding in MARKS if content.startswith(mark)), None)
    if encoding is None:  # without a mark, the zero bytes of ASCII letters tell
        encoding = {b"\0": "utf-16-be"}.get(content[:1]) or {b"\0": "utf-16-le"}.get(content[1:2], "utf-8")
    try:
        text = content.decode(encoding)
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise UserError(
            f"{source}: byte {content[error.start]:#04x} in line {line} is not {error.encoding.upper()}: {remedy}"
        ) from None
    return text.replace("\r\n", "\n").replace("\r", "\n")


def read_as_utf8(text: str, *, other_bytes: str = "surrogateescape") -> str:
    """Text in which bytes that the locale could not decode, as in file names under LC_ALL=C, are read as UTF-8.

    `other_bytes` is the error handler for those that are not UTF-8 either; by default they stay lone surrogates.
    """
    try:
        return text.encode("utf-8", "surrogateescape").decode("utf-8", other_bytes)
    except UnicodeEncodeError:  # another kind of surrogate, from Windows or JSON
        return text


def printable(text: str) -> str:
    """A path or message on one line, in UTF-8: a byte of a file name that is not UTF-8 appears as `\\xe9`, a line end
    as `\\n`.
    """
    shown = CONTROL.sub(lambda control: control[0].encode("unicode_escape").decode(), text)
    # What is still a surrogate is half of a pair, which Windows allows in file names.
    return read_as_utf8(shown, other_bytes="backslashreplace").encode("utf-8", "backslashreplace").decode()


def is_utf8(path: str) -> bool:
    """Whether a path can be written in a text file."""
    try:
        path.encode()
    except UnicodeEncodeError:
        return False
    return True
