"""Reads text files of several encodings, and makes any file name printable.

Text files are UTF-8, with or without a byte order mark, or UTF-16, as PowerShell writes it, or UTF-32.
"""

from __future__ import annotations

import codecs
import re
from pathlib import Path

from edgeembed.errors import UserError

BYTE_ORDER_MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),  # before UTF-16, whose mark is the beginning of this one
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)


SAVE_AS_UTF8 = "save it as UTF-8"
CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")


def read_text(path: Path) -> str:
    """The text of a file, with line ends as \\n. Raises UserError for a file that cannot be read or decoded."""
    try:
        return decode_text(path.read_bytes(), source=str(path))
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from None


def decode_text(content: bytes, *, source: str, remedy: str = SAVE_AS_UTF8) -> str:
    """The decoded text, with line ends as \\n. Raises UserError that names `source`, the line and `remedy`."""
    encoding = next((encoding for mark, encoding in BYTE_ORDER_MARKS if content.startswith(mark)), None)
    if encoding is None:  # without a mark, the zero bytes beside ASCII letters tell UTF-16
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
    """Decodes as UTF-8 what the locale could not decode, for example in file names under LC_ALL=C.

    `other_bytes` is the codec error handler for bytes that are not UTF-8 either; by default they stay surrogates.
    """
    try:
        return text.encode("utf-8", "surrogateescape").decode("utf-8", other_bytes)
    except UnicodeEncodeError:  # another kind of surrogate, from Windows or JSON
        return text


def printable(text: str) -> str:
    """A path or message as one line that can be printed as UTF-8.

    A byte of a file name that is not UTF-8 becomes `\\xe9`, a line end `\\n`.
    """
    shown = CONTROL.sub(lambda control: control[0].encode("unicode_escape").decode(), text)
    # What is still a surrogate now is half of a pair, which Windows allows in file names.
    return read_as_utf8(shown, other_bytes="backslashreplace").encode("utf-8", "backslashreplace").decode()


def is_utf8(path: str) -> bool:
    """Whether a path can be written into a UTF-8 text file."""
    try:
        path.encode()
    except UnicodeEncodeError:
        return False
    return True
