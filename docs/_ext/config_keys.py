"""`generated/config.md` and `generated/pieces.md`: every key of a config, with its default.

A section's keywords are the parameters of what it names (`jaxgen.config`), so nothing is typed
here: options come from the signatures that configs are checked with, and the pieces that a section
can name are found in its room by what they return.
"""

from __future__ import annotations

import ast
import functools
import importlib
import inspect
import pkgutil
import re
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import generated

from jaxgen import config as configs
from jaxgen import families, tokenizers
from jaxgen.run.setup import SECTIONS, set_up
from jaxgen.run.start import StartOptions
from jaxgen.training.optim import optimizer
from jaxgen.training.sharding import make_layout

Piece = Callable[..., Any]
SAMPLERS = (
    *("digits", "digits_maskgit", "digits_llamagen", "digits_gan", "digits_tarflow"),
    *("digits_vae", "digits_jem", "hypergrid"),
)
"""Configs whose samplers' options the page lists: one for each family that has a sampler."""


class Kind(NamedTuple):
    """Pieces of one kind: the keys that name them, the room, and how they are told from helpers.

    result: the names of the types that a piece returns; asks: parameters that it has. given: what
    the run supplies of its signature, besides `asks`.
    """

    keys: str
    room: str
    result: str = ""
    asks: tuple[str, ...] = ()
    given: tuple[str, ...] = ()


ROOMS = configs.ROOMS
FAMILIES = ROOMS["method"]
DIFFUSION, ADVERSARIAL = f"{FAMILIES}.diffusion", f"{FAMILIES}.adversarial"
NETWORK = ("num_classes", "out_channels", "shape", "levels", "parent", "name")
RUN = ("spec", "model", "optimizer", "averages", "accumulate", "networks")
# What else guidance asks for comes from the sampler's `branches`.
BRANCHES = (
    *("cond", "uncond", "weak", "incoherent", "guided", "path", "grid", "labels", "by_label"),
    "branches",
)
KINDS = (
    Kind("data.source", ROOMS["source"], asks=("split",)),
    Kind("model", ROOMS["model"], given=NETWORK),
    Kind("method", FAMILIES, "Method", given=RUN),
    Kind("wrap", ROOMS["wrap"], "Method", ("method",), ("spec", "networks")),
    Kind("method.path (diffusion)", ROOMS["path"], "Path"),
    Kind("method.times (diffusion)", ROOMS["times"], "Times"),
    Kind("method.weighting (diffusion)", ROOMS["weighting"], "Weighting"),
    Kind("method.terms (diffusion)", f"{DIFFUSION}.terms", "Term", given=("spec",)),
    Kind("method.noise (diffusion)", f"{DIFFUSION}.core.noise", "Noise"),
    Kind("method.coupling (diffusion)", f"{DIFFUSION}.core.coupling", "Coupling"),
    Kind("method.describe (diffusion)", ROOMS["describe"], "Description", given=("spec",)),
    Kind("sample.solver (diffusion)", ROOMS["solver"], "Solver", ("path",), ("steps",)),
    Kind("sample.grid (diffusion)", ROOMS["grid"], asks=("steps", "path")),
    Kind("sample.guidance (diffusion)", ROOMS["guidance"], "Denoiser Guided", given=BRANCHES),
    Kind(
        "sample.guidance (autoregressive)",
        f"{FAMILIES}.autoregressive.guidance",
        "Guide",
        ("guided",),
    ),
    Kind("sample.steer", ROOMS["steer"], "Steered Search TreeSampling", ("chain", "reward")),
    Kind("sample.steer.reward", ROOMS["reward"]),
    Kind("encoder", ROOMS["encoder"], "Encoder"),
    Kind("method.loss (adversarial)", f"{ADVERSARIAL}.loss", "Loss", given=("num_classes",)),
    Kind("method.regularisers (adversarial)", f"{ADVERSARIAL}.regularisers", "Regulariser"),
    Kind("method.augmentation (adversarial)", f"{ADVERSARIAL}.augmentation", "Augmentation"),
    Kind("method.latent (adversarial)", f"{ADVERSARIAL}.latent", "Latent"),
    Kind(
        "method.head (adversarial)",
        f"{ADVERSARIAL}.head",
        "Head",
        given=("num_classes",),
    ),
    Kind(
        "method.head (autoregressive)",
        f"{FAMILIES}.autoregressive.heads",
        "Softmax LogisticMixture",
        given=("levels", "spec"),
    ),
    Kind(
        "method.observation (variational)",
        f"{FAMILIES}.variational.observation",
        "Bernoulli Categorical Logistic Gaussian",
        given=("spec",),
    ),
    Kind("method.schedule (discrete)", f"{FAMILIES}.discrete.schedules", "Schedule"),
    Kind("method.loss (gflownet)", f"{FAMILIES}.gflownet.losses", "Loss"),
    Kind("method.quantiser (tokenizers)", "jaxgen.tokenizers.quantisers", "Quantiser"),
)
HELPERS = {"pair", "base", "student", "walk"}
"""Modules of a room with what its pieces are made of."""


