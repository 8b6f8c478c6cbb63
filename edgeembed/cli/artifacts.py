"""`edgeembed artifacts`: list, verify, pack and unpack bundles."""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from edgeembed.cli import completion
from edgeembed.cli.app import app, print_json
from edgeembed.cli.help import CommandGroup
from edgeembed.cli.options import Json
from edgeembed.cli.tables import print_table

if TYPE_CHECKING:
    from edgeembed.device.bundle_schema import BundleManifest

log = logging.getLogger(__name__)

artifacts_app = typer.Typer(
    cls=CommandGroup, help="List, verify, compare, pack or unpack bundles.", rich_markup_mode=None
)
# Without a subcommand the callback runs, and lists the bundles.
app.add_typer(artifacts_app, name="artifacts", invoke_without_command=True)

Bundle = Annotated[
    Path | None,
    typer.Argument(
        help="A bundle folder, or the name of a bundle that comes with the package; default: all of those.",
        autocompletion=completion.bundles,
    ),
]


@artifacts_app.callback()
def artifacts(context: typer.Context, as_json: Json = False) -> None:
    """List the bundles that come with the package; verify, compare, pack or unpack any bundle."""
    from edgeembed.errors import UserError

    if context.invoked_subcommand is None:
        list_artifacts(None, as_json)
    # Typer gives an option before the subcommand to this callback: the subcommand would not see it.
    elif as_json:
        raise UserError(f"--json: write it after {context.invoked_subcommand!r}")


@artifacts_app.command("list")
def list_artifacts(bundle: Bundle = None, as_json: Json = False) -> None:
    """List the files of the bundles that come with the package, or of BUNDLE."""
    from edgeembed.device.embedder import ARTIFACTS, bundle_folder, bundled_artifacts

    folders = bundled_artifacts() if bundle is None else [bundle_folder(bundle)]
    if not folders:
        log.warning("%s: no model is bundled", ARTIFACTS)
    rows = [row for folder in folders for row in describe_files(folder)]
    print_rows("artifacts", rows, as_json)


@artifacts_app.command("verify")
def verify_artifacts(bundle: Bundle = None, as_json: Json = False) -> None:
    """Check the checksum of every file, and run every ONNX file once."""
    from edgeembed.device.embedder import ARTIFACTS, bundle_folder, bundled_artifacts
    from edgeembed.errors import CheckFailed, UserError

    folders = bundled_artifacts() if bundle is None else [bundle_folder(bundle)]
    if not folders:
        raise UserError(f"{ARTIFACTS}: no model is bundled: name a bundle to verify")
    rows = [row for folder in folders for row in verify_files(folder)]
    print_rows("files", rows, as_json)
    failed = [row for row in rows if not row["ok"]]
    if failed:
        raise CheckFailed(f"{len(failed)} of {len(rows)} files failed verification, first {failed[0]['result']}")


@artifacts_app.command("pack")
def pack_artifact(
    bundle: Annotated[Path, typer.Argument(help="A bundle folder.", autocompletion=completion.bundles)],
    out: Annotated[
        Path | None, typer.Option(help="File to write; default: BUNDLE.edgeembed.zip beside the folder.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Pack a bundle into one file; the same bundle gives the same bytes on any machine."""
    from edgeembed.device.bundle import PACKED_SUFFIX
    from edgeembed.device.packing import pack
    from edgeembed.files import check_output_file, sha256_of

    # Absolute, because `.` has no name to put a suffix behind.
    out = out or Path(os.path.abspath(bundle) + PACKED_SUFFIX)
    check_output_file(out)
    size = pack(bundle, out)
    sha256 = sha256_of(out)
    log.info("%s: %d bytes, sha256 %s", out, size, sha256)
    if as_json:
        print_json({"out": str(out), "bytes": size, "sha256": sha256})


@artifacts_app.command("unpack")
def unpack_artifact(
    file: Annotated[Path, typer.Argument(help="File that `edgeembed artifacts pack` wrote.")],
    out: Annotated[
        Path | None,
        typer.Option(help="Folder to write; default: FILE without its suffix. A bundle in that place is replaced."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Verify a packed bundle and unpack it into a folder; nothing is written where it is damaged."""
    from edgeembed.device.bundle import PACKED_SUFFIX
    from edgeembed.device.packing import unpack
    from edgeembed.errors import UserError
    from edgeembed.files import check_output_folder

    if out is None:
        # A file that is called just like the suffix leaves no name for the folder.
        if not file.name.removesuffix(PACKED_SUFFIX) or not file.name.endswith(PACKED_SUFFIX):
            raise UserError(f"{file}: its name does not end in {PACKED_SUFFIX}: name the folder with --out")
        out = file.with_name(file.name.removesuffix(PACKED_SUFFIX))
    check_output_folder(out, replaced=True)
    manifest = unpack(file, out)
    log.info("bundle: %s (%s)", out, ", ".join(stored.path for stored in manifest.files))
    if as_json:
        print_json({"out": str(out), "name": manifest.name, "space_id": manifest.space_id})


def describe_files(folder: Path) -> list[dict[str, Any]]:
    """One row for each file of a bundle."""
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


def verify_files(folder: Path) -> list[dict[str, Any]]:
    """One row for each file: whether its checksum is right and, for ONNX, whether it runs and gives unit vectors."""
    from edgeembed.device.bundle import read_bundle, stored_files, verified_file
    from edgeembed.device.bundle_schema import BundleFile
    from edgeembed.device.embedder import verified_with_weights
    from edgeembed.errors import CheckFailed, UserError

    manifest = read_bundle(folder)
    rows: list[dict[str, Any]] = []
    for file in stored_files(manifest):  # all of them, so that the table shows every damaged file
        try:
            if isinstance(file, BundleFile) and file.path.endswith(".onnx"):
                # The checksum first: a damaged file is not run.
                text = run_once(verified_with_weights(folder, manifest, file), manifest)
                result = "; ".join([text, *(f"in {runtime} {reason}" for runtime, reason in file.not_shown.items())])
            else:
                result = f"{verified_file(folder, file).name}: sha256 right"
            ok = True
        except (CheckFailed, UserError) as error:
            result, ok = str(error), False
        rows.append({"name": manifest.name, "file": file.path, "ok": ok, "result": result})
    return rows


def run_once(path: Path, manifest: BundleManifest) -> str:
    """Embeds two grey images. Raises CheckFailed where the output differs from what bundle.json describes."""
    import numpy as np

    from edgeembed.device.bundle import check_shapes, check_unit_length
    from edgeembed.device.runtimes import open_session
    from edgeembed.errors import CheckFailed

    session = open_session(path)
    check_shapes(path, manifest, session.input_shape, session.output_shape)
    # Two images, so that a file with a fixed batch of 1 fails.
    embedding_ND = session.run(np.full((2, manifest.input.height, manifest.input.width, 3), 127, np.uint8))
    if embedding_ND.shape != (2, manifest.embedding.dim):
        raise CheckFailed(f"{path}: returns {embedding_ND.shape}, expected (2, {manifest.embedding.dim})")
    check_unit_length(path, embedding_ND)
    return f"sha256 right, runs on {session.runtime} {session.provider}"


def print_rows(name: str, rows: list[dict[str, Any]], as_json: bool) -> None:
    """Prints rows as JSON under a key, or as a table."""
    if as_json:
        print_json({name: rows})
    else:
        print_table(rows)
