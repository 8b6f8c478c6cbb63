"""A small convolutional student, exported once."""

from __future__ import annotations

import onnx
import pytest

from tests.export.int8.models import exported_student


@pytest.fixture(scope="session")
def convolutional() -> onnx.ModelProto:
    return exported_student("resnet_xs")
