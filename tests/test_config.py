"""Recipes: precedence, types, and errors that name the key."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgeembed.config import ImageSection, Section, load_recipe, recipe_names, to_yaml
from edgeembed.errors import UserError
from edgeembed.export.recipe import ExportRecipe
from edgeembed.recipe_keys import explain, explained_yaml, known_fields, known_keys
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
    ("override", "message"),
    [
        ("train.epoch=3", "did you mean 'train.epochs'"),
        ("trian.epochs=3", "unknown key 'trian.epochs': did you mean 'train.epochs'"),
        ("train.epochs=many", "train.epochs = 'many'"),
        ("train.epochs=0", "greater than or equal to 1"),
        ("optim.lr=.inf", "optim.lr = inf: Input should be a finite number"),
        ("preserve.weight=.nan", "preserve.weight = nan: Input should be a finite number"),
        ("preserve.temperature=1e-45", "greater than or equal to 0.001"),
        ("backbone.stored_views=1000000000000000000000", "less than or equal to 1000"),
        ("train.epochs", "expected key=value"),
        ("head.scale.x=1", "is a value, not a group"),
    ],
)
def test_a_wrong_override_is_named(override: str, message: str) -> None:
    with pytest.raises(UserError) as caught:
        load_recipe(TeacherRecipe, kind="teacher", name="quickstart", overrides=[override])
    assert message in str(caught.value)


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


RECIPE = "description: Größe\ntrain: {epochs: 7}\n"


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32"])
@pytest.mark.parametrize("line_end", ["\n", "\r\n", "\r"])
def test_recipes_are_read_as_editors_and_shells_save_them(tmp_path: Path, encoding: str, line_end: str) -> None:
    (tmp_path / "mine.yaml").write_bytes(RECIPE.replace("\n", line_end).encode(encoding))
    recipe = load_recipe(TeacherRecipe, kind="teacher", name=str(tmp_path / "mine.yaml"))
    assert (recipe.description, recipe.train.epochs) == ("Größe", 7)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (RECIPE.encode("cp1252"), "mine.yaml: byte 0xf6 in line 1 is not UTF-8: save it as UTF-8$"),
        (b"train: {epochs: 7}\n# caf\xe9\n", "mine.yaml: byte 0xe9 in line 2 is not UTF-8: "),
        (RECIPE.encode("utf-16")[:-1], "mine.yaml: byte .* in line .* is not UTF-16"),
    ],
)
def test_other_encodings_are_refused_by_name(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "mine.yaml").write_bytes(content)
    with pytest.raises(UserError, match=message):
        load_recipe(TeacherRecipe, kind="teacher", name=str(tmp_path / "mine.yaml"))


@pytest.mark.parametrize(
    ("override", "value"),
    [
        ("description=net # 3", "net # 3"),
        ("description=#1", "#1"),
        ("description=a: b", "a: b"),
        ("description=a=b", "a=b"),
        ("description='quoted # text'", "quoted # text"),
        ("description=[1, 2", "[1, 2"),
        ("description=", ""),
        ("description=1.0", "1.0"),
        ("backbone.weights=C:\\new\\weights #2.pt", "C:\\new\\weights #2.pt"),
        ("backbone.weights=none", "none"),
        ("continue_from=runs/a #1", "runs/a #1"),
        ("continue_from=null", None),
        ("continue_from=", None),
        ("train.epochs= 3 ", 3),
        ("optim.lr=1e-3", 1e-3),
        ("train.max_steps=null", None),
        ("augment.scale=[0.5, 1.0]", (0.5, 1.0)),
        ("neck.batch_norm=true", True),
        ("optim.kind=muon", "muon"),
        ("train={epochs: 4}", None),
        ("stages=[{name: 'a # b', train: {epochs: 2}}]", ({"name": "a # b", "train": {"epochs": 2}},)),
    ],
)
def test_values_of_set_are_taken_whole(override: str, value: object) -> None:
    recipe = load_recipe(TeacherRecipe, kind="teacher", name="quickstart", overrides=[override])
    key = override.partition("=")[0]
    if key == "train":
        assert recipe.train.epochs == 4
        return
    found: object = recipe
    for part in key.split("."):
        found = getattr(found, part)
    assert found == value


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("train.epochs=3 # many", "train.epochs = '3 # many': Input should be a valid integer"),
        ("optim.lr=0.1 #x", "optim.lr = '0.1 #x': Input should be a valid number"),
        ("augment.scale=[0.5, 1.0] # half", "augment.scale = '[0.5, 1.0] # half'"),
        ("train.epochs=", "train.epochs = None: Input should be a valid integer"),
        ("image.size_px=0", "image.size_px = 0: Input should be greater than or equal to 16"),
        ("image.size_px=-224", "image.size_px = -224"),
        ("epochs=3", "unknown key 'epochs': did you mean 'train.epochs'"),
        ("batch_size=3", "did you mean 'train.batch_size'"),
        ("optim.epochs=3", "did you mean 'train.epochs'"),
        ("stages.0.train.epochs=3", "is a value, not a group"),
    ],
)
def test_a_value_that_is_not_whole_is_refused(override: str, message: str) -> None:
    overrides = ["stages=none"] if override.startswith("stages") else []
    with pytest.raises(UserError) as caught:
        load_recipe(TeacherRecipe, kind="teacher", name="quickstart", overrides=[*overrides, override])
    assert message in str(caught.value)


def test_text_in_a_stage_is_taken_whole_too() -> None:
    overrides = ["stages=[{name: one, train: {epochs: 1}}]", "stages.0.head.kind=cosface", "stages.0.train.epochs=5"]
    (stage,) = load_recipe(TeacherRecipe, kind="teacher", name="quickstart", overrides=overrides).stages
    assert stage == {"name": "one", "train": {"epochs": 5}, "head": {"kind": "cosface"}}


KINDS: list[tuple[str, type[Section]]] = [
    ("teacher", TeacherRecipe),
    ("student", DistillRecipe),
    ("export", ExportRecipe),
]


@pytest.mark.parametrize("recipe_type", [recipe_type for _, recipe_type in KINDS])
def test_every_key_is_explained(recipe_type: type[Section]) -> None:
    assert [key for key, field in known_fields(recipe_type) if not field.description] == []
    explained = explain(recipe_type())
    assert set(explained) == set(known_keys(recipe_type))
    assert all(key.allowed for key in explained.values())


def test_allowed_values_are_described() -> None:
    explained = {**explain(TeacherRecipe()), **explain(ExportRecipe())}
    assert {key: explained[key].allowed for key in ("image.size_px", "optim.kind", "head.margin_max")} == {
        "image.size_px": "integer, 16 to 2048",
        "optim.kind": "adamw | sgd | muon",
        "head.margin_max": "number, at least 0 and below 1.57, or null",
    }
    assert explained["int8.reduce_range"].allowed == "auto or true | false"
    assert explained["augment.scale"].allowed == "[number, number]"
    assert explained["stages"].allowed == "list of groups of keys"


@pytest.mark.parametrize(
    ("kind", "name", "recipe_type"),
    [(kind, name, recipe_type) for kind, recipe_type in KINDS for name in recipe_names(kind)],
)
def test_an_explained_recipe_is_the_recipe(kind: str, name: str, recipe_type: type[Section], tmp_path: Path) -> None:
    recipe = load_recipe(recipe_type, kind=kind, name=name)
    (tmp_path / "mine.yaml").write_text(explained_yaml(recipe), encoding="utf-8")
    assert load_recipe(recipe_type, kind=kind, name=str(tmp_path / "mine.yaml")) == recipe