def of_kind(kind: Kind) -> dict[str, Piece]:
    """The pieces of a kind, by the name that a config would say."""
    if kind.room == FAMILIES:
        return {**_methods(families), **_methods(tokenizers, "jaxgen.tokenizers.")}
    found: dict[str, Piece] = {}
    names = configs._names_in(kind.room)
    # Networks as configs have them: with their module.
    for name in sorted(names, key=lambda n: "." not in n) if kind.keys == "model" else names:
        module, _, attribute = f"{kind.room}.{name}".rpartition(".")
        piece = getattr(importlib.import_module(module), attribute)
        if HELPERS & set(name.split(".")[:-1]) or not _is_piece(kind, piece):
            continue
        module, _, inner = name.rpartition(".")
        # A module's name stands for the function that is called as it is.
        short = module if module.rpartition(".")[2] == inner and kind.keys == "wrap" else name
        if piece not in found.values():
            found[short] = piece
    return found


def _is_piece(kind: Kind, piece: Piece) -> bool:
    target = piece.func if isinstance(piece, functools.partial) else piece
    if kind.keys == "model":
        return isinstance(target, type) and issubclass(target, nn.Module) and not _layer(target)
    if isinstance(target, type):
        return False
    result = str(target.__annotations__.get("return", ""))
    if result in ("None", "int"):  # what helps sources
        return False
    returned = not kind.result or result in kind.result.split()
    return returned and set(kind.asks) <= set(inspect.signature(piece).parameters)


def _layer(network: type) -> bool:
    """Whether networks are built from this one: its module's own code calls it.

    A function that returns one is a preset, and no network that has it as a layer.
    """
    module = inspect.getmodule(network)
    assert module is not None
    if module.__name__.rpartition(".")[2] in LAYERS:
        return True
    for node in ast.walk(ast.parse(inspect.getsource(module))):
        if isinstance(node, ast.FunctionDef) and network.__name__ not in _returned(node):
            names = {n.id for part in node.body for n in ast.walk(part) if isinstance(n, ast.Name)}
            if network.__name__ in names:
                return True
    return False


def _returned(function: ast.FunctionDef) -> str:
    return "" if function.returns is None else ast.unparse(function.returns)


LAYERS = {"layers", "parallel", "conditions", "gan_layers", "mp", "stack"}
"""Modules of layers."""


def _methods(package: Any, prefix: str = "") -> dict[str, Piece]:
    found = {}
    for module in pkgutil.iter_modules(package.__path__, f"{package.__name__}."):
        for name in configs._callables(importlib.import_module(module.name)):
            piece = getattr(importlib.import_module(module.name), name)
            if getattr(piece, "__annotations__", {}).get("return") == "Method":
                found[f"{prefix}{module.name.rpartition('.')[2]}.{name}"] = piece
    return found


def first_line(piece: Piece) -> str:
    """The first sentence of a docstring, of several lines where it has them."""
    target = piece.func if isinstance(piece, functools.partial) else piece
    return " ".join((inspect.getdoc(target) or "").partition("\n\n")[0].split())


def options(piece: Piece, given: Collection[str] = ()) -> dict[str, tuple[str, str]]:
    """{option: (type, default)} of what a config may say; a default of "" has to be said."""
    found = {}
    for name, parameter in inspect.signature(piece).parameters.items():
        if name in given or parameter.kind not in (
            parameter.POSITIONAL_OR_KEYWORD,
            parameter.KEYWORD_ONLY,
        ):
            continue
        empty = parameter.default is parameter.empty
        hint = "" if parameter.annotation is parameter.empty else parameter.annotation
        hint = hint if isinstance(hint, str) else getattr(hint, "__name__", str(hint))
        found[name] = (hint, "" if empty else _shown(parameter.default))
    return found


