"""Fills a tower from a weight file, in any of the layouts that training frameworks leave."""

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

SMALLEST_SHARE = 0.8
"""Of the tower's tensors that a file must hold: with fewer it is another architecture whose first blocks fit."""

WRAPPED = re.compile(r"(?:_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")
"""What torch.compile, FSDP and activation checkpointing put anywhere into a name."""

PREFERRED = ("ema", "teacher", "")
"""Where a file holds several copies of a network, averages of the weights come first: they are meant for use."""

UNSAFE = re.compile(r"(?:Unsupported global: GLOBAL|unsupported GLOBAL) (\S+)")  # what torch calls all but plain values

COUNTERS = "num_batches_tracked"  # of batch norm; older files lack it, and evaluation does not use it


@dataclass(frozen=True, kw_only=True)
class Fit:
    """How the tensors below one prefix of a file fill a tower: by the tower's names."""

    prefix: str
    fitting: Mapping[str, Tensor]
    misshapen: Mapping[str, Tensor]
    missing: Sequence[str]

    @property
    def rank(self) -> tuple[int, int, int, int]:
        """The larger the better: tensors that fit, names that match, then averages of the weights, short prefixes."""
        words = self.prefix.lower()
        preference = next(place for place, word in enumerate(PREFERRED) if word in words)
        return len(self.fitting), -len(self.missing), -preference, -len(self.prefix)


def load_weights(module: nn.Module, path: Path) -> None:
    """Fills a tower from a safetensors file, or from a torch file of any age read with weights_only (nothing runs).

    The tower may be nested in the file (`state_dict`, `model`, ...) and its names may have prefixes (`module.`,
    `_orig_mod.`, `backbone.`, `visual.`, ...). What is left out of the file is counted in the log; tensors that the
    file lacks keep their initial values, with a warning that counts and names them. Raises UserError for a file that
    cannot be read, another architecture, other shapes, and weights that are not finite numbers.
    """
    found = dict(named_tensors(read_tensors(path)))
    wanted: dict[str, Tensor] = module.state_dict(keep_vars=True)
    fit, others = best_fit(found, wanted)
    require_same_architecture(path, fit, found, wanted)
    for name, tensor in fit.fitting.items():
        copy_tensor(path, f"{fit.prefix}{name}", tensor, wanted[name])
    if others:
        log.info("%s: weights are those under %r, not under %s", path, fit.prefix, few(others))
    used = {fit.prefix + name for name in wanted}
    left = [name for name in found if name not in used]
    if left:
        log.info("%s: %d tensors that are not the backbone's are left out: %s", path, len(left), few(left))
    if fit.missing:
        log.warning(
            "%s: lacks %d of the backbone's %d tensors, which keep their initial values: %s",
            path, len(fit.missing), len(without_counters(wanted)), few(fit.missing),
        )  # fmt: skip


def require_same_architecture(path: Path, fit: Fit, found: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> None:
    """Raises UserError where a file lacks too many of a tower's tensors, or holds some in other shapes."""
    weights = without_counters(wanted)
    num_held = len(weights) - len(fit.missing)
    if not found or num_held < SMALLEST_SHARE * len(weights):
        raise UserError(
            f"{path}: holds {num_held} of the backbone's {len(weights)} tensors: it has {few(found)}, the backbone "
            f"{few(weights)}: is it another architecture?"
        )
    if fit.misshapen:
        shapes = [
            f"{fit.prefix}{name} has shape {tuple(tensor.shape)}, the backbone needs {tuple(wanted[name].shape)}"
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
    require_finite(path, name, tensor.to(target.dtype), unless=target)
    with torch.no_grad():
        target.copy_(tensor)


def without_counters(names: Iterable[str]) -> list[str]:
    return [name for name in names if not name.endswith(COUNTERS)]


def read_tensors(path: Path) -> Any:
    """What a file holds, recognised by its content. Raises UserError for anything but safetensors and torch files."""
    with path.open("rb") as file:
        start = file.read(64)
    if start.startswith(b"version https://git-lfs"):
        raise UserError(f"{path}: a pointer of Git LFS, not the weights: run `git lfs pull`")
    if path.suffix == ".safetensors" or start[8:9] == b"{":
        return dict(iterate_tensors(path))
    try:
        # Training scripts keep their command line beside the weights; a Namespace only holds values.
        with warnings.catch_warnings(), torch.serialization.safe_globals([argparse.Namespace]):
            warnings.simplefilter("ignore")  # of torch, on old and odd files
            # Only zip files, which torch writes since 1.6, can be mapped into memory.
            return torch.load(path, map_location="cpu", weights_only=True, mmap=start.startswith(b"PK"))
    except Exception as error:
        raise UserError(
            f"{path}: not a torch file of plain tensors ({reason_of(error)}): save model.state_dict() with torch.save, "
            "or convert it to safetensors"
        ) from None


def reason_of(error: Exception) -> str:
    """Why torch does not read a file, in a few words: its own messages are paragraphs of advice."""
    refused = UNSAFE.search(str(error))
    if refused:
        return f"it holds a {refused[1]}, which could run code"
    if "Weights only load failed" in str(error):
        return "damaged, or of another format"
    return (str(error).splitlines() or [type(error).__name__])[0][:160]


def named_tensors(values: Any, prefix: str = "") -> Iterator[tuple[str, Tensor]]:
    """Tensors in nested mappings by their dotted names."""
    if isinstance(values, Tensor):
        yield WRAPPED.sub("", prefix), values
    elif isinstance(values, Mapping):
        for key, value in values.items():
            yield from named_tensors(value, f"{prefix}.{key}" if prefix else str(key))


def best_fit(found: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> tuple[Fit, list[str]]:
    """The prefix whose tensors fill most of a tower, and other prefixes that would fill as much."""
    votes = Counter(
        name[: len(name) - len(own)]
        for name in found
        for own in endings(name)
        if own in wanted and not own.endswith(COUNTERS)
    )
    fits = [fit_below(prefix, found, wanted) for prefix, _ in votes.most_common(8)]
    best = max(fits, key=lambda fit: fit.rank, default=fit_below("", found, wanted))
    return best, [fit.prefix for fit in fits if fit is not best and fit.rank[:2] == best.rank[:2]]


def endings(name: str) -> Iterator[str]:
    """A dotted name, then without its first part, and so on."""
    parts = name.split(".")
    yield from (".".join(parts[first:]) for first in range(len(parts)))


def fit_below(prefix: str, found: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> Fit:
    held = {name: found[prefix + name] for name in wanted if prefix + name in found}
    fitting = {name: tensor for name, tensor in held.items() if tensor.shape == wanted[name].shape}
    return Fit(
        prefix=prefix,
        fitting=fitting,
        misshapen={name: tensor for name, tensor in held.items() if name not in fitting},
        missing=[name for name in wanted if name not in held and not name.endswith(COUNTERS)],
    )


def few(names: Sequence[str] | Mapping[str, Any]) -> str:
    """The first names of many, for people."""
    first = ", ".join(repr(name) for name in itertools.islice(names, 3))
    return (first or "no tensors") + (", ..." if len(names) > 3 else "")
