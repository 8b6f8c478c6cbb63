"""The keys of a recipe as text: lists them, sets them from `--set KEY=VALUE`, and explains their allowed values."""

from __future__ import annotations

import dataclasses
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

TYPE_NAMES = {int: "integer", float: "number"}
PLURAL_TYPE_NAMES = {int: "integers", float: "numbers", str: "texts"}
LIMIT_NAMES = {"ge": "at least", "gt": "above", "le": "at most", "lt": "below"}
COMMENT_COLUMN = 40  # column at which the explanation of a key begins


def known_keys(recipe_type: type[BaseModel]) -> Iterator[str]:
    """All dotted keys of a recipe type."""
    return (key for key, _ in known_fields(recipe_type))


def known_fields(recipe_type: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, FieldInfo]]:
    """All dotted keys of a recipe type with their fields; groups of keys are entered."""
    for name, field in recipe_type.model_fields.items():
        section = field.annotation
        if isinstance(section, type) and issubclass(section, BaseModel):
            yield from known_fields(section, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", field


def key_named(name: str, keys: Iterable[str]) -> str | None:
    """The key with this name: the full dotted key, or its last part; of several, the one in `train`."""
    matches = [key for key in keys if name in (key, key.rpartition(".")[2])]
    return min(matches, key=lambda key: not key.startswith("train."), default=None)


def nearest_key(key: str, keys: Iterable[str]) -> str | None:
    """The key that the user probably meant: one with the same last part, else the most similar one."""
    choices = list(keys)
    group, _, last = key.rpartition(".")
    if not group:
        similar = difflib.get_close_matches(last, [choice.rpartition(".")[2] for choice in choices], n=1)
        return key_named(last, choices) or (key_named(similar[0], choices) if similar else None)
    same_last = [choice for choice in choices if choice.rpartition(".")[2] == last]
    nearest = difflib.get_close_matches(key, same_last or choices, n=1, cutoff=0.0 if same_last else 0.6)
    return nearest[0] if nearest else None


def set_key(values: dict[str, Any], override: str, recipe_type: type[BaseModel]) -> None:
    """Applies one `a.b=c` to nested values. Raises UserError without a key, or where `a` is a value, not a group."""
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
    if key.startswith("stages."):  # a stage has the keys of the recipe
        key = key.split(".", 2)[-1]
    target[last] = read_value(text, dict(known_fields(recipe_type)).get(key))


def read_value(text: str, field: FieldInfo | None) -> Any:
    """Parses the value of `--set`: unchanged text for a key that holds text, else YAML.

    Nothing is a comment: `#` and the rest of the line belong to the value.
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
    """Whether YAML would ignore the end of a text as a comment."""
    markers = (yaml.StreamStartToken, yaml.StreamEndToken, yaml.BlockEndToken)
    ends = [token.end_mark.index for token in yaml.scan(text) if not isinstance(token, markers)]
    return bool(text[max(ends, default=0) :].strip())


def alternatives(annotation: Any) -> list[Any]:
    """The member types of a union; any other type alone."""
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        return [part for each in typing.get_args(annotation) for part in alternatives(each)]
    return [annotation]


def allowed(field: FieldInfo) -> str:
    """The allowed values of a key, as text."""
    kinds = alternatives(field.annotation)
    texts = [_allowed_of_type(kind, field.metadata) for kind in kinds if kind is not type(None)]
    return " or ".join(texts) + (", or null" if type(None) in kinds else "")


def _allowed_of_type(kind: Any, limits: Sequence[Any]) -> str:
    if typing.get_origin(kind) is Literal:
        return " | ".join(str(value) for value in typing.get_args(kind))
    if typing.get_origin(kind) is tuple:
        parts = typing.get_args(kind)
        if parts[-1] is Ellipsis:
            return f"list of {PLURAL_TYPE_NAMES.get(parts[0], 'groups of keys')}"
        return f"[{', '.join(TYPE_NAMES[part] for part in parts)}]"
    if kind in TYPE_NAMES:
        return f"{TYPE_NAMES[kind]}{_range(limits)}"
    return {bool: "true | false", str: "text", Path: "path"}[kind]


def _range(limits: Sequence[Any]) -> str:
    """ ", at least 1", ", 0 to 1", ", above 0 and below 1" and so on."""
    bounds = {name: getattr(limit, name) for limit in limits for name in LIMIT_NAMES if hasattr(limit, name)}
    if bounds.keys() == {"ge", "le"}:
        return f", {bounds['ge']:g} to {bounds['le']:g}"
    words = " and ".join(f"{LIMIT_NAMES[name]} {bound:g}" for name, bound in bounds.items())
    return f", {words}" if words else ""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ExplainedKey:
    """A recipe key with its value and default (as in JSON), its allowed values and its meaning as text."""

    value: Any
    default: Any
    allowed: str
    description: str


def explain(recipe: BaseModel) -> dict[str, ExplainedKey]:
    """All dotted keys of a recipe, explained."""
    values = recipe.model_dump(mode="json")
    defaults = type(recipe)().model_dump(mode="json")
    return {
        key: ExplainedKey(
            value=_at(values, key),
            default=_at(defaults, key),
            allowed=allowed(field),
            description=field.description or "",
        )
        for key, field in known_fields(type(recipe))
    }


def _at(values: dict[str, Any], key: str) -> Any:
    """The value at a dotted key of nested values."""
    for part in key.split("."):
        values = values[part]
    return values


def explained_yaml(recipe: BaseModel) -> str:
    """A recipe as YAML that can be saved and edited, with an explanation of each key in a comment."""
    lines: list[str] = []
    groups: list[str] = []
    for key, explained in explain(recipe).items():
        *parents, last = key.split(".")
        for depth, parent in enumerate(parents):
            if groups[: depth + 1] != parents[: depth + 1]:
                lines.append(f"{'  ' * depth}{parent}:")
                groups = parents[: depth + 1]
        groups = parents
        value = explained.value
        default = f"; default: {_inline(explained.default)}" if value != explained.default else ""
        comment = f"  # {explained.description} ({explained.allowed}{default})"
        if isinstance(value, list) and value and isinstance(value[0], dict):  # stages
            lines += [f"{last}:".ljust(COMMENT_COLUMN) + comment, yaml.safe_dump(value, sort_keys=False).strip()]
        else:
            lines.append(f"{'  ' * len(parents)}{last}: {_inline(value)}".ljust(COMMENT_COLUMN) + comment)
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
