"""Targets on disk: exact, whole or absent row by row, of one teacher, one data set and one way of drawing views."""

from __future__ import annotations

import json
import logging
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open

from edgeembed.config import AugmentSection, MixSection, load_recipe
from edgeembed.data.loader import open_canvases
from edgeembed.data.manifest import read_manifest, write_manifest
from edgeembed.data.shapes import square_shapes
from edgeembed.errors import UserError
from edgeembed.locks import locked
from edgeembed.network.model_files import load_model
from edgeembed.student.recipe import DistillRecipe
from edgeembed.student.targets.provider import target_key
from edgeembed.student.targets.store import TargetKey, TargetStore
from edgeembed.student.views import Replay
from tests.conftest import TINY_STUDENT, Outcome, as_options

Run = Callable[..., Outcome]

KEY = TargetKey(
    space_id="a", data="b", images="stat:c", num_images=1000, dim=8, augmentation={"seed": 0, "scale": [0.5, 1.0]}
)
MIXING = [*TINY_STUDENT, "targets.views=3", "mix.cutmix_probability=0.4", "mix.mixup_probability=0.3"]


def vectors(count: int, dim: int = 8) -> np.ndarray:
    drawn = np.random.default_rng(count).standard_normal((count, dim)).astype(np.float32)
    return drawn / np.linalg.norm(drawn, axis=1, keepdims=True)


def test_what_is_written_is_read_by_every_process(tmp_path: Path) -> None:
    store, images = TargetStore(tmp_path / "s", KEY), np.array([4, 999, 1])
    assert not store.read(images, 2)[1].any()
    store.write(images, 2, vectors(3))
    again = TargetStore(tmp_path / "s", KEY)
    stored, known = again.read(np.array([1, 0, 4]), 2)
    assert known.tolist() == [True, False, True]
    assert np.array_equal(stored[[2, 0]], vectors(3)[[0, 2]].astype(np.float16))
    again.write(np.array([0]), 2, vectors(1))
    assert store.read(np.array([0]), 2)[1].all()
    assert (store.count(3), store.num_views()) == (4, 0)  # view 0 and 1 are not there yet
    with safe_open(tmp_path / "s" / "view-0002.safetensors", framework="numpy") as file:
        assert file.metadata()["space_id"] == "a"
        assert np.array_equal(file.get_tensor("embedding")[[4, 999, 1]], vectors(3).astype(np.float16))


@pytest.mark.parametrize(
    ("other", "told"),
    [
        (replace(KEY, space_id="z"), "space_id = a, not z"),
        (replace(KEY, data="z"), "data = b, not z"),
        (replace(KEY, num_images=999), "num_images = 1000, not 999"),
        (replace(KEY, images="stat:z"), "for images of other sizes or modification times: delete the folder"),
        (replace(KEY, images="content:c"), r"stored with targets\.key = stat, not content"),
        (replace(KEY, augmentation={"seed": 0, "scale": [0.4, 1.0]}), r"augmentation.scale = \[0.5, 1.0\], not \[0.4"),
    ],
)
def test_a_store_of_something_else_is_refused(tmp_path: Path, other: TargetKey, told: str) -> None:
    TargetStore(tmp_path, KEY).write(np.array([0]), 0, vectors(1))
    assert KEY.name != other.name
    with pytest.raises(UserError, match=told):
        TargetStore(tmp_path, other)


def test_a_store_that_another_process_begins_at_the_same_time_is_joined_where_it_has_the_same_key(
    tmp_path: Path,
) -> None:
    (tmp_path / ".lock").touch()
    (tmp_path / ".targets.json.17.tmp").touch()
    same, different = TargetStore(tmp_path, KEY), TargetStore(tmp_path, replace(KEY, data="z"))
    TargetStore(tmp_path, KEY).write(np.array([0]), 0, vectors(1))  # the other process
    same.write(np.array([1]), 1, vectors(1))
    assert TargetStore(tmp_path, KEY).count(2) == 2
    with pytest.raises(UserError, match="data = b, not z"):
        different.write(np.array([2]), 2, vectors(1))


