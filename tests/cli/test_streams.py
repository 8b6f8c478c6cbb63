"""Standard output and error of real processes: encodings that lack characters, closed pipes, full disks."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from edgeembed.data.synthetic import render_view
from edgeembed.device.embedder import Embedder, default_bundle
from edgeembed.device.embeddings import Embeddings, write_embeddings

NOT_UTF8 = b"caf\xe9.png".decode("utf-8", "surrogateescape")
NAMES = ("/p/写真.png", "/p/naïve.png", "/p/😀.png", f"/p/{NOT_UTF8}", "/p/two\nlines.png")

needs_ascii_locale = pytest.mark.skipif(sys.platform != "linux", reason="the locale C is UTF-8 elsewhere")
needs_dev_full = pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")


def command(*arguments: object) -> list[str]:
    return [sys.executable, "-m", "edgeembed", *map(str, arguments)]


def edgeembed(*arguments: object, **environment: str) -> subprocess.CompletedProcess[bytes]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", **environment}
    return subprocess.run(command(*arguments), env=environment, capture_output=True, check=False)


@pytest.fixture(scope="module")
def query(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("query") / "query.png"
    render_view(seed=0, instance=0, view=0, size_px=48).save(path)
    return path


@pytest.fixture(scope="module")
def index(query: Path) -> Path:
    """An index of pictures with names that few encodings hold."""
    embedder = Embedder(threads=1)
    embedding_ND = np.repeat(embedder.embed([query]), len(NAMES), axis=0)
    path = query.parent / "index.safetensors"
    stored = Embeddings(embedding_ND=embedding_ND, paths=NAMES, space_id=embedder.space_id, model="m")
    write_embeddings(path, stored)
    return path


@pytest.mark.parametrize("encoding", ["cp1252", "ascii", "latin-1", "cp932", "utf-8"])
def test_search_prints_every_name_in_any_encoding(query: Path, index: Path, encoding: str) -> None:
    done = edgeembed("search", query, "--index", index, "--quiet", PYTHONIOENCODING=encoding)
    assert (done.returncode, done.stderr) == (0, b"")
    printed = [line[line.index(b"/p/") :] for line in done.stdout.splitlines()[1:]]
    shown = [
        name.replace("\n", "\\n").replace("\udce9", "\\xe9").encode(encoding, "backslashreplace") for name in NAMES
    ]
    assert sorted(printed) == sorted(shown)


@pytest.mark.parametrize("encoding", ["cp1252", "ascii", "utf-8"])
def test_json_gives_a_program_the_very_names_in_any_encoding(query: Path, index: Path, encoding: str) -> None:
    done = edgeembed("search", query, "--index", index, "--json", PYTHONIOENCODING=encoding)
    assert done.returncode == 0
    assert done.stdout.isascii()
    (found,) = json.loads(done.stdout)["queries"]
    assert sorted(result["path"] for result in found["results"]) == sorted(NAMES)


@pytest.mark.parametrize(
    "environment",
    [
        {"PYTHONIOENCODING": "ascii"},
        {"PYTHONIOENCODING": "cp1252:strict"},
        pytest.param(
            {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}, marks=needs_ascii_locale, id="locale C"
        ),
    ],
    ids=str,
)
def test_logs_and_errors_name_files_that_the_encoding_cannot_spell(
    query: Path, tmp_path: Path, environment: dict[str, str]
) -> None:
    shutil.copy(query, tmp_path / "写真.png")
    (tmp_path / "壊れた.png").write_bytes(b"no image")
    made = edgeembed("embed", tmp_path, "--out", tmp_path / "e.safetensors", "--json", **environment)
    assert made.returncode == 0, made.stderr
    result = json.loads(made.stdout)
    assert (result["images"], len(result["skipped"])) == (1, 1)
    assert result["skipped"][0].startswith(str(tmp_path / "壊れた.png"))
    assert b"skipped: " + os.fsencode(tmp_path) + rb"/\u58ca\u308c\u305f.png" in made.stderr
    missing = edgeembed("embed", tmp_path / "無い.png", **environment)
    assert (missing.returncode, missing.stderr.count(b"\n")) == (2, 1)
    assert missing.stderr == b"error: " + os.fsencode(tmp_path) + rb"/\u7121\u3044.png: no such file or folder" + b"\n"


@pytest.mark.parametrize("encoding", ["ascii", "cp1252"])
def test_tables_and_progress_lines_are_drawn_in_any_encoding(tmp_path: Path, encoding: str) -> None:
    folder = tmp_path / "写真"
    shutil.copytree(default_bundle(), folder)
    listed = edgeembed("artifacts", "list", folder, PYTHONIOENCODING=encoding)
    assert listed.returncode == 0, listed.stderr
    assert rb"\u5199\u771f" in listed.stdout
    code = (
        "import logging\nfrom edgeembed.cli.streams import make_streams_safe\nfrom edgeembed.progress import track\n"
        "logging.basicConfig(level=logging.INFO)\nmake_streams_safe()\nprint(list(track([1, 2], '写真', total=2)))"
    )
    environment = {**os.environ, "PYTHONIOENCODING": encoding, "FORCE_COLOR": "1"}
    drawn = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, check=False)
    assert (drawn.returncode, drawn.stdout.strip()) == (0, b"[1, 2]"), drawn.stderr
    assert rb"\u5199\u771f" in drawn.stderr


@pytest.fixture
def changed_bundle(tmp_path: Path) -> Path:
    """A bundle that `artifacts verify` prints a table of, and fails."""
    folder = tmp_path / "changed"
    shutil.copytree(default_bundle(), folder)
    with (folder / "model.fp32.onnx").open("ab") as file:
        file.write(b"x")
    return folder


def with_closed(stream: str, arguments: list[object]) -> tuple[int, bytes]:
    """The exit code, and what was written to the other stream, where a stream is a pipe that nobody reads."""
    reading, writing = os.pipe()
    os.close(reading)
    other = "stderr" if stream == "stdout" else "stdout"
    pipes = {stream: writing, other: subprocess.PIPE}
    try:
        with subprocess.Popen(command(*arguments), **pipes) as process:  # type: ignore[call-overload]
            shown = b"".join(part or b"" for part in process.communicate())
    finally:
        os.close(writing)
    return process.returncode, shown


@pytest.mark.parametrize("arguments", [["data", "sources"], ["artifacts", "--json"], ["--help"], []], ids=str)
def test_a_closed_pipe_ends_a_command_quietly_with_0(arguments: list[object]) -> None:
    assert with_closed("stdout", arguments) == (0, b"")


def test_a_closed_pipe_leaves_the_exit_code_of_a_failure(changed_bundle: Path) -> None:
    code, shown = with_closed("stdout", ["artifacts", "verify", changed_bundle])
    assert code == 1
    assert shown.startswith(b"error: 1 of ")
    assert shown.count(b"\n") == 1
    code, table = with_closed("stderr", ["artifacts", "verify", changed_bundle])
    assert code == 1
    assert b"model.fp32.onnx" in table
    assert with_closed("stderr", ["nothing"]) == (2, b"")


@needs_dev_full
@pytest.mark.parametrize("arguments", [["data", "sources"], ["--help"], ["--version"]], ids=str)
@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_results_that_find_no_space_are_an_error(arguments: list[str], unbuffered: str) -> None:
    environment = {**os.environ, "PYTHONUNBUFFERED": unbuffered}
    with Path("/dev/full").open("wb") as full:
        done = subprocess.run(command(*arguments), env=environment, stdout=full, stderr=subprocess.PIPE, check=False)
    assert done.returncode == 1
    assert done.stderr == b"error: [Errno 28] No space left on device: 'standard output'\n"
