"""Downloads NVIDIA packages that a test loads without installing them."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest


def download_wheel(package: str, version: str, folder: Path) -> None:
    """Unpacks a package's wheel into a folder; skips the test, with the reason, where it cannot be downloaded."""
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:"]
    command += ["--dest", str(folder), f"{package}=={version}"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    if done.returncode != 0:
        pytest.skip(f"{package} {version} cannot be downloaded: {done.stderr.strip().splitlines()[-1:]}")
    for wheel in folder.glob("*.whl"):
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(folder)
        wheel.unlink()
