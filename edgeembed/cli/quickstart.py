"""`edgeembed quickstart`: the whole way on the embedded default data."""

from __future__ import annotations

import logging
import time
from pathlib import Path
from typing import Annotated, Any

import typer

from edgeembed.cli.app import app, print_json

log = logging.getLogger(__name__)

INSTANCES, VIEWS, SIZE_PX, SEED = 240, 10, 160, 0


@app.command()
def quickstart(
    out: Annotated[Path, typer.Option(help="Folder for everything; an interrupted run is continued.")] = Path(
        "runs/quickstart"
    ),
    as_json: Annotated[bool, typer.Option("--json", help="Print the report as JSON on stdout.")] = False,
) -> None:
    """Render images, train a teacher, distil and export a student, and report on both: minutes on two CPU cores."""
    from edgeembed.bench.terminal import print_summary
    from edgeembed.files import check_output_folder
    from edgeembed.locks import locked

    check_output_folder(out)
    with locked(out, instead="choose another --out"):
        report = run_stages(out)
    log.info("\ndone: open %s", out / "report.html")
    if as_json:
        print_json(report)
    else:
        print_summary(report)


def run_stages(out: Path) -> dict[str, Any]:
    """All stages, in a folder that this process has locked; those that an interrupted run finished are not repeated."""
    from edgeembed.bench.run import bench
    from edgeembed.config import load_recipe
    from edgeembed.data.default_set import write_embedded
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

    announce(1, f"rendering {INSTANCES} things, {VIEWS} photographs each")
    manifest_path = out / "data" / "manifest.parquet"
    if manifest_path.is_file():
        manifest = read_manifest(manifest_path)
    else:
        manifest = write_embedded(out / "data", num_instances=INSTANCES, num_views=VIEWS, size_px=SIZE_PX, seed=SEED)

    announce(2, "training the teacher")
    teacher = RunFolder(path=out / "teacher")
    teacher_recipe = load_recipe(TeacherRecipe, kind="teacher", name="quickstart")
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
    return bench([out / "bundle"], manifest, teacher=teacher.path, out=out, batches=(1,), quick=True)
