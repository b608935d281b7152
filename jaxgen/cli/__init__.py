"""The command line: parse, call, print.

Wrong input ends with exit code 2 and one message; an interrupted run with 128 + the signal's number
(130 for Ctrl-C, 143 for SIGTERM: preempted, the state is saved); a run that lost a process with 75,
after which the same command resumes. With `--json` stdout holds one JSON object and nothing else.
"""

from __future__ import annotations

import argparse
import importlib
import json
import sys
from collections.abc import Sequence
from typing import Any, NoReturn

COMMANDS = (
    *("train", "sample", "evaluate", "classify", "likelihood", "tokenize", "encode"),
    *("ema", "compare", "plan", "launch"),
)


class _Parser(argparse.ArgumentParser):
    """argparse with one-line errors and no abbreviations."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"jaxgen: error: {message} (see {self.prog} --help)\n")


def parser() -> argparse.ArgumentParser:
    """The whole command line."""
    top = _Parser(prog="jaxgen", description="Class-conditional generative models in JAX.")
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name in COMMANDS:
        module = importlib.import_module(f"jaxgen.cli.{name}")
        summary = (module.__doc__ or "").splitlines()[0]
        sub = commands.add_parser(
            name, help=summary, description=module.__doc__, allow_abbrev=False
        )
        sub.add_argument("--json", action="store_true", help="print one JSON object on stdout")
        module.arguments(sub)
        sub.set_defaults(run=module.run)
    return top


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command line; returns the exit code."""
    from jaxgen.errors import Failure, UsageError
    from jaxgen.training import hosts
    from jaxgen.training.interrupt import Interrupted
    from jaxgen.training.watch import exit_code, watched

    args, rest = parser().parse_known_args(arguments)
    try:
        prefix = "--config." if hasattr(args, "config") else "--sample."
        taken = hasattr(args, "config") or hasattr(args, "guidance")
        _check_paths(args)
        args.overrides = _overrides(rest, prefix if taken else None)
        with watched():
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
    except KeyboardInterrupt:
        print(f"{hosts.prefix()}jaxgen: stopped by SIGINT", file=sys.stderr)
        return 130
    if args.json and hosts.first():
        print(json.dumps(result, sort_keys=True))
    return 0


def _check_paths(args: argparse.Namespace) -> None:
    """Refuse addresses of other machines before any work; see `jaxgen.paths`.

    But for `launch`, which mounts buckets itself.
    """
    from jaxgen.paths import local

    if args.command == "launch":
        return
    for option, given in vars(args).items():
        for value in given if isinstance(given, list) else [given]:
            # module:function and count:label are no addresses.
            if isinstance(value, str) and "://" in value:
                local(f"--{option}", value)


def _overrides(rest: Sequence[str], prefix: str | None) -> list[str]:
    """`--config.a.b=1` and `--config.a.b 1` as `a.b=1`. Anything else is an error."""
    from jaxgen.errors import invalid

    out: list[str] = []
    words = list(rest)
    while words:
        word = words.pop(0)
        if prefix is None or not word.startswith(prefix):
            raise invalid("command line", word, "the options that --help lists")
        assignment = word.removeprefix(prefix)
        if "=" not in assignment:
            if not words or words[0].startswith("--"):
                raise invalid("command line", word, f"{word}=VALUE")
            assignment += "=" + words.pop(0)
        out.append(assignment)
    return out


def sampler_options(args: argparse.Namespace) -> dict[str, Any]:
    """What was asked of the sampler: --solver, --steps and every --sample.KEY=VALUE."""
    from jaxgen.config import literal

    found = {k: getattr(args, k) for k in ("solver", "steps") if getattr(args, k) is not None}
    for assignment in args.overrides:
        key, _, text = assignment.partition("=")
        found[key] = literal(text)
    return found


if __name__ == "__main__":
    sys.exit(main())
