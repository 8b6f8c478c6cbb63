"""`edgeembed artifacts`."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from edgeembed.cli.app import app, print_json

if TYPE_CHECKING:
    from edgeembed.bundle import BundleManifest

log = logging.getLogger(__name__)

ACTIONS = ("list", "verify")


@app.command()
def artifacts(
    action: Annotated[str, typer.Argument(help="list or verify.")] = "list",
    bundle: Annotated[Path | None, typer.Argument(help="A bundle of your own; default: all bundled ones.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON on stdout.")] = False,
) -> None:
    """List the models that come with the package, or verify every file of them."""
    from edgeembed.embedder import ARTIFACTS, bundled_artifacts
    from edgeembed.errors import CheckFailed, UserError, unknown_choice

    if action not in ACTIONS:
        raise unknown_choice("action", action, ACTIONS)
    folders = bundled_artifacts() if bundle is None else [bundle]
    if not folders:
        if action == "verify":
            raise UserError(f"{ARTIFACTS}: no model is bundled: name a bundle to verify")
        log.warning("%s: no model is bundled", ARTIFACTS)
    rows = [row for folder in folders for row in (rows_of(folder) if action == "list" else verify(folder))]
    if as_json:
        print_json({"artifacts" if action == "list" else "files": rows})
    elif rows:
        print_table(rows)
    wrong = [row for row in rows if row.get("ok") is False]
    if wrong:
        raise CheckFailed(f"{len(wrong)} of {len(rows)} files failed verification, first {wrong[0]['result']}")


def rows_of(folder: Path) -> list[dict[str, Any]]:
    """One line a file of a bundle."""
    from edgeembed.bundle import read_bundle

    manifest = read_bundle(folder)
    return [
        {
            "name": manifest.name,
            "file": file.path,
            "precision": file.precision,
            "bytes": file.bytes,
            "space_id": manifest.space_id,
            "licence": manifest.licence,
            "folder": str(folder),
        }
        for file in manifest.files
    ]


def verify(folder: Path) -> list[dict[str, Any]]:
    """Checks each file's checksum, and that each ONNX file runs and gives unit vectors."""
    from edgeembed.bundle import read_bundle, verified_file
    from edgeembed.embedder import verified_onnx
    from edgeembed.errors import CheckFailed, UserError

    manifest = read_bundle(folder)
    rows: list[dict[str, Any]] = []
    for file in manifest.files:
        try:
            if file.path.endswith(".onnx"):
                result = run_once(verified_onnx(folder, manifest, file), manifest)
            else:
                result = f"{verified_file(folder, file).name}: sha256 right"
            ok = True
        except (CheckFailed, UserError) as error:
            result, ok = str(error), False
        rows.append({"name": manifest.name, "file": file.path, "ok": ok, "result": result})
    return rows


def run_once(path: Path, manifest: BundleManifest) -> str:
    """Embeds two grey images. Raises CheckFailed where the output is not what the bundle promises."""
    import numpy as np

    from edgeembed.errors import CheckFailed
    from edgeembed.runtimes import open_session

    session = open_session(path)
    embedding_ND = session.run(np.full((2, manifest.input.height, manifest.input.width, 3), 127, np.uint8))
    if embedding_ND.shape != (2, manifest.embedding.dim):
        raise CheckFailed(f"{path}: gives {embedding_ND.shape}, expected (2, {manifest.embedding.dim})")
    length_N = np.linalg.norm(embedding_ND, axis=1)
    if not np.allclose(length_N, 1.0, atol=1e-3):
        raise CheckFailed(f"{path}: gives vectors of length {length_N[0]:.4f}, expected 1")
    return f"sha256 right, runs on {session.runtime} {session.provider}"


def print_table(rows: list[dict[str, Any]]) -> None:
    """Aligned columns under their names."""
    lines = [list(rows[0]), *([str(value) for value in row.values()] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    for line in lines:
        print("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())
