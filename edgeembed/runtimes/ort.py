"""ONNX Runtime on the CPU: the runtime of the base install, and the one that every exported file must run on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime

from edgeembed.errors import CheckFailed, UserError

ERROR, FATAL = 3, 4  # severities of ONNX Runtime's log

# Warnings about GPUs that are not there would stand in the middle of a command's output.
onnxruntime.set_default_logger_severity(ERROR)


class OnnxRuntimeSession:
    """One ONNX file, with input `image` uint8 (N, H, W, 3) and output `embedding` float32 (N, D)."""

    runtime = "onnxruntime"

    def __init__(self, path: Path, *, threads: int) -> None:
        """Raises UserError for a file that cannot be opened, or whose graph takes or gives something else."""
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
        options.log_severity_level = FATAL  # what goes wrong arrives as an exception
        try:
            session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        except Exception as error:  # ONNX Runtime's exceptions share no base class of their own
            raise UserError(f"{path}: ONNX Runtime {onnxruntime.__version__} cannot open it ({error})") from None
        require_contract(path, session)
        self._path, self._session = path, session
        self.input_shape = tuple(session.get_inputs()[0].shape)
        self.output_shape = next(tuple(node.shape) for node in session.get_outputs() if node.name == "embedding")
        self.threads = threads
        self.provider = str(session.get_providers()[0])

    def run(self, image_NHWC: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        """RGB pixels, 0..255, to unit vectors (N, D). Raises CheckFailed where the network does not compute."""
        try:
            embedding_ND: npt.NDArray[np.float32] = self._session.run(["embedding"], {"image": image_NHWC})[0]
        except Exception as error:
            raise CheckFailed(f"{self._path}: fails on pixels of shape {image_NHWC.shape} ({error})") from error
        return embedding_ND


def require_contract(path: Path, session: Any) -> None:
    """Raises UserError, with what was found, for a graph that is not pixels in and embeddings out."""
    inputs = [(node.name, node.type, list(node.shape)) for node in session.get_inputs()]
    outputs = [(node.name, node.type, list(node.shape)) for node in session.get_outputs()]
    if not (len(inputs) == 1 and inputs[0][:2] == ("image", "tensor(uint8)") and is_nhwc(inputs[0][2])):
        raise UserError(f"{path}: expected one input image uint8 (N, H, W, 3) with free N, found {describe(inputs)}")
    if not any(name == "embedding" and kind == "tensor(float)" and len(shape) == 2 for name, kind, shape in outputs):
        raise UserError(f"{path}: expected an output embedding float32 (N, D), found {describe(outputs)}")


def is_nhwc(shape: list[Any]) -> bool:
    return len(shape) == 4 and not isinstance(shape[0], int) and shape[3] == 3


def describe(nodes: list[tuple[str, str, list[Any]]]) -> str:
    return "; ".join(f"{name} {kind} {tuple(shape)}" for name, kind, shape in nodes) or "none"
