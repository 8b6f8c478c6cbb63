"""Starts and resumes training runs: compares recipe and inputs with those that the folder records."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

import yaml

from edgeembed.config import Section, validate
from edgeembed.errors import UserError
from edgeembed.files import read_json
from edgeembed.recipe_keys import set_key
from edgeembed.run_folder import RunFolder

log = logging.getLogger(__name__)

# Keys that decide how a run computes, and what it reports, but not which weights it reaches.
FREE_KEYS = (
    "description", "eval.batch_size", "eval.every_steps", "targets.key", "targets.store", "train.cache",
    "train.checkpoint_every_steps", "train.device", "train.keep_checkpoints", "train.workers",
)  # fmt: skip
MOST_NAMED = 6
SECTION_OF = {"head": "teacher", "student": "student"}  # sections of config.yaml that only one kind of run has
COMMANDS = {"teacher": "teacher-train", "student": "distill"}
OLD_DATA_ID = re.compile(r"[0-9a-f]{16}")  # of earlier versions: shorter, and without the images' bytes
OLD_HEADER = re.compile(r"# teacher (\w+), data (\w+)\n")  # of a student's config.yaml, before there was inputs.json

RecipeT = TypeVar("RecipeT", bound=Section)


def begin_run(
    run: RunFolder, recipe: Section, config_yaml: str, inputs: Mapping[str, Mapping[str, Any]], *, resume: bool
) -> None:
    """Prepares the folder for a new run, or checks that the one in it can go on with this recipe and these inputs.

    `inputs` holds what was read, by name (`data`, `teacher`), each with an `id` that two equal ones share and a `path`.
    Raises UserError that names every key, or input, which differs.
    """
    run.check_start(resume=resume)
    if run.started and not run.checkpoints() and not run.finished:
        log.warning("%s: holds a run without checkpoints: starting again", run.path)
    elif run.started:
        kept = run.config.read_text(encoding="utf-8")
        differing = [*_differing_inputs(run, kept, inputs), *_differing_keys(run, kept, recipe)]
        if differing:
            more = f" and {len(differing) - MOST_NAMED} more" if len(differing) > MOST_NAMED else ""
            raise UserError(
                f"{run.config}: differs from what is requested: {'; '.join(differing[:MOST_NAMED])}{more}: "
                f"`--resume {run.path}` alone goes on as the run began, or choose another --out"
            )
    if run.finished:
        log.warning("%s: already finished, nothing to resume", run.path)
    else:
        run.begin(config_yaml, inputs)


def recipe_in(run: RunFolder, recipe_type: type[RecipeT], overrides: list[str]) -> RecipeT:
    """The recipe that a run was begun with, and some keys of it changed. Raises UserError where it cannot be read."""
    values = _values(run, run.config.read_text(encoding="utf-8"))
    others = [kind for key, kind in SECTION_OF.items() if key in values and key not in recipe_type.model_fields]
    if others:
        raise UserError(f"{run.path}: holds a {others[0]} run: `edgeembed {COMMANDS[others[0]]} --resume {run.path}`")
    for override in overrides:
        set_key(values, override, recipe_type)
    return validate(recipe_type, values, source=str(run.config))


def input_of(run: RunFolder, name: str) -> Path | None:
    """Where a run's `data` or `teacher` lay when it began; None where the run does not record it."""
    kept = read_json(run.inputs).get(name) if run.inputs.is_file() else None
    path = kept.get("path") if isinstance(kept, dict) else None
    return Path(path) if path else None


def _values(run: RunFolder, config_yaml: str) -> dict[str, Any]:
    try:
        values = yaml.safe_load(config_yaml)
    except (yaml.YAMLError, ValueError):
        values = None
    if not isinstance(values, dict):
        raise UserError(f"{run.config}: damaged, holds no recipe: choose another --out")
    return values


def _differing_keys(run: RunFolder, kept: str, recipe: Section) -> Iterator[str]:
    """Keys that decide the result and have another value in the run; keys that came later count with their defaults."""
    stored = validate(type(recipe), _values(run, kept), source=str(run.config))
    in_run, requested = (dict(_leaves(one.model_dump(mode="json"))) for one in (stored, recipe))
    for key in [*requested, *(key for key in in_run if key not in requested)]:
        if in_run.get(key) != requested.get(key):
            text = f"{key} is {in_run.get(key)!r} in the run, {requested.get(key)!r} requested"
            if key in FREE_KEYS:
                log.info("%s: %s", run.path, text)
            else:
                yield text


def _differing_inputs(run: RunFolder, kept: str, inputs: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    in_run: Mapping[str, Any] = {}
    if run.inputs.is_file():
        in_run = read_json(run.inputs)
    elif header := OLD_HEADER.match(kept):
        in_run = {"teacher": {"id": header[1]}, "data": {"id": header[2]}}
    for name, requested in inputs.items():
        known = in_run.get(name)
        if isinstance(known, dict) and known.get("id") != requested["id"]:
            text = f"{name} is {_input_text(known)} in the run, {_input_text(requested)} requested"
            if name == "data" and OLD_DATA_ID.fullmatch(str(known.get("id"))):
                log.warning(
                    "%s: %s: not compared, as an earlier version computed the run's fingerprint", run.path, text
                )
            else:
                yield text


def _input_text(facts: Mapping[str, Any]) -> str:
    return f"{facts.get('id')} ({facts['path']})" if facts.get("path") else str(facts.get("id"))


def _leaves(value: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted keys and values; the stages of a recipe are numbered from 0, as `--set stages.0.train.epochs=3` does."""
    if isinstance(value, dict):
        for key, item in value.items():
            yield from _leaves(item, f"{prefix}.{key}" if prefix else str(key))
    elif isinstance(value, list) and any(isinstance(item, dict) for item in value):
        for number, item in enumerate(value):
            yield from _leaves(item, f"{prefix}.{number}")
    else:
        yield prefix, value
