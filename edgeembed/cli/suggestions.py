"""Suggests `--set KEY=VALUE` for an unknown option that has the name of a recipe key."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pydantic import BaseModel


def set_instead(error: Any, arguments: Sequence[str]) -> str:
    """`--set train.epochs=3` for `--epochs 3`; empty where no recipe key of the command has this name.

    `error` is Typer's for an unknown option, `arguments` the command line.
    """
    option: str = getattr(error, "option_name", None) or ""
    context = getattr(error, "ctx", None)
    command = context.info_name if option and context is not None else None
    if command not in ("teacher-train", "distill", "build", "export"):
        return ""
    try:
        from edgeembed.export.recipe import ExportRecipe
        from edgeembed.recipe_keys import key_named, known_keys
        from edgeembed.student.recipe import DistillRecipe
        from edgeembed.teacher.recipe import TeacherRecipe
    except ModuleNotFoundError:  # recipes need yaml, which a device need not have
        return ""

    types: dict[str, type[BaseModel]] = {"teacher-train": TeacherRecipe, "export": ExportRecipe}
    recipe_type = types.get(command, DistillRecipe)
    key = key_named(option.lstrip("-").replace("-", "_"), known_keys(recipe_type))
    return f"--set {key}={value_of(option, arguments)}" if key else ""


def value_of(option: str, arguments: Sequence[str]) -> str:
    """The value that an option was given on the command line; `VALUE` where it stands alone."""
    for argument, following in zip(arguments, [*arguments[1:], "--"], strict=True):
        if argument.startswith(f"{option}="):
            return argument.partition("=")[2]
        if argument == option and not following.startswith("--"):
            return following
    return "VALUE"
