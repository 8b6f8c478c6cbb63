"""What is recorded of the machine and of the installed packages."""

from __future__ import annotations

import json

from edgeembed.machine import CPU_FLAGS, describe_machine, environment, package_versions


def test_the_machine_is_described() -> None:
    machine = describe_machine()
    assert machine.cores >= 1
    assert set(machine.cpu_flags) <= set(CPU_FLAGS)
    assert machine.cpu
    assert machine.memory_bytes is None or machine.memory_bytes > 2**20


def test_its_json_has_the_keys_that_reports_and_run_folders_hold() -> None:
    value = json.loads(json.dumps(describe_machine().to_json()))
    assert list(value) == ["cpu", "architecture", "cores", "cpu_flags", "memory_bytes", "system"]
    assert isinstance(value["cpu_flags"], list)
    assert value == describe_machine().to_json()


def test_versions_of_what_is_installed_are_known() -> None:
    versions = package_versions()
    assert {"python", "numpy", "onnxruntime"} <= set(versions)
    assert set(environment()) == {"machine", "versions", "command"}
    assert environment()["versions"] == versions
