"""Places to write: found fault with before any work, filled whole or not at all, named when they are full."""

from __future__ import annotations

import errno
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from edgeembed.errors import UserError, WriteFailed
from edgeembed.files import (
    check_output_file,
    check_output_folder,
    read_json,
    remove_folder,
    replace_folder,
    size_text,
    whole_file,
    whole_folder,
    write_atomically,
    write_failure,
)
from edgeembed.run_folder import RunFolder


def everything_below(folder: Path) -> list[Path]:
    return sorted(folder.rglob("*"))


@pytest.mark.parametrize("check", [check_output_file, check_output_folder])
@pytest.mark.parametrize("name", ["x", "new/x", "a/b/c/x", "link/x", "y" * 250, "old"])
def test_a_place_that_can_be_written_is_left_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, check: Callable[[Path], None], name: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    if check is check_output_file:
        (tmp_path / "old").write_text("kept")
    before = everything_below(tmp_path)
    for path in (Path(name), tmp_path / name):
        check(path)
    assert everything_below(tmp_path) == before
    assert check is check_output_folder or (tmp_path / "old").read_text() == "kept"


@pytest.mark.parametrize(
    ("check", "name", "told"),
    [
        (check_output_file, "file/x", "(file is not a folder)"),
        (check_output_file, "file/deep/x", "(file is not a folder)"),
        (check_output_file, "dangling/x", "(dangling is not a folder)"),
        (check_output_file, "folder", "is a folder, expected a file name"),
        (check_output_file, "n" * 256, "(File name too long)"),
        (check_output_file, "new/" + "n" * 256, "(File name too long)"),
        (check_output_folder, "file", "is a file, expected a folder"),
        (check_output_folder, "file/x", "(file is not a folder)"),
        (check_output_folder, "dangling", "(File exists)"),
        (check_output_folder, "new/" + "n" * 256 + "/x", "(File name too long)"),
    ],
)
def test_a_place_that_cannot_be_written_is_a_mistake_with_a_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, check: Callable[..., None], name: str, told: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").touch()
    (tmp_path / "folder").mkdir()
    (tmp_path / "dangling").symlink_to("nowhere")
    before = everything_below(tmp_path)
    with pytest.raises(UserError) as mistake:
        check(Path(name), option="--sheet")
    assert str(mistake.value).startswith(f"{name}: ")
    assert told in str(mistake.value)
    assert str(mistake.value).endswith(": choose another --sheet")
    assert everything_below(tmp_path) == before


@pytest.mark.skipif(sys.platform != "linux", reason="/proc and /dev")
def test_places_that_are_no_disk_are_refused() -> None:
    with pytest.raises(UserError, match=r"/proc/x\.png: cannot be written \("):
        check_output_file(Path("/proc/x.png"))
    with pytest.raises(UserError, match=r"/proc/run/x: cannot be written \("):
        check_output_folder(Path("/proc/run/x"))
    with pytest.raises(UserError, match="/dev/null: is not a regular file"):
        check_output_file(Path("/dev/null"))
    with pytest.raises(UserError, match="/proc: is a mount point"):
        check_output_folder(Path("/proc"), replaced=True)


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write everywhere")
@pytest.mark.parametrize("check", [check_output_file, check_output_folder])
def test_a_folder_without_permission_is_refused(tmp_path: Path, check: Callable[[Path], None]) -> None:
    tmp_path.chmod(0o555)
    try:
        with pytest.raises(UserError, match=r"cannot be written \(Permission denied\)"):
            check(tmp_path / "x")
    finally:
        tmp_path.chmod(0o755)


def test_the_current_folder_is_not_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in (".", str(tmp_path)):
        check_output_folder(Path(name))
        with pytest.raises(UserError, match="is the current folder, which another folder cannot replace"):
            check_output_folder(Path(name), replaced=True)


def tensors(folder: Path) -> None:
    import torch

    from edgeembed.network.tensor_files import save_tensors

    save_tensors(folder / "x.safetensors", {"a": torch.zeros(10_000)})


def checkpoint(folder: Path) -> None:
    import torch

    from edgeembed.training.checkpoints import save_checkpoint

    model = torch.nn.Linear(100, 100)
    save_checkpoint(RunFolder(path=folder), step=3, model=model, optimizers=[], keep=2, state={})


def embeddings(folder: Path) -> None:
    from edgeembed.device.embeddings import Embeddings, write_embeddings

    unit_ND = np.tile(np.eye(64, dtype=np.float32), (10, 1))
    paths = tuple(map(str, range(640)))
    write_embeddings(
        folder / "e.safetensors", Embeddings(embedding_ND=unit_ND, paths=paths, space_id="a" * 16, model="m")
    )


