"""Configs: load, override, validate, build.

A config section is the keyword arguments of the function that it configures, so the function's
signature is the schema: an unknown key is an error that names the section, the closest key and what
is allowed. A section's `name` is a module and a function in it, found by import in the room of the
section's key (`ROOMS`); a full dotted path reaches any other installed module.
"""

from __future__ import annotations

import ast
import collections.abc
import contextlib
import dataclasses
import functools
import importlib
import importlib.util
import inspect
import json
import math
import re
import sys
import sysconfig
import traceback
import types
import typing
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextvars import ContextVar
from pathlib import Path
from typing import Any

import flax.linen as nn
import ml_collections

from jaxgen.errors import UsageError, closest, invalid, unknown

ROOMS = {
    "source": "jaxgen.data",
    "model": "jaxgen.nn",
    "method": "jaxgen.families",
    "path": "jaxgen.families.diffusion.core.path",
    "solver": "jaxgen.families.diffusion.solvers",
    "grid": "jaxgen.families.diffusion.core.grids",
    "times": "jaxgen.families.diffusion.core.times",
    "weighting": "jaxgen.families.diffusion.core.weighting",
    "guidance": "jaxgen.families.diffusion.guidance",
    "steer": "jaxgen.steer",
    "reward": "jaxgen.frozen.rewards",
    "describe": "jaxgen.families.diffusion.descriptions",
    "encoder": "jaxgen.frozen.encoders",
    "wrap": "jaxgen",
}
"""Where the `name` of a section with this key is looked for."""


class Later:
    """In a parameter's type (`reward: Later | Any`): its section is handed on to be built later."""


WRAPS = ("tune", "distill", "unlearn")
"""Packages of jaxgen with functions from Method to Method."""

MOVED = {
    "dit.sized": "dit.DiT, with the same size",
    "unet.ddpmpp": "unet.UNet, with the same fields",
    "unet.ncsnpp": "unet.NCSNpp, with the same fields",
    "unet.adm": "unet.ADM, with the same fields",
    "edm2.sized": "edm2.EDM2, with the same size",
    "llama.sized": "llama.Llama, with the same size",
    "bert.sized": "bert.Bert, with the same size and, where none was set, dropout=0.1",
}
"""Names in older configs and what to write now."""


HOMES = ("data", "nn", "families", "tokenizers", "steer", "frozen", *WRAPS)
"""Packages of jaxgen whose functions a config that came from elsewhere may name."""

_allowed: ContextVar[tuple[str, ...]] = ContextVar("allowed", default=())
_own: ContextVar[set[str] | None] = ContextVar("own", default=None)
_foreign: ContextVar[tuple[str, ...] | None] = ContextVar("foreign", default=None)


@contextlib.contextmanager
def trust(*modules: str) -> Iterator[None]:
    """Within, configs of workdirs that are loaded may name functions of these modules, too.

    Nothing of it is kept: who loads the workdir next says so again.
    """
    token = _allowed.set((*_allowed.get(), *modules))
    try:
        yield
    finally:
        _allowed.reset(token)


def trusted() -> tuple[str, ...]:
    """The modules of `trust` that is in force."""
    return _allowed.get()


@contextlib.contextmanager
def foreign(modules: Sequence[str] | None) -> Iterator[None]:
    """Within, names stand for functions of `HOMES` and of these modules alone; None: for any.

    A name is a call, so a config that somebody else wrote would otherwise run what it likes.
    """
    token = _foreign.set(None if modules is None else tuple(modules))
    try:
        yield
    finally:
        _foreign.reset(token)


@contextlib.contextmanager
def collecting() -> Iterator[set[str]]:
    """The names outside of jaxgen that configs are built from within."""
    names: set[str] = set()
    token = _own.set(names)
    try:
        yield names
    finally:
        _own.reset(token)


SHIPPED = Path(sys.prefix) / "share" / "jaxgen"
"""Where a wheel puts `configs/`."""


