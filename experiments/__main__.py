"""`python -m experiments list | run SLUG | run all [--family NAME]`, each with --json if wanted.

An experiment is a file experiments/<family>/<slug>.py with PAPER (a title), ENTRY (the public
function or class of jaxgen that holds the mechanism) and checks() -> list of `Check`.
"""

from __future__ import annotations

import argparse
import ast
import importlib
import sys
import time
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax

from experiments.shared.check import Check
from jaxgen.errors import UsageError, invalid, unknown
from jaxgen.files import json_text, piped

ROOT = Path(__file__).parent


def catalogue() -> list[dict[str, str]]:
    """All experiments, sorted by slug; their constants are read without importing them."""
    rows = []
    for file in ROOT.glob("*/*.py"):
        constants = {}
        for node in ast.parse(file.read_text()).body:
            if not isinstance(node, ast.Assign):
                continue
            target = node.targets[0]
            if isinstance(target, ast.Name) and target.id in ("PAPER", "ENTRY"):
                constants[target.id] = ast.literal_eval(node.value)
        if len(constants) == 2:
            family, slug = file.parent.name, file.stem
            rows.append(
                {
                    "slug": slug,
                    "family": family,
                    "paper": constants["PAPER"],
                    "module": f"experiments.{family}.{slug}",
                    "entry": constants["ENTRY"],
                }
            )
    return sorted(rows, key=lambda row: row["slug"])


def run(slug: str) -> dict[str, Any]:
    """Run one experiment. Raises UsageError if there is none of that name.

    Its compiled programs go with it: what one traced in float64 is never met by the next, and a
    process that runs them all stays within the kernel's limit of memory maps.
    """
    rows = {row["slug"]: row for row in catalogue()}
    if slug not in rows:
        raise unknown("experiment", slug, rows)
    start = time.monotonic()
    try:
        checks = importlib.import_module(rows[slug]["module"]).checks()
    finally:
        jax.clear_caches()
    return {
        "slug": slug,
        "paper": rows[slug]["paper"],
        "checks": [_plain(check) for check in checks],
        "seconds": round(time.monotonic() - start, 2),
    }


def _plain(check: Check) -> dict[str, Any]:
    """A check as JSON: "control" is there only where it is true."""
    return {k: v for k, v in check._asdict().items() if k != "control" or v}


def run_all(family: str | None) -> Iterator[dict[str, Any]]:
    """Run every experiment (of a family), one after the other; a crash is that row's "error"."""
    rows = catalogue()
    families = {row["family"] for row in rows}
    if family is not None and family not in families:
        raise unknown("--family", family, families)
    for row in rows:
        if family in (None, row["family"]):
            start = time.monotonic()
            try:
                yield run(row["slug"])
            except Exception as error:
                traceback.print_exc()
                seconds = round(time.monotonic() - start, 2)
                yield {
                    "slug": row["slug"],
                    "paper": row["paper"],
                    "checks": [],
                    "seconds": seconds,
                    "error": f"{type(error).__name__}: {error}",
                }


def passed(result: dict[str, Any]) -> bool:
    """Whether an experiment ran, checked something, and every check is ok."""
    checks = result["checks"]
    return "error" not in result and bool(checks) and all(check["ok"] for check in checks)


def show(result: dict[str, Any]) -> None:
    """One experiment for a reader, a line per check."""
    print(result["paper"])
    for check in result["checks"]:
        mark = "ok  " if check["ok"] else "FAIL"
        kind = "control: " if check.get("control") else ""
        print(f"  {mark} {kind}{check['name']}: {check['value']:.6g} ({check['bound']})")
    print(f"  {result['seconds']} s")


def show_line(result: dict[str, Any]) -> None:
    """One experiment among many: a line, and what failed."""
    checks = result["checks"]
    mark = "ok  " if passed(result) else "FAIL"
    print(
        f"{mark} {result['slug']:32} {len(checks):3} checks {result['seconds']:8.2f} s", flush=True
    )
    for check in checks:
        if not check["ok"]:
            print(f"       {check['name']}: {check['value']:.6g} ({check['bound']})", flush=True)
    if "error" in result:
        print(f"       {result['error']}", flush=True)


def _run_verb(slug: str, family: str | None, as_json: bool) -> int:
    if slug != "all":
        if family is not None:
            raise invalid("--family", family, "nothing but with `run all`")
        results = [run(slug)]
        print(json_text(results[0], indent=None)) if as_json else show(results[0])
    else:
        results = []
        for result in run_all(family):
            results.append(result)
            if not as_json:
                show_line(result)
        if as_json:
            print(json_text(results, indent=None))
    return 0 if all(map(passed, results)) else 1


def main(arguments: list[str] | None = None) -> int:
    """Exit code: 0, 1 if a check fails, 2 for wrong input."""
    parser = argparse.ArgumentParser(prog="python -m experiments")
    verbs = parser.add_subparsers(dest="verb", required=True)
    for verb, text in (("list", "name all experiments"), ("run", "run one, or all, and check")):
        sub = verbs.add_parser(verb, help=text)
        sub.add_argument("--json", action="store_true", help="one JSON value on stdout")
        if verb == "run":
            sub.add_argument("slug", help="an experiment's name, or all")
            sub.add_argument("--family", help="with all: only this family's")
    args = parser.parse_args(arguments)
    with piped():
        return _answered(args)


def _answered(args: argparse.Namespace) -> int:
    if args.verb == "list":
        rows = catalogue()
        if args.json:
            print(json_text(rows, indent=None))
        else:
            for row in rows:
                print(f"{row['slug']:24} {row['family']:12} {row['paper']}")
        return 0
    try:
        return _run_verb(args.slug, args.family, args.json)
    except UsageError as error:
        print(error, file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
