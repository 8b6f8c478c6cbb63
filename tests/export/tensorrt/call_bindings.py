"""Checks the calls of our builder and runner against the Python bindings of a TensorRT version, without a GPU.

Usage: python call_bindings.py ["MODULE|OLD|NEW"]      a call to change first; prints "checked VERSION"
The classes of the bindings need NVIDIA's libraries. Each is replaced by a stand-in that has exactly its methods and
properties, takes exactly the arguments in its signatures, and returns the types in them. Enums, ILogger and everything
else are from the bindings. A name that a version lacks raises as it would there.
"""

from __future__ import annotations

import enum
import importlib.util
import re
import sys
import tempfile
import types
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import tensorrt as real
from onnx import TensorProto, helper

VALUES = {  # of properties and of methods that return plain values
    "num_errors": 0,
    "num_io_tensors": 2,
    "get_engine_information": '{"Layers": [{"Name": "a", "LayerType": "Convolution", "Weights": {"Type": "Half"}}]}',
    "shape": (-1, 8, 8, 3),
    "engine_host_code_allowed": False,
}
INTERFACES = ("Builder", "OnnxParser", "Runtime")


class StandIn:
    """Replaces an object of a class of the bindings."""

    def __init__(self, kind: type) -> None:
        object.__setattr__(self, "kind", kind)

    def __getattr__(self, name: str) -> Any:
        found = getattr(self.kind, name)  # raises AttributeError where the version has no such name
        if isinstance(found, property):
            return VALUES[name]
        return lambda *given, **named: call(self.kind, name, found.__doc__, given, named)

    def __setattr__(self, name: str, value: Any) -> None:
        found = getattr(self.kind, name)
        if not isinstance(found, property) or found.fset is None:
            raise AttributeError(f"{self.kind.__name__}.{name} cannot be set")
        check(found.fset.__doc__ or "", self.kind, name, (value,), {})


def call(kind: type, name: str, doc: str, given: tuple[Any, ...], named: dict[str, Any]) -> Any:
    returned = check(doc, kind, name, given, named)
    match name, given:
        case "get_tensor_name", (int() as index,):
            return ("image", "embedding")[index]
        case "get_tensor_mode", (tensor,):
            return real.TensorIOMode.INPUT if tensor == "image" else real.TensorIOMode.OUTPUT
        case "get_tensor_dtype", (tensor,):
            return real.DataType.UINT8 if tensor == "image" else real.DataType.FLOAT
        case "get_tensor_shape", (tensor,):
            return (-1, 8, 8, 3) if tensor == "image" else (-1, 4)
        case "get_tensor_profile_shape", _:
            return [(1, 8, 8, 3), (1, 8, 8, 3), (2, 8, 8, 3)]
        case "build_serialized_network" | "serialize", _:
            return b"plan"
    if name in VALUES:
        return VALUES[name]
    if returned == "bool":
        return True
    made = getattr(real, returned.split(".")[-1], None)
    return StandIn(made) if isinstance(made, type) else None


def check(doc: str, kind: type, name: str, given: tuple[Any, ...], named: dict[str, Any]) -> str:
    """Returns the return type of the first signature that takes the arguments. Raises TypeError where none does."""
    signatures = re.findall(rf"^(?:\d+\. )?(?:{re.escape(name)}|__init__)?\((.*)\)(?: -> (.*))?$", doc, re.MULTILINE)
    signatures = [item for item in signatures if item[0] != "*args, **kwargs"]
    if not signatures:
        raise TypeError(f"{kind.__name__}.{name}: no signature in {doc!r}")
    for parameters, returned in signatures:
        declared = [part.strip() for part in split_arguments(parameters)][1:]  # without self
        if fits(declared, given, named):
            return str(returned)
    raise TypeError(f"{kind.__name__}.{name} takes {signatures}, given {given} {named}")


def split_arguments(text: str) -> list[str]:
    """Splits at the commas outside of brackets."""
    parts, depth = [""], 0
    for letter in text:
        depth += (letter in "[(<") - (letter in "])>")
        if letter == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += letter
    return parts


def fits(declared: list[str], given: tuple[Any, ...], named: dict[str, Any]) -> bool:
    by_name = {part.split(":")[0].split("=")[0].strip(): part for part in declared}
    if len(given) > len(declared) or not set(named) <= set(by_name):
        return False
    bound = dict(zip(by_name, given, strict=False)) | named
    required = [name for name, part in by_name.items() if "=" not in part]
    return set(required) <= set(bound) and all(accepts(by_name[name], value) for name, value in bound.items())