def load(path: str) -> ml_collections.ConfigDict:
    """Load a config from a Python file; `file.py:ARG` calls its `get_config("ARG")`.

    `configs/NAME.py`, or NAME alone, is the installed package's where there is no such file here
    (`SHIPPED`).
    Raises UsageError if the file is missing, cannot be imported or has no `get_config`.
    """
    file, _, argument = path.partition(":")
    if re.fullmatch(r"\w+", file) and not Path(file).exists():
        file = f"configs/{file}.py"
    if not Path(file).is_file() and (SHIPPED / file).is_file():
        file = str(SHIPPED / file)
    if not Path(file).is_file():
        known = sorted(
            {p.stem for home in (Path(), SHIPPED) for p in (home / "configs").glob("*.py")}
        )
        allowed = f"an existing Python file with get_config(), or a name: {', '.join(known)}"
        raise invalid("--config", path, allowed, closest(Path(file).stem, known))
    spec = importlib.util.spec_from_file_location("jaxgen_user_config", file)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        raise UsageError(f"--config {file}: cannot be imported: {told(error)}") from error
    if not hasattr(module, "get_config"):
        raise invalid("--config", file, "a Python file that defines get_config()")
    try:
        config = module.get_config(argument) if argument else module.get_config()
    except UsageError:
        raise
    except Exception as error:
        raise UsageError(f"--config {path}: get_config failed: {told(error)}") from error
    if not isinstance(config, Mapping | ml_collections.ConfigDict):
        raise invalid("--config", path, f"get_config() that returns a ConfigDict, not {config!r}")
    return ml_collections.ConfigDict(to_dict(config))


def told(error: BaseException) -> str:
    """An error of the user's own code in one line: its type, what it says, and where."""
    place = own_line(error)
    where = "" if place is None else f" ({place})"
    said = (str(error).strip().splitlines() or [""])[0]
    return f"{type(error).__name__}: {said}{where}" if said else f"{type(error).__name__}{where}"


def own_line(error: BaseException) -> str | None:
    """file:line of the innermost call in the user's own code; None where there is none."""
    not_theirs = ("<", *_INSTALLED, str(Path(__file__).parent))
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if not frame.filename.startswith(not_theirs)]
    return f"{own[-1].filename}:{own[-1].lineno}" if own else None


_INSTALLED = tuple({sysconfig.get_path(k) for k in ("stdlib", "platstdlib", "purelib", "platlib")})


def from_json(text: str) -> ml_collections.ConfigDict:
    """The config that `to_json` wrote."""
    return ml_collections.ConfigDict(json.loads(text))


def to_json(config: Mapping[str, Any]) -> str:
    """A config as JSON with sorted keys; tuples become lists, which `build` takes as tuples."""
    return json.dumps(to_dict(config), indent=2, sort_keys=True)


