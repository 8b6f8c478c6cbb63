"""ONNX Runtime: on the CPU, or on any other provider that the installed build offers and that really does the work."""

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

from edgeembed.device.runtimes.contract import Port, require_contract
from edgeembed.errors import CheckFailed, UserError, unknown_choice

log = logging.getLogger(__name__)

ERROR, FATAL = 3, 4  # severities of ONNX Runtime's log
CPU = "CPUExecutionProvider"
DTYPES = {"tensor(uint8)": "uint8", "tensor(float)": "float32"}
PACKAGES = {
    "cuda": "onnxruntime-gpu",
    "tensorrt": "onnxruntime-gpu",
    "dml": "onnxruntime-directml",
    "qnn": "onnxruntime-qnn",
    "openvino": "onnxruntime-openvino",
}
"""The builds that offer a provider; each takes the place of the package onnxruntime."""

# Warnings about GPUs that are not there would stand in the middle of a command's output.
onnxruntime.set_default_logger_severity(ERROR)


class OnnxRuntimeSession:
    """One ONNX file, with input `image` uint8 (N, H, W, 3) and output `embedding` float32 (N, D)."""

    runtime = "onnxruntime"

    def __init__(self, path: Path, *, threads: int, provider: str | None = None) -> None:
        """`provider` by its short name (cuda, coreml, ...) or by ONNX Runtime's own; None: the CPU.

        Raises UserError for a provider that is not offered, and for a file that cannot be opened or whose graph takes
        or gives something else; CheckFailed where another provider than the one asked for does the work.
        """
        self._path, self.threads = path, threads
        self.provider = CPU if provider is None else full_name(provider)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
        options.log_severity_level = FATAL  # what goes wrong arrives as an exception
        with contextlib.nullcontext() if self.provider == CPU else tempfile.TemporaryDirectory() as profiles:
            if profiles is not None:
                options.enable_profiling, options.profile_file_prefix = True, f"{profiles}/nodes"
            self._session = self._open(options)
            inputs, outputs = self._session.get_inputs(), self._session.get_outputs()
            self.input_shape, self.output_shape = require_contract(path, ports(inputs), ports(outputs))
            if profiles is not None:
                self._require_provider()

    def _open(self, options: Any) -> Any:
        try:
            return onnxruntime.InferenceSession(
                str(self._path),
                options,
                providers=list(dict.fromkeys([self.provider, CPU])),
                enable_fallback=0,  # it would print on stdout, and go on with the CPU
            )
        except Exception as error:  # ONNX Runtime's exceptions share no base class of their own
            raise UserError(f"{self._path}: ONNX Runtime {onnxruntime.__version__} cannot open it ({error})") from None

    def _require_provider(self) -> None:
        """Raises CheckFailed where no node runs on the provider asked for: ONNX Runtime itself would only log it.

        The list of a session's providers does not tell: one that takes no node, or all of them, stands in it alike. So
        one image is run with profiling, which ends here.
        """
        self.run(np.zeros([side or 1 for side in self.input_shape], np.uint8))
        events = json.loads(Path(self._session.end_profiling()).read_text(encoding="utf-8"))
        nodes = Counter(event["args"]["provider"] for event in events if "provider" in event.get("args", ()))
        if self.provider not in nodes:
            raise CheckFailed(
                f"{self._path}: asked to run on {self.provider}, runs on {', '.join(nodes)}: ONNX Runtime offers that "
                f"provider here but gives it nothing to do (a driver or library is missing, or it takes none of the "
                "network's operators)"
            )
        if len(nodes) > 1:
            log.info("%s: nodes by provider: %s", self._path.name, dict(nodes.most_common()))

    def run(self, image_NHWC: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        """RGB pixels, 0..255, to unit vectors (N, D). Raises CheckFailed where the network does not compute."""
        try:
            embedding_ND: npt.NDArray[np.float32] = self._session.run(["embedding"], {"image": image_NHWC})[0]
        except Exception as error:
            raise CheckFailed(f"{self._path}: fails on pixels of shape {image_NHWC.shape} ({error})") from error
        return embedding_ND


open_file = OnnxRuntimeSession


def full_name(provider: str) -> str:
    """ONNX Runtime's name of a provider. Raises UserError where the installed build does not offer it."""
    offered = {short_name(name): name for name in onnxruntime.get_available_providers()}
    short = short_name(provider)
    if short in offered:
        return str(offered[short])
    here = f"ONNX Runtime {onnxruntime.__version__} here offers {', '.join(sorted(offered))}"
    if short in PACKAGES:
        raise UserError(f"provider {provider!r}: {here}: install {PACKAGES[short]} in place of onnxruntime")
    raise unknown_choice("provider", provider, offered, f"({here})")


def short_name(provider: str) -> str:
    return provider.lower().removesuffix("executionprovider")


def ports(nodes: Sequence[Any]) -> list[Port]:
    """Inputs or outputs as ONNX Runtime lists them; a free side has a name there instead of a number."""
    return [
        Port(
            name=node.name,
            dtype=DTYPES.get(node.type, node.type),
            shape=tuple(side if isinstance(side, int) else None for side in node.shape),
        )
        for node in nodes
    ]
