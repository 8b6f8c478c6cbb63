"""The Python interface: one function for each stage, with the defaults and checks of its command.

`edgeembed.train_teacher`, `import_teacher`, `distill`, `export`, `bench` and `load_student` are these functions, loaded
on first use. The commands call them too, so that a script and a shell write the same files.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from edgeembed.errors import UserError
from edgeembed.files import check_output_folder
from edgeembed.run_inputs import check_target_store, choose_manifest, choose_teacher, input_of_resumed_run

if TYPE_CHECKING:
    from edgeembed.bench.report_schema import Report
    from edgeembed.data.manifest import Manifest
    from edgeembed.device.bundle_schema import BundleManifest
    from edgeembed.eval_json import StudentEvaluation, TeacherEvaluation
    from edgeembed.export.gate import RefusedFile
    from edgeembed.export.recipe import ExportRecipe
    from edgeembed.network.model import EmbeddingModel
    from edgeembed.run_folder import RunFolder
    from edgeembed.teacher.pretrained_recipe import NeckDim, PretrainedNetwork

log = logging.getLogger(__name__)

PathLike: TypeAlias = "str | os.PathLike[str]"


@dataclass(frozen=True, kw_only=True)
class TeacherResult:
    """A finished teacher: its run folder, the id of its embedding space, and what eval.json holds."""

    run: Path
    space_id: str
    evaluation: TeacherEvaluation


@dataclass(frozen=True, kw_only=True)
class StudentResult:
    """A finished student: its run folder, the id of its teacher's embedding space, and what eval.json holds."""

    run: Path
    space_id: str
    evaluation: StudentEvaluation


@dataclass(frozen=True, kw_only=True)
class ExportResult:
    """A bundle on disk, and what its bundle.json holds."""

    bundle: Path
    manifest: BundleManifest


@dataclass(frozen=True, kw_only=True)
class BenchResult:
    """The folder of a report, and what its report.json holds."""

    folder: Path
    report: Report


def train_teacher(
    data: PathLike | Manifest | None = None,
    *,
    recipe: PathLike | None = None,
    out: PathLike | None = None,
    warm_start: PathLike | None = None,
    resume: bool = False,
    overrides: Sequence[str] = (),
    **recipe_keys: Any,
) -> TeacherResult:
    """Trains a teacher, as `edgeembed teacher-train` does.

    Parameters
    ----------
    data
        A manifest, or the path of one (.parquet or .csv). A new run needs it.
    recipe
        Name of a recipe, or path of a YAML file. Default: "vit_h14".
    out
        Run folder to write. Default: "runs/teacher".
    warm_start
        A finished teacher to start from, to add images or classes.
    resume
        Continue the run in `out`, with its own recipe and data.
    overrides
        Recipe keys to change, as `--set` takes them: `["train.epochs=3"]`.
    **recipe_keys
        Recipe keys to change, by section: `train={"epochs": 3}, optim={"lr": 1e-3}`.

    Raises
    ------
    UserError
        For wrong arguments, data or recipe keys, and for a folder that another process trains in.
    CheckFailed
        If the loss is not finite.
    Interrupted
        After Ctrl-C or SIGTERM, with a checkpoint written.
    """
    from edgeembed.config import load_recipe
    from edgeembed.network.model_names import require_backbone
    from edgeembed.run_folder import RunFolder
    from edgeembed.teacher.recipe import TeacherRecipe
    from edgeembed.training.resume import read_run_recipe

    run = RunFolder(path=Path(out or "runs/teacher"))
    run.check_unlocked()
    run.check_start(resume=resume)
    first = {"continue_from": str(warm_start)} if warm_start else {}
    overrides = [*as_overrides(first), *overrides, *as_overrides(recipe_keys)]
    if resume and recipe is None:
        settings = read_run_recipe(run, TeacherRecipe, overrides)
    else:
        settings = load_recipe(TeacherRecipe, kind="teacher", name=str(recipe or "vit_h14"), overrides=overrides)
    require_backbone(settings.backbone.name, settings.backbone.weights)
    manifest = as_manifest(manifest_of_resumed(run, resume=resume) if data is None else data)
    manifest.require_files()

    from edgeembed.teacher.train import train_teacher as train  # imports torch: after the other checks

    evaluation = train(settings, manifest, run, resume=resume)
    return TeacherResult(run=run.path, space_id=space_id_of(run), evaluation=evaluation)


