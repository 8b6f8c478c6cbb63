"""Loads weights into a backbone from a file in any of the layouts that training frameworks write."""

from __future__ import annotations

import argparse
import itertools
import logging
import re
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from edgeembed.errors import UserError
from edgeembed.network.tensor_files import iterate_tensors, require_finite

log = logging.getLogger(__name__)

MIN_SHARE = 0.8
"""Share of the backbone's tensors that a file must hold. With fewer, it is another architecture that fits by chance."""

WRAPPED = re.compile(r"(?:_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")
"""What torch.compile, FSDP and activation checkpointing add to tensor names, at any place."""

PREFERRED = ("ema", "teacher", "")
"""Of several copies of a network in a file, averages of the weights come first: they are the better ones."""

UNSAFE = re.compile(r"(?:Unsupported global: GLOBAL|unsupported GLOBAL) (\S+)")  # in errors of torch.load

MAX_LEVELS = 8  # of nested mappings in a file: a mapping in a torch file may even hold itself

COUNTERS = "num_batches_tracked"  # of batch norm: missing in older files, and not used in evaluation


@dataclass(frozen=True, kw_only=True)
class Fit:
    """How well the tensors below one prefix of a file fit a backbone. Names are the backbone's."""

    prefix: str
    fitting: Mapping[str, Tensor]
    misshapen: Mapping[str, Tensor]
    missing: Sequence[str]

    @property
    def rank(self) -> tuple[int, int, int, int]:
        """Larger is better: most tensors that fit, fewest missing, averaged weights first, shortest prefix."""
        words = self.prefix.lower()
        preference = next(place for place, word in enumerate(PREFERRED) if word in words)
        return len(self.fitting), -len(self.missing), -preference, -len(self.prefix)


def load_weights(module: nn.Module, path: Path) -> None:
    """Loads weights from a safetensors file, or from a torch file of any age with weights_only: no code is run.

    The weights may be nested in the file (`state_dict`, `model`, ...) and their names may have prefixes (`module.`,
    `_orig_mod.`, `backbone.`, `visual.`, ...). Tensors of the file that are not used are counted in the log; tensors
    that the file lacks keep their initial values, with a warning that counts and names them. Raises UserError for a
    file that cannot be read, another architecture, other shapes, and weights that are not finite numbers.
    """
    in_file = dict(named_tensors(read_tensors(path)))
    expected: dict[str, Tensor] = module.state_dict(keep_vars=True)
    fit, others = best_fit(in_file, expected)
    require_same_architecture(path, fit, in_file, expected)
    for name, tensor in fit.fitting.items():
        copy_tensor(path, f"{fit.prefix}{name}", tensor, expected[name])
    if others:
        log.info("%s: weights are those under %r, not under %s", path, fit.prefix, few(others))
    used = {fit.prefix + name for name in expected}
    unused = [name for name in in_file if name not in used]
    if unused:
        log.info("%s: %d tensors that are not the backbone's are left out: %s", path, len(unused), few(unused))
    if fit.missing:
        log.warning(
            "%s: lacks %d of the backbone's %d tensors, which keep their initial values: %s",
            path, len(fit.missing), len(without_counters(expected)), few(fit.missing),
        )  # fmt: skip


def load_weights_in_order(module: nn.Module, path: Path) -> None:
    """Loads a file whose tensors stand in the order of the module's, under names that another program gave them.

    Tensors behind the module's last one, of a classifier, are not used. Raises UserError if the file cannot be read,
    and if a tensor differs from the module's in shape or in the last part of its name (`weight`, `running_mean`, ...).
    """
    expected: dict[str, Tensor] = module.state_dict(keep_vars=True)
    in_file = dict(named_tensors(read_tensors(path)))
    names, names_in_file = without_counters(expected), without_counters(in_file)
    if len(names_in_file) < len(names):
        raise UserError(f"{path}: holds {len(names_in_file)} tensors, the backbone {len(names)}: is it another one?")
    pairs = list(zip(names, names_in_file, strict=False))
    # Every pair before any is copied, so that a wrong file changes nothing.
    for name, name_in_file in pairs:
        shapes = tuple(in_file[name_in_file].shape), tuple(expected[name].shape)
        if shapes[0] != shapes[1] or name.rpartition(".")[2] != name_in_file.rpartition(".")[2]:
            raise UserError(
                f"{path}: {name_in_file} with shape {shapes[0]} is where the backbone has {name} with shape "
                f"{shapes[1]}: is it another architecture?"
            )
    for name, name_in_file in pairs:
        copy_tensor(path, name_in_file, in_file[name_in_file], expected[name])


def require_same_architecture(
    path: Path, fit: Fit, in_file: Mapping[str, Tensor], expected: Mapping[str, Tensor]
) -> None:
    """Raises UserError if a file lacks too many of a backbone's tensors, or holds some in other shapes."""
    weights = without_counters(expected)
    num_in_file = len(weights) - len(fit.missing)
    if not in_file or num_in_file < MIN_SHARE * len(weights):
        raise UserError(
            f"{path}: holds {num_in_file} of the backbone's {len(weights)} tensors: it has {few(in_file)}, "
            f"the backbone {few(weights)}: is it another architecture?"
        )
    if fit.misshapen:
        shapes = [
            f"{fit.prefix}{name} has shape {tuple(tensor.shape)}, the backbone needs {tuple(expected[name].shape)}"
            for name, tensor in fit.misshapen.items()
        ]
        raise UserError(
            f"{path}: {len(shapes)} of {len(weights)} tensors have other shapes: {'; '.join(shapes[:3])}: "
            "is it another size of the architecture, or made for another image size?"
        )


