"""JSON files with a checksum: their last key, "seal", is the SHA-256 of every byte before that key's line.

The checksum detects damage, not forgery: whoever can write the file can compute it again.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from edgeembed.errors import CheckFailed, UserError
from edgeembed.files import write_atomically

MAX_BYTES = 4 * 2**20
MAX_DEPTH = 16
MAX_DIGITS = 18
SEAL_LINE = re.compile(rb'  "seal": "([0-9a-f]{64})"\n}\n\Z')


def write_checksummed(path: Path, value: Mapping[str, Any]) -> None:
    """Writes a JSON object and its checksum; the file appears whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False)
    # The checksum covers the bytes up to the last comma, so that it can stand in the same object.
    content = text.removesuffix("\n}").encode() + b",\n"
    write_atomically(path, content + b'  "seal": "%s"\n}\n' % hashlib.sha256(content).hexdigest().encode())


def read_checksummed(path: Path) -> tuple[dict[str, Any], bool]:
    """Reads a JSON object, and says whether the file has a checksum; one that it has was verified.

    Raises CheckFailed where the checksum is wrong or the content is not one JSON object within the limits above,
    UserError where the file is too large.
    """
    with path.open("rb") as file:
        # One byte more than the limit is read, to notice a larger file without reading it whole.
        content = file.read(MAX_BYTES + 1)
    if len(content) > MAX_BYTES:
        raise UserError(f"{path}: larger than {MAX_BYTES} bytes: edgeembed did not write it")
    seal = SEAL_LINE.search(content)
    if seal is not None and hashlib.sha256(content[: seal.start()]).hexdigest().encode() != seal[1]:
        raise damaged_file_error(path, 'its "seal" is not the checksum of the lines above it')
    try:
        value = json.loads(
            content.decode("utf-8"),
            # Python's parser would accept NaN, huge integers and duplicate keys, which other readers do not.
            parse_constant=parse_finite,
            parse_float=parse_finite,
            parse_int=parse_count,
            object_pairs_hook=parse_object,
        )
        if not isinstance(value, dict):
            raise ValueError("expected a JSON object")
        check_text_and_depth(value)
    except (ValueError, RecursionError) as error:  # JSON and Unicode errors are ValueErrors
        raise damaged_file_error(path, str(error)) from None
    if "seal" in value and seal is None:
        raise damaged_file_error(path, 'its "seal" is not in the form that it was written in')
    return value, seal is not None


def damaged_file_error(path: Path, reason: str) -> CheckFailed:
    """The error for a file that is not as edgeembed wrote it."""
    return CheckFailed(f"{path}: {path.name} was changed or cut off ({reason}): export or copy the bundle again")


def parse_finite(text: str) -> float:
    """A finite number. Raises ValueError for NaN and infinity, which Python's JSON parser takes by default."""
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"{text[:20]} is not a finite number")
    return number


def parse_count(text: str) -> int:
    """A whole number. Raises ValueError for a negative one, and for one that is larger than any count or file size."""
    if text.startswith("-") or len(text) > MAX_DIGITS:
        raise ValueError(f"{text[:20]} is not a count, which is at least 0 and has at most {MAX_DIGITS} digits")
    return int(text)


def parse_object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object. Raises ValueError where it has a key twice."""
    value = dict(pairs)
    if len(value) != len(pairs):
        raise ValueError("an object has the same key twice")
    return value


def check_text_and_depth(value: Any, depth: int = 1) -> None:
    """Raises ValueError for text that cannot be encoded as UTF-8, and for nesting deeper than `MAX_DEPTH`."""
    if depth > MAX_DEPTH:
        raise ValueError(f"nested deeper than {MAX_DEPTH} levels")
    if isinstance(value, str):
        value.encode()
    elif isinstance(value, dict):
        for key, item in value.items():
            check_text_and_depth(key, depth)
            check_text_and_depth(item, depth + 1)
    elif isinstance(value, list):
        for item in value:
            check_text_and_depth(item, depth + 1)
