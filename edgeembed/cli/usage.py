"""Usage errors in one line, with the wrong value and a remedy, which Typer's own messages often lack.

Some versions of Typer raise click's exceptions and others their own, so they are told apart by their attributes.
"""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pydantic import BaseModel


def usage_message(error: Any, arguments: Sequence[str]) -> str:
    """One line for a usage error of Typer: what is wrong, the value, and which help lists what is expected."""
    if suggestion := set_suggestion(error, arguments):
        return f"unknown option {error.option_name!r}: recipe keys are set with {suggestion}"
    # Only the error for an unknown option has this attribute.
    if hasattr(error, "possibilities"):
        return unknown_option(error)
    message = with_value(error).rstrip(".")
    return message if error.ctx is None else f"{message}: `{error.ctx.command_path} --help` says what is expected"


def unknown_option(error: Any) -> str:
    """The message for an unknown option, with the most similar one of the command or of all commands."""
    known = [
        name
        for context in (error.ctx, error.ctx.find_root())
        for parameter in context.command.get_params(context)
        for name in (*parameter.opts, *parameter.secondary_opts)
        if name.startswith("--")
    ]
    # Compared without the dashes, which would make all options similar.
    without_dashes = {name.removeprefix("--"): name for name in known}
    nearest = difflib.get_close_matches(error.option_name.lstrip("-"), without_dashes, n=1)
    hint = f"did you mean {without_dashes[nearest[0]]}? " if nearest else ""
    return f"unknown option {error.option_name!r}: {hint}`{error.ctx.command_path} --help` lists all"


def with_value(error: Any) -> str:
    """Typer's message; where pydantic refused a value, with that value."""
    message = str(error.format_message())
    described = getattr(error.__cause__, "errors", None)
    if described is None:
        return message
    value = described()[0].get("input")
    return message.replace("Invalid value for", f"Invalid value {value!r} for", 1)


def set_suggestion(error: Any, arguments: Sequence[str]) -> str:
    """`--set train.epochs=3` for an unknown option `--epochs 3`; empty where the command has no such recipe key.

    `error` is Typer's error for the option, `arguments` is the command line.
    """
    option: str = getattr(error, "option_name", None) or ""
    context = getattr(error, "ctx", None)
    command = context.info_name if option and context is not None else None
    # `build` is `targets build`: the context knows the last word only.
    if command not in ("teacher-train", "distill", "build", "export"):
        return ""
    try:
        from edgeembed.export.recipe import ExportRecipe
        from edgeembed.recipe_keys import key_named, known_keys
        from edgeembed.student.recipe import DistillRecipe
        from edgeembed.teacher.recipe import TeacherRecipe
    except ModuleNotFoundError:  # recipes need yaml, which the base install lacks
        return ""

    types: dict[str, type[BaseModel]] = {"teacher-train": TeacherRecipe, "export": ExportRecipe}
    recipe_type = types.get(command, DistillRecipe)
    key = key_named(option.lstrip("-").replace("-", "_"), known_keys(recipe_type))
    return f"--set {key}={value_of(option, arguments)}" if key else ""


def value_of(option: str, arguments: Sequence[str]) -> str:
    """The value of an option on the command line; the word `VALUE` where it has none."""
    # `--` behind the last argument is no value.
    for argument, following in zip(arguments, [*arguments[1:], "--"], strict=True):
        if argument.startswith(f"{option}="):
            return argument.partition("=")[2]
        if argument == option and not following.startswith("--"):
            return following
    return "VALUE"
