"""Starts and resumes training runs: a resumed run must have the recipe and the inputs that its folder records."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

import yaml

from edgeembed.config import Section, to_yaml, validate
from edgeembed.data.manifest import Manifest
from edgeembed.errors import UserError
from edgeembed.files import read_json
from edgeembed.recipe_keys import flatten, set_key
from edgeembed.run_folder import RunFolder

log = logging.getLogger(__name__)

KEYS_THAT_MAY_DIFFER = (
    "description", "eval.batch_size", "eval.every_steps", "targets.key", "targets.store", "train.cache",
    "train.checkpoint_every_steps", "train.device", "train.keep_checkpoints", "train.workers",
)  # fmt: skip
"""They change how a run computes and what it reports, but not the weights that it ends with."""
MAX_NAMED_DIFFERENCES = 6
SECTION_OF = {"head": "teacher", "student": "student"}  # sections of config.yaml that only one kind of run has
COMMANDS = {"teacher": "teacher-train", "student": "distill"}
OLD_DATA_ID = re.compile(r"[0-9a-f]{16}")  # of earlier versions: shorter, and without the images' bytes
OLD_HEADER = re.compile(r"# teacher (\w+), data (\w+)\n")  # of a student's config.yaml, before there was inputs.json

RecipeT = TypeVar("RecipeT", bound=Section)


@dataclass(frozen=True, kw_only=True)
class RunInput:
    """The data or the teacher of a run: an id that two equal inputs share, and where it was read from, if anywhere."""

    id: str
    path: str | None


def data_input(manifest: Manifest) -> RunInput:
    """The manifest as an input of a run."""
    return RunInput(id=manifest.fingerprint, path=str(manifest.source or "") or None)


def begin_run(run: RunFolder, recipe: Section, inputs: Mapping[str, RunInput], *, resume: bool) -> None:
    """Prepares the folder for a new run, or checks that the run in it can continue with this recipe and these inputs.

    `inputs` are by name, `data` and `teacher`. Raises UserError that names every key and input that differs.
    """
    run.check_start(resume=resume)
    # A failed start has trained nothing, so that recipe and inputs may differ.
    if run.started and not run.checkpoints() and not run.finished:
        log.warning("%s: holds a run without checkpoints: starting again", run.path)
    elif run.started and (differing := differences(run, recipe, inputs)):
        num_more = len(differing) - MAX_NAMED_DIFFERENCES
        more = f" and {num_more} more" if num_more > 0 else ""
        raise UserError(
            f"{run.config}: differs from what is requested: {'; '.join(differing[:MAX_NAMED_DIFFERENCES])}{more}: "
            f"continue the run unchanged with `--resume {run.path}` alone, or choose another --out"
        )
    if run.finished:
        log.warning("%s: already finished, nothing to resume", run.path)
    else:
        run.begin(to_yaml(recipe), {name: asdict(each) for name, each in inputs.items()})


def differences(run: RunFolder, recipe: Section, inputs: Mapping[str, RunInput]) -> list[str]:
    """Describes the inputs, and the keys that decide the result, in which a run differs from what is requested."""
    config_yaml = run.config.read_text(encoding="utf-8")
    return [*_differing_inputs(run, config_yaml, inputs), *_differing_keys(run, config_yaml, recipe)]


def read_run_recipe(run: RunFolder, recipe_type: type[RecipeT], overrides: list[str]) -> RecipeT:
    """The recipe that a run began with, with `overrides` (`key=value`) applied.

    Raises UserError where config.yaml cannot be read, or is that of a run of another kind.
    """
    values = _parse_config(run, run.config.read_text(encoding="utf-8"))
    others = [kind for key, kind in SECTION_OF.items() if key in values and key not in recipe_type.model_fields]
    if others:
        raise UserError(f"{run.path}: holds a {others[0]} run: `edgeembed {COMMANDS[others[0]]} --resume {run.path}`")
    for override in overrides:
        set_key(values, override, recipe_type)
    return validate(recipe_type, values, source=str(run.config))


def recorded_input(run: RunFolder, name: str) -> Path | None:
    """Where a run's `data` or `teacher` was when it began; None where the run does not record it."""
    recorded = _recorded_inputs(run).get(name)
    return Path(recorded.path) if recorded and recorded.path else None


def _recorded_inputs(run: RunFolder) -> dict[str, RunInput]:
    """What inputs.json holds; entries that are not readable are left out."""
    if not run.inputs.is_file():
        return {}
    return {
        name: RunInput(id=str(facts.get("id")), path=facts.get("path"))
        for name, facts in read_json(run.inputs).items()
        if isinstance(facts, dict)
    }


def _parse_config(run: RunFolder, config_yaml: str) -> dict[str, Any]:
    try:
        values = yaml.safe_load(config_yaml)
    except (yaml.YAMLError, ValueError):
        values = None
    if not isinstance(values, dict):
        raise UserError(f"{run.config}: damaged, holds no recipe: choose another --out")
    return values


def _differing_keys(run: RunFolder, config_yaml: str, recipe: Section) -> Iterator[str]:
    """Describes keys that decide the result and have another value in the run.

    A key that the run's version did not have yet counts with its default.
    """
    stored = validate(type(recipe), _parse_config(run, config_yaml), source=str(run.config))
    in_run, requested = (dict(flatten(one.model_dump(mode="json"))) for one in (stored, recipe))
    for key in [*requested, *(key for key in in_run if key not in requested)]:
        if in_run.get(key) != requested.get(key):
            text = f"{key} is {in_run.get(key)!r} in the run, {requested.get(key)!r} requested"
            if key in KEYS_THAT_MAY_DIFFER:
                log.info("%s: %s", run.path, text)
            else:
                yield text


def _differing_inputs(run: RunFolder, config_yaml: str, inputs: Mapping[str, RunInput]) -> Iterator[str]:
    """Describes inputs that have another id in the run."""
    in_run = _recorded_inputs(run)
    if not run.inputs.is_file() and (header := OLD_HEADER.match(config_yaml)):
        in_run = {"teacher": RunInput(id=header[1], path=None), "data": RunInput(id=header[2], path=None)}
    for name, requested in inputs.items():
        recorded = in_run.get(name)
        # None: the version that began the run did not record it.
        if recorded is None or recorded.id == requested.id:
            continue
        text = f"{name} is {_describe(recorded)} in the run, {_describe(requested)} requested"
        if name == "data" and OLD_DATA_ID.fullmatch(recorded.id):
            log.warning("%s: %s: not compared, as an earlier version computed the run's fingerprint", run.path, text)
        else:
            yield text


def _describe(each: RunInput) -> str:
    return f"{each.id} ({each.path})" if each.path else each.id
