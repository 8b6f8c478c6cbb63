"""Formats the help of command groups as plain text and suggests the nearest command for a mistyped one."""

from __future__ import annotations

from typing import Any

import typer
from typer.core import TyperGroup

from edgeembed.errors import unknown_choice

PANELS = {
    "Quick start": ("quickstart",),
    "Images": ("data",),
    "Training": ("recipes", "teacher-train", "teacher-import", "teacher-join", "students", "targets", "distill"),
    "Export and measurement": ("export", "bench", "doctor", "artifacts"),
    "On the device": ("embed", "search"),
}
"""The headings in the help of `edgeembed` and the commands under each, in the order in which they are used."""

GLOBAL_OPTIONS_NOTE = "Every command also takes --quiet, --verbose and --debug: `edgeembed --help` explains them."
SHORT_HELP_CHARACTERS = 200  # long sentences are wrapped, not cut off


class CommandGroup(TyperGroup):
    """A group that lists its commands under headings, prints help without arguments and suggests similar names."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        for command in self.commands.values():
            command.epilog = command.epilog or GLOBAL_OPTIONS_NOTE

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        # `resilient_parsing` is on while the shell completes a command: nothing may be printed then.
        if not args and self.no_args_is_help and not ctx.resilient_parsing:
            print(ctx.get_help())
            raise typer.Exit()
        return super().parse_args(ctx, args)

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        if not ctx.resilient_parsing and args[0] not in self.commands and not args[0].startswith("-"):
            raise unknown_choice(f"{ctx.command_path} command", args[0], self.commands, similarity=0.6)
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        rows = {}
        for name in self.list_commands(ctx):
            command = self.get_command(ctx, name)
            if command is not None and not command.hidden:
                rows[name] = command.get_short_help_str(limit=SHORT_HELP_CHARACTERS)
        listed = {name for names in PANELS.values() for name in names}
        # Commands that no panel names come last, so that none is hidden.
        panels = {**PANELS, "Commands": tuple(name for name in rows if name not in listed)}
        for panel, names in panels.items():
            if present := [(name, rows[name]) for name in names if name in rows]:
                with formatter.section(panel):
                    formatter.write_dl(present)