def accepts(declared: str, value: Any) -> bool:
    kind = declared.split(":", 1)[-1].split("=")[0].strip()
    if "." in kind and (named := getattr(real, kind.split(".")[-1], None)) is not None:
        if hasattr(named, "__members__"):
            return isinstance(value, named)
        if kind.endswith("Dims"):
            return isinstance(value, tuple)
        return (isinstance(value, StandIn) and issubclass(value.kind, named)) or isinstance(value, named)
    if "uffer" in kind or kind == "bytes":
        return isinstance(value, bytes)
    plain = {"str": str, "bool": bool, "int": int, "typing.SupportsInt": int, "float": (int, float)}
    return isinstance(value, plain[kind]) if kind in plain else True


class StandInModule(types.ModuleType):
    """The bindings, with their classes replaced by stand-ins."""

    def __getattr__(self, name: str) -> Any:
        found = getattr(real, name)
        if name not in INTERFACES:
            return found

        def make(*given: Any, **named: Any) -> StandIn:
            check(found.__init__.__doc__, found, "__init__", given, named)
            return StandIn(found)

        return make


class NoDevice:
    """Replaces the GPU, which test machines need not have."""

    name, compute_capability, stream = "none", "9.0", 7

    def allocate(self, num_bytes: int) -> int:
        return num_bytes

    def allocate_pinned(self, num_bytes: int) -> Any:
        return np.zeros(num_bytes, np.uint8)

    def upload(self, *_: Any) -> None: ...
    def download(self, *_: Any) -> None: ...
    def synchronise(self) -> None: ...
    def close(self) -> None: ...

    def capture(self, enqueue: Any) -> Any:
        enqueue()
        return lambda: None


def load(name: str, change: tuple[str, str, str] | None) -> Any:
    """Loads a module of edgeembed, with the change in its source where the change names it."""
    spec = importlib.util.find_spec(name)
    assert spec is not None
    assert spec.origin is not None
    text = Path(spec.origin).read_text()
    if change is not None and change[0] == name:
        assert change[1] in text, f"{name} has no {change[1]!r} to change"
        text = text.replace(change[1], change[2])
    module = types.ModuleType(name)
    module.__file__ = spec.origin
    sys.modules[name] = module
    exec(compile(text, spec.origin, "exec"), module.__dict__)
    return module


def tiny() -> onnx.ModelProto:
    """A model of one operator with the inputs and outputs of an exported file."""
    ports = (("image", TensorProto.UINT8, ["N", 8, 8, 3]), ("embedding", TensorProto.FLOAT, ["N", 8, 8, 3]))
    image, embedding = (helper.make_tensor_value_info(*port) for port in ports)
    cast = helper.make_node("Cast", ["image"], ["embedding"], name="cast", to=TensorProto.FLOAT)
    graph = helper.make_graph([cast], "tiny", [image], [embedding])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)])


def main() -> None:
    module, _, rest = sys.argv[1].partition("|") if len(sys.argv) > 1 else ("", "", "")
    old, _, new = rest.partition("|")
    change = (module, old, new) if module else None
    bindings = StandInModule("tensorrt")
    bindings.__spec__ = real.__spec__
    sys.modules["tensorrt"] = bindings
    runner, builder = (
        load("edgeembed.device.runtimes.tensorrt", change),
        load("edgeembed.export.tensorrt.build", change),
    )
    runner.CudaDevice = NoDevice
    from edgeembed.export.recipe import EngineSection

    with tempfile.TemporaryDirectory() as folder:
        settings = EngineSection(
            opt_batch=2,
            workspace_mb=64,
            timing_cache=Path(folder) / "cache",
            hardware_compatible=True,
            version_compatible=True,
        )
        for precision in ("fp32", "fp16", "int8"):
            plan = builder.build_engine(tiny(), precision, settings)
        builder.require_precision(builder.inspect_engine(plan), "fp16", tiny())
        path = Path(folder) / "model.fp16.plan"
        path.write_bytes(plan)
        session = runner.TensorRtSession(path, threads=1)
        for batch in (1, 2, 2, 2, 2, 3):
            assert session.run(np.zeros((batch, 8, 8, 3), np.uint8)).shape == (batch, 4)
    print(f"checked {real.__version__}")


if __name__ == "__main__":
    assert issubclass(real.DataType, enum.Enum) or hasattr(real.DataType, "__members__")
    main()