def import_teacher(
    network: str,
    *,
    data: PathLike | Manifest,
    dim: NeckDim = 64,
    size_px: int | None = None,
    out: PathLike | None = None,
    workers: int = 2,
    device: str = "auto",
) -> TeacherResult:
    """Makes a teacher of a pretrained network without training, as `edgeembed teacher-import` does.

    The images need no labels. A finished folder of the same network, settings and data is used as it is.

    Parameters
    ----------
    network
        "timm:NAME" or "open_clip:NAME/TAG", either followed by "@FILE" for weights in a file, or "@none" for random
        ones.
    data
        A manifest, or the path of one, whose training images the PCA is computed from.
    dim
        Number of embedding dimensions, or "features" for all features of the network, without PCA.
    size_px
        Side of the network's input in pixels. Default: the size that it was trained at.
    out
        Run folder to write. Default: runs/timm-NAME or runs/open_clip-NAME-TAG.
    workers
        Processes that decode images.
    device
        "cuda", "mps" or "cpu"; "auto" takes the first of them that there is.

    Raises
    ------
    UserError
        For wrong arguments or data, fewer training images than dimensions, weights that cannot be downloaded, and a
        folder that holds another teacher.
    """
    from edgeembed.run_folder import RunFolder
    from edgeembed.teacher.pretrained_recipe import import_recipe, parse_pretrained_network, require_same_import

    parsed = parse_pretrained_network(network)
    settings = import_recipe(parsed, dim=dim, size_px=size_px)
    run = RunFolder(path=Path(out or parsed.folder))
    check_output_folder(run.path)
    manifest = as_manifest(data)
    manifest.require_files()
    if run.finished:
        from edgeembed.eval_json import TeacherEvaluation, read_evaluation

        require_same_import(run, settings, manifest)
        log.info("teacher: %s was made of this network and these data before: used as it is", run.path)
        evaluation = read_evaluation(run, TeacherEvaluation)
    else:
        run.check_unlocked()
        from edgeembed.teacher.pretrained import import_teacher as make  # imports torch: after the other checks

        evaluation = make(settings, manifest, run, workers=workers, device=device)
    return TeacherResult(run=run.path, space_id=space_id_of(run), evaluation=evaluation)


