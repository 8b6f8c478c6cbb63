"""The command line of edgeembed, one module for each command; a command imports its stage only when it runs."""

from __future__ import annotations

import sys

# Imported for their effect: each module adds its commands to `app`.
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
from edgeembed.cli.streams import make_streams_safe


def main() -> None:
    """Runs the command line of this process and exits with its exit code."""
    make_streams_safe()
    sys.exit(run())
