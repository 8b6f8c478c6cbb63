"""Shell completion of recipe names, bundles and runs; without torch, because it runs at every press of the tab key."""

from __future__ import annotations

from collections.abc import Callable
from importlib import resources
from pathlib import Path

Completion = Callable[[str], list[str]]


def recipes(*kinds: str) -> Completion:
    """Completes names of the bundled recipes of these kinds ("teacher", "student", "export")."""

    def complete(incomplete: str) -> list[str]:
        folder = resources.files("edgeembed") / "recipes"
        names = {entry.name for kind in kinds for entry in (folder / kind).iterdir()}
        # Without `.yaml`, as `--recipe` takes the name.
        return [name[:-5] for name in sorted(names) if name.endswith(".yaml") and name.startswith(incomplete)]

    return complete


def bundles(incomplete: str) -> list[str]:
    """Bundle folders in the folder that is typed so far; without one, in bundles/, where `edgeembed export` writes."""
    return _folders_with("bundle.json", incomplete, default="bundles/")


def runs(incomplete: str) -> list[str]:
    """Finished runs in the folder that is typed so far; without one, in runs/, where training writes."""
    return _folders_with("model.json", incomplete, default="runs/")


def models(incomplete: str) -> list[str]:
    """Values of `--model`: bundles and finished runs."""
    return [*bundles(incomplete), *runs(incomplete)]


def _folders_with(file: str, incomplete: str, *, default: str) -> list[str]:
    """Folders that contain a file of this name; where there is none, the shell completes file names itself."""
    folder = (incomplete if "/" in incomplete else default).rpartition("/")[0]
    # One level of folders only, so that the tab key stays fast; the root for a path like `/x`.
    found = sorted(path.parent.as_posix() for path in Path(folder or "/").glob(f"*/{file}"))
    return [path for path in found if path.startswith(incomplete)]
