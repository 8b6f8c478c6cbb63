"""Runs ONNX files in ONNX Runtime, on the CPU or on another execution provider that the installed build offers."""

from __future__ import annotations

import contextlib
import json
import logging
import tempfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime

from edgeembed.device.runtimes.contract import Port, check_contract
from edgeembed.errors import CheckFailed, UserError, unknown_choice

log = logging.getLogger(__name__)

ERROR, FATAL = 3, 4  # severities of ONNX Runtime's log
CPU = "CPUExecutionProvider"
DTYPES = {"tensor(uint8)": "uint8", "tensor(float)": "float32"}
PROVIDER_PACKAGES = {
    "cuda": "onnxruntime-gpu",
    "tensorrt": "onnxruntime-gpu",
    "dml": "onnxruntime-directml",
    "qnn": "onnxruntime-qnn",
    "openvino": "onnxruntime-openvino",
}
"""Package that offers an execution provider; it is installed in place of onnxruntime."""

# Otherwise warnings about missing GPUs appear in the output of commands.
onnxruntime.set_default_logger_severity(ERROR)


class OnnxRuntimeSession:
    """One ONNX file, with input `image` uint8 (N, H, W, 3) and output `embedding` float32 (N, D)."""

    runtime = "onnxruntime"

    def __init__(self, path: Path, *, threads: int, provider: str | None = None) -> None:
        """`provider` is a short name (cuda, coreml, ...) or ONNX Runtime's own name; None means the CPU.

        Raises UserError for a provider that is not offered, and for a file that cannot be opened or that has other
        inputs and outputs; CheckFailed where no operator runs on the given provider.
        """
        self._path, self.threads = path, threads
        self.provider = CPU if provider is None else provider_name(provider)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        # Networks are a chain of layers: running operators in parallel only adds overhead.
        options.inter_op_num_threads = 1
        options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
        options.log_severity_level = FATAL  # errors are raised as exceptions
        with contextlib.nullcontext() if self.provider == CPU else tempfile.TemporaryDirectory() as profiles:
            if profiles is not None:
                options.enable_profiling, options.profile_file_prefix = True, f"{profiles}/nodes"
            self._session = self._open(options)
            inputs, outputs = self._session.get_inputs(), self._session.get_outputs()
            self.input_shape, self.output_shape = check_contract(path, ports(inputs), ports(outputs))
            if profiles is not None:
                self._require_provider()

    def _open(self, options: Any) -> Any:
        """Creates the session. Raises UserError where ONNX Runtime cannot open the file."""
        try:
            return onnxruntime.InferenceSession(
                str(self._path),
                options,
                # The CPU runs the operators that the provider does not support.
                providers=list(dict.fromkeys([self.provider, CPU])),
                enable_fallback=0,  # a fallback would print on stdout and continue on the CPU
            )
        except Exception as error:  # its exceptions share no other base class
            raise UserError(f"{self._path}: ONNX Runtime {onnxruntime.__version__} cannot open it ({error})") from None

    def _require_provider(self) -> None:
        """Raises CheckFailed where no node runs on the given provider, which ONNX Runtime would only log.

        A session lists its providers whether they run any node or not. So one image is run with profiling, which ends
        here.
        """
        self.run(np.zeros([side or 1 for side in self.input_shape], np.uint8))
        events = json.loads(Path(self._session.end_profiling()).read_text(encoding="utf-8"))
        nodes = Counter(event["args"]["provider"] for event in events if "provider" in event.get("args", ()))
        if self.provider not in nodes:
            raise CheckFailed(
                f"{self._path}: was to run on {self.provider}, but runs on {', '.join(nodes)}: ONNX Runtime offers "
                "that provider here but runs nothing on it (a driver or library is missing, or it supports none of the "
                "network's operators)"
            )
        if len(nodes) > 1:
            log.info("%s: nodes by provider: %s", self._path.name, dict(nodes.most_common()))

    def run(self, image_NHWC: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        """Unit vectors (N, D) of RGB pixels (N, H, W, 3), 0..255. Raises CheckFailed where the network fails."""
        try:
            embedding_ND: npt.NDArray[np.float32] = self._session.run(["embedding"], {"image": image_NHWC})[0]
        except Exception as error:
            raise CheckFailed(f"{self._path}: fails on pixels of shape {image_NHWC.shape} ({error})") from error
        return embedding_ND


open_file = OnnxRuntimeSession


def provider_name(provider: str) -> str:
    """ONNX Runtime's name for a provider. Raises UserError where the installed build does not offer it."""
    offered = {short_provider_name(name): name for name in onnxruntime.get_available_providers()}
    short = short_provider_name(provider)
    if short in offered:
        return str(offered[short])
    here = f"ONNX Runtime {onnxruntime.__version__} here offers {', '.join(sorted(offered))}"
    if short in PROVIDER_PACKAGES:
        raise UserError(f"provider {provider!r}: {here}: install {PROVIDER_PACKAGES[short]} in place of onnxruntime")
    raise unknown_choice("provider", provider, offered, f"({here})")


def short_provider_name(provider: str) -> str:
    """For example `cuda` for `CUDAExecutionProvider`."""
    return provider.lower().removesuffix("executionprovider")


def ports(nodes: Sequence[Any]) -> list[Port]:
    """Inputs or outputs as ONNX Runtime lists them; it gives a dynamic dimension a name instead of a number."""
    return [
        Port(
            name=node.name,
            dtype=DTYPES.get(node.type, node.type),
            shape=tuple(size if isinstance(size, int) else None for size in node.shape),
        )
        for node in nodes
    ]
