"""Reads tables of images that spreadsheets and data frames saved: CSV of any dialect, or Parquet, as text columns."""

from __future__ import annotations

import csv
import io
import math
import os
import re
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

from edgeembed.data.path_matching import paths_on_disk
from edgeembed.errors import UserError
from edgeembed.texts import SAVE_AS_UTF8, decode_text, printable

TEXT_SUFFIXES = (".csv", ".tsv", ".txt")
TABLE_SUFFIXES = (*TEXT_SUFFIXES, ".parquet")
REMEDY = f"{SAVE_AS_UTF8} (in Excel: CSV UTF-8)"
DELIMITERS = ",;\t|"
Column: TypeAlias = "tuple[str | None, ...]"


@dataclass(frozen=True, kw_only=True)
class Table:
    """Those of the requested columns that a file has, by their requested name; None where a cell is empty.

    Relative paths start from `root`; `root_name` says, for messages, where `root` comes from.
    """

    source: Path
    header: tuple[str, ...]
    columns: Mapping[str, Column]
    num_rows: int
    root: Path
    root_name: str

    def require(self, name: str, remedy: str = "") -> Column:
        """Returns a column. Raises UserError that lists the columns of the table where it is missing."""
        if name not in self.columns:
            present = ", ".join(self.header) or "no columns"
            raise UserError(f"{self.source}: lacks column {name!r}, has {present}{': ' + remedy if remedy else ''}")
        return self.columns[name]

    def paths(self, name: str = "path", remedy: str = "") -> tuple[str, ...]:
        """Returns a column of paths in the spelling of the files on disk. Raises UserError for an empty cell."""
        column = self.require(name, remedy)
        paths = [path for path in column if path is not None]
        if len(paths) < len(column):
            raise empty_value(str(self.source), name, column.index(None))
        return tuple(paths_on_disk(self.root, paths))


def empty_value(source: str, name: str, row: int) -> UserError:
    """The error for a cell that must not be empty."""
    return UserError(f"{source}: column {name!r} has an empty value in row {row} (the first row is 0): fill it in")


def clean_name(text: str | None) -> str | None:
    """A label or name in the form in which names are compared: NFC, stripped; None where nothing is left."""
    return unicodedata.normalize("NFC", text).strip() or None if text else None


def is_text_table(path: Path) -> bool:
    """Whether a path has the suffix of a text table; other tables are Parquet."""
    return path.suffix.lower() in TEXT_SUFFIXES


def read_table(path: Path, names: Sequence[str]) -> Table:
    """Reads the columns `names`, matched without regard to case, from .csv, .tsv, .txt or Parquet.

    Text tables need no pyarrow, which the base install lacks. A column that the table lacks is left out. Raises
    UserError for a file that is not such a table, or where two of its columns match one name.
    """
    if not path.is_file():
        raise UserError(f"{path}: {'is a folder' if path.is_dir() else 'no such file'}, expected a table")
    header, columns, num_rows, root = (_read_text if is_text_table(path) else _read_parquet)(path, names)
    # A table may have been moved together with its images: then its recorded root is outdated.
    folder = path.parent.resolve()
    paths = next(iter(columns.values()), ())
    if root is None:
        root, root_name = folder, "the folder of the table"
    elif not root.is_dir() or _moved(root, folder, next((text for text in paths if text), None)):
        root, root_name = folder, f"the folder of the table, as its recorded root {root} does not hold them"
    else:
        root_name = "the root that the table records"
    return Table(source=path, header=header, columns=columns, num_rows=num_rows, root=root, root_name=root_name)


def _moved(root: Path, folder: Path, first: str | None) -> bool:
    """Whether the first image exists in the folder of the table and not in the recorded root."""
    return first is not None and not os.path.exists(root / first) and os.path.exists(folder / first)


def _positions(path: Path, header: Sequence[str], names: Sequence[str]) -> dict[str, int]:
    """The position of each name in a header: an exact match, else one without regard to case and outer spaces."""
    positions = {}
    for name in names:
        found = [position for position, text in enumerate(header) if text == name] or [
            position for position, text in enumerate(header) if _key(text) == _key(name)
        ]
        if len(found) > 1:
            raise UserError(f"{path}: has {len(found)} columns {name!r}: rename all but one")
        if found:
            positions[name] = found[0]
    return positions


