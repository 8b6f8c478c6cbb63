"""Keys of a recipe, as people write and read them: which exist, what they hold, what is allowed."""

from __future__ import annotations

import difflib
import types
import typing
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from edgeembed.errors import UserError

NUMBERS = {int: "integer", float: "number"}
PLURALS = {int: "integers", float: "numbers", str: "texts"}
LIMITS = {"ge": "at least", "gt": "above", "le": "at most", "lt": "below"}
COLUMN = 40  # where explanations begin


def known_keys(recipe_type: type[BaseModel]) -> Iterator[str]:
    """Every key of a recipe type, dotted."""
    return (key for key, _ in known_fields(recipe_type))


def known_fields(recipe_type: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, FieldInfo]]:
    for name, field in recipe_type.model_fields.items():
        section = field.annotation
        if isinstance(section, type) and issubclass(section, BaseModel):
            yield from known_fields(section, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", field


def key_named(name: str, keys: Iterable[str]) -> str | None:
    """The key of this name, written in full or by its last part alone; of several, training's."""
    same = [key for key in keys if name in (key, key.rpartition(".")[2])]
    return min(same, key=lambda key: not key.startswith("train."), default=None)


def nearest_key(key: str, keys: Iterable[str]) -> str | None:
    """The key that was probably meant: the same last part in another group, else the most similar one."""
    choices = list(keys)
    group, _, last = key.rpartition(".")
    if not group:
        similar = difflib.get_close_matches(last, [choice.rpartition(".")[2] for choice in choices], n=1)
        return key_named(last, choices) or (key_named(similar[0], choices) if similar else None)
    same = [choice for choice in choices if choice.rpartition(".")[2] == last]
    nearest = difflib.get_close_matches(key, same or choices, n=1, cutoff=0.0 if same else 0.6)
    return nearest[0] if nearest else None


def set_key(values: dict[str, Any], override: str, recipe_type: type[BaseModel]) -> None:
    """Applies one `a.b=c` to nested values. Raises UserError where it has no key, or the key is not of a group."""
    key, separator, text = override.partition("=")
    key = key.strip()
    if not separator or not key:
        raise UserError(f"--set {override!r}: expected key=value, for example train.epochs=3")
    *parents, last = key.split(".")
    target = values
    while parents:
        parent = parents.pop(0)
        child = target.setdefault(parent, {})
        if isinstance(child, list) and parents and parents[0].isdigit() and int(parents[0]) < len(child):
            child = child[int(parents.pop(0))]  # stages.0.train.epochs=3
        if not isinstance(child, dict):
            raise UserError(f"--set {override!r}: {parent!r} is a value, not a group of keys")
        target = child
    if key.startswith("stages."):
        key = key.split(".", 2)[-1]
    target[last] = read_value(text, dict(known_fields(recipe_type)).get(key))


def read_value(text: str, field: FieldInfo | None) -> Any:
    """The value that a command line gives to a key: text as it stands where the key holds text, else YAML.

    Nothing is a comment: `#` and all that follows it belong to the value.
    """
    text = text.strip()
    kinds = alternatives(field.annotation) if field is not None else []
    if str in kinds or Path in kinds:
        if type(None) in kinds and text in ("", "null", "~"):
            return None
        return text[1:-1] if len(text) > 1 and text[0] == text[-1] and text[0] in "\"'" else text
    try:
        return yaml.safe_load(text) if not has_comment(text) else text
    except yaml.YAMLError:
        return text


def has_comment(text: str) -> bool:
    """Whether YAML would leave the end of a text out."""
    between = (yaml.StreamStartToken, yaml.StreamEndToken, yaml.BlockEndToken)
    ends = [token.end_mark.index for token in yaml.scan(text) if not isinstance(token, between)]
    return bool(text[max(ends, default=0) :].strip())


def alternatives(annotation: Any) -> list[Any]:
    """The types of a union; of anything else, itself."""
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        return [part for each in typing.get_args(annotation) for part in alternatives(each)]
    return [annotation]


def allowed(field: FieldInfo) -> str:
    """The values that a key may have, in words."""
    kinds = alternatives(field.annotation)
    words = [_words(kind, field.metadata) for kind in kinds if kind is not type(None)]
    return " or ".join(words) + (", or null" if type(None) in kinds else "")


def _words(kind: Any, limits: Sequence[Any]) -> str:
    if typing.get_origin(kind) is Literal:
        return " | ".join(str(value) for value in typing.get_args(kind))
    if typing.get_origin(kind) is tuple:
        parts = typing.get_args(kind)
        if parts[-1] is Ellipsis:
            return f"list of {PLURALS.get(parts[0], 'groups of keys')}"
        return f"[{', '.join(NUMBERS[part] for part in parts)}]"
    if kind in NUMBERS:
        return f"{NUMBERS[kind]}{_range(limits)}"
    return {bool: "true | false", str: "text", Path: "path"}[kind]


def _range(limits: Sequence[Any]) -> str:
    """ ", at least 1", ", 0 to 1", ", above 0 and below 1" and so on."""
    bounds = {name: getattr(limit, name) for limit in limits for name in LIMITS if hasattr(limit, name)}
    if bounds.keys() == {"ge", "le"}:
        return f", {bounds['ge']:g} to {bounds['le']:g}"
    words = " and ".join(f"{LIMITS[name]} {bound:g}" for name, bound in bounds.items())
    return f", {words}" if words else ""


def explain(recipe: BaseModel) -> dict[str, dict[str, Any]]:
    """Every key with its value, its default, what is allowed and what it means."""
    values = recipe.model_dump(mode="json")
    defaults = type(recipe)().model_dump(mode="json")
    return {
        key: {
            "value": _at(values, key),
            "default": _at(defaults, key),
            "allowed": allowed(field),
            "description": field.description or "",
        }
        for key, field in known_fields(type(recipe))
    }


def _at(values: dict[str, Any], key: str) -> Any:
    for part in key.split("."):
        values = values[part]
    return values


def explained_yaml(recipe: BaseModel) -> str:
    """A recipe as YAML that can be saved and edited, with each key explained in a comment."""
    lines: list[str] = []
    groups: list[str] = []
    for key, facts in explain(recipe).items():
        *parents, last = key.split(".")
        for depth, parent in enumerate(parents):
            if groups[: depth + 1] != parents[: depth + 1]:
                lines.append(f"{'  ' * depth}{parent}:")
                groups = parents[: depth + 1]
        groups = parents
        default = f"; default: {_inline(facts['default'])}" if facts["value"] != facts["default"] else ""
        remark = f"  # {facts['description']} ({facts['allowed']}{default})"
        value = facts["value"]
        if isinstance(value, list) and value and isinstance(value[0], dict):  # stages
            lines += [f"{last}:".ljust(COLUMN) + remark, yaml.safe_dump(value, sort_keys=False).strip()]
        else:
            lines.append(f"{'  ' * len(parents)}{last}: {_inline(value)}".ljust(COLUMN) + remark)
    return "\n".join(lines) + "\n"


def _inline(value: Any) -> str:
    """A value as YAML on one line."""
    return (
        yaml.safe_dump(value, default_flow_style=True, width=10**9, allow_unicode=True).removesuffix("\n...\n").strip()
    )


def flatten(value: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted keys of nested values, with their values.

    The stages of a recipe are numbered from 0, as in `--set stages.0.train.epochs=3`.
    """
    if isinstance(value, dict):
        for key, item in value.items():
            yield from flatten(item, f"{prefix}.{key}" if prefix else str(key))
    elif isinstance(value, list) and any(isinstance(item, dict) for item in value):
        for number, item in enumerate(value):
            yield from flatten(item, f"{prefix}.{number}")
    else:
        yield prefix, value
