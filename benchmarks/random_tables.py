"""Random tables of images as spreadsheets and data frames save them, with what an import must make of each row."""

from __future__ import annotations

import codecs
import csv
import io
import json
import os
import random
import unicodedata
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from random_samples import REFUSED, RIGHT, WRONG, Outcome, command, command_apart, save, spelled

COLUMNS = ("path", "label", "domain", "split", "role")
DELIMITERS = {"comma": ",", "semicolon": ";", "tab": "\t", "bar": "|"}
ENCODINGS = {
    "UTF-8": ("utf-8", b""),
    "UTF-8 with BOM": ("utf-8", codecs.BOM_UTF8),
    "UTF-16 LE": ("utf-16-le", codecs.BOM_UTF16_LE),
    "UTF-16 BE": ("utf-16-be", codecs.BOM_UTF16_BE),
}
SPLITS = ("train", "val", "test")
LABELS = ("cat", "dog", "K\u00e4se, mild", 'a "quoted" name', "7", "two words", "\u65e5\u672c", "a; b")
ANY = object()

Row = dict[str, str | None]


@dataclass
class Table:
    """A sample while it is built: rows as they are written, and what each must come out as (None: any value)."""

    rng: random.Random
    folder: Path
    rows: list[Row]
    expected: list[dict[str, Any]]
    kind: str
    columns: tuple[str, ...] = COLUMNS
    delimiter: str = ","
    encoding: str = "UTF-8"
    line_end: str = "\n"
    blank: str = ""
    is_parquet: bool = False
    tail: str = ""
    must_refuse: bool = False
    may_refuse: bool = False
    refused_by: list[str] = field(default_factory=list)  # of which a refusal names one; where empty, any words
    must_name: list[str] = field(default_factory=list)  # what is said where the table is taken

    def write(self) -> Path:
        path = self.folder / ("t.parquet" if self.is_parquet else "t.csv")
        values = [[row[name] for name in self.columns] for row in self.rows]
        if self.is_parquet:
            import pyarrow as pa
            import pyarrow.parquet

            columns = {name: [line[place] for line in values] for place, name in enumerate(self.columns)}
            pa.parquet.write_table(
                pa.table({name: pa.array(cells, pa.string()) for name, cells in columns.items()}), path
            )
            return path
        text = io.StringIO()
        quoting = self.rng.choice([csv.QUOTE_MINIMAL, csv.QUOTE_ALL])
        writer = csv.writer(text, delimiter=self.delimiter, lineterminator=self.line_end, quoting=quoting)
        writer.writerow(self.columns)
        writer.writerows([[self.blank if cell is None else cell for cell in line] for line in values])
        codec, mark = ENCODINGS.get(self.encoding, (self.encoding, b""))
        path.write_bytes(mark + (text.getvalue() + self.tail).encode(codec))
        return path


def dialect(table: Table) -> None:
    name = table.rng.choice(list(DELIMITERS))
    table.delimiter, table.kind = DELIMITERS[name], f"CSV dialects: {name}"
    table.line_end = table.rng.choice(["\n", "\r\n"])


def encoded(table: Table) -> None:
    dialect(table)
    table.encoding = table.rng.choice(list(ENCODINGS))
    table.kind = f"CSV encodings: {table.encoding}"


def latin1(table: Table) -> None:
    table.rows[0]["label"] = "K\u00e4se"
    for row in table.rows[1:]:
        row["label"] = "cat"
    table.encoding, table.kind, table.must_refuse, table.refused_by = (
        "latin-1",
        "CSV encodings: Latin-1",
        True,
        ["line 2"],
    )


def fewer_columns(table: Table) -> None:
    kept = {"path", *table.rng.sample(COLUMNS[1:], table.rng.randint(0, 3))}
    table.columns = tuple(name for name in COLUMNS if name in kept)
    table.kind = "missing columns"
    for one in table.expected:
        one.update({name: ANY for name in ("domain", "split", "role") if name not in kept})
        if "label" not in kept:
            one["label"] = None
    if "split" not in kept and "role" in kept:  # roles belong to splits, which are drawn then
        table.may_refuse = True


def shuffled_columns(table: Table) -> None:
    table.columns = tuple(table.rng.sample(COLUMNS, len(COLUMNS)))
    table.kind = "columns in another order"


