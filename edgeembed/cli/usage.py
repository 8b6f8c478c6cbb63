"""Usage errors in one line: Typer's own lack the value, the remedy or both.

Typer's exceptions are click's in some versions and its own in others, so they are told apart by what they hold.
"""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from typing import Any

from edgeembed.cli.suggestions import set_instead


def usage_message(error: Any, arguments: Sequence[str]) -> str:
    """One line for a usage error of Typer: what, the value, and which help lists what is expected."""
    if instead := set_instead(error, arguments):
        return f"unknown option {error.option_name!r}: recipe keys are set with {instead}"
    if hasattr(error, "possibilities"):
        return unknown_option(error)
    message = with_value(error).rstrip(".")
    return message if error.ctx is None else f"{message}: `{error.ctx.command_path} --help` says what is expected"


def unknown_option(error: Any) -> str:
    """Names the option, and the nearest one of the command or of all commands."""
    known = [
        name
        for context in (error.ctx, error.ctx.find_root())
        for parameter in context.command.get_params(context)
        for name in (*parameter.opts, *parameter.secondary_opts)
        if name.startswith("--")
    ]
    bare = {name.removeprefix("--"): name for name in known}  # the dashes, which all share, make nothing similar
    nearest = difflib.get_close_matches(error.option_name.lstrip("-"), bare, n=1)
    hint = f"did you mean {bare[nearest[0]]}? " if nearest else ""
    return f"unknown option {error.option_name!r}: {hint}`{error.ctx.command_path} --help` lists all"


def with_value(error: Any) -> str:
    """Typer's message, with the refused value in it where pydantic refused it."""
    message = str(error.format_message())
    described = getattr(error.__cause__, "errors", None)
    if described is None:
        return message
    value = described()[0].get("input")
    return message.replace("Invalid value for", f"Invalid value {value!r} for", 1)
