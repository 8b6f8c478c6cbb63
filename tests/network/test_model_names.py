"""Names of networks, read without torch: exactly those that timm and open_clip list themselves."""

from __future__ import annotations

import subprocess
import sys
from collections import defaultdict
from pathlib import Path

import open_clip
import pytest
import timm
from timm.models import _registry

from edgeembed.errors import UserError
from edgeembed.network import model_names
from edgeembed.network.backbone import build_backbone
from edgeembed.student.aliases import ALIASES, timm_model_name


def test_every_timm_model_is_found_with_its_tags() -> None:
    tags: defaultdict[str, set[str]] = defaultdict(set)
    for name in _registry._model_pretrained_cfgs:
        model, _, tag = name.partition(".")
        if tag:
            tags[model].add(tag)
    found = model_names.timm_pretrained_tags()
    assert set(found) == set(_registry._model_entrypoints)
    assert [model for model in tags if found[model] and not tags[model] <= set(found[model])] == []
    assert sum(bool(found[model]) for model in tags) > 0.95 * len(tags)


def test_every_open_clip_model_is_found_with_its_tags(monkeypatch: pytest.MonkeyPatch) -> None:
    listed = {model: set(open_clip.list_pretrained_tags_by_model(model)) for model in open_clip.list_models()}
    assert set(model_names.open_clip_model_names()) == set(listed)
    monkeypatch.delitem(sys.modules, "open_clip")
    assert [model for model in listed if not listed[model] <= set(model_names.open_clip_pretrained_tags(model))] == []
    exact = [model for model in listed if not model.endswith("-quickgelu")]
    assert [model for model in exact if listed[model] != set(model_names.open_clip_pretrained_tags(model))] == []


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("resnet18.nope", "timm has no weights 'nope' of resnet18: choose one of a1_in1k"),
        ("vit_base_patch16_224.augreg_in22k", "did you mean 'augreg_in21k'"),
        ("mobilenetv4_conv_smal.e2400_r224_in1k", "did you mean 'mobilenetv4_conv_small'"),
    ],
)
def test_an_unknown_tag_or_name_tells_the_nearest(name: str, told: str) -> None:
    for require in (
        timm_model_name,
        model_names.library_of,
        lambda name: build_backbone(name, weights="none", size_px=32),
    ):
        with pytest.raises(UserError, match="unknown") as caught:
            require(name)
        assert told in str(caught.value)


def test_tags_that_timm_computes_are_checked_when_the_network_is_built() -> None:
    computed = next(
        model
        for model, tags in model_names.timm_pretrained_tags().items()
        if not tags and timm.list_pretrained(f"{model}.*")
    )
    assert timm_model_name(f"{computed}.nope") == f"{computed}.nope"
    with pytest.raises(UserError, match="timm has no weights 'nope'"):
        build_backbone(f"{computed}.nope", weights="none", size_px=224)


def test_names_with_a_tag_and_old_names_are_taken() -> None:
    assert timm_model_name("resnet18.a1_in1k") == "resnet18.a1_in1k"
    assert model_names.library_of("vit_base_patch16_224_in21k") == "timm"  # a name of earlier versions
    assert {timm_model_name(alias) for alias in ALIASES} == set(ALIASES.values())


def write_csv(folder: Path) -> Path:
    (folder / "m.csv").write_text("path,label,domain,split,role\na.jpg,a,d,train,\nb.jpg,b,d,train,\n")
    (folder / "text.parquet").write_text("hello")
    return folder


TYPOS = {
    "teacher-train --data nope.parquet": "no such manifest",
    "teacher-train --data text.parquet": "not a readable .parquet table",
    "teacher-train --data m.csv --recipe grocery_cup": "did you mean 'grocery_cpu'",
    "teacher-train --data m.csv --recipe mine.yaml": "recipe 'mine.yaml': no such file",
    "teacher-train --data m.csv --set train.epoch=3": "did you mean 'train.epochs'",
    "teacher-train --data m.csv --set train.epochs=many": "train.epochs = 'many'",
    "teacher-train --data m.csv --set backbone.name=ViT-H-114": "did you mean 'ViT-H-14'",
    "teacher-train --data m.csv --set backbone.weights=laion2b_s32b_b97k": "did you mean 'laion2b_s32b_b79k'",
    "teacher-train --data m.csv --set backbone.weights=./nope.pth": "no such file",
    "distill --student mobilenet4_s --data m.csv": "did you mean 'mobilenetv4_s'",
    "distill --student resnet18.nope --data m.csv": "timm has no weights 'nope'",
    "distill --student resnet18 --set student.weights=nope.pth": "student.weights = 'nope.pth': no such file",
    "distill --teacher nope": "holds no finished",
    "targets build --teacher nope": "holds no finished",
    "targets stats nope": "targets.json: no such file",
    "targets import nope.parquet --data m.csv --out t": "nope.parquet: no such file",
    "students mobilenet4_s": "did you mean 'mobilenetv4_s'",
    "students resnet18 --size-px 0": "size-px",
    "export nope --precision fp31": "did you mean 'fp32'",
    "export nope --set gate.fp32.cosine_p2=1": "did you mean 'gate.fp32.cosine_p1'",
    "export nope --data nope.csv": "nope",
    "bench nope --teacher nope": "nope",
    "bench --teacher nope --data nope.csv": "nope",
    "data check nope.parquet": "no such manifest",
    "search x.png --model nope": "no such file",
}

RUN_EACH = """
import contextlib, io, sys
from edgeembed.cli import run
for line in sys.stdin.read().splitlines():
    with contextlib.redirect_stderr(io.StringIO()) as told:
        code = run(line.split())
    print(code, "torch" in sys.modules, " ".join(told.getvalue().split()))
"""


def test_typos_are_told_before_torch_is_imported(tmp_path: Path) -> None:
    write_csv(tmp_path)
    text = "\n".join(TYPOS)
    done = subprocess.run(
        [sys.executable, "-c", RUN_EACH], input=text, capture_output=True, text=True, cwd=tmp_path, check=True
    )
    for line, result in zip(TYPOS, done.stdout.splitlines(), strict=True):
        code, torch_imported, told = result.split(" ", 2)
        assert (line, code, torch_imported) == (line, "2", "False")
        assert TYPOS[line] in told, (line, told)
    assert not (tmp_path / "runs").exists()
