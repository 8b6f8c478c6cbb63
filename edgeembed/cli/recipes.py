"""`edgeembed recipes`."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator
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
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON on stdout.")] = False,
) -> None:
    """A recipe's header, its stages in words, and every key with its value, what it means and what is allowed.

    The output is a recipe itself: save it to a .yaml file, change it, and give the file as --recipe.
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
    kinds = [kind] if kind else [each for each in KINDS if name in recipe_names(each)]
    if not kinds and is_recipe_file(name):
        kinds = [kind_of(recipe_text("teacher", name))]
    if not kinds:
        raise unknown_choice("recipe", name, {each for one in KINDS for each in recipe_names(one)})
    recipes = {each: load_recipe(types[each], kind=each, name=name) for each in kinds}
    if as_json:
        print_json({"name": name, **{each: explain(recipe) for each, recipe in recipes.items()}})
        return
    for each, recipe in recipes.items():
        print(f"# --- {each} recipe {name} ---")
        print("".join(header_of(recipe_text(each, name))).rstrip())
        if isinstance(recipe, TeacherRecipe) and recipe.stages:
            print("#\n# Stages:")
            for number, (stage, settings) in enumerate(recipe.resolve_stages(), start=1):
                print(f"# {number}. {stage}: {settings.summary()}")
        print("\n# --- resolved ---")
        print(explained_yaml(recipe))


def header_of(text: str) -> Iterator[str]:
    """The lines of comment that a recipe opens with."""
    return itertools.takewhile(lambda line: line.startswith("#"), text.splitlines(keepends=True))


def kind_of(text: str) -> str:
    """What a recipe file is for, by the groups of keys that only one kind has."""
    if re.search(r"^student:", text, re.MULTILINE):
        return "student"
    return "export" if re.search(r"^(gate|int8):", text, re.MULTILINE) else "teacher"
