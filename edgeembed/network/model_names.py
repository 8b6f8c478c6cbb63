"""Checks names of timm and open_clip models and weights without importing torch: a typo is an error within a second.

timm and open_clip list their models only after importing torch, which takes many seconds. Their source files are read
instead: timm's registered functions, and open_clip's JSON file for each model.
"""

from __future__ import annotations

import ast
import functools
import importlib.util
import re
import sys
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

from edgeembed.errors import UserError, did_you_mean

WEIGHT_SUFFIXES = (".safetensors", ".pt", ".pth", ".bin", ".ckpt", ".tar")

# How timm's source files register models, list renamed ones, and name pretrained tags.
REGISTERED = re.compile(r"@register_model\s+def (\w+)\(")
DEPRECATED = re.compile(r"register_model_deprecations\(__name__, \{(.*?)\}\)", re.DOTALL)
NAME_KEY = re.compile(r"""["'](\w+)(?:\.\w+)?["']\s*:""")
TAG_KEY = re.compile(r"""["'](\w+)\.(\w+)\*?["']\s*:""")


def require_backbone(name: str, weights: str) -> None:
    """Raises UserError for a backbone that does not exist, or that has no such weights."""
    require_weights(name, weights, library=library_of(name), key="backbone.weights")


def library_of(name: str) -> str:
    """Returns "open_clip" or "timm". Raises UserError with the nearest known name if neither has such a model."""
    if name in open_clip_model_names():
        return "open_clip"
    require_timm_model("backbone", name, others=open_clip_model_names(), remedy="give an open_clip or timm model name")
    return "timm"


def require_timm_model(kind: str, name: str, *, others: Iterable[str] = (), remedy: str) -> None:
    """Raises UserError for a model, or a pretrained tag (`resnet18.a1_in1k`), that timm does not have.

    `others`: further names to suggest, before those of timm.
    """
    model, _, tag = name.partition(".")
    tags = timm_pretrained_tags()
    loaded = sys.modules.get("timm")  # it also has models that the running program has registered
    if model not in tags and not (loaded is not None and loaded.is_model(model)):
        raise UserError(f"unknown {kind} {name!r}: {did_you_mean(model, [*others, *tags]) or remedy}")
    known = tags.get(model, ())
    if tag and known and tag not in known:
        raise unknown_tag(kind, model, tag, known)


def unknown_tag(kind: str, model: str, tag: str, known: Collection[str]) -> UserError:
    """Returns the error for a tag that timm does not have, with the nearest known one."""
    ordered = sorted(known)
    hint = did_you_mean(tag, ordered) or f"choose one of {', '.join(ordered)}"
    return UserError(f"unknown {kind} '{model}.{tag}': timm has no weights {tag!r} of {model}: {hint}")


def require_weights(name: str, weights: str, *, library: str, key: str) -> None:
    """Raises UserError for weights that a model does not have: a missing file, or an unknown tag."""
    if weights == "none" or (weights == "pretrained" and library == "timm"):
        return
    if is_weight_file_name(weights):
        if not Path(weights).is_file():
            raise UserError(f"{key} = {weights!r}: no such file")
        return
    if library == "timm":
        raise UserError(f"{key} = {weights!r}: for the timm model {name} give 'pretrained', 'none' or a file")
    tags = open_clip_pretrained_tags(name)
    if weights == "pretrained":
        raise UserError(f"{key} = 'pretrained': {name} has several, name one of {', '.join(tags) or 'none'}")
    if weights not in tags:
        hint = did_you_mean(weights, tags) or f"choose one of {', '.join(tags)}, a file, or none"
        raise UserError(f"{key} = {weights!r}: unknown tag of {name}: {hint}")


def is_weight_file_name(weights: str) -> bool:
    """Whether starting weights are given as a file: with a folder or the suffix of a weight file."""
    return "/" in weights or "\\" in weights or weights.endswith(WEIGHT_SUFFIXES)


@functools.cache
def timm_pretrained_tags() -> Mapping[str, Collection[str]]:
    """Returns every model of the installed timm with its pretrained tags; no tags if timm computes them."""
    names: list[str] = []
    tags_of: defaultdict[str, set[str]] = defaultdict(set)
    for path in sorted((package_folder("timm") / "models").glob("*.py")):
        source = path.read_text(encoding="utf-8")
        names += REGISTERED.findall(source)
        for block in DEPRECATED.findall(source):
            names += NAME_KEY.findall(block)
        for model, tag in TAG_KEY.findall(source):
            tags_of[model].add(tag)
    return {name: tags_of.get(name, ()) for name in names}


@functools.cache
def open_clip_model_names() -> Collection[str]:
    """Returns every model of the installed open_clip."""
    return sorted(path.stem for path in (package_folder("open_clip") / "model_configs").glob("*.json"))


def open_clip_pretrained_tags(name: str) -> list[str]:
    """Returns the tags of a model's weights; for `-quickgelu` models perhaps too many, unless open_clip is imported."""
    loaded: Any = sys.modules.get("open_clip")
    if loaded is not None:
        return list(loaded.list_pretrained_tags_by_model(name))
    # The source does not show which tags of the plain model open_clip adds to its -quickgelu variant.
    table = _open_clip_tag_table()
    return sorted({*table.get(name, ()), *table.get(name.removesuffix("-quickgelu"), ())})


@functools.cache
def _open_clip_tag_table() -> dict[str, list[str]]:
    """Reads the tags of each model from open_clip's source: a dictionary for each model, and one of all of them."""
    by_variable: dict[str, list[str]] = {}
    by_model: dict[str, list[str]] = {}
    tree = ast.parse((package_folder("open_clip") / "pretrained.py").read_text(encoding="utf-8"))
    for statement in tree.body:
        if not isinstance(statement, ast.Assign) or not isinstance(statement.targets[0], ast.Name):
            continue
        value = statement.value
        # `_PRETRAINED` maps each model to the variable of its dictionary, defined above it.
        if isinstance(value, ast.Dict) and statement.targets[0].id == "_PRETRAINED":
            for key, entry in zip(value.keys, value.values, strict=True):
                if isinstance(key, ast.Constant):
                    tags = by_variable.get(entry.id, []) if isinstance(entry, ast.Name) else _keys_of(entry)
                    by_model[str(key.value)] = tags
        else:
            by_variable[statement.targets[0].id] = _keys_of(value)
    return by_model


def _keys_of(value: ast.expr) -> list[str]:
    """Returns the keys of the expression `dict(a=..., b=...)` or `{"a": ..., "b": ...}`."""
    if isinstance(value, ast.Call):
        return [keyword.arg for keyword in value.keywords if keyword.arg is not None]
    keys = value.keys if isinstance(value, ast.Dict) else []
    return [str(key.value) for key in keys if isinstance(key, ast.Constant)]


def package_folder(package: str) -> Path:
    """Returns the folder of an installed package. Raises ModuleNotFoundError if it is not installed."""
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise ModuleNotFoundError(f"No module named {package!r}", name=package)
    return Path(spec.submodule_search_locations[0])
