"""The list of students: figures of the network, and a time that was measured."""

from __future__ import annotations

import json
from collections.abc import Callable

from edgeembed.student.zoo import build_student
from tests.conftest import Outcome

Run = Callable[..., Outcome]


def test_students_are_counted_and_timed(edgeembed: Run) -> None:
    outcome = edgeembed("students", "test_resnet", "mobilenetv4_s", "--size-px", 64, "--json")
    assert outcome.code == 0
    first, second = json.loads(outcome.stdout)["students"]
    model = build_student("test_resnet", weights="none", size_px=64, dim=64)
    assert first["params"] == sum(parameter.numel() for parameter in model.parameters())
    assert (second["name"], second["timm"]) == ("mobilenetv4_s", "mobilenetv4_conv_small")
    assert second["params"] > first["params"]
    assert second["macs"] > 10_000_000
    assert first["p50_ms"] > 0


def test_the_list_is_a_table_and_names_are_checked_first(edgeembed: Run) -> None:
    outcome = edgeembed("students", "test_resnet", "--size-px", 64, "--no-latency")
    assert outcome.code == 0
    head, row = outcome.stdout.strip().splitlines()
    assert head.split()[:2] == ["student", "timm"]
    assert row.split() == ["test_resnet", "test_resnet", "0.38", "0.016"]
    unknown = edgeembed("students", "test_resnet", "mobilenet4_s")
    assert (unknown.code, unknown.stdout) == (2, "")
    assert "unknown student 'mobilenet4_s': did you mean 'mobilenetv4_s'?" in unknown.stderr
