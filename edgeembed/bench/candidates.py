"""The files that a bench measures: each runnable file of each bundle, after every checksum was verified."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from edgeembed.device.bundle import read_bundle, verified_file
from edgeembed.device.bundle_schema import BundleFile, BundleManifest
from edgeembed.device.runtimes import ONNX_RUNTIMES, is_installed
from edgeembed.errors import UserError

RUNNABLE = (".onnx", ".plan", ".engine")


@dataclass(frozen=True, kw_only=True, eq=False)  # a key of dictionaries, by identity
class Candidate:
    """One file in one runtime. `name` is the bundle's name; the folder where several bundles share a name."""

    name: str
    folder: Path
    bundle: BundleManifest
    file: BundleFile
    path: Path
    runtime: str
    size_bytes: int

    @property
    def label(self) -> str:
        return f"{self.name} {self.file.precision} ({self.runtime})"

    @property
    def role(self) -> str:
        return str((self.bundle.student or {}).get("role", "student"))

    @property
    def params(self) -> int | None:
        return (self.bundle.student or {}).get("params")

    @property
    def macs(self) -> int | None:
        return (self.bundle.student or {}).get("macs")


def find_candidates(folders: Sequence[Path]) -> list[Candidate]:
    """Every file of every bundle in every installed runtime that reads it; all checksums are verified first.

    Raises CheckFailed for a changed file, UserError for a folder that is no bundle.
    """
    # A folder that is named twice is measured once.
    bundles = [(folder, read_bundle(folder)) for folder in dict.fromkeys(folders)]
    names = [bundle.name for _, bundle in bundles]
    candidates = []
    for folder, bundle in bundles:
        name = bundle.name if names.count(bundle.name) == 1 else str(folder)
        # All files before the first is measured: a changed file ends the bench at once.
        paths = {file.path: verified_file(folder, file) for file in bundle.files}
        for file in bundle.files:
            if not file.path.endswith(RUNNABLE):
                continue
            size = sum(part.bytes for part in bundle.files if part.path.startswith(file.path))  # with external weights
            candidates += [
                Candidate(
                    name=name,
                    folder=folder,
                    bundle=bundle,
                    file=file,
                    path=paths[file.path],
                    runtime=runtime,
                    size_bytes=size,
                )
                for runtime in runtimes_for(file)
            ]
    if not candidates:
        raise UserError(f"{', '.join(map(str, folders))}: no file that can be measured ({', '.join(RUNNABLE)})")
    return candidates


def runtimes_for(file: BundleFile) -> list[str]:
    """The runtime that a file was exported for, and for an ONNX file every other installed one that reads ONNX."""
    others = [name for name in ONNX_RUNTIMES if is_installed(name)] if file.path.endswith(".onnx") else []
    return list(dict.fromkeys([file.runtime, *others]))
