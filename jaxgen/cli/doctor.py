"""What is installed, which devices there are, and a self-test of about ten seconds.

For a report of a fault, too: jaxgen doctor --json.
"""

from __future__ import annotations

import argparse
from typing import Any


def arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `jaxgen doctor`: none."""


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Examine this machine and print what was found; exit code 1 where a check fails."""
    from jaxgen.doctor import examine
    from jaxgen.errors import Failure
    from jaxgen.training.log import say

    found = examine()
    say(", ".join(f"{name} {version}" for name, version in found["versions"].items()))
    there = [name for name, version in found["extras"].items() if version]
    say(f"extras: {', '.join(there) or 'none'}; devices: {', '.join(found['devices'])}")
    for check in found["checks"]:
        mark = "ok    " if check["ok"] else "FAILED"
        say(f"{mark} {check['name']}: {check['detail']} ({check['seconds']:.1f} s)")
    if not found["ok"]:
        raise Failure("a check failed: this machine does not compute as it should")
    return found