def distill(
    student: str | Mapping[str, Any] | None = None,
    *,
    teacher: PathLike | None = None,
    data: PathLike | Manifest | None = None,
    recipe: PathLike | None = None,
    out: PathLike | None = None,
    resume: bool = False,
    overrides: Sequence[str] = (),
    **recipe_keys: Any,
) -> StudentResult:
    """Distils a teacher into a student, as `edgeembed distill` does. The images need no labels.

    Parameters
    ----------
    student
        Alias ("vit_b16", "mobilenetv4_s", ...) or name of a timm model, or the recipe section `student` with the keys
        to change: `{"name": "vit_b16", "weights": "none"}`. Default: the recipe's.
    teacher
        Run folder of a finished teacher, or of imported embeddings; or a pretrained network, "timm:NAME" or
        "open_clip:NAME/TAG", which `import_teacher` makes a teacher of. Default: the latest teacher under runs/.
    data
        A manifest, or the path of one. Default: the teacher's.
    recipe
        Name of a recipe, or path of a YAML file. Default: "default".
    out
        Run folder to write. Default: runs/STUDENT.
    resume
        Continue the run in `out`, with its own recipe, teacher and data.
    overrides
        Recipe keys to change, as `--set` takes them.
    **recipe_keys
        Recipe keys to change, by section: `train={"epochs": 3}, loss={"label": 0.1}`.

    Raises
    ------
    UserError, CheckFailed, Interrupted
        As `train_teacher` does.
    """
    from edgeembed.config import load_recipe
    from edgeembed.run_folder import RunFolder
    from edgeembed.student.aliases import require_student
    from edgeembed.student.recipe import DistillRecipe
    from edgeembed.teacher.pretrained_recipe import is_pretrained_network, parse_pretrained_network
    from edgeembed.training.resume import read_run_recipe

    text = "" if teacher is None else Path(teacher).as_posix()
    network = parse_pretrained_network(text) if is_pretrained_network(text) else None
    section = {"name": student} if isinstance(student, str) else dict(student or {})
    overrides = [*as_overrides({"student": section}), *overrides, *as_overrides(recipe_keys)]
    # A resumed run has its own recipe; the recipe also names the default run folder.
    if out is None or not resume or recipe is not None:
        settings = load_recipe(DistillRecipe, kind="student", name=str(recipe or "default"), overrides=overrides)
        out = out or Path("runs") / settings.student.name
    run = RunFolder(path=Path(out))
    run.check_unlocked()
    run.check_start(resume=resume)
    if resume:
        if recipe is None:
            settings = read_run_recipe(run, DistillRecipe, overrides)
        teacher = teacher or input_of_resumed_run(run, "teacher")
        data = data if data is not None else input_of_resumed_run(run, "data")
    require_student(settings.student.name, settings.student.weights)
    check_target_store(settings)
    if network is not None:
        # Before the import, which may take minutes.
        settings.loss.require_class_centres(network.folder)
        data = as_manifest(manifest_of_network(network) if data is None else data)
        result = import_teacher(network.text, data=data, workers=settings.train.workers, device=settings.train.device)
        teacher = result.run
    teacher = choose_teacher(None if teacher is None else Path(teacher))
    settings.loss.require_class_centres(teacher)
    manifest = as_manifest(choose_manifest(teacher) if data is None else data)
    manifest.require_files()

    from edgeembed.student.distill import distill as train  # imports torch: after the other checks

    evaluation = train(settings, manifest, teacher, run, resume=resume)
    return StudentResult(run=run.path, space_id=space_id_of(run), evaluation=evaluation)


def load_student(run: PathLike) -> EmbeddingModel:
    """Returns the network of a finished run, in training mode, to train it further or to use it in PyTorch.

    It takes RGB pixels (B, 3, H, W), 0..255, of an integer type or a floating-point type up to 32 bits, and returns
    unit vectors (B, D), float32. Raises UserError for a folder that holds no finished run, and for an ensemble.
    """
    from edgeembed.run_folder import require_run

    require_run(Path(run))
    from edgeembed.network.model import EmbeddingModel
    from edgeembed.network.model_files import load_model

    model, _ = load_model(Path(run))
    if not isinstance(model, EmbeddingModel):
        raise UserError(f"{run}: is an ensemble: load one of its teachers")
    return model.train()


def export(
    run: PathLike,
    *,
    out: PathLike | None = None,
    precision: str | Sequence[str] = ("fp32", "int8"),
    data: PathLike | None = None,
    recipe: PathLike = "default",
    dim: int | None = None,
    licence: str | None = None,
    notes: str = "",
    accept_worse: bool = False,
    tensorrt: bool = False,
    **recipe_keys: Any,
) -> ExportResult:
    """Exports a run as ONNX files, as `edgeembed export` does; each file is compared with the network on real images.

    Parameters
    ----------
    run
        A finished student or teacher run; with `tensorrt` also a bundle, whose files then get engines.
    out
        Bundle folder to write. Default: bundles/RUN, or the given bundle itself.
    precision
        Some of "fp32", "fp16" and "int8".
    data
        Path of a manifest with the images for calibration and comparison. Default: the run's manifest.
    recipe
        Name of an export recipe, or path of a YAML file.
    dim
        Number of leading embedding dimensions to keep. Default: all.
    licence, notes
        Licence of the weights, and Markdown for the model card.
    accept_worse
        Also write files that fail their gate, marked as such.
    tensorrt
        Also build TensorRT engines for this GPU.
    **recipe_keys
        Recipe keys to change, by section: `gate={"int8": {"map_loss": 0.002}}`.

    Raises
    ------
    UserError
        For wrong arguments, runs or data.
    CheckFailed
        If the gate refused a file; files that passed are written all the same.
    """
    from edgeembed.export.gate import require_nothing_refused

    bundle, manifest, refused = export_unless_refused(
        Path(run),
        out=None if out is None else Path(out),
        precision=precision if isinstance(precision, str) else ",".join(precision),
        data=None if data is None else Path(data),
        recipe=str(recipe),
        overrides=as_overrides(recipe_keys),
        dim=dim,
        licence=licence,
        notes=notes,
        accept_worse=accept_worse,
        tensorrt=tensorrt,
    )
    require_nothing_refused(refused)
    assert manifest is not None  # only a refused fp32 file leaves no bundle
    return ExportResult(bundle=bundle, manifest=manifest)


