"""Prints results for people: tables with aligned columns, and lists of named values."""

from __future__ import annotations

from collections.abc import Mapping, Sequence


def print_table(rows: Sequence[Mapping[str, object]]) -> None:
    """Prints rows under the names of their columns; nothing for an empty table."""
    if not rows:
        return
    lines = [list(rows[0]), *([str(value) for value in row.values()] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    for line in lines:
        print("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())


def print_values(values: Mapping[str, object]) -> None:
    """Prints one line for each value: its name, then the value, floats with four decimals."""
    width = max(map(len, values), default=0)
    for name, value in values.items():
        print(f"{name:{width}} {value:.4f}" if isinstance(value, float) else f"{name:{width}} {value}")
