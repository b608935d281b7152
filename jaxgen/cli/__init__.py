"""The command line: parse, call, print.

Wrong input ends with exit code 2 and one message; an interrupted run with 128 + the signal's number
(130 for Ctrl-C, 143 for SIGTERM: preempted, the state is saved); a run that lost a process with 75,
after which the same command resumes. With `--json` stdout holds one JSON object and nothing else.
"""

from __future__ import annotations

import argparse
import functools
import importlib
import logging
import math
import os
import re
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

if TYPE_CHECKING:
    from jaxgen.run.model import Model

COMMANDS = (
    *("train", "sample", "evaluate", "classify", "likelihood", "tokenize", "encode"),
    *("data", "ema", "compare", "export", "import", "push", "pull", "plan", "launch", "doctor"),
)


class Help(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Help as it was written, with the defaults that say something."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        said = action.help or ""
        if action.required or action.default in (None, False) or "default" in said:
            return said
        return super()._get_help_string(action)


class _Parser(argparse.ArgumentParser):
    """argparse with one-line errors, no abbreviations, and the closest command for one misspelt."""

    def error(self, message: str) -> NoReturn:
        from jaxgen.errors import closest

        wrong = re.match(r"argument COMMAND: invalid choice: '(.*?)'", message)
        if wrong:
            message += " " + (closest(wrong[1], COMMANDS) or "")
        self.exit(2, f"jaxgen: error: {message} (see {self.prog} --help)\n")


def parser() -> argparse.ArgumentParser:
    """The whole command line."""
    from jaxgen import __version__

    top = _Parser(prog="jaxgen", description="Class-conditional generative models in JAX.")
    top.add_argument("--version", action="version", version=f"jaxgen {__version__}")
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name in COMMANDS:
        module = importlib.import_module(f"jaxgen.cli.{name}")
        summary = (module.__doc__ or "").splitlines()[0]
        sub = commands.add_parser(
            name,
            help=summary,
            description=module.__doc__,
            allow_abbrev=False,
            formatter_class=Help,
        )
        sub.add_argument("--json", action="store_true", help="print one JSON object on stdout")
        module.arguments(sub)
        sub.set_defaults(run=module.run, prefixes=getattr(module, "PREFIXES", ()))
        sub.set_defaults(places=getattr(module, "PLACES", PLACES))
        sub.set_defaults(options=tuple(sub._option_string_actions))
    return top


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command line; returns the exit code."""
    from jaxgen.files import piped

    # The user's own modules lie beside the call: as `python -m jaxgen` has it.
    if "" not in sys.path and os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())
    args, rest = parser().parse_known_args(arguments)
    with piped():
        return _answered(args, rest)


def _answered(args: argparse.Namespace, rest: Sequence[str]) -> int:
    """Run a parsed command line; returns the exit code."""
    import jax

    from jaxgen import config as configs
    from jaxgen.errors import Failure, UsageError
    from jaxgen.files import json_text
    from jaxgen.training import hosts
    from jaxgen.training.interrupt import Interrupted
    from jaxgen.training.watch import exit_code, watched

    _quieten()
    try:
        _expand(args)
        args.overrides = _overrides(rest, "--config.", args.prefixes, args.options)
        args.sampling = _overrides(rest, "--sample.", args.prefixes, args.options)
        if jax.config.read("jax_enable_x64"):  # for threads too, which a context does not reach
            print("jaxgen: JAX_ENABLE_X64 is passed over: models are float32", file=sys.stderr)
            jax.config.update("jax_enable_x64", False)
        with watched(), configs.trust(*(getattr(args, "trust", None) or ())):
            result: dict[str, Any] = args.run(args)
    except UsageError as error:
        print(f"{hosts.prefix()}jaxgen: error: {error}", file=sys.stderr)
        return 2
    except Failure as error:
        print(f"{hosts.prefix()}jaxgen: {error}", file=sys.stderr)
        return exit_code(error)
    except Interrupted as stop:
        print(f"{hosts.prefix()}jaxgen: {stop}", file=sys.stderr)
        return stop.code
    except (RuntimeError, AssertionError) as error:
        platforms = os.environ.get("JAX_PLATFORMS", "")
        if not platforms or Path(last_file(error)).stem != "xla_bridge":
            raise
        why = (str(error).splitlines() or ["there is no such device here"])[0]
        print(f"jaxgen: error: JAX_PLATFORMS: got {platforms!r}: {why}", file=sys.stderr)
        return 2
    except BrokenPipeError:
        raise
    except OSError as error:
        where = "" if error.filename is None else f"{error.filename}: "
        why = error.strerror or str(error)
        print(f"{hosts.prefix()}jaxgen: error: {where}{why}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"{hosts.prefix()}jaxgen: stopped by SIGINT", file=sys.stderr)
        return 130
    except Exception as error:
        # Of a network, reward or features that the user wrote, wherever it was called from.
        if configs.own_line(error) is None:
            raise
        print(f"{hosts.prefix()}jaxgen: error: {configs.told(error)}", file=sys.stderr)
        return 2
    if args.json and hosts.first():
        print(json_text(result, indent=None))
    return 0


@functools.cache
def _quieten() -> None:
    """Keep back what a full disk makes libraries print, on top of the error that we answer."""
    import absl.logging

    absl.logging.set_verbosity(absl.logging.FATAL)
    for library in ("asyncio", "concurrent.futures"):
        logging.getLogger(library).setLevel(logging.CRITICAL + 1)
    usual = sys.unraisablehook

    def hook(unraisable: Any) -> None:
        # Of callbacks in tensorstore's threads, after the save that they belong to has failed.
        if "Event loop is closed" not in str(unraisable.exc_value):
            usual(unraisable)

    sys.unraisablehook = hook


def _overrides(
    rest: Sequence[str], prefix: str, prefixes: Sequence[str], options: Sequence[str]
) -> list[str]:
    """`--config.a.b=1` and `--config.a.b 1` as `a.b=1`, of one prefix; any other is an error.

    options: those of the command, one of which may have been meant.
    """
    from jaxgen.errors import closest, invalid

    out: list[str] = []
    words = list(rest)
    while words:
        word = words.pop(0)
        if not word.startswith(tuple(prefixes)) or not prefixes:
            meant = closest(word.partition("=")[0], options)
            raise invalid("command line", word, "the options that --help lists", meant)
        if "=" not in word:
            if not words or words[0].startswith("--"):
                raise invalid("command line", word, f"{word}=VALUE")
            word += "=" + words.pop(0)
        if word.startswith(prefix):
            out.append(word.removeprefix(prefix))
    return out


PLACES = ("workdir", "out", "tokenizer", "reference", "train", "images", "weights", "init_from")


def _expand(args: argparse.Namespace) -> None:
    """`~` in options that are paths (`--out=~/x` reaches us as it is); URLs are refused."""
    from jaxgen.files import local

    for name in args.places:
        value = getattr(args, name, None)
        if name == "workdir" and args.command == "sample" and str(value).startswith("hf://"):
            continue  # `load` knows these; other commands write into the workdir
        if isinstance(value, str):
            setattr(args, name, str(local(f"--{name}", value)))
        elif isinstance(value, list):
            setattr(args, name, [str(local(f"--{name}", each)) for each in value])


def last_file(error: BaseException) -> str:
    """The file in which an error was raised."""
    return traceback.extract_tb(error.__traceback__)[-1].filename


def number(text: str) -> float:
    """A finite number, for argparse."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise argparse.ArgumentTypeError(f"got {text!r}; allowed: a finite number")
    return value


def seed(text: str) -> int:
    """A seed, for argparse: a whole number of 32 bits."""
    if not text.isdigit() or int(text) >= 2**32:
        raise argparse.ArgumentTypeError(f"got {text!r}; allowed: 0 to 4294967295 (2^32 - 1)")
    return int(text)


def model_arguments(parser: argparse.ArgumentParser, workdir: bool = True) -> None:
    """Options of every command that loads a trained model. workdir: whether it has to be given."""
    parser.add_argument("--workdir", required=workdir, default=None, help="folder of the run")
    parser.add_argument("--ema", default=None, help="which average of the parameters")
    parser.add_argument("--tokenizer", default=None, help="its workdir, where it was moved")
    trust_argument(parser)


def image_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of every command that writes images: --npz, --image_size."""
    parser.add_argument(
        "--npz",
        choices=("jaxgen", "adm"),
        default="jaxgen",
        help="what x.npz holds; adm: uint8 arr_0 and labels arr_1, which ADM's evaluator reads",
    )
    parser.add_argument(
        "--image_size", type=int, default=None, help="pixels a side that images are resized to"
    )


def trust_argument(parser: argparse.ArgumentParser) -> None:
    """--trust."""
    parser.add_argument(
        "--trust",
        action="append",
        default=None,
        metavar="MODULE",
        help="a module besides jaxgen's own that a workdir's config may call; may be repeated",
    )


def loaded(args: argparse.Namespace) -> Model:
    """The model that was asked for; --config.data.KEY=VALUE says where its data are now."""
    from jaxgen.api import load

    return load(args.workdir, tokenizer=args.tokenizer, data=args.overrides)


def sampler_options(args: argparse.Namespace) -> dict[str, Any]:
    """What was asked of the sampler: --solver, --steps where they are, every --sample.KEY=VALUE."""
    from jaxgen.config import literal

    named = {k: getattr(args, k, None) for k in ("solver", "steps")}
    options = {k: value for k, value in named.items() if value is not None}
    for assignment in args.sampling:
        key, _, text = assignment.partition("=")
        options[key] = literal(text)
    return options


if __name__ == "__main__":
    sys.exit(main())
