"""Compare the scores of runs: one table, one page; scores that were not measured alike are refused.

A RUN is a workdir with receipts, or a receipt's file. Versions, seeds, samplers, guidance, EMA and
network calls may differ: they are what one compares.
"""

from __future__ import annotations

import argparse
from typing import Any

from jaxgen.cli import trust_argument


def arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `jaxgen compare`."""
    parser.add_argument("runs", nargs="+", metavar="RUN", help="a workdir, or a receipt's file")
    parser.add_argument(
        "--out",
        default="compare.html",
        help="x.html: a page; x.pdf: table and plots; x.csv; x.tex: a tabular (compare.html)",
    )
    trust_argument(parser)
    parser.add_argument(
        "--force", action="store_true", help="compare unlike scores too, and say what differs"
    )


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Write the page and print the table, or return JSON."""
    from jaxgen.report.compare import compare, text

    found = compare(args.runs, args.out, force=args.force)
    if not args.json:
        print(text(found))
        print(f"-> {found['out']}")
    return found
