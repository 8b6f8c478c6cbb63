"""ONNX Runtime for browsers: one pinned version, fetched by npm when a page is built, its integrity checked."""

from __future__ import annotations

import base64
import hashlib
import json
import shutil
import subprocess
import tarfile
import tempfile
from pathlib import Path

from edgeembed.errors import CheckFailed

PACKAGE, VERSION = "onnxruntime-web", "1.30.0"
INTEGRITY = "sha512-q0y+JrrtukXSzsBWEMccVfqX25LRmosXHF+CaRJmg8pZClzcV7svNc4rKY3jL02Vb7QmRMDs1SigqR4CXAfKYQ=="
# As they are named in the package, and in the page: not every web server knows that .mjs is JavaScript.
FILES = {
    "ort.wasm.bundle.min.mjs": "ort.wasm.bundle.min.js",
    "ort-wasm-simd-threaded.wasm": "ort-wasm-simd-threaded.wasm",
}
PATIENCE_S = 600
LICENCE = """onnxruntime-web {version}, https://onnxruntime.ai

MIT License

Copyright (c) Microsoft Corporation

Permission is hereby granted, free of charge, to any person obtaining a copy
of this software and associated documentation files (the "Software"), to deal
in the Software without restriction, including without limitation the rights
to use, copy, modify, merge, publish, distribute, sublicense, and/or sell
copies of the Software, and to permit persons to whom the Software is
furnished to do so, subject to the following conditions:

The above copyright notice and this permission notice shall be included in all
copies or substantial portions of the Software.

THE SOFTWARE IS PROVIDED "AS IS", WITHOUT WARRANTY OF ANY KIND, EXPRESS OR
IMPLIED, INCLUDING BUT NOT LIMITED TO THE WARRANTIES OF MERCHANTABILITY,
FITNESS FOR A PARTICULAR PURPOSE AND NONINFRINGEMENT. IN NO EVENT SHALL THE
AUTHORS OR COPYRIGHT HOLDERS BE LIABLE FOR ANY CLAIM, DAMAGES OR OTHER
LIABILITY, WHETHER IN AN ACTION OF CONTRACT, TORT OR OTHERWISE, ARISING FROM,
OUT OF OR IN CONNECTION WITH THE SOFTWARE OR THE USE OR OTHER DEALINGS IN THE
SOFTWARE.
"""


def add_runtime(folder: Path) -> None:
    """Writes the files of ONNX Runtime, and their licence, into `folder`, which must exist.

    npm keeps the package in its own cache, so that a second page needs no network. Raises CheckFailed without npm,
    without a network where one is needed, and for a package that is not the pinned one.
    """
    with tempfile.TemporaryDirectory() as temporary:
        archive = require_pinned(fetch(Path(temporary)))
        with tarfile.open(archive) as package:
            for name, name_in_page in FILES.items():
                member = package.extractfile(f"package/dist/{name}")
                assert member is not None
                (folder / name_in_page).write_bytes(member.read())
    (folder / "LICENSE.txt").write_text(LICENCE.format(version=VERSION), encoding="utf-8")


def fetch(folder: Path) -> Path:
    """The package's archive, as npm gives it."""
    npm = shutil.which("npm")
    wanted = f"{PACKAGE}@{VERSION}"
    if npm is None:
        raise CheckFailed(f"{wanted} is fetched with npm, which is not installed: install Node.js, then build again")
    command = [npm, "pack", wanted, "--prefer-offline", "--ignore-scripts", "--json", "--fetch-retries=1"]
    try:
        result = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=PATIENCE_S)
    except subprocess.TimeoutExpired:
        raise CheckFailed(f"{wanted}: npm did not end within {PATIENCE_S} s: is there a network?") from None
    archives = list(folder.glob("*.tgz"))
    if result.returncode != 0 or len(archives) != 1:
        raise CheckFailed(f"{wanted}: npm cannot fetch it ({reason(result)}): is there a network?")
    return archives[0]


def reason(result: subprocess.CompletedProcess[str]) -> str:
    """What npm says that went wrong, in a few words."""
    try:
        return str(json.loads(result.stdout)["error"]["summary"]).strip().split("\n")[0][:200]
    except (ValueError, KeyError, TypeError):
        return f"exit code {result.returncode}"


def require_pinned(archive: Path) -> Path:
    """Raises CheckFailed for an archive that is not the one that this version of edgeembed was tested with."""
    kind, _, expected = INTEGRITY.partition("-")
    actual = base64.b64encode(hashlib.new(kind, archive.read_bytes()).digest()).decode()
    if actual != expected:
        raise CheckFailed(
            f"{PACKAGE}@{VERSION}: {kind} is {actual[:12]}..., expected {expected[:12]}...: do not use it, "
            "look at where npm takes packages from"
        )
    return archive
