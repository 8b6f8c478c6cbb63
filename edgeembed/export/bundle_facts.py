"""Collects what bundle.json records of a network, its teacher and its data."""

from __future__ import annotations

from typing import Any

from edgeembed.device.bundle_schema import SCHEMA
from edgeembed.machine import package_versions
from edgeembed.model_json import ModelOrigin, to_json
from edgeembed.network.model import Network


def bundle_facts(
    model: Network,
    macs: int,
    origin: ModelOrigin,
    name: str,
    licence: str | None,
    files: list[dict[str, Any]],
    evaluation: dict[str, Any],
) -> dict[str, Any]:
    """Returns the content of bundle.json.

    `macs`: multiply-accumulates for one image. `files` and `evaluation` are entries as bundle.json holds them.
    """
    description = model.describe()
    network = {
        # The student's name in its recipe, such as mobilenetv4_s; a teacher has none.
        "name": origin.alias or model.name,
        "backbone": model.name,
        "params": description.architecture.params,
        "macs": macs,
        # All that is needed to build the network again, with random weights for a comparison.
        "architecture": to_json(description.architecture),
        "weights": origin.weights,
        "role": origin.role,
    }
    # A bundle is copied to other machines: the paths of run and data on this one are left out.
    data = origin.data and to_json(origin.data, exclude={"manifest": True})
    teacher = origin.teacher and to_json(origin.teacher, exclude={"path": True, "data": {"manifest": True}})
    return {
        "schema": SCHEMA,
        "name": name,
        "space_id": origin.space_id,
        "embedding": {"dim": model.dim, "normalised": True, "metric": "cosine"},
        "input": {
            "layout": "NHWC",
            "dtype": "uint8",
            "height": model.size_px,
            "width": model.size_px,
            "colour": "RGB",
            "resize": description.input.resize,
        },
        "files": files,
        "teacher": teacher,
        "student": network,
        "data": data,
        "evaluation": evaluation,
        "licence": licence,
        "versions": package_versions(),
    }
