"""Options and arguments that several commands share, as annotated types."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from edgeembed.cli import completion

Json = Annotated[bool, typer.Option("--json", help="Print the result as one JSON object on stdout.")]
KeyOverrides = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="KEY=VALUE",
        help="Override a key of the recipe; repeatable. `edgeembed recipes show NAME` lists the keys.",
    ),
]

# Training
RunToResume = Annotated[Path | None, typer.Argument(metavar="[RUN]", help="Run folder to resume, with --resume.")]
Resume = Annotated[
    bool, typer.Option("--resume", help="Resume RUN, or the run in --out, with the recipe and data it began with.")
]
TeacherRun = Annotated[
    Path | None,
    typer.Option(
        help="Finished teacher run, or a folder that `targets import` wrote; default: the latest run under runs/.",
        autocompletion=completion.runs,
    ),
]
AnyTeacher = Annotated[
    Path | None,
    typer.Option(
        help="Finished teacher run; a folder that `targets import` wrote; or a pretrained network, timm:NAME or "
        "open_clip:NAME/TAG (see `teacher-import`); default: the latest run under runs/.",
        autocompletion=completion.runs,
    ),
]
TeacherData = Annotated[Path | None, typer.Option(help="Manifest; default: the one that the teacher was trained on.")]

# Models on the device
Bundles = Annotated[
    list[Path] | None,
    typer.Argument(
        metavar="BUNDLE",
        help="Bundle folders, or names of bundles that come with the package, which `artifacts` lists; default: all of "
        "these (bench), or the default of `embed` (doctor).",
        autocompletion=completion.bundles,
    ),
]
Precision = Annotated[
    str | None, typer.Option(help="fp32, fp16 or int8; default: the fastest file that `doctor` measured, else fp32.")
]
Runtime = Annotated[
    str | None, typer.Option(help="onnxruntime or openvino; default: the fastest that `doctor` measured.")
]
Provider = Annotated[
    str | None,
    typer.Option(
        help="Execution provider of ONNX Runtime (cuda, coreml, ...) or OpenVINO device (gpu, npu); default: cpu."
    ),
]
Threads = Annotated[int | None, typer.Option(min=1, help="Number of threads; default: one for each core.")]