def blanks(table: Table) -> None:
    table.is_parquet = table.rng.random() < 0.5
    table.kind = f"empty text for null: {'Parquet' if table.is_parquet else 'CSV'}"
    table.blank = table.rng.choice(["", " ", "  "])
    for row, one in zip(table.rows, table.expected, strict=True):
        if table.rng.random() < 0.5:
            row["label"], one["label"] = table.blank, None
        row["role"], one["role"] = table.rng.choice([table.blank, None]), None


def empty_path(table: Table) -> None:
    table.is_parquet = table.rng.random() < 0.5
    place = table.rng.randrange(len(table.rows))
    table.rows[place]["path"] = table.rng.choice(["", None])
    table.kind, table.must_refuse, table.refused_by = "rows without a path", True, [f"row {place}", f"line {place + 2}"]


def empty_domain(table: Table) -> None:
    table.is_parquet = table.rng.random() < 0.5
    place = table.rng.randrange(len(table.rows))
    table.rows[place]["domain"] = ""
    table.expected[place]["domain"] = ANY
    table.kind, table.may_refuse, table.refused_by = (
        "rows without a domain",
        True,
        [f"row {place}", f"line {place + 2}"],
    )


def repeated_row(table: Table) -> None:
    table.rows.append(dict(table.rows[0]))
    table.expected.append(dict(table.expected[0]))
    name = str(table.rows[0]["path"])
    table.kind, table.may_refuse, table.refused_by, table.must_name = "repeated rows", True, [name], [name]


def contradicting_row(table: Table) -> None:
    table.rows.append({**table.rows[0], "label": "another"})
    table.expected.append({**table.expected[0], "label": "another"})
    name = str(table.rows[0]["path"])
    table.kind, table.may_refuse, table.refused_by, table.must_name = "rows that contradict", True, [name], [name]


def backslashes(table: Table) -> None:
    for row in table.rows:
        row["path"] = str(row["path"]).replace("/", "\\")
    table.kind, table.may_refuse, table.refused_by = "backslashes in paths", True, [str(table.rows[0]["path"])]


def deleted_images(table: Table) -> None:
    gone = table.rng.sample(range(len(table.rows)), 2)
    for place in gone:
        (table.folder / str(table.rows[place]["path"])).unlink()
    names = [str(table.rows[place]["path"]) for place in gone]
    table.kind, table.must_refuse, table.refused_by = "deleted images", True, names


def absolute_paths(table: Table) -> None:
    for row in table.rows:
        row["path"] = str(table.folder / str(row["path"]))
    table.kind = "absolute paths"


def other_spelling(table: Table) -> None:
    old = str(table.rows[0]["path"])
    forms = table.rng.sample(["NFC", "NFD"], 2)
    on_disk, in_table = (unicodedata.normalize(form, "cat/Caf\u00e9.png") for form in forms)
    (table.folder / old).rename(table.folder / on_disk)
    table.rows[0]["path"], table.expected[0]["path"] = in_table, on_disk
    table.kind, table.may_refuse, table.refused_by = "paths in NFC and NFD", True, [in_table, on_disk]


def label_spellings(table: Table) -> None:
    for place, form in enumerate(("NFC", "NFD")):
        table.rows[place]["label"] = unicodedata.normalize(form, "Caf\u00e9")
        table.expected[place]["label"] = "Caf\u00e9"
    table.is_parquet = table.rng.random() < 0.5
    table.kind = "labels in NFC and NFD, in a table"


def split_spellings(table: Table) -> None:
    spelling = table.rng.choice([{"train": "training", "test": "Test", "val": "valid"}, dict.fromkeys(SPLITS, "TRAIN")])
    for row, one in zip(table.rows, table.expected, strict=True):
        row["split"] = spelling[str(one["split"])]
        one["split"] = "train" if row["split"] == "TRAIN" else one["split"]
        row["role"], one["role"] = None, ANY
    table.kind, table.may_refuse, table.refused_by = "splits in another spelling", True, sorted(set(spelling.values()))


def unknown_value(table: Table) -> None:
    column = table.rng.choice(["split", "role"])
    table.rows[0][column] = "holdout"
    table.kind, table.must_refuse, table.refused_by = "unknown splits and roles", True, ["holdout"]


def short_line(table: Table) -> None:
    table.tail = table.rng.choice(["cat/9.png,cat\n", "a,b,c,d,e,f,g\n"])
    table.kind, table.must_refuse, table.refused_by = "lines of another length", True, [f"line {len(table.rows) + 2}"]


def blank_lines(table: Table) -> None:
    dialect(table)
    table.tail = table.rng.choice(["\n\n", table.delimiter * 4 + "\n", "   \n", "\r\n"])
    table.kind = "empty lines"


