"""`edgeembed bench`."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from edgeembed.cli import completion
from edgeembed.cli.app import app, print_json

if TYPE_CHECKING:
    from edgeembed.data.manifest import Manifest

log = logging.getLogger(__name__)


@app.command()
def bench(
    bundles: Annotated[
        list[Path] | None,
        typer.Argument(
            metavar="BUNDLE", help="Bundle folders; default: the bundled model.", autocompletion=completion.bundles
        ),
    ] = None,
    data: Annotated[Path | None, typer.Option(help="Manifest; default: the embedded data set.")] = None,
    teacher: Annotated[
        Path | None,
        typer.Option(
            help="The run that the bundles were distilled from, to say how much they keep; needs torch.",
            autocompletion=completion.runs,
        ),
    ] = None,
    out: Annotated[Path, typer.Option(help="Folder for report.json, report.html and pictures.")] = Path(
        "reports/bench"
    ),
    quick: Annotated[bool, typer.Option("--quick", help="Fewer samples; the same figures, less certain.")] = False,
    remember: Annotated[
        bool,
        typer.Option("--remember", help="Use what is recommended by default on this machine from now on."),
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the report on stdout.")] = False,
) -> None:
    """Measure speed, size, memory and retrieval of bundles on this machine, beside their teacher.

    Recommended is the fastest file whose embeddings agree on this machine with those of the bundle's fp32 file.
    """
    from edgeembed.files import check_output_folder
    from edgeembed.run_folder import require_run

    check_output_folder(out)
    if teacher is not None:
        require_run(teacher, role="teacher")
    from edgeembed.bench.run import bench as measure
    from edgeembed.bench.terminal import print_summary
    from edgeembed.data.manifest import read_manifest
    from edgeembed.device.bundle import read_bundle
    from edgeembed.device.embedder import default_bundle

    if not bundles:
        bundles = [default_bundle()]
        log.info("bundle: %s (comes with the package)", bundles[0])
    for folder in bundles:
        read_bundle(folder)
    given = read_manifest(data) if data is not None else None
    if teacher is not None:
        import edgeembed.bench.teacher  # noqa: F401  # a missing torch is an error before images are rendered
    manifest = given if given is not None else embedded_data()
    report = measure(bundles, manifest, teacher=teacher, out=out, quick=quick, remember=remember)
    if as_json:
        print_json(report.as_json())
    else:
        print_summary(report)


def embedded_data() -> Manifest:
    """The embedded data set, rendered on first use and kept in the user's cache."""
    from edgeembed import __version__
    from edgeembed.data.default_set import write_embedded
    from edgeembed.data.manifest import read_manifest
    from edgeembed.files import cache_folder

    folder, name = cache_folder() / f"synthetic-{__version__}", "manifest.csv"  # Parquet would need pyarrow
    if (folder / name).is_file():
        log.info("data: the embedded data set, in %s", folder)
        return read_manifest(folder / name)
    log.info("data: the embedded data set, rendered into %s, once", folder)
    return write_embedded(folder, manifest_name=name)