def export_unless_refused(
    run: Path,
    *,
    out: Path | None,
    precision: str,
    data: Path | None,
    recipe: str,
    overrides: Sequence[str],
    dim: int | None,
    licence: str | None,
    notes: str,
    accept_worse: bool,
    tensorrt: bool,
) -> tuple[Path, BundleManifest | None, list[RefusedFile]]:
    """Exports a run or adds engines to a bundle; returns the folder, its manifest, and the files that were not written.

    The manifest is None where the fp32 file was refused: then nothing is written.
    """
    from edgeembed.config import load_recipe
    from edgeembed.export.recipe import ExportRecipe, parse_precisions
    from edgeembed.run_folder import require_run

    settings = load_recipe(ExportRecipe, kind="export", name=recipe, overrides=overrides)
    is_bundle = (run / "bundle.json").is_file()
    target = out or (run if is_bundle else Path("bundles") / run.resolve().name)
    if is_bundle and not tensorrt:
        raise UserError(f"{run}: is a bundle already: add --tensorrt for engines, --web for a page, or give a run")
    check_output_folder(target, replaced=True)
    if is_bundle:
        manifest, refused = add_engines_to(run, target, precision, data, settings, accept_worse)
    else:
        # Every argument is checked before torch is imported and the network is loaded.
        precisions = parse_precisions(precision)
        require_run(run)
        if data is not None:
            as_manifest(data)
        from edgeembed.export.export import export_run

        manifest, refused = export_run(
            run,
            target,
            precisions=precisions,
            recipe=settings,
            data=data,
            licence=licence,
            notes=notes,
            dim=dim,
            accept_worse=accept_worse,
            tensorrt=tensorrt,
        )
    if manifest is not None:
        log.info("bundle: %s (%s)", target, ", ".join(file.path for file in manifest.files))
        if accept_worse:
            refused = drop_accepted(refused, manifest)
    return target, manifest, refused


def add_engines_to(
    bundle: Path, out: Path, precision: str, data: Path | None, recipe: ExportRecipe, accept_worse: bool
) -> tuple[BundleManifest | None, list[RefusedFile]]:
    """Builds engines from the files of a finished bundle, without torch, and compares them on images of a folder."""
    from edgeembed.device.bundle import read_bundle
    from edgeembed.export.tensorrt.engines import add_engines, read_unlabelled_images

    if data is None:
        raise UserError(f"{bundle}: engines are compared with its files on images: give a folder of them with --data")
    spec = read_bundle(bundle).input
    images = read_unlabelled_images(data, (spec.height, spec.width))
    names = [name.strip() for name in precision.split(",") if name.strip()]
    return add_engines(bundle, out, images, recipe=recipe, precisions=names, accept_worse=accept_worse)


def drop_accepted(refused: Sequence[RefusedFile], manifest: BundleManifest) -> list[RefusedFile]:
    """The refused files that were not written even with `accept_worse`; the written ones are logged."""
    written = {file.path for file in manifest.files}
    for item in refused:
        log.warning("%s is worse than promised, and accepted: %s", item.precision, ", ".join(item.reasons))
    return [item for item in refused if item.path not in written]


