"""The process that compiles: a request as JSON on stdin, the answer as JSON on stdout."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any


def main() -> int:
    """Answer one request: {"config", "overrides", "topology", "what"}.

    config: of a file, or of a run or an exported model, which somebody else may have written.
    """
    request: dict[str, Any] = json.load(sys.stdin)
    from jaxgen import config as configs
    from jaxgen.errors import UsageError
    from jaxgen.plan import plan
    from jaxgen.run.record import saved_config
    from jaxgen.run.setup import TOP

    place = request["config"]
    try:
        own = not Path(place).is_dir()
        config = configs.load(place) if own else saved_config(place)
        configs.override(config, request["overrides"], TOP)
        trusted = None if own else ()
        answer = plan(config, request["topology"], request["what"], trusted=trusted)
    except UsageError as error:
        answer = {"error": str(error)}
    json.dump(answer, sys.stdout)
    return 0


if __name__ == "__main__":
    sys.exit(main())
