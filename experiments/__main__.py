"""`python -m experiments list [--json]` and `python -m experiments run SLUG [--json]`.

An experiment is a file experiments/<family>/<slug>.py with PAPER (a title), ENTRY (the public
function or class of jaxgen that holds the mechanism) and checks() -> list of `Check`.
"""

from __future__ import annotations

import argparse
import ast
import importlib
import json
import sys
import time
from pathlib import Path

from jaxgen.errors import UsageError, unknown

ROOT = Path(__file__).parent


def found() -> list[dict[str, str]]:
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


def run(slug: str) -> dict[str, object]:
    """Run one experiment. Raises UsageError if there is none of that name."""
    rows = {row["slug"]: row for row in found()}
    if slug not in rows:
        raise unknown("experiment", slug, rows)
    start = time.monotonic()
    checks = importlib.import_module(rows[slug]["module"]).checks()
    return {
        "slug": slug,
        "paper": rows[slug]["paper"],
        "checks": [check._asdict() for check in checks],
        "seconds": round(time.monotonic() - start, 2),
    }


def main(arguments: list[str] | None = None) -> int:
    """Exit code: 0, 1 if a check fails, 2 for wrong input."""
    parser = argparse.ArgumentParser(prog="python -m experiments")
    verbs = parser.add_subparsers(dest="verb", required=True)
    for verb, text in (("list", "name all experiments"), ("run", "run one and check it")):
        sub = verbs.add_parser(verb, help=text)
        sub.add_argument("--json", action="store_true", help="one JSON value on stdout")
        if verb == "run":
            sub.add_argument("slug")
    args = parser.parse_args(arguments)
    if args.verb == "list":
        rows = found()
        if args.json:
            print(json.dumps(rows))
        else:
            for row in rows:
                print(f"{row['slug']:24} {row['family']:12} {row['paper']}")
        return 0
    try:
        result = run(args.slug)
    except UsageError as error:
        print(error, file=sys.stderr)
        return 2
    checks = result["checks"]
    assert isinstance(checks, list)
    if args.json:
        print(json.dumps(result))
    else:
        print(result["paper"])
        for check in checks:
            mark = "ok  " if check["ok"] else "FAIL"
            print(f"  {mark} {check['name']}: {check['value']:.6g} ({check['bound']})")
        print(f"  {result['seconds']} s")
    return 0 if all(check["ok"] for check in checks) else 1


if __name__ == "__main__":
    sys.exit(main())