def nothing(table: Table) -> None:
    table.rows, table.expected = [], []
    table.kind, table.must_refuse = "tables without rows", True


MUTATIONS: list[Callable[[Table], None]] = [
    dialect, encoded, latin1, fewer_columns, shuffled_columns, blanks, empty_path, empty_domain, repeated_row,
    contradicting_row, backslashes, deleted_images, absolute_paths, other_spelling, label_spellings, split_spellings,
    unknown_value, short_line, blank_lines, nothing,
]  # fmt: skip


def build(rng: random.Random, folder: Path, mutate: Callable[[Table], None]) -> Table:
    """Eight images in a table, which is changed in one way and written in any dialect; the splits hold both labels."""
    folder.mkdir()
    labels = rng.sample(LABELS, 2)
    rows: list[Row] = []
    for number in range(8):
        path = f"{('cat', 'dog')[number % 2]}/{number}.png"
        save(rng, folder / path)
        split = SPLITS[min(number // 2, 2)] if number < 6 else "train"
        role = rng.choice(["both", None]) if split == "test" else None
        rows.append({"path": path, "label": labels[number % 2], "domain": rng.choice(["pets", "d 2"]), "split": split,
                     "role": role})  # fmt: skip
    if rng.random() < 0.5:
        for row in rows:
            row["role"] = "both" if row["split"] == "test" else None
    table = Table(rng=rng, folder=folder, rows=rows, expected=[dict(row) for row in rows], kind="")
    mutate(table)
    fixed = table.tail or table.is_parquet or table.kind.startswith("CSV")
    if not fixed and rng.random() < 0.5:
        table.delimiter, table.encoding = rng.choice(list(DELIMITERS.values())), rng.choice(list(ENCODINGS))
    return table


def check(rng: random.Random, top: Path, *, turn: int, apart: bool) -> list[Outcome]:
    """Imports a random table and compares every row of the manifest."""
    table = build(rng, top / "table", MUTATIONS[turn % len(MUTATIONS)])
    source = table.write()
    out = top / "m.parquet"
    runner = command_apart if apart else command
    ran = runner("data", "import", "csv", source, "--out", out, "--json")
    if ran.code == 2 and not ran.fault():
        named = not table.refused_by or any(ran.names(name) for name in table.refused_by)
        fine = named and (table.must_refuse or table.may_refuse)
        return [Outcome(kind=table.kind, outcome=REFUSED if fine else WRONG, message=f"refused: {ran.error}")]
    if ran.code or ran.fault():
        return [Outcome(kind=table.kind, outcome=WRONG, message=f"exit code {ran.code}: {ran.error}")]
    faults = ["was imported, expected a refusal"] if table.must_refuse else row_faults(table, out)
    faults += [f"did not name {name}" for name in table.must_name if not ran.names(name)]
    if out.exists() and not table.must_refuse:
        images = json.loads(ran.out)["images"]
        if images != len(table.expected) and not table.must_name:
            faults.append(f"says {images} images, expected {len(table.expected)}")
    return [Outcome(kind=table.kind, outcome=WRONG if faults else RIGHT, message="; ".join(faults[:3]))]


def row_faults(table: Table, out: Path) -> list[str]:
    """Rows are matched by the file that they lead to, so that another order is right too."""
    import pyarrow.parquet

    found = pyarrow.parquet.read_table(out)
    root = os.fsdecode(found.schema.metadata[b"root"])
    faults = []
    rows: dict[str, list[dict[str, Any]]] = {}
    for row in found.to_pylist():
        file = os.path.join(root, row["path"])
        if not os.path.isfile(file):
            faults.append(f"{spelled(row['path'])} leads to no file")
        rows.setdefault(os.path.realpath(file), []).append(row)
    for expected in table.expected:
        file = os.path.realpath(table.folder / str(expected["path"]))
        candidates = rows.get(file, [])
        if not candidates:
            faults.append(f"{spelled(str(expected['path']))} is missing")
        elif not any(is_right(row, expected) for row in candidates) and not table.must_name:
            faults.append(f"{spelled(str(expected['path']))} came out as {candidates[0]}, expected {expected}")
    return faults


def is_right(row: dict[str, Any], expected: dict[str, Any]) -> bool:
    for name in COLUMNS[1:]:
        value, wanted = row[name] or None, expected[name]
        if wanted is ANY and name in ("domain", "split"):
            if not value or (name == "split" and value not in SPLITS):
                return False
        elif wanted is not ANY and value != wanted:
            return False
    return True
