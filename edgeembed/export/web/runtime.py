"""Downloads ONNX Runtime for browsers with npm when a page is built: one pinned version, with its checksum checked."""

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
# As in npm's lock files: algorithm, hyphen, base64 of the digest.
INTEGRITY = "sha512-q0y+JrrtukXSzsBWEMccVfqX25LRmosXHF+CaRJmg8pZClzcV7svNc4rKY3jL02Vb7QmRMDs1SigqR4CXAfKYQ=="
# Names in the package, and names in the page, because not every web server knows that .mjs is JavaScript.
FILES = {
    "ort.wasm.bundle.min.mjs": "ort.wasm.bundle.min.js",
    "ort-wasm-simd-threaded.wasm": "ort-wasm-simd-threaded.wasm",
}
NPM_TIMEOUT_S = 600
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

    npm keeps the package in its cache, so that a second page needs no network. Raises CheckFailed without npm, where
    the download fails, and for a package that is not the pinned one.
    """
    with tempfile.TemporaryDirectory() as temporary:
        archive = require_pinned(download_package(Path(temporary)))
        with tarfile.open(archive) as package:
            for name, name_in_page in FILES.items():
                # Single files by name: nothing is extracted to a path that the archive chooses.
                member = package.extractfile(f"package/dist/{name}")
                assert member is not None
                (folder / name_in_page).write_bytes(member.read())
    (folder / "LICENSE.txt").write_text(LICENCE.format(version=VERSION), encoding="utf-8")


def download_package(folder: Path) -> Path:
    """Downloads the package with npm and returns its archive."""
    npm = shutil.which("npm")
    package = f"{PACKAGE}@{VERSION}"
    if npm is None:
        raise CheckFailed(f"{package} is fetched with npm, which is not installed: install Node.js, then build again")
    # The cache before the network, and no script of the package is run.
    command = [npm, "pack", package, "--prefer-offline", "--ignore-scripts", "--json", "--fetch-retries=1"]
    try:
        result = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=NPM_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        raise CheckFailed(f"{package}: npm did not end within {NPM_TIMEOUT_S} s: is there a network?") from None
    archives = list(folder.glob("*.tgz"))
    if result.returncode != 0 or len(archives) != 1:
        raise CheckFailed(f"{package}: npm cannot fetch it ({npm_error(result)}): is there a network?")
    return archives[0]


def npm_error(result: subprocess.CompletedProcess[str]) -> str:
    """Returns npm's own summary of an error, or its exit code."""
    try:
        return str(json.loads(result.stdout)["error"]["summary"]).strip().split("\n")[0][:200]
    except (ValueError, KeyError, TypeError):
        return f"exit code {result.returncode}"


def require_pinned(archive: Path) -> Path:
    """Raises CheckFailed for an archive that is not the one that this version of edgeembed was tested with."""
    algorithm, _, expected = INTEGRITY.partition("-")
    actual = base64.b64encode(hashlib.new(algorithm, archive.read_bytes()).digest()).decode()
    if actual != expected:
        raise CheckFailed(
            f"{PACKAGE}@{VERSION}: {algorithm} is {actual[:12]}..., expected {expected[:12]}...: do not use it, "
            "check which registry npm takes packages from"
        )
    return archive
