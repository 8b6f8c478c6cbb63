"""`edgeembed artifacts`."""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from edgeembed.cli import completion
from edgeembed.cli.app import app, print_json
from edgeembed.cli.help import CommandGroup

if TYPE_CHECKING:
    from edgeembed.device.bundle_schema import BundleManifest

log = logging.getLogger(__name__)

artifacts_app = typer.Typer(
    cls=CommandGroup, help="Bundles: list, verify, compare, pack into one file, unpack.", rich_markup_mode=None
)
app.add_typer(artifacts_app, name="artifacts", invoke_without_command=True)

Bundle = Annotated[
    Path | None,
    typer.Argument(help="A bundle of your own; default: all bundled ones.", autocompletion=completion.bundles),
]
Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON on stdout.")]


@artifacts_app.callback()
def artifacts(context: typer.Context, as_json: Json = False) -> None:
    """Bundles: list those that come with the package, verify, pack, unpack or compare any."""
    from edgeembed.errors import UserError

    if context.invoked_subcommand is None:
        list_artifacts(None, as_json)
    elif as_json:
        raise UserError(f"--json: write it after {context.invoked_subcommand!r}")


@artifacts_app.command("list")
def list_artifacts(bundle: Bundle = None, as_json: Json = False) -> None:
    """List every file of the models that come with the package, or of BUNDLE."""
    from edgeembed.device.embedder import ARTIFACTS, bundled_artifacts

    folders = bundled_artifacts() if bundle is None else [bundle]
    if not folders:
        log.warning("%s: no model is bundled", ARTIFACTS)
    rows = [row for folder in folders for row in rows_of(folder)]
    print_rows("artifacts", rows, as_json)


@artifacts_app.command("verify")
def verify_artifacts(bundle: Bundle = None, as_json: Json = False) -> None:
    """Check every file's checksum, and run every network once."""
    from edgeembed.device.embedder import ARTIFACTS, bundled_artifacts
    from edgeembed.errors import CheckFailed, UserError

    folders = bundled_artifacts() if bundle is None else [bundle]
    if not folders:
        raise UserError(f"{ARTIFACTS}: no model is bundled: name a bundle to verify")
    rows = [row for folder in folders for row in verify(folder)]
    print_rows("files", rows, as_json)
    wrong = [row for row in rows if not row["ok"]]
    if wrong:
        raise CheckFailed(f"{len(wrong)} of {len(rows)} files failed verification, first {wrong[0]['result']}")


@artifacts_app.command("pack")
def pack_artifact(
    bundle: Annotated[Path, typer.Argument(help="A bundle folder.", autocompletion=completion.bundles)],
    out: Annotated[Path | None, typer.Option(help="Default: BUNDLE.edgeembed.zip beside the folder.")] = None,
    as_json: Json = False,
) -> None:
    """Write a bundle as one file; the same bundle gives the same bytes on any machine."""
    from edgeembed.device.bundle import PACKED_SUFFIX
    from edgeembed.device.packing import pack
    from edgeembed.files import check_output_file, sha256_of

    out = out or Path(os.path.abspath(bundle) + PACKED_SUFFIX)
    check_output_file(out)
    size = pack(bundle, out)
    sha256 = sha256_of(out)
    log.info("%s: %d bytes, sha256 %s", out, size, sha256)
    if as_json:
        print_json({"out": str(out), "bytes": size, "sha256": sha256})


@artifacts_app.command("unpack")
def unpack_artifact(
    file: Annotated[Path, typer.Argument(help="What `edgeembed artifacts pack` wrote.")],
    out: Annotated[
        Path | None, typer.Option(help="Default: beside FILE, without its suffix. A bundle that is there is replaced.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Check a packed bundle and make it a folder, whole or not at all."""
    from edgeembed.device.bundle import PACKED_SUFFIX
    from edgeembed.device.packing import unpack
    from edgeembed.errors import UserError
    from edgeembed.files import check_output_folder

    if out is None:
        if not file.name.removesuffix(PACKED_SUFFIX) or not file.name.endswith(PACKED_SUFFIX):
            raise UserError(f"{file}: its name does not end in {PACKED_SUFFIX}: name the folder with --out")
        out = file.with_name(file.name.removesuffix(PACKED_SUFFIX))
    check_output_folder(out, replaced=True)
    manifest = unpack(file, out)
    log.info("bundle: %s (%s)", out, ", ".join(stored.path for stored in manifest.files))
    if as_json:
        print_json({"out": str(out), "name": manifest.name, "space_id": manifest.space_id})


def rows_of(folder: Path) -> list[dict[str, Any]]:
    """One line a file of a bundle."""
    from edgeembed.device.bundle import read_bundle

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
    from edgeembed.device.bundle import read_bundle, stored_files, verified_file
    from edgeembed.device.bundle_schema import BundleFile
    from edgeembed.device.embedder import verified_with_weights
    from edgeembed.errors import CheckFailed, UserError

    manifest = read_bundle(folder)
    rows: list[dict[str, Any]] = []
    for file in stored_files(manifest):
        try:
            if isinstance(file, BundleFile) and file.path.endswith(".onnx"):
                runs = run_once(verified_with_weights(folder, manifest, file), manifest)
                result = "; ".join([runs, *(f"in {runtime} {text}" for runtime, text in file.not_shown.items())])
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

    from edgeembed.device.bundle import check_shapes, check_unit_length
    from edgeembed.device.runtimes import open_session
    from edgeembed.errors import CheckFailed

    session = open_session(path)
    check_shapes(path, manifest, session.input_shape, session.output_shape)
    embedding_ND = session.run(np.full((2, manifest.input.height, manifest.input.width, 3), 127, np.uint8))
    if embedding_ND.shape != (2, manifest.embedding.dim):
        raise CheckFailed(f"{path}: gives {embedding_ND.shape}, expected (2, {manifest.embedding.dim})")
    check_unit_length(path, embedding_ND)
    return f"sha256 right, runs on {session.runtime} {session.provider}"


def print_rows(name: str, rows: list[dict[str, Any]], as_json: bool) -> None:
    """As JSON, or as aligned columns under their names."""
    if as_json:
        print_json({name: rows})
    elif rows:
        print_table(rows)


def print_table(rows: list[dict[str, Any]]) -> None:
    lines = [list(rows[0]), *([str(value) for value in row.values()] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    for line in lines:
        print("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())