def copy_tensor(path: Path, name: str, tensor: Tensor, target: Tensor) -> None:
    """Copies a tensor of a file into a parameter or buffer of its shape.

    Raises UserError for a sparse tensor or one without values, another kind of number, and NaN or infinity.
    """
    if tensor.is_meta or tensor.layout is not torch.strided:
        kind = "meta tensor, without values" if tensor.is_meta else "sparse tensor"
        raise UserError(f"{path}: tensor {name} is a {kind}, expected {target.dtype} values: save it dense")
    if target.is_floating_point() != tensor.is_floating_point():
        raise UserError(f"{path}: tensor {name} is {tensor.dtype}, expected {target.dtype}")
    try:
        converted = tensor.to(target.dtype)
    except (NotImplementedError, RuntimeError):  # packed formats such as float4
        raise UserError(f"{path}: tensor {name} is {tensor.dtype}, which cannot become {target.dtype}") from None
    require_finite(path, name, converted, unless=target)
    with torch.no_grad():
        target.copy_(converted)


def without_counters(names: Iterable[str]) -> list[str]:
    """Returns the names without those of batch norm's counters."""
    return [name for name in names if not name.endswith(COUNTERS)]


def read_tensors(path: Path) -> Any:
    """Reads a file, whose format its content tells. Raises UserError for anything but safetensors and torch files."""
    with path.open("rb") as file:
        start = file.read(64)
    if start.startswith(b"version https://git-lfs"):
        raise UserError(f"{path}: a pointer of Git LFS, not the weights: run `git lfs pull`")
    # A safetensors file begins with 8 bytes of header length and a JSON object.
    if path.suffix == ".safetensors" or start[8:9] == b"{":
        return dict(iterate_tensors(path))
    try:
        # Training scripts save their command line with the weights, as a Namespace, which only holds values.
        with warnings.catch_warnings(), torch.serialization.safe_globals([argparse.Namespace]):
            warnings.simplefilter("ignore")  # of torch about old files
            # Only zip files, which torch writes since 1.6, can be mapped into memory.
            return torch.load(path, map_location="cpu", weights_only=True, mmap=start.startswith(b"PK"))
    # torch.load raises many kinds of errors for files that it cannot read.
    except Exception as error:
        raise UserError(
            f"{path}: not a torch file of plain tensors ({reason_of(error)}): save model.state_dict() with torch.save, "
            "or convert it to safetensors"
        ) from None


def reason_of(error: Exception) -> str:
    """Returns in a few words why torch does not read a file: torch's own messages are paragraphs of advice."""
    refused = UNSAFE.search(str(error))
    if refused:
        return f"it holds a {refused[1]}, which could run code"
    if "Weights only load failed" in str(error):
        return "damaged, or of another format"
    return (str(error).splitlines() or [type(error).__name__])[0][:160]


def named_tensors(values: Any, prefix: str = "", *, levels: int = MAX_LEVELS) -> Iterator[tuple[str, Tensor]]:
    """Yields the tensors of nested mappings with their dotted names; mappings nested deeper are left out."""
    if isinstance(values, Tensor):
        yield WRAPPED.sub("", prefix), values
    elif isinstance(values, Mapping) and levels:
        for key, value in values.items():
            yield from named_tensors(value, f"{prefix}.{key}" if prefix else str(key), levels=levels - 1)


def best_fit(in_file: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> tuple[Fit, list[str]]:
    """Returns the prefix whose tensors fit a backbone best, and other prefixes that fit as well."""
    # Each tensor votes for the prefixes without which it has a name of the backbone.
    votes = Counter(
        name[: len(name) - len(ending)]
        for name in in_file
        for ending in endings(name)
        if ending in expected and not ending.endswith(COUNTERS)
    )
    # Eight are enough: prefixes with few votes are coincidences.
    fits = [fit_below(prefix, in_file, expected) for prefix, _ in votes.most_common(8)]
    best = max(fits, key=lambda fit: fit.rank, default=fit_below("", in_file, expected))
    return best, [fit.prefix for fit in fits if fit is not best and fit.rank[:2] == best.rank[:2]]


def endings(name: str) -> Iterator[str]:
    """Yields a dotted name, the name without its first part, and so on."""
    parts = name.split(".")
    yield from (".".join(parts[first:]) for first in range(len(parts)))


def fit_below(prefix: str, in_file: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> Fit:
    """Compares the tensors below a prefix of a file with those of a backbone."""
    present = {name: in_file[prefix + name] for name in expected if prefix + name in in_file}
    fitting = {name: tensor for name, tensor in present.items() if tensor.shape == expected[name].shape}
    return Fit(
        prefix=prefix,
        fitting=fitting,
        misshapen={name: tensor for name, tensor in present.items() if name not in fitting},
        missing=[name for name in expected if name not in present and not name.endswith(COUNTERS)],
    )


def few(names: Sequence[str] | Mapping[str, Any]) -> str:
    """Returns the first three names as text."""
    first = ", ".join(repr(name) for name in itertools.islice(names, 3))
    return (first or "no tensors") + (", ..." if len(names) > 3 else "")
