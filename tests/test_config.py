"""Recipes: precedence, types, and errors that name the key."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgeembed.config import ImageSection, load_recipe, recipe_names, to_yaml
from edgeembed.errors import UserError
from edgeembed.recipe_keys import known_keys
from edgeembed.student.recipe import DistillRecipe
from edgeembed.teacher.recipe import TeacherRecipe


@pytest.mark.parametrize("name", recipe_names("teacher"))
def test_every_teacher_recipe_loads(name: str) -> None:
    assert load_recipe(TeacherRecipe, kind="teacher", name=name).neck.dim == (512 if name == "landmark_2019" else 64)


@pytest.mark.parametrize("name", recipe_names("student"))
def test_every_student_recipe_loads(name: str) -> None:
    assert load_recipe(DistillRecipe, kind="student", name=name).train.batch_size > 0


def test_the_default_teacher_is_the_second_place_of_guie() -> None:
    recipe = load_recipe(TeacherRecipe, kind="teacher", name="vit_h14")
    assert (recipe.backbone.name, recipe.backbone.weights) == ("ViT-H-14", "laion2b_s32b_b79k")
    assert (recipe.neck.dropout, recipe.head.scale, recipe.head.margin_max) == (0.2, 30.0, 0.8)
    assert recipe.optim.lr * recipe.optim.backbone_lr_factor == pytest.approx(1e-7)


def test_set_overrides_the_file_and_the_file_overrides_the_defaults(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("train: {epochs: 7, batch_size: 3}\n")
    recipe = load_recipe(TeacherRecipe, kind="teacher", name=str(file), overrides=["train.epochs=9", "optim.lr=1e-3"])
    assert (recipe.train.epochs, recipe.train.batch_size, recipe.train.seed) == (9, 3, 0)
    assert recipe.optim.lr == pytest.approx(1e-3)


@pytest.mark.parametrize(
    ("override", "told"),
    [
        ("train.epoch=3", "did you mean 'train.epochs'"),
        ("trian.epochs=3", "did you mean 'train"),
        ("train.epochs=many", "train.epochs = 'many'"),
        ("train.epochs=0", "greater than or equal to 1"),
        ("train.epochs", "expected key=value"),
        ("head.scale.x=1", "is a value, not a group"),
    ],
)
def test_a_wrong_override_is_named(override: str, told: str) -> None:
    with pytest.raises(UserError) as caught:
        load_recipe(TeacherRecipe, kind="teacher", name="quickstart", overrides=[override])
    assert told in str(caught.value)


def test_an_unknown_recipe_names_the_nearest() -> None:
    with pytest.raises(UserError, match="did you mean 'grocery_cpu'"):
        load_recipe(TeacherRecipe, kind="teacher", name="grocery_cup")


@pytest.mark.parametrize("text", ["a: [", "- 1\n- 2\n"])
def test_a_file_that_is_no_recipe_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "bad.yaml").write_text(text)
    with pytest.raises(UserError, match=r"bad\.yaml"):
        load_recipe(TeacherRecipe, kind="teacher", name=str(tmp_path / "bad.yaml"))


def test_the_resolved_recipe_reads_back(tmp_path: Path) -> None:
    recipe = load_recipe(TeacherRecipe, kind="teacher", name="vit_h14", overrides=["train.max_steps=2"])
    (tmp_path / "config.yaml").write_text(to_yaml(recipe))
    assert load_recipe(TeacherRecipe, kind="teacher", name=str(tmp_path / "config.yaml")) == recipe


def test_the_keys_that_checks_use_exist_in_both_kinds() -> None:
    shared = {"train.batch_size", "train.epochs", "train.max_steps", "train.checkpoint_every_steps", "train.seed"}
    teacher = {"backbone.name", "backbone.weights", "head.margin", "head.scale", "image.size_px", "eval.every_steps"}
    assert shared | teacher <= set(known_keys(TeacherRecipe))
    assert shared | {"student.name", "student.weights", "image.size_px"} <= set(known_keys(DistillRecipe))


def test_views_grow_and_are_never_larger_than_the_image_size() -> None:
    growing = ImageSection(size_px=96, train_size_px=80, start_size_px=48)
    assert [growing.view_px(progress) for progress in (0.0, 0.3, 0.5, 0.75, 1.0)] == [48, 48, 64, 80, 80]
    smaller = growing.model_copy(update={"size_px": 32})
    assert {smaller.view_px(progress) for progress in (0.0, 0.5, 1.0)} == {32}
    assert ImageSection(size_px=96).view_px(0.0) == 96
