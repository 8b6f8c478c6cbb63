"""What the shell offers for a half-typed value; without torch, as it is computed at every press of the tab key."""

from __future__ import annotations

from collections.abc import Callable
from importlib import resources
from pathlib import Path

Completion = Callable[[str], list[str]]


def recipes(*kinds: str) -> Completion:
    """Names of the bundled recipes of some kinds ("teacher", "student", "export")."""

    def complete(incomplete: str) -> list[str]:
        folder = resources.files("edgeembed") / "recipes"
        names = {entry.name for kind in kinds for entry in (folder / kind).iterdir()}
        return [name[:-5] for name in sorted(names) if name.endswith(".yaml") and name.startswith(incomplete)]

    return complete


def bundles(incomplete: str) -> list[str]:
    """Bundle folders below the folder that is typed so far, or where `edgeembed export` writes them."""
    return folders_with("bundle.json", incomplete, default="bundles/")


def runs(incomplete: str) -> list[str]:
    """Finished runs below the folder that is typed so far, or where training writes them."""
    return folders_with("model.json", incomplete, default="runs/")


def models(incomplete: str) -> list[str]:
    """What `--model` takes: bundles and runs."""
    return [*bundles(incomplete), *runs(incomplete)]


def folders_with(file: str, incomplete: str, *, default: str) -> list[str]:
    """Empty where there is none: the shell then offers its own file names."""
    folder = (incomplete if "/" in incomplete else default).rpartition("/")[0]
    found = sorted(path.parent.as_posix() for path in Path(folder or "/").glob(f"*/{file}"))
    return [path for path in found if path.startswith(incomplete)]