def bench(
    bundles: PathLike | Sequence[PathLike] | None = None,
    *,
    data: PathLike | Manifest | None = None,
    teacher: PathLike | None = None,
    out: PathLike = "reports/bench",
    quick: bool = False,
    remember: bool = False,
) -> BenchResult:
    """Measures latency, size, memory and retrieval quality of bundles on this machine, as `edgeembed bench` does.

    Parameters
    ----------
    bundles
        One bundle folder, or several, or names of bundled models. Default: all of the bundled models.
    data
        A manifest, or the path of one. Default: the built-in synthetic data set, rendered on first use.
    teacher
        Run of the bundles' teacher, for the share of its quality that they keep; needs torch.
    out
        Folder for report.json, report.html and plots.
    quick
        Take fewer samples: the same figures with wider intervals.
    remember
        Use the recommended file and runtime by default on this machine from now on.

    Raises
    ------
    UserError
        For wrong arguments, and for a bundle of another embedding space than the teacher's.
    CheckFailed
        If a file differs from its bundle.json, or nothing can run.
    """
    from edgeembed.run_folder import require_run

    out = Path(out)
    check_output_folder(out)
    if teacher is not None:
        require_run(Path(teacher), role="teacher")
    from edgeembed.bench.run import bench as measure
    from edgeembed.device.bundle import read_bundle
    from edgeembed.device.embedder import bundle_folder, bundled_artifacts, default_bundle

    given = [bundles] if isinstance(bundles, (str, os.PathLike)) else bundles or ()
    folders = [bundle_folder(os.fspath(each)) for each in given]
    if not folders:
        folders = bundled_artifacts() or [default_bundle()]
        log.info("bundles that come with the package: %s", ", ".join(folder.name for folder in folders))
    for folder in folders:
        read_bundle(folder)
    # Wrong input and missing packages are errors before the synthetic images are rendered, which takes a minute.
    manifest = None if data is None else as_manifest(data)
    if teacher is not None:
        import edgeembed.bench.teacher  # noqa: F401
    report = measure(
        folders,
        synthetic_data() if manifest is None else manifest,
        teacher=None if teacher is None else Path(teacher),
        out=out,
        quick=quick,
        remember=remember,
    )
    return BenchResult(folder=out, report=report)


def as_manifest(data: PathLike | Manifest) -> Manifest:
    """Reads a manifest where its path is given."""
    from edgeembed.data.manifest import Manifest, read_manifest

    return data if isinstance(data, Manifest) else read_manifest(Path(data))


def manifest_of_network(network: PretrainedNetwork) -> Path:
    """The manifest that the default teacher of a pretrained network was made with. Raises UserError where it is not."""
    if not (network.folder / "model.json").is_file():
        raise UserError(
            f"--data is missing: {network.text} becomes a teacher with the training images of a manifest, on first use"
        )
    return choose_manifest(network.folder)


def manifest_of_resumed(run: RunFolder, *, resume: bool) -> Path:
    """The manifest of a run to be resumed. Raises UserError for a new run, which needs one."""
    if not resume:
        raise UserError("--data is missing: name a manifest, as `edgeembed data import` writes one")
    manifest = input_of_resumed_run(run, "data")
    if manifest is None:
        raise UserError(f"{run.path}: does not record its manifest: name it with --data")
    return manifest


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
    # In this process: new ones would run the script again that called `bench`, unless it guards its main part.
    return write_default_set(folder, manifest_name=name, workers=1)


def space_id_of(run: RunFolder) -> str:
    from edgeembed.model_json import read_origin

    return read_origin(run.model_json).space_id


def as_overrides(recipe_keys: Mapping[str, Any], prefix: str = "") -> list[str]:
    """Recipe keys as `--set` takes them: {"train": {"epochs": 3}} and {"train.epochs": 3} give ["train.epochs=3"].

    Raises UserError for a value that no recipe can hold.
    """
    overrides = []
    for name, value in recipe_keys.items():
        key = f"{prefix}{name}"
        if isinstance(value, Mapping):
            overrides += as_overrides(value, f"{key}.")
        else:
            overrides.append(f"{key}={value if isinstance(value, (str, os.PathLike)) else as_json(key, value)}")
    return overrides


def as_json(key: str, value: Any) -> str:
    """A recipe value as JSON; numbers and arrays of numpy become Python's. Raises UserError that names the key."""
    try:
        return json.dumps(value, default=lambda item: item.tolist())
    except (AttributeError, TypeError, ValueError):
        expected = "a number, text, true or false, None, or a list of these"
        raise UserError(f"{key} = {value!r}: expected {expected}") from None
