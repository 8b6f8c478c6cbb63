"""A bundle as one file: the same bytes everywhere, and a folder whole or not at all."""

from __future__ import annotations

import hashlib
import json
import os
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from edgeembed.device import packing
from edgeembed.device.bundle_schema import SCHEMA_WITHOUT_CHECKSUM
from edgeembed.device.packing import pack, unpack
from edgeembed.errors import CheckFailed, UserError
from edgeembed.files import sha256_of
from tests.device.conftest import write_manifest

MakeBundle = Callable[..., Path]
Run = Callable[..., Any]


def content_of(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def packed(bundle: Path, tmp_path: Path) -> Path:
    out = tmp_path / "tiny.edgeembed.zip"
    pack(bundle, out)
    return out


def test_a_bundle_comes_back_as_it_was(edgeembed: Run, make_bundle: MakeBundle, tmp_path: Path) -> None:
    folder = make_bundle()
    result = edgeembed("artifacts", "pack", folder, "--json")
    file = tmp_path / "tiny.edgeembed.zip"
    facts = {"out": str(file), "bytes": file.stat().st_size, "sha256": sha256_of(file)}
    assert (result.code, json.loads(result.stdout)) == (0, facts)
    result = edgeembed("artifacts", "unpack", file, "--out", tmp_path / "a" / "b", "--json")
    assert result.code == 0
    assert json.loads(result.stdout) == {"out": str(tmp_path / "a" / "b"), "name": "tiny", "space_id": "space-a"}
    assert content_of(tmp_path / "a" / "b") == content_of(folder)
    assert edgeembed("artifacts", "verify", tmp_path / "a" / "b").code == 0


def test_a_broken_bundle_is_replaced_by_a_whole_one(make_bundle: MakeBundle, tmp_path: Path, edgeembed: Run) -> None:
    folder = make_bundle()
    whole = content_of(folder)
    assert edgeembed("artifacts", "pack", folder).code == 0
    (folder / "bundle.json").write_text("{")
    assert edgeembed("artifacts", "unpack", tmp_path / "tiny.edgeembed.zip").code == 0
    assert content_of(folder) == whole
    assert sorted(path.name for path in tmp_path.iterdir()) == ["tiny", "tiny.edgeembed.zip"]


def test_any_tool_opens_it(bundle: Path, packed: Path) -> None:
    with zipfile.ZipFile(packed) as opened:
        assert opened.testzip() is None
        assert opened.namelist() == ["bundle.json", "model.fp32.onnx", "MODEL_CARD.md"]
        for info in opened.infolist():
            assert opened.read(info) == (bundle / info.filename).read_bytes()
            assert (info.date_time, info.external_attr >> 16) == ((1980, 1, 1, 0, 0, 0), 0o100644)


def test_the_same_bundle_gives_the_same_bytes_wherever_it_lies(tmp_path: Path) -> None:
    for number, name in enumerate(("one", "two")):
        folder = tmp_path / name
        (folder / "deep").mkdir(parents=True)
        file = {"path": "deep/é.bin", "runtime": "r", "precision": "p", "bytes": 3}
        facts = {
            "schema": SCHEMA_WITHOUT_CHECKSUM,
            "name": "golden",
            "space_id": "s",
            "embedding": {"dim": 1},
            "input": {"height": 1, "width": 1},
            "files": [{**file, "sha256": hashlib.sha256(b"abc").hexdigest()}],
        }
        for path, content in (("MODEL_CARD.md", b"# card\n"), ("deep/é.bin", b"abc"), ("more.txt", b"not packed")):
            (folder / path).write_bytes(content)
            os.utime(folder / path, (10**9 * number, 10**9 * number))
            (folder / path).chmod(0o600 + 0o44 * number)
        (folder / "bundle.json").write_text(json.dumps(facts))
        pack(folder, tmp_path / f"{name}.edgeembed.zip")
    digests = {sha256_of(tmp_path / f"{name}.edgeembed.zip") for name in ("one", "two")}
    assert digests == {"98f92f7124be49765c473cd12808d7dbbbd6e39396b533361e1783a03478d62e"}
    unpack(tmp_path / "one.edgeembed.zip", tmp_path / "three")
    assert sorted(content_of(tmp_path / "three")) == ["MODEL_CARD.md", "bundle.json", "deep/é.bin"]


def test_every_byte_of_a_packed_bundle_is_protected(tmp_path: Path) -> None:
    (tmp_path / "small").mkdir()
    (tmp_path / "small" / "model.fp32.plan").write_bytes(b"weights")
    write_manifest(tmp_path / "small")
    file = tmp_path / "small.edgeembed.zip"
    pack(tmp_path / "small", file)
    whole = file.read_bytes()
    for position in range(0, len(whole), 11):
        for damaged in (bytes([*whole[:position], whole[position] ^ 32, *whole[position + 1 :]]), whole[:position]):
            file.write_bytes(damaged)
            with pytest.raises(CheckFailed) as caught:
                unpack(file, tmp_path / "out")
            assert str(file) in str(caught.value)
    for tail in (b"\0", b"PK\x03\x04" + bytes(100)):
        file.write_bytes(whole + tail)
        with pytest.raises(CheckFailed, match="changed or cut off"):
            unpack(file, tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["small", "small.edgeembed.zip"]


def test_what_the_manifest_does_not_list_is_named(packed: Path, tmp_path: Path) -> None:
    whole = packed.read_bytes()
    for name in ("../evil", "/evil", "more.txt", "model.fp32.onnx"):
        packed.write_bytes(whole)
        with zipfile.ZipFile(packed, "a") as opened:
            info = zipfile.ZipInfo("x" * len(name))
            opened.writestr(info, "evil")
        packed.write_bytes(packed.read_bytes().replace(b"x" * len(name), name.encode()))
        with pytest.raises(CheckFailed, match=f"holds '{name}', which its bundle.json does not list"):
            unpack(packed, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == [packed.name]


def test_a_bomb_is_refused_without_being_unfolded(packed: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as opened:
        opened.writestr("bundle.json", b" " * 10**8)
    with pytest.raises(CheckFailed, match=r"'bundle\.json' is compressed"):
        unpack(packed, tmp_path / "out")


def test_a_damaged_bundle_is_not_packed(edgeembed: Run, make_bundle: MakeBundle, tmp_path: Path) -> None:
    folder = make_bundle()
    for name in ("model.int8.onnx", "MODEL_CARD.md"):
        content = (folder / name).read_bytes()
        (folder / name).write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
        result = edgeembed("artifacts", "pack", folder)
        assert result.code == 1
        assert f"{name}: sha256 is" in result.stderr
        (folder / name).write_bytes(content)
    assert [path.name for path in tmp_path.iterdir()] == ["tiny"]


def test_a_folder_that_is_no_bundle_is_left_alone(packed: Path, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years")
    with pytest.raises(UserError, match="mine: exists and is not a bundle"):
        unpack(packed, tmp_path / "mine")
    assert content_of(tmp_path / "mine") == {"thesis.txt": b"years"}


def test_the_old_bundle_stays_where_the_new_one_fails(
    make_bundle: MakeBundle, packed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = make_bundle("old")
    before = content_of(folder)
    packed.write_bytes(packed.read_bytes()[:-1])
    with pytest.raises(CheckFailed, match="cut off"):
        unpack(packed, folder)
    assert content_of(folder) == before
    monkeypatch.setattr(Path, "rename", refuse_partial(Path.rename))
    pack(folder, packed)
    with pytest.raises(OSError, match="No space left"):
        unpack(packed, folder)
    assert content_of(folder) == before
    assert sorted(path.name for path in folder.parent.iterdir()) == ["old", packed.name]


def refuse_partial(rename: Callable[[Path, Path], Path]) -> Callable[[Path, Path], Path]:
    """Renaming, on a disk that is full when the finished folder takes its place."""

    def renamed(self: Path, target: Path) -> Path:
        if self.name.endswith(".partial"):
            raise OSError(28, "No space left on device")
        return rename(self, target)

    return renamed


def test_commands_that_want_a_folder_say_how_to_unpack(edgeembed: Run, packed: Path) -> None:
    for command in (
        ["artifacts", "verify", packed],
        ["artifacts", "pack", packed],
        ["artifacts", "diff", packed, packed],
    ):
        result = edgeembed(*command)
        assert result.code == 2
        assert f"is a packed bundle: `edgeembed artifacts unpack {packed}` makes it a folder" in result.stderr


def test_a_packed_bundle_embeds_and_searches(edgeembed: Run, packed: Path, photos: Path, tmp_path: Path) -> None:
    index = tmp_path / "e.safetensors"
    assert edgeembed("embed", photos / "photo0.png", photos / "photo1.png", "--model", packed, "--out", index).code == 0
    for model in (("--model", packed), ()):
        found = edgeembed("search", photos / "photo1.png", "--index", index, *model, "-k", 1)
        assert found.stdout.splitlines()[1].split() == ["1", "1.0000", str(photos / "photo1.png")]


def test_mistakes_are_one_line(edgeembed: Run, bundle: Path, packed: Path, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.edgeembed.zip")
    packed.rename(tmp_path / "other.zip")
    for command, code, told in (
        (["pack", bundle, "--out", tmp_path / "b.tar"], 2, "expected a name that ends in .edgeembed.zip"),
        (["pack", tmp_path], 2, "not a bundle (a folder without a run or a bundle)"),
        (["unpack", tmp_path / "none.edgeembed.zip"], 2, "no such file"),
        (["unpack", tmp_path / "pipe.edgeembed.zip"], 2, "not a file"),
        (["unpack", tmp_path / "other.zip"], 2, "name the folder with --out"),
        (["unpack", bundle / "model.fp32.onnx", "--out", tmp_path / "x"], 1, "holds no entry where 'bundle.json'"),
        (["--json", "list"], 2, "--json: write it after 'list'"),
    ):
        result = edgeembed("artifacts", *command)
        assert (result.code, result.stdout) == (code, "")
        assert told in result.stderr
        assert len(result.stderr.strip().splitlines()) == 1
    assert not (tmp_path / "x").exists()


def test_more_than_a_zip_can_hold_is_refused(bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packing, "MAX_PACKED_BYTES", 10_000)
    with pytest.raises(UserError, match="one packed bundle holds 10000: copy the folder"):
        pack(bundle, tmp_path / "b.edgeembed.zip")
    assert list(tmp_path.iterdir()) == []
