"""Text files as editors and shells save them: UTF-8, with or without a byte order mark, or UTF-16 as PowerShell's."""

from __future__ import annotations

import codecs
from pathlib import Path

from edgeembed.errors import UserError

MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),  # begins with the mark of UTF-16
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)


def read_text(path: Path) -> str:
    """The text of a file, with line ends as \\n. Raises UserError for a file that cannot be read or is no such text."""
    try:
        return decode_text(path.read_bytes(), source=str(path))
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from None


def decode_text(content: bytes, *, source: str) -> str:
    encoding = next((encoding for mark, encoding in MARKS if content.startswith(mark)), None)
    if encoding is None:  # without a mark, the zero bytes of ASCII letters tell
        encoding = {b"\0": "utf-16-be"}.get(content[:1]) or {b"\0": "utf-16-le"}.get(content[1:2], "utf-8")
    try:
        text = content.decode(encoding)
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise UserError(
            f"{source}: byte {content[error.start]:#04x} in line {line} is not {error.encoding.upper()}: "
            "save it as UTF-8 (in Excel: CSV UTF-8)"
        ) from None
    return text.replace("\r\n", "\n").replace("\r", "\n")