def _shown(value: Any) -> str:
    if isinstance(value, float | int | str | bool | tuple | dict | None):
        return repr(value)
    return getattr(value, "__name__", type(value).__name__)


def cell(text: str) -> str:
    """Text within a table."""
    return text.replace("|", "\\|").replace("\n", " ")


def table(found: Mapping[str, tuple[str, str]]) -> Iterator[str]:
    """Options as a table in Markdown; a line where there are none."""
    if not found:
        yield "No options.\n"
        return
    yield from ("| key | default | type |", "|-|-|-|")
    for name, (hint, default) in found.items():
        shown = f"`{cell(default)}`" if default else "(required)"
        kind = f"`{cell(hint)}`" if hint else ""
        yield f"| `{name}` | {shown} | {kind} |"
    yield ""


def text_of(piece: Piece) -> list[str]:
    """The docstring of a section as Markdown: nothing in it is markup but `code`."""
    target = piece.func if isinstance(piece, functools.partial) else piece
    paragraphs = (inspect.getdoc(target) or "").split("\n\n")
    return [f"{_plain(' '.join(p.split()))}\n" for p in paragraphs]


def _plain(text: str) -> str:
    parts = re.split(r"(`[^`]+`)", text)
    plain = lambda s: re.sub(r"([\\*_<>\[\]#$|])", r"\\\1", s)
    return "".join(p if p.startswith("`") else plain(p) for p in parts)


def sections() -> str:
    """The page of the sections that have options of their own."""
    own: dict[str, Piece] = {
        **SECTIONS,
        "optimizer": optimizer,
        "mesh": make_layout,
        "start": StartOptions,
    }
    lines = [
        "# Config keys\n",
        "A config is a nested dict: `config.SECTION.KEY`. Any key can be set on the command line: "
        "`--config.train.images=200_000`. Sections that name a piece (`model`, `method`, "
        "`data.source`, `sample.solver` and so on) take that piece's own keys, in "
        "[Pieces by name](pieces.md).\n",
        "`seed`: a whole number; the random numbers of the run follow from it. `networks`: trained "
        'models of other runs by name, `dict(teacher="runs/base")`. `wrap`: a list of sections.\n',
    ]
    for name, piece in own.items():
        given = {"devices"} if name == "mesh" else {"images", "batch_size"}
        lines += [f"## {name}\n", *text_of(piece)]
        lines += table(options(piece, given if name in ("mesh", "optimizer") else set()))
    lines += ["## sample\n", "What a sampler can be told depends on the family.\n"]
    for name in SAMPLERS:
        setup = set_up(configs.load(f"configs/{name}.py"), joining=False)
        assert setup.method.sampler is not None
        lines += [f"### {setup.config.method.name}\n"]
        lines += table(options(setup.method.sampler, {"models", "branches", "preview"}))
    lines += [
        "Every family takes `steer`, a section of [steering](../steering.md); diffusion and "
        "autoregressive models take `models`, other workdirs' models by name "
        "([guidance](../guidance.md)).\n"
    ]
    return "\n".join(lines)


def pieces() -> str:
    """The page of everything that a section can name."""
    lines = [
        "# Pieces by name\n",
        "What a section's `name` can be, with its keys and defaults. A name alone stands for a "
        'section without options: `solver="heun"`. Your own is named by its dotted path.\n',
    ]
    for kind in KINDS:
        lines += [f"## {kind.keys}\n", f"Looked for in `{kind.room}`.\n"]
        for name, piece in of_kind(kind).items():
            lines += [f"### {name}\n", f"{_plain(first_line(piece))}\n"]
            lines += table(options(piece, (*kind.asks, *kind.given)))
    return "\n".join(lines)


def write(app: Any) -> None:
    """Sphinx's hook: before the sources are read."""
    generated.write(app.srcdir, {"config.md": sections(), "pieces.md": pieces()})


def setup(app: Any) -> dict[str, Any]:
    """Sphinx's entry point."""
    app.connect("builder-inited", write)
    return {"parallel_read_safe": True}