def test_damaged_and_foreign_folders_are_refused(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.jpg").touch()
    with pytest.raises(UserError, match="holds no targets"):
        TargetStore(tmp_path / "photos", KEY)
    TargetStore(tmp_path / "s", KEY).write(np.array([0]), 0, vectors(1))
    view = tmp_path / "s" / "view-0000.safetensors"
    os.truncate(view, view.stat().st_size - 1)
    with pytest.raises(UserError, match="delete the file"):
        TargetStore(tmp_path / "s", KEY).read(np.array([0]), 0)


def test_a_full_disk_is_told_before_anything_is_written(tmp_path: Path) -> None:
    code = (
        "import resource, sys, numpy as np; from pathlib import Path\n"
        "from edgeembed.student.targets.store import TargetKey, TargetStore\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000))\n"
        "key = TargetKey(space_id='a', data='b', images='stat:c', num_images=1000, dim=8, augmentation={})\n"
        "TargetStore(Path(sys.argv[1]), key).write(np.array([0]), 0, np.ones((1, 8)))\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path / "s")], capture_output=True, text=True)
    assert "targets cannot be stored" in done.stderr
    assert sorted(path.name for path in (tmp_path / "s").iterdir()) == ["targets.json"]


def test_a_killed_writer_loses_no_row(tmp_path: Path) -> None:
    code = (
        "import sys, numpy as np; from pathlib import Path\n"
        "from edgeembed.student.targets.store import TargetStore\n"
        "from tests.student.targets.test_store import KEY, vectors\n"
        "store = TargetStore(Path(sys.argv[1]), KEY)\n"
        "for image in range(KEY.num_images):\n"
        "    store.write(np.array([image]), 0, vectors(KEY.num_images)[[image]])\n"
        "    print(image, flush=True)\n"
    )
    process = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    told = [int(process.stdout.readline()) for _ in range(100)][-1]
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    stored, known = TargetStore(tmp_path, KEY).read(np.arange(KEY.num_images), 0)
    assert known[: told + 1].all()
    expected = vectors(KEY.num_images).astype(np.float16)
    assert np.array_equal(stored[known], expected[known])


@pytest.mark.parametrize("workers", [None, 0, 1, 2])
def test_a_view_is_the_same_in_any_batch_from_memory_and_from_workers(tiny_data: Path, workers: int | None) -> None:
    manifest = read_manifest(tiny_data)
    files = manifest.files[:40]
    replay = Replay(
        augment=AugmentSection(scale=(0.5, 1.0), brightness=0.3),
        mix=MixSection(cutmix_probability=0.4, mixup_probability=0.4),
        seed=5,
    )
    shapes = square_shapes(len(files), 48)
    whole = open_canvases(files, shapes_N2=shapes, workers=2, cache="always")
    (all_views,) = replay.batches(whole, [(np.arange(40), np.ones(40, np.int64))])
    expected = all_views.render(np.arange(40), 32, "cpu")
    mixed = all_views.partner_B >= 0
    assert 20 < mixed.sum() < 40
    if workers is not None:
        whole = open_canvases(files, shapes_N2=shapes, workers=workers)
    samples = [
        (np.array([7, 3]), np.array([1, 1])),
        (np.array([39, 7, 20, 7]), np.array([1, 1, 1, 2])),
        (np.array([7]), np.array([2])),
    ]
    for (image_B, view_B), batch in zip(samples, replay.batches(whole, samples), strict=True):
        found = batch.render(np.arange(image_B.size), 32, "cpu")
        for view, image, view_CHW in zip(view_B.tolist(), image_B.tolist(), found, strict=True):
            assert torch.equal(view_CHW, expected[image]) == (view == 1)


def test_an_image_whose_partner_cannot_be_read_is_left_alone(tiny_data: Path, tmp_path: Path) -> None:
    files = list(read_manifest(tiny_data).files[:12])
    files[4] = str(tmp_path / "missing.png")
    replay = Replay(augment=AugmentSection(), mix=MixSection(mixup_probability=1.0), seed=0)
    canvases = open_canvases(files, shapes_N2=square_shapes(12, 32), workers=0)
    (batch,) = replay.batches(canvases, [(np.arange(12), np.zeros(12, np.int64))])
    assert batch.image_B.tolist() == [0, 1, 2, 3, 5, 6, 7, 8, 9, 10, 11]
    assert (batch.partner_B == -1).sum() == 1
    assert batch.render(np.arange(11), 32, "cpu").shape == (11, 3, 32, 32)


@pytest.fixture
def teacher(tiny_teacher: Path, tmp_path: Path) -> Path:
    """A copy without targets."""
    shutil.copytree(tiny_teacher, tmp_path / "teacher", ignore=shutil.ignore_patterns("targets"))
    return tmp_path / "teacher"


def test_two_processes_build_what_students_then_only_read(
    edgeembed: Run, tiny_data: Path, teacher: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    build = ["targets", "build", "--teacher", str(teacher), "--data", str(tiny_data), "--recipe", "quickstart"]
    build += as_options(MIXING)
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m", "edgeembed"]
    done = subprocess.run([*launch, *build], check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-6000:]
    images = len(read_manifest(tiny_data).rows("train"))
    more = json.loads(edgeembed(*build, "--views", 4, "--json").stdout)
    assert (more["computed"], more["known"]) == (images, 4 * images)  # one view added
    (store,) = (teacher / "targets").iterdir()

    checked = edgeembed("targets", "verify", "--teacher", teacher, "--data", tiny_data, "--json")
    assert checked.code == 0
    result = json.loads(checked.stdout)
    assert result["compared"] == 4 * images
    assert result["cosine_min"] > 0.9999
    described = json.loads(edgeembed("targets", "stats", store, "--json").stdout)
    assert (described["views"], described["known"], described["dim"]) == (4, 4 * images, 64)

    before = {path.name: path.read_bytes() for path in store.iterdir()}
    keys = as_options([*MIXING, "train.epochs=5", "eval.every_steps=0"])
    distil = ["distill", "--data", tiny_data, "--teacher", teacher, "--recipe", "quickstart", *keys]
    outcome = edgeembed(*distil, "--out", tmp_path / "student", "--set", "train.seed=7")
    assert outcome.code == 0
    assert f"{3 * images} of {3 * images} stored" in caplog.text
    assert {path.name: path.read_bytes() for path in store.iterdir()} == before


def test_live_targets_give_the_same_student_as_stored_ones(
    edgeembed: Run, tiny_data: Path, teacher: Path, tmp_path: Path
) -> None:
    # A student that hardly learns: training would magnify what float16 rounds away, more on one CPU than on another.
    keys = [*MIXING, "train.epochs=4", "eval.every_steps=0", "targets.precision=fp32", "optim.lr=1e-7"]
    distil = ["distill", "--data", tiny_data, "--teacher", teacher, "--recipe", "quickstart", *as_options(keys)]
    live = edgeembed(*distil, "--out", tmp_path / "live", "--set", "targets.store=none")
    assert live.code == 0
    assert not (teacher / "targets").exists()
    assert edgeembed(*distil, "--out", tmp_path / "stored").code == 0
    losses = [
        [json.loads(line)["loss"] for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()]
        for name in ("live", "stored")
    ]
    assert np.allclose(*losses, rtol=1e-3)  # what float16 rounds away
    assert np.ptp(losses[0]) > 0.01 * np.mean(losses[0])  # views differ by more than that


def test_views_that_do_not_recur_are_not_stored(
    edgeembed: Run, tiny_data: Path, teacher: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    keys = as_options([*TINY_STUDENT, "eval.every_steps=0"])
    distil = ["distill", "--data", tiny_data, "--teacher", teacher, "--recipe", "quickstart", *keys]
    outcome = edgeembed(*distil, "--out", tmp_path / "run")
    assert outcome.code == 0
    assert "not stored" in caplog.text
    assert not (teacher / "targets").exists()


def test_a_store_that_the_teacher_contradicts_fails(edgeembed: Run, tiny_data: Path, teacher: Path) -> None:
    keys = as_options([*TINY_STUDENT, "targets.views=2"])
    built = edgeembed(
        "targets", "build", "--teacher", teacher, "--data", tiny_data, "--recipe", "quickstart", *keys, "--json"
    )
    store = Path(json.loads(built.stdout)["store"])
    view = store / "view-0001.safetensors"
    content = bytearray(view.read_bytes())
    content[4096:4224], content[4224:4352] = content[4224:4352], content[4096:4224]  # two images exchanged
    view.write_bytes(content)
    verify = ["targets", "verify", store, "--teacher", teacher, "--data", tiny_data]
    outcome = edgeembed(*verify)
    assert outcome.code == 1
    assert "now have a cosine of" in outcome.stderr
    content[4096:4098] = b"\xff\x7f"  # NaN
    view.write_bytes(content)
    assert "not of length 1" in edgeembed(*verify).stderr
    facts = json.loads((teacher / "model.json").read_text())
    (teacher / "model.json").write_text(json.dumps({**facts, "space_id": "0123456789abcdef"}))
    refused = edgeembed(*verify)
    assert refused.code == 2
    assert "is 0123456789abcdef" in refused.stderr


def test_a_stopped_build_goes_on_where_it_was(tiny_data: Path, teacher: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "edgeembed",
        "targets",
        "build",
        "--teacher",
        str(teacher),
        "--data",
        str(tiny_data),
    ]
    command += ["--recipe", "quickstart", "--json", *as_options([*TINY_STUDENT, "targets.views=400"])]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 60
    while not list(teacher.glob("targets/*/view-*")) and time.monotonic() < deadline:
        time.sleep(0.005)
    process.terminate()
    _, told = process.communicate()
    assert process.returncode == 143
    assert "run it again" in told
    done = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    assert 0 < done["computed"] < done["known"] == done["images"] * 400


@pytest.fixture
def copied_data_set(tiny_data: Path, tmp_path: Path) -> Path:
    """A copy of the images and their manifest that a test may change."""
    shutil.copytree(tiny_data.parent, tmp_path / "data")
    manifest = read_manifest(tmp_path / "data" / tiny_data.name)
    write_manifest(tmp_path / "data" / tiny_data.name, replace(manifest, root=tmp_path / "data"))
    return tmp_path / "data" / tiny_data.name


def exchange(one: Path, other: Path) -> None:
    """Gives each of two images the other's pixels, under its own size and modification time."""
    contents, facts = [path.read_bytes() for path in (one, other)], [path.stat() for path in (one, other)]
    longest = max(map(len, contents))
    for path, content, fact in zip((one, other), reversed(contents), facts, strict=True):
        path.write_bytes(content.ljust(longest, b"\0"))
        os.utime(path, ns=(fact.st_atime_ns, fact.st_mtime_ns))


BUILD = ["--recipe", "quickstart", *as_options([*TINY_STUDENT, "targets.precision=fp32", "targets.views=1"])]


def test_images_that_changed_under_their_names_get_targets_of_their_own(
    edgeembed: Run, copied_data_set: Path, teacher: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def build(data: Path, *more: str) -> tuple[int, str]:
        caplog.clear()
        outcome = edgeembed("targets", "build", "--teacher", teacher, "--data", data, *BUILD, *more, "--json")
        assert outcome.code == 0
        return json.loads(outcome.stdout)["computed"], caplog.text

    manifest = read_manifest(copied_data_set)
    first, second = (Path(manifest.files[row]) for row in manifest.rows("train")[:2])
    images = len(manifest.rows("train"))
    assert build(copied_data_set)[0] == images
    (store,) = (path.parent for path in teacher.glob("targets/*/targets.json"))
    assert build(copied_data_set) == (0, "")

    # A folder that was moved holds the images that it held; so does a copy that keeps their times.
    copied = copied_data_set.parent.with_name("copied")
    shutil.copytree(copied_data_set.parent, copied)
    copied_data = copied / copied_data_set.name
    write_manifest(copied_data, replace(manifest, root=copied))
    assert build(copied_data) == (0, "")

    verify = ["targets", "verify", store, "--teacher", teacher, "--data", copied_data_set]
    assert edgeembed(*verify).code == 0
    os.utime(first, ns=(0, 0))
    computed, told = build(copied_data_set)
    assert computed == images
    assert f"{store}: these targets are for images of other sizes or modification times: not used" in told
    verified = edgeembed(*verify)
    assert verified.code == 1
    assert "these targets are for images of other sizes or modification times: `edgeembed targets build`" in (
        verified.stderr
    )

    # The same sizes and times: the fingerprint of the training images covers their contents.
    by_content = ["--set", "targets.key=content"]
    assert build(copied_data_set, *by_content)[0] == images
    assert build(copied_data_set)[0] == 0
    exchange(first, second)
    exchange(first, second)  # both of one size now
    assert build(copied_data_set)[0] == images
    exchange(first, second)
    assert build(copied_data_set)[0] == images
    assert build(copied_data_set, *by_content)[0] == images
    os.utime(second, ns=(5, 5))
    assert build(copied_data_set, *by_content)[0] == 0


def test_a_store_that_does_not_say_of_which_images_is_not_used(
    edgeembed: Run, tiny_data: Path, teacher: Path, caplog: pytest.LogCaptureFixture
) -> None:
    build = ["targets", "build", "--teacher", teacher, "--data", tiny_data, *BUILD, "--json"]
    store = Path(json.loads(edgeembed(*build).stdout)["store"])
    described = json.loads((store / "targets.json").read_text())
    del described["images"]
    (store / "targets.json").write_text(json.dumps(described))
    store.rename(store.with_name("older"))
    caplog.clear()
    assert json.loads(edgeembed(*build).stdout)["computed"] == described["num_images"]
    assert "older: these targets are of an earlier version, which did not record the versions of images" in caplog.text
    older = store.with_name("older")
    assert edgeembed("targets", "stats", older).code == 0
    assert edgeembed("targets", "verify", older, "--teacher", teacher, "--data", tiny_data).code == 0
    named = edgeembed(*build, "--set", f"targets.store={older}")
    assert named.code == 2
    assert "earlier version, which did not record the versions of images: delete the folder" in named.stderr


def test_the_key_holds_all_that_a_target_depends_on(tiny_data: Path, tiny_teacher: Path) -> None:
    manifest, (network, origin) = read_manifest(tiny_data), load_model(tiny_teacher)

    def name(*overrides: str, space_id: str = origin.space_id) -> str:
        recipe = load_recipe(DistillRecipe, kind="student", name="quickstart", overrides=[*TINY_STUDENT, *overrides])
        return target_key(recipe, manifest, network, space_id).name

    others = [
        name("targets.precision=fp32"), name("targets.precision=bf16"), name("targets.seed=1"),
        name("image.size_px=320"), name("image.canvas_factor=2"), name("augment.scale=[0.1, 0.2]"),
        name("augment.flip_probability=0.25"), name("mix.mixup_probability=0.125"), name("targets.key=content"),
        name(space_id="other"),
    ]  # fmt: skip
    assert len({name(), *others}) == 1 + len(others)
    network.flip = not network.flip
    assert name() not in others
    unchanged = [name("train.seed=9"), name("targets.views=7"), name("student.name=test_vit"), name("optim.lr=1")]
    assert set(unchanged) == {name()}


def test_a_store_that_is_being_filled_is_refused_to_a_second_build(
    edgeembed: Run, tiny_data: Path, teacher: Path, tmp_path: Path
) -> None:
    build = ["targets", "build", "--teacher", teacher, "--data", tiny_data, *BUILD]
    with locked(tmp_path / "store", instead="wait"):
        refused = edgeembed(*build, "--set", f"targets.store={tmp_path / 'store'}")
    assert refused.code == 2
    assert f"{tmp_path / 'store'}: in use by process {os.getpid()} on " in refused.stderr
    assert "name another folder with targets.store" in refused.stderr
    assert edgeembed(*build, "--set", f"targets.store={tmp_path / 'store'}").code == 0
    assert sorted(path.name for path in (tmp_path / "store").iterdir()) == ["targets.json", "view-0000.safetensors"]
