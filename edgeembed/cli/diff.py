"""`edgeembed artifacts diff`."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Annotated, Any

import typer

from edgeembed.cli.app import print_json
from edgeembed.cli.artifacts import artifacts_app

log = logging.getLogger(__name__)


@artifacts_app.command("diff")
def diff_artifacts(
    a: Annotated[str, typer.Argument(help="A bundle folder, or FOLDER:PRECISION.")],
    b: Annotated[str, typer.Argument(help="Another one, or the same in another precision.")],
    data: Annotated[
        list[Path] | None,
        typer.Option(help="Images, folders or manifests to embed; may be repeated. Default: 64 synthetic images."),
    ] = None,
    threads: Annotated[int | None, typer.Option(min=1, help="Default: all cores.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON on stdout.")] = False,
) -> None:
    """Compare two bundles, or two precisions of one: `diff mine:fp32 mine:int8 --data photos`.

    Without a precision both sides use the one that the other names, else fp32. Exit code 0 whether or not they differ.
    """
    from edgeembed.cli.inputs import gather_images
    from edgeembed.device.comparison import compare, open_compared_files
    from edgeembed.texts import printable

    side_a, side_b = open_compared_files(a, b)
    files = gather_images(data) if data else None
    result = compare(
        side_a, side_b, files, threads=threads, on_skip=lambda reason: log.warning("skipped: %s", printable(reason))
    )
    if as_json:
        print_json(result)
    else:
        print("\n".join(lines_of(result)))


def lines_of(result: dict[str, Any]) -> list[str]:
    """The comparison for people: one line for each thing that differs."""
    lines = [f"{key}: {side['name']} {side['precision']} ({side['folder']})" for key, side in named(result)]
    lines += section("facts", [line(key, *values) for key, values in result["facts"].items()])
    files = [
        line(f"{name}: {key}", *values) for name, facts in result["files"].items() for key, values in facts.items()
    ]
    lines += section("files", files)
    operators, embeddings = result["operators"], result["embeddings"]
    if operators["compared"]:
        counts = [line(kind, *values) for kind, values in operators["counts"].items()]
        lines += section(f"operators ({operators['nodes'][0]} and {operators['nodes'][1]})", counts)
    else:
        lines += section("operators", [f"not compared: {operators['reason']}"])
    return lines + section("embeddings", embedding_lines(embeddings))


def named(result: dict[str, Any]) -> list[tuple[str, dict[str, str]]]:
    return [(key, result[key]) for key in ("a", "b")]


def section(title: str, lines: list[str]) -> list[str]:
    return [f"{title}:", *(f"  {text}" for text in lines)] if lines else [f"{title}: the same"]


def line(name: str, a: Any, b: Any) -> str:
    return f"{name}: {shown(a)} -> {shown(b)}"


def shown(value: Any) -> str:
    if value is None:
        return "-"
    text = f"{value:.6g}" if isinstance(value, float) else str(value)
    return text if len(text) <= 40 else f"{text[:12]}..."


def embedding_lines(facts: dict[str, Any]) -> list[str]:
    if not facts["compared"]:
        return [f"not compared: {facts['reason']}"]
    images, nearest = facts["images"], facts["same_nearest"]
    lines = [
        f"images: {images} ({facts['source']})",
        f"cosine: p50 {facts['cosine_p50']:.5f}, p1 {facts['cosine_p1']:.5f}, min {facts['cosine_min']:.5f}",
        f"largest difference of a number: {facts['max_abs']:.5f}",
    ]
    return lines if nearest is None else [*lines, f"same nearest neighbour: {nearest} of {images} images"]
