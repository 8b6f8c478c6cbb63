"""JSON that was not changed since it was written: its last key is the checksum of every byte before that key's line.

A seal tells accidents, not forgeries: whoever can write the file can seal it again.
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


def write_sealed(path: Path, value: Mapping[str, Any]) -> None:
    """Writes an object that `read_sealed` finds whole; the file appears whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False)
    content = text.removesuffix("\n}").encode() + b",\n"
    write_atomically(path, content + b'  "seal": "%s"\n}\n' % hashlib.sha256(content).hexdigest().encode())


def read_sealed(path: Path) -> tuple[dict[str, Any], bool]:
    """A JSON object, and whether it carries a seal, which was then found right.

    Raises CheckFailed where the seal is wrong or the file is not one object of sane values; UserError: too large.
    """
    with path.open("rb") as file:
        content = file.read(MAX_BYTES + 1)
    if len(content) > MAX_BYTES:
        raise UserError(f"{path}: larger than {MAX_BYTES} bytes: not a manifest of ours")
    seal = SEAL_LINE.search(content)
    if seal is not None and hashlib.sha256(content[: seal.start()]).hexdigest().encode() != seal[1]:
        raise changed(path, "its seal is not the checksum of what stands before it")
    try:
        value = json.loads(
            content.decode("utf-8"),
            parse_constant=finite,
            parse_float=finite,
            parse_int=count,
            object_pairs_hook=unique_keys,
        )
        if not isinstance(value, dict):
            raise ValueError("expected a JSON object")
        require_sane(value)
    except (ValueError, RecursionError) as error:  # JSON and Unicode errors are ValueErrors
        raise changed(path, str(error)) from None
    if "seal" in value and seal is None:
        raise changed(path, "its seal is not as it was written")
    return value, seal is not None


def changed(path: Path, reason: str) -> CheckFailed:
    return CheckFailed(f"{path}: {path.name} was changed or cut off ({reason}): export or copy the bundle again")


def finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"{text[:20]} is not a finite number")
    return number


def count(text: str) -> int:
    """Whole numbers here count something: none is negative, none is too large for a file's size."""
    if text.startswith("-") or len(text) > MAX_DIGITS:
        raise ValueError(f"{text[:20]} is no number of anything")
    return int(text)


def unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) != len(pairs):
        raise ValueError("an object has the same key twice")
    return value


def require_sane(value: Any, depth: int = 1) -> None:
    """Raises ValueError for text that cannot be printed as UTF-8, and for nesting that would exhaust some reader."""
    if depth > MAX_DEPTH:
        raise ValueError(f"nested deeper than {MAX_DEPTH} levels")
    if isinstance(value, str):
        value.encode()
    elif isinstance(value, dict):
        for key, item in value.items():
            require_sane(key, depth)
            require_sane(item, depth + 1)
    elif isinstance(value, list):
        for item in value:
            require_sane(item, depth + 1)
