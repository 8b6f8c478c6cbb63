"""Hooks of MkDocs: generate commands.md from the command line, and take in pages that live outside docs/."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import typer.main
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

import edgeembed.cli  # registers every command with the app
from edgeembed.cli.app import app

ROOT = Path(edgeembed.cli.__file__).parents[2]
OUTSIDE = {"CONTRIBUTING.md": "contributing.md", "CHANGELOG.md": "changelog.md"}
RESULTS = "benchmarks/results"
TWO_INTERVALS = re.compile(r"\](?= ?\[(over |[-+]?[.\d]))")
LINK_OUT_OF_DOCS = re.compile(rf"\]\(\.\./({'|'.join(map(re.escape, OUTSIDE))}|{RESULTS}/[\w.]+)")
LINK_INTO_DOCS = re.compile(r"\]\(docs/")

COMMANDS_INTRODUCTION = """# Commands

This page is generated from the command line. `edgeembed COMMAND --help` prints the same.

Results go to stdout, logs and progress to stderr. `--json` prints one JSON object, alone, on stdout.

| exit code | meaning |
|---|---|
| 0 | done |
| 1 | it ran and failed: a gate, a checksum |
| 2 | wrong usage, wrong input, or a missing package |
| 130, 143 | stopped by Ctrl-C or SIGTERM, with finished work kept |

A closed pipe (`| head -1`) changes none of them.

Before or after any command, `--quiet` leaves results, warnings and errors; `-v` logs more, with time and module;
`--debug` shows a traceback. `edgeembed --install-completion` lets the shell complete commands, recipes, bundles and
runs.

A character that a terminal or pipe has no code for is printed as an escape (`\\u5199`), in names and messages alike.
JSON is ASCII with the same escapes, and names that are not UTF-8 come back from it unchanged.
"""


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds the pages that are not files of docs/."""
    pages = {"commands.md": commands_page(), "benchmarks/index.md": results_index()}
    for source, page in OUTSIDE.items():
        # Their links are relative to the root of the repository.
        pages[page] = LINK_INTO_DOCS.sub("](", (ROOT / source).read_text(encoding="utf-8"))
    for path in sorted((ROOT / RESULTS).glob("*.md")):
        pages[f"benchmarks/{path.name}"] = path.read_text(encoding="utf-8")
    for page, text in pages.items():
        files.append(File.generated(config, page, content=text))
    for path in sorted((ROOT / RESULTS).glob("*.svg")):
        files.append(File.generated(config, f"benchmarks/{path.name}", abs_src_path=str(path)))
    return files


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Turns links that leave docs/, as they must in the repository, into links to the pages of the site.

    Of two intervals, "[.52, .66] [.50, .68]", Markdown would make a link: the first bracket is escaped.
    """
    markdown = TWO_INTERVALS.sub(r"\]", markdown)
    return LINK_OUT_OF_DOCS.sub(lambda match: f"]({page_of(match[1])}", markdown)


def page_of(path: str) -> str:
    return OUTSIDE.get(path) or path.replace(RESULTS, "benchmarks")


def results_index() -> str:
    lines = ["# Measurements", "", "Each page names its command, its machine and its data.", ""]
    for path in sorted((ROOT / RESULTS).glob("*.md")):
        title = path.read_text(encoding="utf-8").splitlines()[0].removeprefix("# ")
        lines.append(f"- [{title}]({path.name})")
    return "\n".join(lines) + "\n"


def commands_page() -> str:
    """Every command with its help and options, as the command line itself knows them."""
    root = typer.main.get_command(app)
    lines = [COMMANDS_INTRODUCTION]
    for name, command in all_commands(root, "edgeembed"):
        lines += command_section(name, command)
    return "\n".join(lines) + "\n"


def all_commands(command: Any, name: str) -> Iterator[tuple[str, Any]]:
    """A command and, after it, the commands of its group; hidden ones are left out."""
    yield name, command
    for child, inner in getattr(command, "commands", {}).items():
        if not inner.hidden:
            yield from all_commands(inner, f"{name} {child}")


def command_section(name: str, command: Any) -> list[str]:
    context = command.make_context(name, [], resilient_parsing=True)
    lines = [f"## `{name}`", "", *paragraphs(command.help or ""), ""]
    if children := [child for child, inner in getattr(command, "commands", {}).items() if not inner.hidden]:
        links = (f"[`{child}`](#{anchor(f'{name} {child}')})" for child in children)
        lines += ["Commands: " + ", ".join(links) + ".", ""]
    if records := [record for param in command.params if (record := param.get_help_record(context)) is not None]:
        lines += ["| argument or option | meaning |", "|---|---|"]
        lines += [f"| `{cell(left)}` | {cell(right)} |" for left, right in records]
        lines.append("")
    return lines


def paragraphs(text: str) -> list[str]:
    return [line.strip() for line in text.splitlines()]


def anchor(name: str) -> str:
    return name.replace(" ", "-")


def cell(text: str) -> str:
    """Text as one cell of a Markdown table."""
    return " ".join(text.split()).replace("|", "\\|")
