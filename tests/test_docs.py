"""README and docs/ are true: links resolve, commands parse, named code exists, the site builds without a warning."""

from __future__ import annotations

import ast
import importlib.util
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer.main

import edgeembed
import edgeembed.cli
from edgeembed.cli.app import GLOBAL_OPTIONS, app
from edgeembed.config import load_recipe
from edgeembed.teacher.recipe import TeacherRecipe

ROOT = Path(edgeembed.__file__).parents[1]
PAGES = sorted((ROOT / "docs").glob("*.md"))
TEXTS = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")] + PAGES
GENERATED = {"commands.md"}  # by docs/build_hooks.py, when the site is built
MOST_WORDS_OF_README = 900

LINK = re.compile(r"\]\(([^)\s]+)\)|<img src=\"([^\"]+)\"")
FENCE = re.compile(r"^( *)```(\w*)\n(.*?)^ *```", re.MULTILINE | re.DOTALL)
INDENTED = re.compile(r"^    (edgeembed .*|torchrun .*)$", re.MULTILINE)
INLINE = re.compile(r"`(edgeembed [^`]+)`")


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def slug(heading: str) -> str:
    """The anchor that Python-Markdown gives a heading."""
    plain = re.sub(r"[^\w\s-]", "", heading).strip().lower()
    return re.sub(r"[-\s]+", "-", plain)


def anchors(path: Path) -> set[str]:
    return {slug(heading) for heading in re.findall(r"^#+ (.*)$", path.read_text(encoding="utf-8"), re.MULTILINE)}


def blocks(text: str, *languages: str) -> Iterator[str]:
    for indent, language, body in FENCE.findall(text):
        if language in languages:
            yield "\n".join(line.removeprefix(indent) for line in body.splitlines())


def command_lines(text: str) -> Iterator[str]:
    """Every `edgeembed ...` of a page: in code blocks, one a line, and between backquotes."""
    in_blocks = [line for body in blocks(text, "sh", "text", "") for line in body.splitlines()]
    for line in [*in_blocks, *INDENTED.findall(text), *INLINE.findall(text)]:
        line = line.strip()
        if line.startswith("torchrun "):
            line = "edgeembed " + line.partition(" -m edgeembed ")[2]
        if line.startswith("edgeembed "):
            yield " ".join(line.split())


PAGE_AND_COMMAND_LINE = dict.fromkeys(
    (name_of(path), line) for path in TEXTS for line in command_lines(path.read_text(encoding="utf-8"))
)


def test_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text(encoding="utf-8").split()) <= MOST_WORDS_OF_README


@pytest.mark.parametrize("path", TEXTS, ids=name_of)
def test_links_and_pictures_exist(path: Path) -> None:
    for link in (first or second for first, second in LINK.findall(path.read_text(encoding="utf-8"))):
        if link.startswith(("http:", "https:", "mailto:")):
            continue
        target, _, anchor = link.partition("#")
        file = (path.parent / target).resolve() if target else path
        if target in GENERATED and path.parent.name == "docs":
            continue
        assert file.exists(), f"{name_of(path)}: {link}"
        if anchor and file.suffix == ".md":
            assert anchor in anchors(file), f"{name_of(path)}: {link}: no such heading"


def test_pages_hold_many_commands() -> None:
    assert len(PAGE_AND_COMMAND_LINE) > 60


@pytest.mark.parametrize(("page", "line"), PAGE_AND_COMMAND_LINE, ids=lambda value: value[:60])
def test_every_command_line_parses(page: str, line: str) -> None:
    """Options exist, required ones are given, and values are of their type."""
    words = [word for word in shlex.split(line, comments=True)[1:] if word not in ("...", "--help", *GLOBAL_OPTIONS)]
    command: Any = typer.main.get_command(app)
    names = ["edgeembed"]
    while words and words[0] in getattr(command, "commands", {}):
        names.append(words[0])
        command = command.commands[words.pop(0)]
    if hasattr(command, "commands"):
        assert not words or words[0].isupper() or words[0].startswith("--"), f"{page}: {line}: no such command"
        return
    in_sentence = f"`{line}`" in (ROOT / page).read_text(encoding="utf-8")
    without_arguments = in_sentence and not any(word.startswith("-") for word in words)  # a command's name alone
    command.make_context(" ".join(names), words, resilient_parsing=without_arguments)


@pytest.mark.parametrize("path", TEXTS, ids=name_of)
def test_python_blocks_are_python(path: Path) -> None:
    for body in blocks(path.read_text(encoding="utf-8"), "python"):
        if "--8<--" not in body:
            ast.parse(body)


def test_the_recipes_of_the_teachers_page_are_valid(tmp_path: Path) -> None:
    recipes = []
    for body in blocks((ROOT / "docs" / "teachers.md").read_text(encoding="utf-8"), "yaml"):
        (tmp_path / "mine.yaml").write_text(body, encoding="utf-8")
        recipes.append(load_recipe(TeacherRecipe, kind="teacher", name=str(tmp_path / "mine.yaml")))
    names = [[stage["name"] for stage in recipe.stages] for recipe in recipes]
    assert names == [["neck", "all"], ["head", "all", "larger"]]
    assert recipes[1].backbone.name == "ViT-B-16-SigLIP"


FROM_OUTSIDE = re.compile(r"<(script|img|iframe)[^>]+src=\"?https?:|<link[^>]+stylesheet[^>]+href=\"?https?:")
WHERE = re.compile(r"^\| .*? \| `(edgeembed/[\w/.]+)` \| `([\w.]+)` \|$", re.MULTILINE)


def test_the_page_on_architecture_names_files_and_code_that_exist() -> None:
    rows = WHERE.findall((ROOT / "docs" / "architecture.md").read_text(encoding="utf-8"))
    assert len(rows) >= 15
    for file, name in rows:
        assert (ROOT / file).is_file(), file
        text = (ROOT / file).read_text(encoding="utf-8")
        for part in name.split("."):
            assert re.search(rf"^\s*((async )?def|class) {part}\b|^\s*{part}\b.*[:=]", text, re.MULTILINE), (file, name)


def test_folders_of_the_package_are_in_the_trees_of_readme_and_architecture() -> None:
    folders = {path.parent.name for path in (ROOT / "edgeembed").glob("*/__init__.py")}
    for page in ("README.md", "docs/architecture.md"):
        text = (ROOT / page).read_text(encoding="utf-8")
        assert {folder for folder in folders if not re.search(rf"^ +{folder}/ ", text, re.MULTILINE)} == set(), page


@pytest.mark.parametrize("path", TEXTS, ids=name_of)
def test_pages_name_no_path_of_one_machine(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert not re.search(r"/(work|tmp|home|root)/", text)


def test_the_site_builds_without_a_warning_and_loads_nothing_from_outside(tmp_path: Path) -> None:
    if importlib.util.find_spec("mkdocs") is None:
        pytest.skip("DOCUMENTATION NOT BUILT: install the extra [docs]")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path / "site")]
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    built = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert built.returncode == 0, built.stdout + built.stderr
    pages = list((tmp_path / "site").rglob("*.html"))
    assert len(pages) > 35
    assert "edgeembed targets import" in (tmp_path / "site" / "commands.html").read_text(encoding="utf-8")
    for page in pages:
        text = page.read_text(encoding="utf-8")
        assert not re.search(
            r"<(script|img|iframe)[^>]+src=\"?https?:|<link[^>]+stylesheet[^>]+href=\"?https?:", text
        ), page
