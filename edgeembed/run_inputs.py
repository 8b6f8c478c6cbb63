"""Chooses the run folder, teacher, manifest and target store of a training command, and logs the defaults it takes.

Everything here is checked without torch, so that a wrong path is an error before the slow imports.
"""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from edgeembed.errors import UserError

if TYPE_CHECKING:
    from edgeembed.run_folder import RunFolder
    from edgeembed.student.recipe import DistillRecipe

log = logging.getLogger(__name__)


def choose_run_folder(run: Path | None, out: Path | None, *, resume: bool) -> Path | None:
    """The folder that the argument RUN (only with --resume) or --out names; None where neither is given."""
    if run is not None and not resume:
        raise UserError(f"{run}: a run folder without an option is one to resume: add --resume, or write --out {run}")
    if run is not None and out is not None and run.resolve() != out.resolve():
        raise UserError(f"--resume {run} --out {out}: two run folders: name one")
    return run or out


def input_of_resumed_run(run: RunFolder, name: Literal["data", "teacher"]) -> Path | None:
    """The manifest or teacher that a run to be resumed began with; None where the run does not record it.

    Raises UserError where it no longer exists.
    """
    from edgeembed.training.resume import recorded_input

    path = recorded_input(run, name)
    if path is None:
        return None
    if not path.exists():
        raise UserError(f"{run.path}: its {name} {path} no longer exists: name it with --{name}")
    log.info("%s: %s (the run's)", name, path)
    return path


def choose_teacher(teacher: Path | None) -> Path:
    """The given teacher, checked, or else the latest teacher run."""
    from edgeembed.run_folder import latest_run, require_teacher
    from edgeembed.teacher.pretrained_recipe import is_pretrained_network

    if teacher is not None:
        if is_pretrained_network(teacher.as_posix()):
            raise UserError(f"{teacher}: expected a run folder here: name the one that `teacher-import` wrote")
        require_teacher(teacher)
        return teacher
    latest = latest_run("teacher")
    log.info("teacher: %s (the latest run)", latest)
    return latest


def choose_manifest(teacher: Path) -> Path:
    """The manifest that a teacher was trained on, or whose images its imported embeddings are of."""
    from edgeembed.files import read_json
    from edgeembed.model_json import read_origin

    if (teacher / "source.json").is_file():  # imported embeddings
        manifest = str(read_json(teacher / "source.json").get("manifest"))
    elif (teacher / "model.json").is_file():
        data = read_origin(teacher / "model.json").data
        manifest = str(data and data.manifest)
        if not Path(manifest).is_file():
            raise UserError(f"{teacher}: its data ({manifest}) no longer exists: give a manifest with --data")
    else:
        raise UserError(
            f"{teacher}: holds no finished teacher run: run `edgeembed teacher-train`, or give another --teacher"
        )
    log.info("data: %s (the teacher's)", manifest)
    return Path(manifest)


def check_target_store(recipe: DistillRecipe) -> None:
    """Raises UserError where targets cannot be written to the folder of the recipe key `targets.store`."""
    from edgeembed.files import check_output_folder

    store = recipe.targets.store
    # An existing store may be read-only.
    if store not in ("auto", "none") and not os.path.isfile(os.path.join(store, "targets.json")):
        check_output_folder(Path(store), option="targets.store")


def choose_target_store(store: Path | None, teacher: Path | None) -> Path:
    """The given target store, or else the only one in the teacher's run folder."""
    if store is not None:
        return store
    teacher = choose_teacher(teacher)
    stores = sorted(path.parent for path in teacher.glob("targets/*/targets.json"))
    if len(stores) != 1:
        names = ", ".join(map(str, stores)) or "none; `edgeembed targets build` writes one"
        raise UserError(f"{teacher} has {len(stores)} stores of targets ({names}): give the folder of one")
    return stores[0]
