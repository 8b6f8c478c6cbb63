"""`edgeembed quickstart`: all stages, from images to a report, on the built-in synthetic data."""

from __future__ import annotations

import logging
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from edgeembed.cli.app import app, print_json
from edgeembed.cli.options import Json

if TYPE_CHECKING:
    from edgeembed.bench.report_schema import Report

log = logging.getLogger(__name__)

NUM_INSTANCES, NUM_VIEWS, SIZE_PX, SEED = 240, 10, 160, 0


@app.command()
def quickstart(
    out: Annotated[
        Path, typer.Option(help="Folder for all results; an interrupted quickstart in it is resumed.")
    ] = Path("runs/quickstart"),
    as_json: Json = False,
) -> None:
    """Render images, train a teacher, distil and export a student, and measure both: minutes on two CPU cores."""
    from edgeembed.bench.terminal import print_summary
    from edgeembed.files import check_output_folder
    from edgeembed.locks import locked
    from edgeembed.signals import Interrupted

    check_output_folder(out)
    with locked(out, instead="choose another --out"):
        try:
            report = run_stages(out)
        except Interrupted as stop:  # a run in the folder says how it alone is resumed
            raise Interrupted(stop.signum, f"kept in {out}, continue with the same `edgeembed quickstart`") from None
    log.info("\ndone: open %s", out / "report.html")
    if as_json:
        print_json(report.as_json())
    else:
        print_summary(report)


def run_stages(out: Path) -> Report:
    """Runs all stages in a folder that this process has locked, and returns the report.

    Stages that an earlier, interrupted quickstart finished are not repeated.
    """
    from edgeembed.bench.run import bench
    from edgeembed.config import load_recipe
    from edgeembed.data.default_set import write_default_set
    from edgeembed.data.manifest import read_manifest
    from edgeembed.export.export import export_run
    from edgeembed.export.gate import require_nothing_refused
    from edgeembed.run_folder import RunFolder
    from edgeembed.student.distill import distill
    from edgeembed.student.recipe import DistillRecipe
    from edgeembed.teacher.recipe import TeacherRecipe
    from edgeembed.teacher.train import train_teacher

    started = time.monotonic()

    def announce(number: int, text: str) -> None:
        log.info("\n[%d/5, %.0f s] %s", number, time.monotonic() - started, text)

    announce(1, f"rendering {NUM_INSTANCES} objects, {NUM_VIEWS} images of each")
    manifest_path = out / "data" / "manifest.parquet"
    # The manifest is written last: where it exists, all images do.
    if manifest_path.is_file():
        manifest = read_manifest(manifest_path)
    else:
        manifest = write_default_set(
            out / "data", num_instances=NUM_INSTANCES, num_views=NUM_VIEWS, size_px=SIZE_PX, seed=SEED
        )

    announce(2, "training the teacher")
    teacher = RunFolder(path=out / "teacher")
    teacher_recipe = load_recipe(TeacherRecipe, kind="teacher", name="quickstart")
    # With `resume` a finished run is not trained again.
    train_teacher(teacher_recipe, manifest, teacher, resume=teacher.started)

    announce(3, "distilling the student")
    student = RunFolder(path=out / "student")
    recipe = load_recipe(DistillRecipe, kind="student", name="quickstart")
    distill(recipe, manifest, teacher.path, student, resume=student.started)

    announce(4, "exporting and checking ONNX files")
    _, refused = export_run(
        student.path, out / "bundle", precisions=["fp32", "int8"], licence="Apache-2.0", name="quickstart"
    )
    require_nothing_refused(refused)

    announce(5, "measuring")
    # One image at a time, as on a device.
    return bench([out / "bundle"], manifest, teacher=teacher.path, out=out, batches=(1,), quick=True)
