"""The life of a run on a machine that may be taken away: what to do next. Pure.

States of nodes and of queued resources as in Cloud TPU's API reference (v2).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

# Where the machine is on its way, or on its way out, there is only waiting.
NODE = {
    "READY": "ready",
    **dict.fromkeys(("PREEMPTED", "TERMINATED", "STOPPED", "HIDDEN"), "lost"),
    **dict.fromkeys(("DELETING", "STOPPING", "HIDING"), "between"),
}
QUEUE = {
    "SUSPENDED": "lost",
    "FAILED": "failed",
}


def phase(node: str | None, queue: str | None = None, *, queued: bool = False) -> str:
    """absent, between, ready, lost (delete it) or failed (it will not come).

    node, queue: states of the machine and of its queued resource; None: there is none.
    """
    if queued and queue is None:
        return "absent"
    if queued and queue != "ACTIVE":
        return QUEUE.get(queue or "", "between")
    if node is None:
        return "lost" if queued else "absent"
    return NODE.get(node, "between")


# SIGTERM answered by saving (143); a worker whose peers were lost: 75 by itself, SIGABRT by JAX's
# coordination service (134); killed (137); no connection to it (255).
AGAIN = (75, 134, 137, 143, 255)


def verdict(status: int, codes: Sequence[int], phase: str) -> str:
    """finished, refused (bad input: never again), failed (an error: never again) or stopped.

    status: with what `gcloud ssh` ended. codes: what the workers said that they ended with. phase:
    the machine's, afterwards. The worst counts: where one worker fails for a reason of its own, the
    others die of losing it.
    """
    found = {status, *codes}
    if found == {0}:
        return "finished"
    if 2 in codes:
        return "refused"
    if phase == "ready" and not found <= {0, *AGAIN}:
        return "failed"
    return "stopped"


@dataclasses.dataclass(frozen=True)
class Situation:
    """What is known: the machine's phase, whether this one has been prepared, how runs ended.

    runs: started so far. last: the last one's verdict.
    """

    phase: str = "absent"
    installed: bool = False
    runs: int = 0
    last: str | None = None


def decide(now: Situation, attempts: int) -> str:
    """create, wait, delete, install or run; or how it ends.

    Ends: finished, refused, failed, spent (as many runs as `attempts`), unobtainable, removed (by
    somebody else: a machine that is taken away stays to be deleted).
    """
    if now.last in ("finished", "refused", "failed"):
        return now.last
    if now.phase == "failed":
        return "unobtainable"
    if now.phase == "absent" and now.installed:
        return "removed"
    if now.runs >= attempts:
        return "spent"
    if now.phase == "ready":
        return "run" if now.installed else "install"
    return {"absent": "create", "lost": "delete"}.get(now.phase, "wait")
