"""Collects what bundle.json records of a network, its teacher and its data."""

from __future__ import annotations

from typing import Any

from edgeembed.device.bundle import SCHEMA
from edgeembed.machine import package_versions
from edgeembed.network.model import Network


def bundle_facts(
    model: Network,
    macs: int,
    facts: dict[str, Any],
    name: str,
    licence: str | None,
    files: list[dict[str, Any]],
    evaluation: dict[str, Any],
) -> dict[str, Any]:
    """Returns the content of bundle.json.

    `facts`: model.json of the run. `macs`: multiply-accumulates for one image. `files` and `evaluation` are entries as
    bundle.json holds them.
    """
    network = {
        "name": facts.get("alias") or model.name,
        "backbone": model.name,
        "params": facts["architecture"]["params"],
        "macs": macs,
        "architecture": model.describe()["architecture"],
        "weights": facts.get("weights"),
        "role": facts["role"],
    }
    teacher = facts.get("teacher")  # a teacher's own bundle has none
    return {
        "schema": SCHEMA,
        "name": name,
        "space_id": facts["space_id"],
        "embedding": {"dim": model.dim, "normalised": True, "metric": "cosine"},
        "input": {
            "layout": "NHWC",
            "dtype": "uint8",
            "height": model.size_px,
            "width": model.size_px,
            "colour": "RGB",
            "resize": facts["input"]["resize"],
        },
        "files": files,
        "teacher": without_paths(teacher) if teacher else None,
        "student": network,
        "data": without_paths(facts["data"]),
        "evaluation": evaluation,
        "licence": licence,
        "versions": package_versions(),
    }


def without_paths(facts: dict[str, Any]) -> dict[str, Any]:
    """Removes the paths of this machine, which mean nothing where the bundle is used."""
    kept = {key: value for key, value in facts.items() if key not in ("path", "manifest")}
    return {key: without_paths(value) if isinstance(value, dict) else value for key, value in kept.items()}
