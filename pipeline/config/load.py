"""Experiment configuration: frozen pydantic models, YAML files, `key=value` overrides.

Precedence: command line > later file > earlier file > class default. Unknown keys are refused
with the nearest known one. Each field carries a docstring; `limbeck config` prints it.
"""

from __future__ import annotations

import difflib
import operator
import re
from collections.abc import Callable, Sequence
from functools import lru_cache, reduce
from itertools import pairwise
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError, model_serializer

from pipeline.errors import UserError


class Config(BaseModel):
    """Base of every config class: frozen, unknown keys refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True,
                              protected_namespaces=(), allow_inf_nan=False)
    ADDED: ClassVar[frozenset[str]] = frozenset()
    """Fields newer than the first artifacts: left out of a dump at their default, so keys stay."""

    UNKEYED: ClassVar[frozenset[str]] = frozenset()
    """Fields, and FIELD.ITEM of mappings, that do not change what is made: the dump that a key is
    computed from holds their default."""

    REVISION: ClassVar[int] = 0
    """Raised when what these keys stand for changes, so that what was made with them is remade (a
    stage's version: all that the stage made)."""

    @model_serializer(mode="wrap")
    def _as_in_a_key(self, dump: Any, info: Any) -> dict[str, Any]:
        tree = dump(self)
        if info.context == "everything":
            return tree
        fields = type(self).model_fields
        for name, _, item in (path.partition(".") for path in self.UNKEYED):
            tree[name] = {key: value for key, value in tree[name].items() if key != item} \
                if item else fields[name].default
        kept = {name: value for name, value in tree.items()
                if name not in self.ADDED or (name not in self.UNKEYED
                                              and getattr(self, name) != fields[name].default)}
        return kept | ({"revision": self.REVISION} if self.REVISION else {})


C = TypeVar("C", bound=Config)
REFERENCE = "reference"
"""Marks a field, Annotated[str, REFERENCE], that may name another step's artifact: STEP.STAGE."""


def renamed(config: C, rename: Callable[[str], str]) -> C:
    """Return `config` with `rename` applied to every REFERENCE field, at any depth."""
    changed = {}
    for name, marked in _fields(type(config)):
        value = getattr(config, name)
        if (new := _renamed(value, rename, marked)) is not value:
            changed[name] = new
    return config.model_copy(update=changed) if changed else config


@lru_cache(maxsize=256)
def _fields(config: type[Config]) -> list[tuple[str, bool]]:
    """The fields of a config class, and whether each is a REFERENCE."""
    return [(name, REFERENCE in field.metadata) for name, field in config.model_fields.items()]


def _renamed(value: Any, rename: Callable[[str], str], marked: bool) -> Any:
    """Rename inside `value`; returns the same object if nothing in it is renamed."""
    # To compare whole configs instead would take long.
    if isinstance(value, Config):
        return renamed(value, rename)
    if isinstance(value, list):
        items = [_renamed(one, rename, marked) for one in value]
        return value if all(map(operator.is_, items, value)) else items
    if isinstance(value, dict):
        values = [_renamed(one, rename, marked) for one in value.values()]
        return value if all(map(operator.is_, values, value.values())) else \
            dict(zip(value, values, strict=True))
    if not marked or not isinstance(value, str):
        return value
    new = rename(value)
    return value if new == value else new


def references(config: Config) -> list[str]:
    """Return what the REFERENCE fields of `config` hold: names, folders or STEP.STAGE."""
    found: list[str] = []

    def note(value: str) -> str:
        found.append(value)
        return value

    renamed(config, note)
    return found


COMMAND_LINE = "command line"


class Yaml(yaml.SafeLoader):
    """YAML whose scalars are those of version 1.2's core schema (section 10.3.2).

    PyYAML reads version 1.1, to which 1e-3 is a word, `no` and `off` are truth values, 010 is
    eight, 1:30 is ninety and 2024-01-01 is a date. A key that a mapping holds twice is refused.
    """

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        """Look for keys before merges (`<<`) are resolved: those may be overridden."""
        node = super().compose_mapping_node(anchor)
        seen = set()
        for key, _ in node.value:
            if (name := str(key.value)) in seen:
                raise yaml.MarkedYAMLError(problem=f"key {name!r} is there twice; remove one",
                                           problem_mark=key.start_mark)
            seen.add(name)
        return node


def _as_in_version_12(loader: type[yaml.SafeLoader]) -> None:
    kinds = {
        "bool": (r"true|True|TRUE|false|False|FALSE", "tTfF"),
        "int": (r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+", "-+0123456789"),
        "float": (r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?"
                  r"|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)", "-+.0123456789")}
    tags = {f"tag:yaml.org,2002:{kind}" for kind in (*kinds, "timestamp")}
    loader.yaml_implicit_resolvers = {
        first: [pair for pair in pairs if pair[0] not in tags]
        for first, pairs in loader.yaml_implicit_resolvers.items()}
    for kind, (pattern, first) in kinds.items():
        loader.add_implicit_resolver(f"tag:yaml.org,2002:{kind}", re.compile(f"({pattern})$"),
                                     list(first))
    loader.add_constructor("tag:yaml.org,2002:int", _whole)


def _whole(loader: yaml.SafeLoader, node: yaml.ScalarNode) -> int:
    text = loader.construct_scalar(node)
    return int(text, {"0o": 8, "0x": 16}.get(text[:2], 10))


_as_in_version_12(Yaml)


def read_layers(files: Sequence[Path], overrides: Sequence[str]) -> list[tuple[str, dict]]:
    """(origin, tree) per file and per override, in rising precedence."""
    layers = [(str(path), _read_yaml(path)) for path in files]
    return layers + [(f"{COMMAND_LINE} ({text})", parse_override(text)) for text in overrides]


def load(model: type[C], files: Sequence[Path], overrides: Sequence[str] = ()) -> C:
    """Load `files`, then `overrides`, into `model`. Raises UserError on bad input."""
    layers = read_layers(files, overrides)
    # Overrides twice: one that changes a type drops what those before it said for the new type.
    trees = [tree for _, tree in [*layers, *layers[len(files):]]]
    try:
        return model.model_validate(reduce(merge, trees, {}))
    except ValidationError as error:
        raise UserError(explain(error, model, layers)) from None


def flat(tree: Any, prefix: str) -> dict[str, Any]:
    """Return the leaves of a config tree by dotted key."""
    if not isinstance(tree, dict) or not tree:
        return {prefix: tree}
    return {key: value for name, part in tree.items()
            for key, value in flat(part, f"{prefix}.{name}").items()}


def merge(below: dict, above: dict) -> dict:
    """`above` over `below`, mapping by mapping; a changed `type` replaces its whole mapping."""
    if {"type"} <= below.keys() & above.keys() and above["type"] != below["type"]:
        below = {}
    out = dict(below)
    for key, value in above.items():
        both = isinstance(value, dict) and isinstance(out.get(key), dict)
        out[key] = merge(out[key], value) if both else value
    return out


def parse_override(text: str) -> dict:
    """`a.b=value` (value in YAML) as a nested mapping."""
    key, equals, value = text.partition("=")
    if not equals or not all(key.split(".")):
        raise UserError(f"override {text!r} is not of the form key.subkey=value")
    try:
        if any("#" in value[one.end_mark.index:other.start_mark.index]
               for one, other in pairwise(yaml.scan(value))):  # nothing but comments lies between
            raise UserError(f"override {text!r} has a # that YAML takes for the start of a "
                            f"comment; quote the value: {key}='...' inside the shell's quotes")
        tree: Any = yaml.load(value, Yaml)
    except yaml.YAMLError as error:
        raise UserError(f"the value of override {text!r} is not valid YAML "
                        f"({_fault(value, error)[1]}); fix or quote it") from None
    for part in reversed(key.split(".")):
        tree = {part: tree}
    return tree


def sweep(text: str) -> str:
    """The override that `--each KEY=V1,V2` stands for. Raises UserError if it is none."""
    key, equals, values = text.partition("=")
    if not equals or not all(key.split(".")) or not values.strip():
        raise UserError(f"--each {text!r} is not of the form key.subkey=value,value")
    return f"each={{{key}: [{values}]}}"


def _read_yaml(path: Path) -> dict:
    if not path.is_file():
        raise UserError(f"config file {path} does not exist; see configs/ for those shipped")
    try:
        text = path.read_text(encoding="utf-8")
        tree = yaml.load(text, Yaml)
    except UnicodeDecodeError as error:
        raise UserError(f"config file {path} is not UTF-8 ({error.reason} at byte "
                        f"{error.start}); save it as UTF-8") from None
    except yaml.YAMLError as error:
        line, why = _fault(text, error)
        raise UserError(f"config file {path}:{line} is not valid YAML: {why}") from None
    if tree is not None and not isinstance(tree, dict):
        raise UserError(f"config file {path} must hold keys and values, not one {tree!r:.60}")
    return tree or {}


def _fault(text: str, error: Any) -> tuple[int, str]:
    """The line of `text`, from 1, that `error` is about, and what is wrong there."""
    if isinstance(error, yaml.reader.ReaderError):
        return (text.count("\n", 0, error.position) + 1,
                f"it holds the control character #x{error.character:02x}; remove it")
    why = "a tab indents it; use spaces" if "'\\t'" in error.problem else error.problem
    return error.problem_mark.line + 1, why


def origin_of(location: Sequence[str], layers: Sequence[tuple[str, dict]]) -> str:
    """Name the layer that set the value at `location`, or "default"."""
    for origin, tree in reversed(layers):
        node: Any = tree
        for part in location:
            if not isinstance(node, dict) or part not in node:
                break
            node = node[part]
        else:
            return origin
    return "default"


def explain(error: ValidationError, model: type[BaseModel],
             layers: Sequence[tuple[str, dict]]) -> str:
    """The first validation error as one sentence with key, origin and remedy."""
    first = error.errors()[0]
    location = _written(first["loc"], reduce(merge, (tree for _, tree in layers), {}))
    key, context = ".".join(location), first.get("ctx", {})
    origin = origin_of(location, layers)
    where = "" if origin == "default" else f" (set in {origin})"
    if first["type"] == "extra_forbidden":
        known = _field_names(model)
        close = [] if location[-1] in known else \
            difflib.get_close_matches(location[-1], sorted(known), n=1)
        hint = f"; did you mean {close[0]!r}?" if close else "; `limbeck config` lists every key"
        return f"unknown config key {key!r}{where}{hint}"
    if first["type"] == "missing":
        of_files = [layer for layer in layers if not layer[0].startswith(COMMAND_LINE)]
        if location[0] == "steps" and origin_of(location[:2], of_files) == "default":
            return _no_such_step(location[1], [tree for _, tree in of_files])
        return f"config key {key!r} is not set; give {key}=... or a config file that does (-c)"
    if first["type"] == "union_tag_not_found":
        return f"config key {key!r}{where} names no type; give {key}.type=..."
    if first["type"] == "union_tag_invalid":
        return (f"config key '{key}.type'{where}: {context['tag']!r} is none of "
                f"{context['expected_tags']}")
    said = f"give at least {context['min_length']}" if first["type"] == "too_short" else \
        first["msg"].removeprefix("Value error, ")
    if first["type"] in ("list_type", "dict_type"):
        said = "give a list, e.g. [A, B]" if first["type"] == "list_type" else \
            "give keys and values, e.g. {KEY: VALUE}"
    return f"config key {key!r}{where}: {said}, not {first['input']!r}"


def _no_such_step(name: str, files: Sequence[dict]) -> str:
    """Say that no config file has the step that an override names, and which steps there are."""
    tree: dict[str, Any] = reduce(merge, files, {})
    known = tree.get("steps") or {}
    there = f"there are {', '.join(known)}" if known else "there are none"
    return (f"no config file has the step {name!r} (named on the {COMMAND_LINE}); {there}, and a "
            f"new one needs steps.{name}.goal=...")


def _written(location: Sequence[str | int], tree: Any) -> list[str]:
    """`location` as it stands in a file, without the types by which pydantic tells unions apart."""
    keys = []
    for place, part in enumerate(location):
        inside = part in tree if isinstance(tree, dict) else isinstance(part, int)
        if inside or (isinstance(tree, dict) and place + 1 == len(location)):
            keys.append(str(part))
        tree = tree[part] if inside else tree
    return keys


def _field_names(model: type[BaseModel]) -> set[str]:
    """Every field name anywhere under `model`, for suggestions."""
    names: set[str] = set()
    schema = model.model_json_schema()
    for part in [schema, *schema.get("$defs", {}).values()]:
        names |= set(part.get("properties", {}))
    return names