def to_dict(value: Any) -> Any:
    """A nested config as plain dicts, lists and numbers; tuples become lists."""
    if isinstance(value, ml_collections.ConfigDict):
        value = value.to_dict()
    if isinstance(value, Mapping):
        return {str(k): to_dict(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [to_dict(v) for v in value]
    return value


def override(
    config: ml_collections.ConfigDict, assignments: Sequence[str], sections: Sequence[str] = ()
) -> None:
    """Apply `a.b.c=value` assignments in place.

    sections: top-level sections that are made where the config lacks them (`setup.TOP`).

    Values are Python literals (`200_000`, `True`, `(1, 2)`) or else strings. A key that the config
    does not have yet is set where its section is a named one (its callable may take it: `validate`
    says); elsewhere it is an error that names the closest key.
    """
    for assignment in assignments:
        key, equals, text = assignment.partition("=")
        if not equals:
            raise invalid("--config", assignment, "--config.section.key=value")
        *parents, last = key.split(".")
        section: Any = config
        seen: list[str] = []
        if parents and parents[0] in sections and parents[0] not in config:
            with config.unlocked():
                config[parents[0]] = ml_collections.ConfigDict()
        for part in parents:
            seen.append(part)
            if not isinstance(section, ml_collections.ConfigDict) or part not in section:
                names = section.keys() if isinstance(section, ml_collections.ConfigDict) else []
                raise unknown("config." + ".".join(seen), part, names)
            section = section[part]
        if not isinstance(section, ml_collections.ConfigDict):
            raise invalid(f"config.{key}", text, f"a value for config.{'.'.join(parents)} itself")
        value = literal(text)
        if last in section:
            current = section[last]
            if isinstance(current, ml_collections.ConfigDict) and isinstance(value, str):
                # One word swaps the part: the old part's keywords do not fit the new one.
                with section.unlocked():
                    section[last] = ml_collections.ConfigDict({"name": value})
                continue
            if not _compatible(current, value):
                raise invalid(f"config.{key}", value, f"a {type(current).__name__}")
        elif not parents and last not in sections:
            raise unknown(f"config.{key}", last, section.keys())
        with section.ignore_type(), section.unlocked():
            section[last] = ml_collections.ConfigDict(value) if isinstance(value, dict) else value


def literal(text: str) -> Any:
    """A value from a command line: a Python literal, dict(key=...) too, or else the text itself."""
    try:
        return ast.literal_eval(_Dicts().visit(ast.parse(text.strip(), mode="eval")))
    except (ValueError, SyntaxError):
        return text


class _Dicts(ast.NodeTransformer):
    """dict(a=1) as {"a": 1}, which configs are written with."""

    def visit_Call(self, node: ast.Call) -> ast.AST:
        """A call of `dict` with keywords alone; any other stays, and is no literal."""
        self.generic_visit(node)
        named = all(k.arg is not None for k in node.keywords)
        if not (isinstance(node.func, ast.Name) and node.func.id == "dict" and named) or node.args:
            return node
        keys: list[ast.expr | None] = [ast.Constant(k.arg) for k in node.keywords]
        return ast.Dict(keys, [k.value for k in node.keywords])


def _compatible(current: Any, value: Any) -> bool:
    """Whether an override may replace `current`: same kind; int for float; anything for None."""
    if current is None or value is None:
        return True
    if isinstance(current, bool) or isinstance(value, bool):
        return isinstance(current, bool) and isinstance(value, bool)
    if isinstance(current, float):
        return isinstance(value, (int, float, list, tuple))
    if isinstance(current, int):
        return isinstance(value, int)
    if isinstance(current, (list, tuple)):
        return isinstance(value, (list, tuple, int, float))
    if isinstance(current, ml_collections.ConfigDict):
        return isinstance(value, (dict, str))
    return isinstance(value, type(current))


def resolve(name: str, room: str, option: str) -> Callable[..., Any]:
    """The callable that `name` stands for: `room.name`, `jaxgen.name`, or the full dotted path.

    The name of a module stands for the function in it that is called as the module: `tune.lora` is
    `jaxgen.tune.lora.lora`. Raises UsageError that names the option and the closest existing name.
    """
    if not isinstance(name, str) or not name:
        raise invalid(f"{option}.name", name, f"the name of a function in {room}")
    for full in (f"{room}.{name}", f"jaxgen.{name}", name):
        if not _may_name(full):  # before the import, which would run it
            continue
        module_name, _, attribute = full.rpartition(".")
        for home in (full, module_name):
            found = getattr(_module(home, option), attribute, None)
            if callable(found) and _may_call(found):
                collected = _own.get()
                if collected is not None and not full.startswith("jaxgen."):
                    collected.add(full)
                return found
    if name in MOVED:
        raise invalid(f"{option}.name", name, MOVED[name])
    if _foreign.get() is not None:
        raise invalid(
            f"{option}.name",
            name,
            "functions of jaxgen, as this config was loaded with a model",
            f"If you know this code and trust it: --trust {name.partition('.')[0]}.",
        )
    inner, _, _ = name.rpartition(".")
    names = _names_in(room)
    if (theirs := _module(inner)) is not None and not inner.startswith("jaxgen"):
        names = [f"{inner}.{n}" for n in _callables(theirs)]
    elif inner and _module(f"{room}.{inner}") is not None:
        names = [f"{inner}.{n}" for n in _names_in(f"{room}.{inner}")]
    raise unknown(f"{option}.name", name, names)


def _may_name(full: str) -> bool:
    """Whether the config in hand may name this: any, or what `foreign` allows."""
    modules = _foreign.get()
    homes = [f"jaxgen.{home}" for home in HOMES]
    return modules is None or any(full.startswith(f"{m}.") for m in (*homes, *modules))


def _may_call(found: Any) -> bool:
    """Whether the config in hand may call this: not what a module of ours has only imported."""
    found = found.func if isinstance(found, functools.partial) else found
    return _may_name(f"{getattr(found, '__module__', '')}.")


def _module(name: str, option: str = "") -> types.ModuleType | None:
    """The module of a dotted name, or None where there is none.

    Raises UsageError, naming the option, where a module of the user's own cannot be imported.
    """
    there = False
    try:
        # Looking for `a.b` imports `a`.
        there = bool(name) and importlib.util.find_spec(name) is not None
        return importlib.import_module(name) if there else None
    except Exception as error:
        if own_line(error) is not None:
            raise UsageError(f"{option}: {name} cannot be imported: {told(error)}.") from error
        if there or not isinstance(error, ModuleNotFoundError | ValueError):
            raise
        return None


TOLD = {ROOMS["source"]: "split", ROOMS["wrap"]: "method"}
"""By room the parameter by which what a config names is told from helpers beside it."""


def _names_in(room: str) -> list[str]:
    """Public callables of a room: `function` of a module, `module.function` of a package."""
    if room == ROOMS["wrap"]:
        names = [f"{home}.{name}" for home in WRAPS for name in _names_in(f"{room}.{home}")]
        return [n for n in names if TOLD[room] in _parameters(f"{room}.{n}")]
    module = importlib.import_module(room)
    names = _callables(module)
    for path in getattr(module, "__path__", []):
        for file in sorted(Path(path).glob("*.py")):
            if not file.stem.startswith("_"):
                inner = importlib.import_module(f"{room}.{file.stem}")
                names += [f"{file.stem}.{n}" for n in _callables(inner)]
    told = TOLD.get(room)
    return names if told is None else [n for n in names if told in _parameters(f"{room}.{n}")]


def _parameters(name: str) -> Collection[str]:
    home, _, attribute = name.rpartition(".")
    try:
        return inspect.signature(getattr(importlib.import_module(home), attribute)).parameters
    except (ValueError, TypeError):
        return ()


def _callables(module: types.ModuleType) -> list[str]:
    return [
        n
        for n, v in vars(module).items()
        if callable(v)
        and not n.startswith("_")
        # Its own, and what a package gathers from its modules.
        and f"{getattr(v, '__module__', '')}.".startswith(f"{module.__name__}.")
    ]


def build(section: Any, room: str, option: str, **given: Any) -> Any:
    """Call what a section names with the section's keywords and `given` (what the caller supplies).

    A plain string stands for a section with only a name. Nested sections whose key is in `ROOMS`
    are built first. Keywords are checked against the signature (name, then plain type).
    """
    make = partial(section, room, option, **given)
    try:
        return make()
    except UsageError:
        raise
    except Exception as error:
        if own_line(error) is None:
            raise
        raise UsageError(f"{option}: cannot be built: {told(error)}.") from error


def part(value: Any, room: str, option: str, **offered: Any) -> Any:
    """`build` of a section or a name, told of `offered` what it asks for; anything else as it is.

    For parts that a Python caller may hand over already built.
    """
    if isinstance(value, str) or hasattr(value, "keys"):
        return build(value, room, option, **wanted(value, room, option, offered))
    return value


def partial(section: Any, room: str, option: str, **given: Any) -> Callable[..., Any]:
    """As `build`, without the call: the callable with its keywords bound and checked."""
    if isinstance(section, str):
        section = {"name": section}
    if not isinstance(section, (Mapping, ml_collections.ConfigDict)):
        raise invalid(option, section, "a name or a section with a name")
    keywords = _shallow(section)
    if "name" not in keywords:
        raise invalid(option, sorted(keywords), "a section with a name", f"Rooms: {room}.")
    function = resolve(keywords.pop("name"), room, option)
    built, hints = {}, _hints(function)
    for key, value in keywords.items():
        # A parameter that is plain text (a source's `path`) is no section.
        hint = hints.get(key)
        now = hint is not str and Later not in typing.get_args(hint)
        if key in ROOMS and _is_section(value) and now:
            place = f"{option}.{key}"
            value = build(value, ROOMS[key], place, **wanted(value, ROOMS[key], place, given))
        built[key] = value
    return functools.partial(function, **check(function, built, option, given), **given)


def wanted(section: Any, room: str, option: str, offered: Mapping[str, Any]) -> dict[str, Any]:
    """Those of `offered` that the callable of a section has parameters for."""
    name = section if isinstance(section, str) else dict(section).get("name", "")
    parameters = signature(resolve(name, room, option)).parameters
    return {k: v for k, v in offered.items() if k in parameters}


def _is_section(value: Any) -> bool:
    return isinstance(value, str) or (
        isinstance(value, (Mapping, ml_collections.ConfigDict)) and "name" in value
    )


def _shallow(section: Any) -> dict[str, Any]:
    """The items of a section; nested sections stay as they are."""
    return {str(k): section[k] for k in section}


def check(
    function: Callable[..., Any],
    keywords: Mapping[str, Any],
    option: str,
    given: Collection[str] = (),
) -> dict[str, Any]:
    """Keywords checked against a function's signature; lists become tuples where it wants tuples.

    `given` are keywords that the caller supplies itself and a config may not set. Raises UsageError
    for an unknown keyword, a wrong plain type, or a required keyword that is missing.
    """
    parameters = {
        n: p
        for n, p in signature(function).parameters.items()
        if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)
        and not (_is_module(function) and n in ("parent", "name"))
    }
    hints = _hints(function)
    allowed = [n for n in parameters if n not in given]
    checked = {}
    for key, value in keywords.items():
        if key not in allowed:
            moved = getattr(function, "moved", {}).get(key)
            if moved is not None:
                raise invalid(f"{option}.{key}", value, f"now {moved}")
            raise unknown(f"{option}.{key}", key, allowed)
        value = _tuples(to_dict(value)) if isinstance(value, (list, tuple)) else value
        hint = hints.get(key)
        if _is_nan(value):
            raise invalid(f"{option}.{key}", value, "numbers")
        if hint is not None and not _matches(value, hint):
            raise invalid(f"{option}.{key}", value, _describe(hint))
        checked[key] = value
    missing = [
        n for n in allowed if parameters[n].default is inspect.Parameter.empty and n not in checked
    ]
    if missing:
        raise invalid(option, sorted(keywords), f"a section that also sets {', '.join(missing)}")
    return checked


def signature(function: Callable[..., Any]) -> inspect.Signature:
    """What a callable takes; of a class that is called through its metaclass, its `__init__`.

    An NNX class says of itself that it takes anything.
    """
    bound = functools.partial(function)
    if isinstance(bound.func, type):
        said = inspect.signature(bound.func).parameters
        if {*said} == {"args", "kwargs"}:
            init: Any = bound.func.__init__  # type: ignore[misc]
            return inspect.signature(functools.partial(init, None, *bound.args, **bound.keywords))
    return inspect.signature(function)


def _is_module(function: Callable[..., Any]) -> bool:
    """Whether this is a Flax module class: Flax adds `parent` and `name`, not the user's to set."""
    return isinstance(function, type) and issubclass(function, nn.Module)


def _hints(function: Callable[..., Any]) -> dict[str, Any]:
    # A preset is a partial: defaults over a function's own.
    target: Any = function.func if isinstance(function, functools.partial) else function
    if isinstance(function, type) and not dataclasses.is_dataclass(function):
        target = function.__init__  # type: ignore[misc]
    try:
        return typing.get_type_hints(target)
    except (NameError, TypeError):
        return {}


def _tuples(value: Any) -> Any:
    return tuple(_tuples(v) for v in value) if isinstance(value, list) else value


def _matches(value: Any, hint: Any) -> bool:
    """Whether a plain value fits a type hint; hints that are not plain types accept anything."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return any(_matches(value, a) for a in arguments)
    if origin is typing.Literal:
        return value in arguments
    if hint is type(None):
        return value is None
    if hint is bool:
        return isinstance(value, bool)
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool)
    if hint is float:
        return isinstance(value, (int, float)) and not isinstance(value, bool)
    if hint is str:
        return isinstance(value, str)
    if hint is tuple or origin is tuple or origin is collections.abc.Sequence:
        if not isinstance(value, (tuple, list)):
            return False
        if len(arguments) == 2 and arguments[1] is Ellipsis:
            return all(_matches(v, arguments[0]) for v in value)
        if origin is tuple and arguments:
            return len(value) == len(arguments) and all(map(_matches, value, arguments))
        return True
    return True


def _is_nan(value: Any) -> bool:
    if isinstance(value, tuple):
        return any(map(_is_nan, value))
    return isinstance(value, float) and math.isnan(value)


def _describe(hint: Any) -> str:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is typing.Literal:
        return ", ".join(repr(a) for a in arguments)
    if origin in (typing.Union, types.UnionType):
        return " or ".join("None" if a is type(None) else _describe(a) for a in arguments)
    return getattr(hint, "__name__", str(hint)) if origin is None else str(hint)


def differences(
    old: Mapping[str, Any], new: Mapping[str, Any], prefix: str = ""
) -> Iterator[tuple[str, Any, Any]]:
    """(dotted key, old, new) for every leaf where two configs differ; absent is None."""
    old, new = to_dict(old), to_dict(new)
    for key in sorted(set(old) | set(new)):
        a, b = old.get(key), new.get(key)
        name = f"{prefix}{key}"
        if isinstance(a, dict) and isinstance(b, dict):
            yield from differences(a, b, f"{name}.")
        elif a != b:
            yield name, a, b
