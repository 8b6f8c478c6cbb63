"""`edgeembed recipes`: list and show recipes."""

from __future__ import annotations

import dataclasses
import itertools
import re
from collections.abc import Iterator
from typing import Annotated

import typer

from edgeembed.cli import completion
from edgeembed.cli.app import app, print_json
from edgeembed.cli.help import CommandGroup
from edgeembed.cli.options import Json

recipes_app = typer.Typer(
    cls=CommandGroup, help="List the bundled recipes, or show one recipe with all its keys.", rich_markup_mode=None
)
app.add_typer(recipes_app, name="recipes", invoke_without_command=True)

KINDS = ("teacher", "student", "export")


@recipes_app.callback()
def recipes(context: typer.Context, as_json: Json = False) -> None:
    """List the bundled recipes, or show one recipe with all its keys."""
    from edgeembed.errors import UserError

    if context.invoked_subcommand is None:
        list_recipes(as_json)
    # Typer gives an option before the subcommand to this callback: the subcommand would not see it.
    elif as_json:
        raise UserError(f"--json: write it after {context.invoked_subcommand!r}")


@recipes_app.command("list")
def list_recipes(as_json: Json = False) -> None:
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
        str | None, typer.Option(help="teacher, student or export; default: every kind that has a recipe of this name.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Show a recipe: its header, its stages, and every key with its value, its meaning and its allowed values.

    The output is itself a recipe: save it to a .yaml file, edit it, and give the file as --recipe.
    """
    from edgeembed.config import Section, is_recipe_file, load_recipe, recipe_names, recipe_text
    from edgeembed.errors import unknown_choice
    from edgeembed.export.recipe import ExportRecipe
    from edgeembed.recipe_keys import explain, explained_yaml
    from edgeembed.student.recipe import DistillRecipe
    from edgeembed.teacher.recipe import TeacherRecipe

    types: dict[str, type[Section]] = {"teacher": TeacherRecipe, "student": DistillRecipe, "export": ExportRecipe}
    if kind is not None and kind not in types:
        raise unknown_choice("kind", kind, types)
    # One name may be a recipe of several kinds, as `default` is: then all are shown.
    kinds = [kind] if kind else [kind for kind in KINDS if name in recipe_names(kind)]
    if not kinds and is_recipe_file(name):  # a file has no kind of its own: its keys tell
        kinds = [kind_of(recipe_text("teacher", name))]
    if not kinds:
        raise unknown_choice("recipe", name, {known for kind in KINDS for known in recipe_names(kind)})
    recipes = {kind: load_recipe(types[kind], kind=kind, name=name) for kind in kinds}
    if as_json:
        explained = {kind: explain(recipe) for kind, recipe in recipes.items()}
        keys_of = {
            kind: {key: dataclasses.asdict(info) for key, info in keys.items()} for kind, keys in explained.items()
        }
        print_json({"name": name, **keys_of})
        return
    for kind, recipe in recipes.items():
        # Headings are YAML comments, so that the output is a recipe.
        print(f"# --- {kind} recipe {name} ---")
        print("".join(header_of(recipe_text(kind, name))).rstrip())
        if isinstance(recipe, TeacherRecipe) and recipe.stages:
            print("#\n# Stages:")
            for number, (stage, settings) in enumerate(recipe.resolve_stages(), start=1):
                print(f"# {number}. {stage}: {settings.summary()}")
        print("\n# --- resolved ---")
        print(explained_yaml(recipe))


def header_of(text: str) -> Iterator[str]:
    """The comment lines at the start of a recipe file."""
    return itertools.takewhile(lambda line: line.startswith("#"), text.splitlines(keepends=True))


def kind_of(text: str) -> str:
    """The kind of a recipe file, by the groups of keys that only one kind has."""
    if re.search(r"^student:", text, re.MULTILINE):
        return "student"
    return "export" if re.search(r"^(gate|int8):", text, re.MULTILINE) else "teacher"
