"""The process that compiles: a request as JSON on stdin, the answer as JSON on stdout."""

from __future__ import annotations

import json
import sys
from typing import Any


def main() -> int:
    """Answer one request: {"config", "overrides", "topology", "what"}."""
    request: dict[str, Any] = json.load(sys.stdin)
    from jaxgen import config as configs
    from jaxgen.errors import UsageError
    from jaxgen.plan import plan
    from jaxgen.run.setup import TOP

    try:
        config = configs.load(request["config"])
        configs.override(config, request["overrides"], TOP)
        answer = plan(config, request["topology"], request["what"])
    except UsageError as error:
        answer = {"error": str(error)}
    json.dump(answer, sys.stdout)
    return 0


if __name__ == "__main__":
    sys.exit(main())
