"""`edgeembed bench`."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from edgeembed.cli import completion
from edgeembed.cli.app import app, print_json
from edgeembed.cli.options import Bundles, Json

if TYPE_CHECKING:
    from edgeembed.data.manifest import Manifest

log = logging.getLogger(__name__)


@app.command()
def bench(
    bundles: Bundles = None,
    data: Annotated[
        Path | None, typer.Option(help="Manifest; default: the built-in synthetic data set, rendered on first use.")
    ] = None,
    teacher: Annotated[
        Path | None,
        typer.Option(
            help="Run of the bundles' teacher, to report how much of its retrieval quality they keep; needs torch.",
            autocompletion=completion.runs,
        ),
    ] = None,
    out: Annotated[Path, typer.Option(help="Folder for report.json, report.html and plots.")] = Path("reports/bench"),
    quick: Annotated[
        bool, typer.Option("--quick", help="Take fewer samples: the same figures with wider intervals.")
    ] = False,
    remember: Annotated[
        bool,
        typer.Option("--remember", help="Use the recommended file and runtime by default on this machine from now on."),
    ] = False,
    as_json: Json = False,
) -> None:
    """Measure latency, size, memory and retrieval quality of bundles on this machine, beside their teacher's.

    The report recommends the fastest file whose embeddings agree on this machine with those of the bundle's fp32 file.
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
    # Wrong input and missing packages are errors before the synthetic images are rendered, which takes a minute.
    manifest = read_manifest(data) if data is not None else None
    if teacher is not None:
        import edgeembed.bench.teacher  # noqa: F401
    report = measure(
        bundles,
        synthetic_data() if manifest is None else manifest,
        teacher=teacher,
        out=out,
        quick=quick,
        remember=remember,
    )
    if as_json:
        print_json(report.as_json())
    else:
        print_summary(report)


def synthetic_data() -> Manifest:
    """The built-in synthetic data set, rendered on first use and kept in the user's cache folder."""
    from edgeembed import __version__
    from edgeembed.data.default_set import write_default_set
    from edgeembed.data.manifest import read_manifest
    from edgeembed.files import cache_folder

    folder, name = cache_folder() / f"synthetic-{__version__}", "manifest.csv"  # Parquet would need pyarrow
    if (folder / name).is_file():
        log.info("data: the built-in synthetic data set, in %s", folder)
        return read_manifest(folder / name)
    log.info("data: the built-in synthetic data set, rendered into %s, once", folder)
    return write_default_set(folder, manifest_name=name)