def _key(text: str) -> str:
    return (clean_name(text) or "").casefold()


def _read_text(path: Path, names: Sequence[str]) -> tuple[tuple[str, ...], dict[str, Column], int, None]:
    text = _decode(path)
    sep_line = re.match(
        r'\ufeff?\s*"?sep=([,;|:\t])"?[^\S\r\n]*(\r\n|\r|\n|$)', text
    )  # a line for Excel that gives the delimiter
    body = text[sep_line.end() :] if sep_line else text
    try:
        delimiter = sep_line[1] if sep_line else _delimiter(body, names)
        lines = _lines(body, delimiter)
        header: list[str] = next((line for line in lines if any(map(str.strip, line))), [])
        positions = _positions(path, header, names)
        rows = []
        # Cells beyond the header are allowed where they are empty: some programs end each line with a delimiter.
        for line in lines:
            if not any(map(str.strip, line)):  # an empty row of a spreadsheet, with or without delimiters
                continue
            if len(line) < len(header) or any(map(str.strip, line[len(header) :])):
                place = f"{path}: line {lines.line_num + (sep_line is not None)}"
                raise UserError(f"{place} has {len(line)} values, expected {len(header)} as in the header")
            rows.append([line[position] if line[position].strip() else None for position in positions.values()])
    except csv.Error as error:
        raise UserError(f"{path}: not a readable .csv table ({error})") from None
    columns = {name: tuple(row[place] for row in rows) for place, name in enumerate(positions)}
    return tuple(name.strip() for name in header), columns, len(rows), None


def _lines(text: str, delimiter: str) -> Any:  # csv.reader has no public type
    return csv.reader(io.StringIO(text, newline=""), strict=True, delimiter=delimiter, skipinitialspace=True)


def _delimiter(text: str, names: Sequence[str]) -> str:
    """The delimiter with which the header holds most of the requested names, else most columns."""

    def score(delimiter: str) -> tuple[int, int]:
        try:
            header: list[str] = next((line for line in _lines(text, delimiter) if any(map(str.strip, line))), [])
        except csv.Error:
            return -1, 0
        keys = {_key(name) for name in header}
        return sum(_key(name) in keys for name in names), len(header)

    # `max` returns the first of equals: a comma for a table of one column, which has no delimiter.
    return max(DELIMITERS, key=score)


def _decode(path: Path) -> str:
    """The text of a file. Raises UserError where the encoding is uncertain: a wrong guess would change file names."""
    source = f"{path}: not a readable {path.suffix} table"
    try:
        text = decode_text(path.read_bytes(), source=source, remedy=REMEDY)
    except OSError as error:
        raise UserError(f"{source} ({error.strerror})") from None
    if "\0" in text:
        raise UserError(f"{source}: it holds null bytes: {REMEDY}")
    return text


def _read_parquet(path: Path, names: Sequence[str]) -> tuple[tuple[str, ...], dict[str, Column], int, Path | None]:
    import pyarrow as pa
    import pyarrow.parquet

    try:
        schema = pa.parquet.read_schema(path)
        positions = _positions(path, schema.names, names)
        # Only these columns: others may be large, such as stored images.
        table = pa.parquet.read_table(path, columns=[schema.names[position] for position in positions.values()])
    except (pa.ArrowException, OSError) as error:
        raise UserError(f"{path}: not a readable {path.suffix or 'Parquet'} table ({error})") from None
    columns = {}
    for name, position in positions.items():
        place = f"{path}: column {schema.names[position]!r}"
        values = table.column(schema.names[position]).to_pylist()
        columns[name] = tuple(_cell(value, place) for value in values)
    root = os.fsdecode((schema.metadata or {}).get(b"root", b""))
    return tuple(schema.names), columns, table.num_rows, Path(root) if root else None


def _cell(value: object, place: str) -> str | None:
    """A value of a data frame as text. pandas writes missing text as NaN, and an integer of such a column as 7.0."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return None
    if isinstance(value, bytes):
        try:
            value = value.decode()
        except UnicodeDecodeError:
            raise UserError(f"{place} holds {printable(repr(value))}, expected text in UTF-8") from None
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    if isinstance(value, (int, float)):
        return str(value)
    if not isinstance(value, str):
        raise UserError(f"{place} holds a {type(value).__name__}, expected text or numbers")
    return value if value.strip() else None