def manifest(suffix: str) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        from edgeembed.data.manifest import ManifestRow, build_manifest, write_manifest

        drawn = np.random.default_rng(0).bytes(20_000).hex()
        rows = [
            ManifestRow(path=f"{drawn[at : at + 40]}.jpg", label="a", domain="d", split="train")
            for at in range(0, 40_000, 40)
        ]
        write_manifest(folder / f"m{suffix}", build_manifest(folder, rows, source="drawn"))

    return write


def bundle(folder: Path) -> None:
    from edgeembed.device.embedder import default_bundle
    from edgeembed.device.packing import pack

    pack(default_bundle(), folder / "b.zip")


def pictures(folder: Path) -> None:
    from edgeembed.data.synthetic import write_synthetic

    write_synthetic(folder, num_instances=7, num_views=2, size_px=512, seed=0, workers=1)


def log_line(folder: Path) -> None:
    RunFolder(path=folder).log({"step": 1, "text": "x" * 10_000})


WRITERS: dict[str, Callable[[Path], None]] = {
    "text": lambda folder: write_atomically(folder / "deep" / "x.txt", "x" * 10_000),
    "tensors": tensors,
    "checkpoint": checkpoint,
    "embeddings": embeddings,
    "parquet": manifest(".parquet"),
    "csv": manifest(".csv"),
    "bundle": bundle,
    "pictures": pictures,
    "log": log_line,
}


@pytest.fixture
def files_of_at_most_5000_bytes() -> Iterator[None]:
    resource = pytest.importorskip("resource", reason="Windows has no limit on the size of files")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (5000, hard))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.usefixtures("files_of_at_most_5000_bytes")
@pytest.mark.parametrize(
    "writer",
    [pytest.param(name, marks=pytest.mark.training if name in ("tensors", "checkpoint") else ()) for name in WRITERS],
)
def test_what_cannot_be_written_to_the_end_is_named_and_nothing_of_it_is_left(tmp_path: Path, writer: str) -> None:
    with pytest.raises(WriteFailed, match="cannot be written: File too large") as failure:
        WRITERS[writer](tmp_path)
    assert str(failure.value).startswith(str(tmp_path))
    named = Path(str(failure.value).partition(": cannot be written")[0])
    assert not named.exists() or writer == "log"
    assert [path for path in tmp_path.rglob(".*") if path.is_file()] == []


