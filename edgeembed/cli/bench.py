"""`edgeembed bench`."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from edgeembed.cli.app import app, print_json

if TYPE_CHECKING:
    from edgeembed.data.manifest import Manifest

log = logging.getLogger(__name__)


@app.command()
def bench(
    bundles: Annotated[
        list[Path] | None, typer.Argument(metavar="BUNDLE", help="Bundle folders; default: the bundled model.")
    ] = None,
    data: Annotated[Path | None, typer.Option(help="Manifest; default: the embedded data set.")] = None,
    teacher: Annotated[
        Path | None,
        typer.Option(help="The run that the bundles were distilled from, to say how much they keep; needs torch."),
    ] = None,
    out: Annotated[Path, typer.Option(help="Folder for report.json, report.html and pictures.")] = Path(
        "reports/bench"
    ),
    quick: Annotated[bool, typer.Option("--quick", help="Fewer samples; the same figures, less certain.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the report on stdout.")] = False,
) -> None:
    """Measure speed, size, memory and retrieval of bundles on this machine, beside their teacher."""
    from edgeembed.files import check_output_folder

    check_output_folder(out)
    if teacher is not None:
        import edgeembed.bench.teacher  # noqa: F401  # a missing torch should be told before images are rendered
    from edgeembed.bench.run import bench as measure
    from edgeembed.bundle import read_bundle
    from edgeembed.data.manifest import read_manifest
    from edgeembed.embedder import default_bundle

    if not bundles:
        bundles = [default_bundle()]
        log.info("bundle: %s (comes with the package)", bundles[0])
    for folder in bundles:
        read_bundle(folder)  # and so should a wrong name
    manifest = read_manifest(data) if data is not None else embedded_data()
    report = measure(bundles, manifest, teacher=teacher, out=out, quick=quick)
    if as_json:
        print_json(report)


def embedded_data() -> Manifest:
    """The embedded data set, rendered on first use and kept in the user's cache."""
    from edgeembed import __version__
    from edgeembed.data.embedded import write_embedded
    from edgeembed.data.manifest import read_manifest
    from edgeembed.run import cache_folder

    folder, name = cache_folder() / f"synthetic-{__version__}", "manifest.csv"  # Parquet would need pyarrow
    if (folder / name).is_file():
        log.info("data: the embedded data set, in %s", folder)
        return read_manifest(folder / name)
    log.info("data: the embedded data set, rendered into %s, once", folder)
    return write_embedded(folder, manifest_name=name)
