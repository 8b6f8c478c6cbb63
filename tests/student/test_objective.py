"""The distillation objective: each term alone against numpy, its weight, and what terms that are off leave out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import safetensors.torch
import torch
import torch.nn.functional as F
from torch import Tensor

from edgeembed.arrays import FloatArray
from edgeembed.data.manifest import Manifest, ManifestRow, Rows, build_manifest
from edgeembed.errors import UserError
from edgeembed.student import objective as objective_module
from edgeembed.student.objective import Objective, build_objective
from edgeembed.student.recipe import DistillRecipe, LossSection
from edgeembed.student.teachers import Teacher

NUM_IMAGES, DIM, NUM_CLASSES = 7, 5, 3
CLASSES = np.array([2, -1, 0, 1, -1, 2, 0])  # of the training images, -1: not a class of the teacher
TERMS = ("cosine", "cross_relation", "self_relation", "standardised", "centre_kl", "anchor_kl", "label")
OFF = dict.fromkeys(TERMS, 0.0)


def unit_vectors(count: int, seed: int) -> Tensor:
    return F.normalize(torch.randn(count, DIM, generator=torch.Generator().manual_seed(seed)), dim=1)


CENTRES, ANCHORS = unit_vectors(NUM_CLASSES, 3), unit_vectors(6, 4)


def log_softmax(logit_BK: np.ndarray) -> np.ndarray:
    return logit_BK - np.log(np.exp(logit_BK).sum(axis=1, keepdims=True))


def kl_to_anchors(s: np.ndarray, t: np.ndarray, anchors: Tensor, temperature: float) -> float:
    a = anchors.double().numpy()
    log_p, log_q = (log_softmax(x @ a.T / temperature) for x in (t, s))
    return float((np.exp(log_p) * (log_p - log_q)).sum() / len(s))


def label_loss(s: np.ndarray, margin: float, scale: float) -> float:
    """ArcFace of the labelled images, divided by the number of all images."""
    total = 0.0
    for i, label in enumerate(CLASSES):
        if label >= 0:
            cosine = s[i] @ CENTRES.double().numpy().T
            cosine[label] = np.cos(np.arccos(cosine[label]) + margin)
            total -= float(log_softmax(scale * cosine[None])[0, label])
    return total / NUM_IMAGES


def naive(term: str, s: np.ndarray, t: np.ndarray) -> float:
    pairs = [(i, j) for i in range(NUM_IMAGES) for j in range(NUM_IMAGES)]
    if term == "cosine":
        return sum(1 - float(s[i] @ t[i]) for i in range(NUM_IMAGES)) / NUM_IMAGES
    if term == "cross_relation":
        return sum(float(s[i] @ t[j] - t[i] @ t[j]) ** 2 for i, j in pairs) / len(pairs)
    if term == "self_relation":
        return sum(float(s[i] @ s[j] - t[i] @ t[j]) ** 2 for i, j in pairs) / len(pairs)
    if term == "standardised":
        return float(np.mean(((s - t) / t.std(axis=0)) ** 2))
    if term == "centre_kl":
        return kl_to_anchors(s, t, CENTRES, 0.1)
    if term == "anchor_kl":
        return kl_to_anchors(s, t, ANCHORS, 0.2)
    return label_loss(s, margin=0.2, scale=20.0)


def build(**weights: float) -> Objective:
    settings = {"centre_temperature": 0.1, "anchor_temperature": 0.2, "label_margin": 0.2, "label_scale": 20.0}
    section = LossSection(**{**OFF, **settings, **weights})
    return Objective(section=section, centre_KD=CENTRES, anchor_MD=ANCHORS, class_N=CLASSES)


@pytest.fixture
def batch() -> tuple[Tensor, Tensor]:
    return unit_vectors(NUM_IMAGES, 1), unit_vectors(NUM_IMAGES, 2)


def value(objective: Objective, batch: tuple[Tensor, Tensor]) -> float:
    return float(objective(*batch, image_B=np.arange(NUM_IMAGES)))


@pytest.mark.parametrize("term", TERMS)
def test_each_term_alone_equals_numpy_and_its_weight_scales_it(batch: tuple[Tensor, Tensor], term: str) -> None:
    expected = naive(term, *(x.double().numpy() for x in batch))
    assert abs(expected) > 1e-3
    assert value(build(**{term: 1.0}), batch) == pytest.approx(expected, rel=1e-4)
    assert value(build(**{term: 2.5}), batch) == pytest.approx(2.5 * expected, rel=1e-4)


def test_the_objective_is_the_weighted_sum_of_its_terms(batch: tuple[Tensor, Tensor]) -> None:
    weights = {term: 0.1 * number for number, term in enumerate(TERMS, start=1)}
    expected = sum(weight * naive(term, *(x.double().numpy() for x in batch)) for term, weight in weights.items())
    assert value(build(**weights), batch) == pytest.approx(expected, rel=1e-4)


def test_by_default_the_terms_are_those_of_raml(batch: tuple[Tensor, Tensor]) -> None:
    objective = Objective(section=LossSection(), centre_KD=None, anchor_MD=None, class_N=None)
    s, t = (x.double().numpy() for x in batch)
    expected = naive("cosine", s, t) + 0.75 * naive("cross_relation", s, t) + 0.68 * naive("self_relation", s, t)
    assert value(objective, batch) == pytest.approx(expected, rel=1e-5)


def test_classes_are_those_of_the_images_of_the_batch(batch: tuple[Tensor, Tensor]) -> None:
    student_BD, teacher_BD = batch
    order = np.array([6, 5, 4, 3, 2, 1, 0])
    objective = build(label=1.0)
    whole = objective(student_BD, teacher_BD, image_B=np.arange(NUM_IMAGES))
    shuffled = objective(student_BD[order.copy()], teacher_BD[order.copy()], image_B=order)
    torch.testing.assert_close(whole, shuffled)
    unlabelled = np.flatnonzero(CLASSES < 0)
    assert objective(student_BD[unlabelled], teacher_BD[unlabelled], image_B=unlabelled).item() == 0.0


@pytest.mark.parametrize("term", TERMS)
def test_terms_that_are_off_are_not_computed(
    monkeypatch: pytest.MonkeyPatch, batch: tuple[Tensor, Tensor], term: str
) -> None:
    functions = {
        "cosine": "cosine_loss", "cross_relation": "cross_relation_loss", "self_relation": "self_relation_loss",
        "standardised": "standardised_loss", "centre_kl": "anchor_kl_loss", "anchor_kl": "anchor_kl_loss",
        "label": "margin_loss",
    }  # fmt: skip
    calls = []
    for name in set(functions.values()):
        original = getattr(objective_module, name)

        def counted(*args: Any, _name: str = name, _original: Any = original, **options: Any) -> Tensor:
            calls.append(_name)
            return cast(Tensor, _original(*args, **options))

        monkeypatch.setattr(objective_module, name, counted)
    value(build(**{term: 1.0}), batch)
    assert calls == [functions[term]]


def test_without_any_term_the_gradient_is_zero(batch: tuple[Tensor, Tensor]) -> None:
    student_BD = batch[0].clone().requires_grad_()
    loss = build()(student_BD, batch[1], image_B=np.arange(NUM_IMAGES))
    loss.backward()
    assert (loss.item(), student_BD.grad is not None and student_BD.grad.abs().max().item()) == (0.0, 0.0)


class StubTeacher:
    """A teacher run with nothing but what a test puts into its folder. Counts the images that it embeds."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.embedded: list[int] = []

    def embed(self, manifest: Manifest, rows: Rows, recipe: DistillRecipe, device: str) -> tuple[FloatArray, Rows]:
        del manifest, recipe, device
        self.embedded += rows.tolist()
        return np.eye(DIM, dtype=np.float32)[rows % DIM], rows


