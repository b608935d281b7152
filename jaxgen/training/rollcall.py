"""A roll call before the processes of a run join: who is missing is named, and named in time.

JAX's own start waits for all processes and ends those that came when time is up, without saying who
did not come. So process 0 first listens at the coordinator's address, hears every other process say
its number, answers all of them at once, and leaves the port to JAX.
"""

from __future__ import annotations

import contextlib
import json
import socket
import time
from typing import Any

from jaxgen.errors import Lost, UsageError, invalid

PAUSE = 0.2
"""Seconds between two tries to reach process 0."""


def roll_call(address: str, index: int, count: int, seconds: float) -> None:
    """Return when all `count` processes are there; each calls it with its own `index`.

    address: "host:port" of process 0. Raises Lost, naming the missing ones, after `seconds`, and
    UsageError where two processes have one number or another idea of how many there are.
    """
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit():
        raise invalid("config.hosts.coordinator", address, "HOST:PORT of process 0")
    end = time.monotonic() + seconds
    answer = (
        _listen(int(port), count, end)
        if index == 0
        else _report((host, int(port)), index, count, end)
    )
    if answer["missing"]:
        names = ", ".join(map(str, answer["missing"]))
        raise Lost(
            f"process {names} of {count} did not come within {seconds:g} s "
            f"(config.hosts.start_seconds); process 0 waited at {address}"
        )
    if answer["trouble"]:
        raise UsageError(answer["trouble"])


def _listen(port: int, count: int, end: float) -> dict[str, Any]:
    """Process 0's part: hear all the others, then answer them."""
    both = socket.has_dualstack_ipv6()
    family = socket.AF_INET6 if both else socket.AF_INET
    try:
        server = socket.create_server(("", port), family=family, dualstack_ipv6=both)
    except OSError as error:
        raise invalid(
            "config.hosts.coordinator", f"port {port}", "a free port of process 0", str(error)
        ) from error
    came: dict[int, tuple[socket.socket, str]] = {}
    trouble = None
    with server, contextlib.ExitStack() as stack:
        while len(came) < count - 1 and trouble is None and time.monotonic() < end:
            server.settimeout(max(min(1.0, end - time.monotonic()), 0.01))
            try:
                line = stack.enter_context(server.accept()[0])
                line.settimeout(2.0)
                said = json.loads(line.makefile().readline())
                number, host = said["index"], said["host"]
            except (OSError, ValueError, KeyError, TypeError):
                continue  # nobody yet, or somebody who is not one of us
            # A process that was cut off and tries again says the same twice.
            other = came.get(number, (None, host))[1]
            if said["count"] != count or not 0 < number < count:
                trouble = (
                    f"config.hosts: process {number} ({host}) is one of {said['count']}, "
                    f"process 0 ({socket.gethostname()}) one of {count}"
                )
            elif other != host:
                trouble = f"config.hosts.index: both {other} and {host} are process {number}"
            came[number] = (line, host)
        missing = [] if trouble else sorted(set(range(1, count)) - set(came))
        answer = {"missing": missing, "trouble": trouble}
        for line, _ in came.values():
            with contextlib.suppress(OSError):
                line.sendall(json.dumps(answer).encode() + b"\n")
    return answer


def _report(address: tuple[str, int], index: int, count: int, end: float) -> dict[str, Any]:
    """Another process's part: say who we are until process 0 answers."""
    hello = json.dumps({"index": index, "count": count, "host": socket.gethostname()}).encode()
    while time.monotonic() < end:
        with (
            contextlib.suppress(OSError, ValueError),
            socket.create_connection(address, timeout=2.0) as line,
        ):
            line.sendall(hello + b"\n")
            line.settimeout(end + 5 - time.monotonic())  # process 0's clock may be behind
            answer: dict[str, Any] = json.loads(line.makefile().readline())
            return answer
        time.sleep(PAUSE)
    return {"missing": [0], "trouble": None}
