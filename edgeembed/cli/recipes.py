"""`edgeembed recipes`."""

from __future__ import annotations

import re
from typing import Annotated

import typer

from edgeembed.cli import completion
from edgeembed.cli.app import app, print_json
from edgeembed.cli.help import CommandGroup

recipes_app = typer.Typer(cls=CommandGroup, help="List the recipes, or show one.", rich_markup_mode=None)
app.add_typer(recipes_app, name="recipes", invoke_without_command=True)

KINDS = ("teacher", "student", "export")


@recipes_app.callback()
def recipes(
    context: typer.Context, as_json: Annotated[bool, typer.Option("--json", help="Print JSON on stdout.")] = False
) -> None:
    """List the recipes, or show one."""
    from edgeembed.errors import UserError

    if context.invoked_subcommand is None:
        list_recipes(as_json)
    elif as_json:
        raise UserError(f"--json: write it after {context.invoked_subcommand!r}")


@recipes_app.command("list")
def list_recipes(as_json: Annotated[bool, typer.Option("--json", help="Print JSON on stdout.")] = False) -> None:
    """List every bundled recipe with the first line of its header."""
    from edgeembed.config import recipe_names, recipe_text

    names = {kind: recipe_names(kind) for kind in KINDS}
    if as_json:
        print_json(names)
        return
    for kind in KINDS:
        for name in names[kind]:
            title = recipe_text(kind, name).splitlines()[0].lstrip("# ")
            print(f"{kind:8} {name:14} {title}")


@recipes_app.command("show")
def show_recipe(
    name: Annotated[
        str, typer.Argument(help="Recipe name, or a .yaml file.", autocompletion=completion.recipes(*KINDS))
    ],
    kind: Annotated[
        str | None, typer.Option(help="teacher, student or export; default: both, or what a file is.")
    ] = None,
) -> None:
    """Print a recipe: its text, its stages in words, and every key with its value."""
    from edgeembed.config import Section, load_recipe, recipe_names, recipe_text, to_yaml
    from edgeembed.errors import unknown_choice
    from edgeembed.export.recipe import ExportRecipe
    from edgeembed.student.recipe import DistillRecipe
    from edgeembed.teacher.recipe import TeacherRecipe

    types: dict[str, type[Section]] = {"teacher": TeacherRecipe, "student": DistillRecipe, "export": ExportRecipe}
    if kind is not None and kind not in types:
        raise unknown_choice("kind", kind, types)
    kinds = [kind] if kind else [each for each in KINDS if name in recipe_names(each)]
    if not kinds and name.endswith((".yaml", ".yml")):
        kinds = [kind_of(recipe_text("teacher", name))]
    if not kinds:
        raise unknown_choice("recipe", name, {each for one in KINDS for each in recipe_names(one)})
    for each in kinds:
        print(f"# --- {each} recipe {name} ---")
        print(recipe_text(each, name).rstrip())
        recipe = load_recipe(types[each], kind=each, name=name)
        if isinstance(recipe, TeacherRecipe) and recipe.stages:
            print("\n# --- stages ---")
            for number, (stage, settings) in enumerate(recipe.resolve_stages(), start=1):
                print(f"# {number}. {stage}: {settings.explain()}")
        print("\n# --- resolved ---")
        print(to_yaml(recipe))


def kind_of(text: str) -> str:
    """What a recipe file is for, by the groups of keys that only one kind has."""
    if re.search(r"^student:", text, re.MULTILINE):
        return "student"
    return "export" if re.search(r"^(gate|int8):", text, re.MULTILINE) else "teacher"