@pytest.fixture
def manifest(tmp_path: Path) -> Manifest:
    rows = [
        ManifestRow(path=f"{i}.png", label=f"c{label}", domain="d", split="train") for i, label in enumerate(CLASSES)
    ]
    for row in rows:
        (tmp_path / row.path).touch()
    return build_manifest(tmp_path, rows, source="test")


def build_from_recipe(manifest: Manifest, teacher: StubTeacher, **section: float) -> Objective:
    recipe = DistillRecipe(loss=LossSection(**{**OFF, "cosine": 1.0, **section}))
    return build_objective(recipe, manifest, manifest.rows("train"), cast(Teacher, teacher), "cpu")


def write_head(folder: Path, num_centres: int = NUM_CLASSES) -> None:
    safetensors.torch.save_file({"centres": 3.0 * unit_vectors(num_centres, 3)}, folder / "head.safetensors")
    classes = {"classes": [["d", f"c{label}"] for label in range(NUM_CLASSES)]}
    (folder / "classes.json").write_text(json.dumps(classes))


def test_terms_that_are_off_need_nothing_of_the_teacher(manifest: Manifest, tmp_path: Path) -> None:
    teacher = StubTeacher(tmp_path / "no such folder")
    objective = build_from_recipe(manifest, teacher, cross_relation=1.0, self_relation=1.0, standardised=1.0)
    assert (objective.centre_KD, objective.anchor_MD, objective.class_N) == (None, None, None)
    assert teacher.embedded == []


def test_each_term_reads_what_it_needs_and_no_more(manifest: Manifest, tmp_path: Path) -> None:
    write_head(tmp_path)
    teacher = StubTeacher(tmp_path)
    centres_only = build_from_recipe(manifest, teacher, centre_kl=1.0)
    assert centres_only.centre_KD is not None
    torch.testing.assert_close(centres_only.centre_KD, CENTRES)  # scaled to unit length
    assert (centres_only.anchor_MD, centres_only.class_N, teacher.embedded) == (None, None, [])
    labels = build_from_recipe(manifest, teacher, label=1.0)
    assert labels.class_N is not None
    assert labels.class_N.tolist() == CLASSES.tolist()
    assert labels.anchor_MD is None
    anchors = build_from_recipe(manifest, teacher, anchor_kl=1.0, anchors=4)
    assert anchors.anchor_MD is not None
    assert anchors.anchor_MD.shape == (4, DIM)
    assert (anchors.centre_KD, anchors.class_N) == (None, None)
    assert len(set(teacher.embedded)) == 4
    assert teacher.embedded == sorted(teacher.embedded)


@pytest.mark.parametrize("term", ["centre_kl", "label"])
def test_missing_centres_are_named_with_the_keys_that_need_them(manifest: Manifest, tmp_path: Path, term: str) -> None:
    with pytest.raises(UserError, match=rf"no class centres .*add --set loss\.{term}=0$"):
        build_from_recipe(manifest, StubTeacher(tmp_path), **{term: 1.0})


def test_centres_of_other_classes_are_refused(manifest: Manifest, tmp_path: Path) -> None:
    write_head(tmp_path, num_centres=2 * NUM_CLASSES)
    with pytest.raises(UserError, match=r"6 centres for 3 classes: set loss\.label=0"):
        build_from_recipe(manifest, StubTeacher(tmp_path), label=1.0)
