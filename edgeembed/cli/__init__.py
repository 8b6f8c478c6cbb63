"""Command line of edgeembed; each command imports its stage only when it runs."""

from __future__ import annotations

import sys

from edgeembed.cli import (
    artifacts,
    bench,
    data,
    diff,
    distill,
    doctor,
    embed,
    export,
    quickstart,
    recipes,
    search,
    students,
    targets,
    teacher,
)
from edgeembed.cli.app import run


def main() -> None:
    sys.exit(run())
