"""`edgeembed artifacts diff`."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Annotated, Any

import typer

from edgeembed.cli.app import print_json
from edgeembed.cli.artifacts import artifacts_app
from edgeembed.cli.options import Json, Threads

log = logging.getLogger(__name__)


@artifacts_app.command("diff")
def diff_artifacts(
    a: Annotated[str, typer.Argument(help="A bundle folder, or FOLDER:PRECISION.")],
    b: Annotated[str, typer.Argument(help="Another bundle, or the same bundle with another precision.")],
    data: Annotated[
        list[Path] | None,
        typer.Option(help="Images, folders or manifests to embed, repeatable; default: 64 synthetic images."),
    ] = None,
    threads: Threads = None,
    as_json: Json = False,
) -> None:
    """Compare two bundles, or two precisions of one bundle: `diff mine:fp32 mine:int8 --data photos`.

    A side without a precision takes that of the other side, or else fp32. The exit code is 0 whether or not the sides
    differ.
    """
    from edgeembed.cli.inputs import gather_images
    from edgeembed.device.comparison import compare, open_compared_files
    from edgeembed.texts import printable

    side_a, side_b = open_compared_files(a, b)
    # None: `compare` makes synthetic images.
    files = gather_images(data) if data else None
    result = compare(
        side_a, side_b, files, threads=threads, on_skip=lambda reason: log.warning("skipped: %s", printable(reason))
    )
    if as_json:
        print_json(result)
    else:
        print("\n".join(describe_comparison(result)))


def describe_comparison(result: dict[str, Any]) -> list[str]:
    """The lines that are printed for a comparison: one for each difference, in sections."""
    lines = [f"{key}: {result[key]['name']} {result[key]['precision']} ({result[key]['folder']})" for key in ("a", "b")]
    # From the general to the particular: bundle, files, operators, embeddings.
    lines += section("facts", [difference(key, *values) for key, values in result["facts"].items()])
    files = [
        difference(f"{name}: {key}", *values)
        for name, facts in result["files"].items()
        for key, values in facts.items()
    ]
    lines += section("files", files)
    operators, embeddings = result["operators"], result["embeddings"]
    if operators["compared"]:
        counts = [difference(kind, *values) for kind, values in operators["counts"].items()]
        lines += section(f"operators ({operators['nodes'][0]} and {operators['nodes'][1]})", counts)
    else:
        lines += section("operators", [f"not compared: {operators['reason']}"])
    return lines + section("embeddings", describe_embeddings(embeddings))


def section(title: str, lines: list[str]) -> list[str]:
    """Indented lines under a title; where there are none, the two sides are the same."""
    return [f"{title}:", *(f"  {text}" for text in lines)] if lines else [f"{title}: the same"]


def difference(name: str, a: Any, b: Any) -> str:
    """One line for a value that differs: "opset: 17 -> 18"."""
    return f"{name}: {short_text(a)} -> {short_text(b)}"


def short_text(value: Any) -> str:
    """A value in at most 40 characters; "-" for None."""
    if value is None:
        return "-"
    text = f"{value:.6g}" if isinstance(value, float) else str(value)
    # Longer values are mostly checksums: their first characters tell them apart.
    return text if len(text) <= 40 else f"{text[:12]}..."


def describe_embeddings(facts: dict[str, Any]) -> list[str]:
    """The lines for the comparison of embeddings: cosines, largest difference, equal nearest neighbours."""
    if not facts["compared"]:
        return [f"not compared: {facts['reason']}"]
    images, same_nearest = facts["images"], facts["same_nearest"]
    lines = [
        f"images: {images} ({facts['source']})",
        f"cosine: p50 {facts['cosine_p50']:.5f}, p1 {facts['cosine_p1']:.5f}, min {facts['cosine_min']:.5f}",
        f"largest difference in one dimension: {facts['max_abs']:.5f}",
    ]
    return lines if same_nearest is None else [*lines, f"same nearest neighbour: {same_nearest} of {images} images"]