def test_a_full_disk_is_named_with_what_is_needed_and_free(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "x.txt").write_text("old")

    def full(_descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(WriteFailed) as failure:
        write_atomically(tmp_path / "x.txt", "x" * 12_345)
    told = str(failure.value)
    assert told.startswith(f"{tmp_path / 'x.txt'}: cannot be written: No space left on device (12.3 kB needed, ")
    assert " free): free some space" in told
    assert [path.read_text() for path in tmp_path.iterdir()] == ["old"]


def test_a_file_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    write_atomically(tmp_path / "deep" / "x.txt", "one")
    assert (tmp_path / "deep" / "x.txt").read_text() == "one"
    with pytest.raises(TypeError):
        write_atomically(tmp_path / "deep" / "x.txt", 5)  # type: ignore[arg-type]
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["x.txt"]
    assert (tmp_path / "deep" / "x.txt").read_text() == "one"


@pytest.mark.parametrize(("content", "told"), [("{", "not valid JSON"), ("[1]", "expected a JSON object")])
def test_json_that_is_none_is_refused(tmp_path: Path, content: str, told: str) -> None:
    (tmp_path / "x.json").write_text(content)
    with pytest.raises(UserError, match=told):
        read_json(tmp_path / "x.json")
    with pytest.raises(UserError, match="no such file"):
        read_json(tmp_path / "missing.json")


@pytest.mark.parametrize("stop", [KeyboardInterrupt, SystemExit, ValueError])
def test_a_write_that_is_stopped_leaves_what_was_there(tmp_path: Path, stop: type[BaseException]) -> None:
    (tmp_path / "x.txt").write_text("old")

    def write_half() -> None:
        with whole_file(tmp_path / "x.txt") as file:
            file.write(b"half")
            raise stop

    with pytest.raises(stop):
        write_half()
    assert [path.read_text() for path in tmp_path.iterdir()] == ["old"]


def test_a_name_as_long_as_the_file_system_takes_can_be_written(tmp_path: Path) -> None:
    check_output_file(tmp_path / ("n" * 255))
    write_atomically(tmp_path / ("n" * 255), "x")
    assert [path.name for path in tmp_path.iterdir()] == ["n" * 255]


def test_an_error_that_names_its_own_file_stays_as_it_is(tmp_path: Path) -> None:
    error = FileNotFoundError(errno.ENOENT, "No such file", "elsewhere")
    assert write_failure(error, tmp_path) is error
    named = write_failure(OSError("Error writing bytes to file"), tmp_path / "x")
    assert str(named).startswith(f"{tmp_path / 'x'}: cannot be written: Error writing bytes to file: free some space")


@pytest.mark.parametrize(
    ("count", "text"), [(0, "0 bytes"), (999, "999 bytes"), (1500, "1.5 kB"), (7_600_000_000, "7.6 GB")]
)
def test_sizes_are_read_at_a_glance(count: int, text: str) -> None:
    assert size_text(count) == text


def content_of(folder: Path) -> dict[str, str]:
    return {str(path.relative_to(folder)): path.read_text() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def earlier(tmp_path: Path) -> Path:
    """A folder that another one is to replace."""
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "x.txt").write_text("earlier")
    return tmp_path / "out"


def test_a_folder_replaces_the_earlier_one_as_a_whole(tmp_path: Path, earlier: Path) -> None:
    with whole_folder(earlier) as folder:
        (folder / "deep").mkdir()
        (folder / "deep" / "y.txt").write_text("new")
        assert content_of(earlier) == {"x.txt": "earlier"}
    assert content_of(earlier) == {"deep/y.txt": "new"}
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_folder_is_made_with_those_above_it(tmp_path: Path) -> None:
    with whole_folder(tmp_path / "a" / "b") as folder:
        (folder / "x.txt").write_text("new")
    assert content_of(tmp_path) == {"a/b/x.txt": "new"}


@pytest.mark.skipif(sys.platform == "win32", reason="links need a privilege")
def test_the_folder_that_a_link_points_to_is_replaced(tmp_path: Path, earlier: Path) -> None:
    (tmp_path / "link").symlink_to("out")
    with whole_folder(tmp_path / "link") as folder:
        (folder / "x.txt").write_text("new")
    assert (tmp_path / "link").is_symlink()
    assert content_of(earlier) == {"x.txt": "new"}


@pytest.mark.parametrize("stop", [KeyboardInterrupt, SystemExit, ValueError])
def test_a_folder_whose_block_fails_leaves_the_earlier_one(
    tmp_path: Path, earlier: Path, stop: type[BaseException]
) -> None:
    def fill_half() -> None:
        with whole_folder(earlier) as folder:
            (folder / "y.txt").write_text("half")
            raise stop

    with pytest.raises(stop):
        fill_half()
    assert content_of(earlier) == {"x.txt": "earlier"}
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_block_that_removes_its_folder_leaves_the_earlier_one(tmp_path: Path, earlier: Path) -> None:
    with whole_folder(earlier) as folder:
        (folder / "y.txt").write_text("half")
        shutil.rmtree(folder)
    assert content_of(earlier) == {"x.txt": "earlier"}
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.usefixtures("files_of_at_most_5000_bytes")
@pytest.mark.parametrize("write", [lambda path: write_atomically(path, "x" * 10_000), lambda path: write_plainly(path)])
def test_a_full_disk_is_reported_with_the_final_path_and_leaves_the_earlier_folder(
    tmp_path: Path, earlier: Path, write: Callable[[Path], None]
) -> None:
    def fill() -> None:
        with whole_folder(earlier, needed=10_000) as folder:
            write(folder / "y.txt")

    with pytest.raises(WriteFailed, match="cannot be written: File too large") as failure:
        fill()
    assert str(failure.value).startswith(str(earlier))
    assert ".partial" not in str(failure.value)
    assert content_of(earlier) == {"x.txt": "earlier"}
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def write_plainly(path: Path) -> None:
    with path.open("wb", buffering=0) as file:
        for _ in range(10):
            file.write(bytes(1000))


def test_a_removed_folder_is_gone_with_its_content(tmp_path: Path, earlier: Path) -> None:
    remove_folder(earlier)
    assert list(tmp_path.iterdir()) == []


def test_an_older_folder_is_kept_where_it_cannot_come_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out, partial = tmp_path / "bundle", tmp_path / ".1-a.partial"
    for folder, content in ((out, "older"), (partial, "newer")):
        folder.mkdir()
        (folder / "bundle.json").write_text(content)
    rename = Path.rename

    def overtaken(self: Path, target: Path) -> Path:
        if self == partial:
            (target / "of another process").mkdir(parents=True)
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", overtaken)
    with pytest.raises(OSError, match="not empty"):
        replace_folder(out, partial)
    assert (tmp_path / ".1-a.old" / "bundle.json").read_text() == "older"
    assert (partial / "bundle.json").read_text() == "newer"
