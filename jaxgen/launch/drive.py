"""Running the command lines: one after another, watching, again after a preemption.

Nothing goes through a local shell. What gcloud and the workers print goes to stderr.
"""

from __future__ import annotations

import dataclasses
import re
import shlex
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

from jaxgen.errors import Failure, UsageError
from jaxgen.launch import life, tpu
from jaxgen.launch.tpu import Command, Job

STEPS = ("create", "install", "run", "logs", "delete")
ENDS = {
    "refused": "the workers refused their input (exit code 2): see above and {logs}",
    "failed": "the run failed on the workers: see above and {logs}",
    "spent": "the run was stopped {runs} times, as often as --attempts allows",
    "removed": "somebody else deleted the machine",
    "unobtainable": "the queued resource failed: no such machine could be had in time",
}


def need(program: str, page: str) -> None:
    """Raise UsageError that says where to get a program that is not there."""
    if shutil.which(program) is None:
        raise UsageError(f"{program} is not installed (or not on PATH). To install it: {page}")


def commands(job: Job, logs: str, only: str | None = None) -> list[tuple[str, Command]]:
    """The straight way from nothing to the end, as (step, command); or one step's commands."""
    states = [tpu.queue_state(job)] if job.queued else []
    steps: dict[str, list[Command]] = {
        "create": [tpu.create(job), *states],
        "install": tpu.install(job),
        "run": [tpu.run(job), tpu.node_state(job)],
        "logs": tpu.logs(job, logs),
        "delete": [tpu.delete(job)],
    }
    wanted = [only] if only else [s for s in STEPS if s != "delete" or not job.keep]
    return [(step, command) for step in wanted for command in steps[step]]


class Runner:
    """Runs commands and keeps a list of them."""

    def __init__(self, say: Callable[[str], None]) -> None:
        """`say` gets a line per command."""
        self.say, self.ran = say, list[Command]()

    def run(self, command: Command) -> int:
        """Run to its end; returns its exit code."""
        self._note(command)
        return subprocess.run(command, stdin=subprocess.DEVNULL, stdout=2, check=False).returncode

    def must(self, step: str, command: Command, hint: str = "") -> None:
        """Run; raise Failure if it fails."""
        code = self.run(command)
        if code:
            raise Failure(f"launch: {step} failed: {command[0]} ended with {code}.{hint}")

    def ask(self, command: Command) -> str | None:
        """What a question prints, or None where there is no such thing. Raises Failure."""
        self.ran.append(command)
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
        )
        if done.returncode == 0:
            return done.stdout.strip()
        if re.search(r"not[_ ]found", done.stderr, re.IGNORECASE):
            return None
        raise Failure(f"launch: {shlex.join(command)} failed: {done.stderr.strip()[-500:]}")

    def watch(
        self, command: Command, every: float, alive: Callable[[], bool]
    ) -> tuple[int, list[int]]:
        """Run, and end it where `alive()`, asked every so many seconds, says no.

        Returns its exit code and the codes that workers said they ended with.
        """
        self._note(command)
        codes: list[int] = []
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE)
        reader = threading.Thread(target=_follow, args=(process.stdout, codes), daemon=True)
        reader.start()
        try:
            while process.poll() is None and (not _late(process, every) or alive()):
                pass
        finally:
            if process.poll() is None:
                process.kill()
            status = process.wait()
            reader.join(5)
        return status, codes

    def _note(self, command: Command) -> None:
        self.ran.append(command)
        self.say(f"$ {shlex.join(command)}")


def _late(process: subprocess.Popen[bytes], seconds: float) -> bool:
    """Wait for a process to end; whether it had not by then."""
    try:
        process.wait(seconds)
    except subprocess.TimeoutExpired:
        return True
    return False


def _follow(stream: Any, codes: list[int]) -> None:
    for line in stream:
        sys.stderr.write(line.decode(errors="replace"))
        sys.stderr.flush()
        if said := tpu.ENDED.match(line):
            codes.append(int(said[1]))


def observe(job: Job, runner: Runner) -> str:
    """The machine's phase, by asking."""
    queue = runner.ask(tpu.queue_state(job)) if job.queued else None
    ask_node = not job.queued or queue == "ACTIVE"
    node = runner.ask(tpu.node_state(job)) if ask_node else None
    return life.phase(node, queue, queued=job.queued)


def drive(
    job: Job, *, attempts: int, poll: float, logs: str, say: Callable[[str], None]
) -> dict[str, Any]:
    """Create, install, run, again after preemptions; fetch logs; delete. Any step may be done.

    Raises UsageError where the workers refused their input, Failure where the run failed or no
    machine was to be had; then, and after Ctrl-C, the machine stays and the command that deletes it
    is printed.
    """
    runner = Runner(say)
    done = False
    try:
        now, end = _live(job, runner, attempts, poll)
        if now.phase == "ready":
            for command in tpu.logs(job, logs):
                runner.run(command)
        if end != "finished":
            text = ENDS[end].format(logs=logs, runs=now.runs)
            raise (UsageError if end == "refused" else Failure)(f"launch: {text}.")
        done = True
    finally:
        if not done:
            delete = shlex.join(tpu.delete(job))
            say(f"{job.name} may still be there, and cost. The same command goes on; to delete it:")
            say(delete)
    if not job.keep:
        runner.must("delete", tpu.delete(job))
    return {"ended": "finished", "runs": now.runs, "commands": runner.ran}


def _live(job: Job, runner: Runner, attempts: int, poll: float) -> tuple[life.Situation, str]:
    """Do what `life.decide` says until it says an end; that, and what is known then."""
    now = life.Situation(phase=observe(job, runner))
    refused = 0
    while True:
        action = life.decide(now, attempts)
        if action == "create":
            code = runner.run(tpu.create(job))
            refused += code != 0
            if code and (now.runs == 0 or refused >= attempts):
                hint = "" if job.queued else " Where there is no capacity now: --queued."
                raise Failure(f"launch: create failed: gcloud ended with {code}.{hint}")
            if code:
                time.sleep(poll)
        elif action == "delete":
            runner.say(f"{job.name} was taken away.")
            runner.must("delete", tpu.delete(job))
            now = dataclasses.replace(now, installed=False)
        elif action == "install":
            for command in tpu.install(job):
                runner.must("install", command)
            now = dataclasses.replace(now, installed=True)
            continue
        elif action == "run":
            now = _run(job, runner, now, poll)
            if now.last != "stopped":
                continue
            time.sleep(poll)  # a machine that is being taken away is READY for a moment more
        elif action == "wait":
            time.sleep(poll)
        else:
            return now, action
        now = dataclasses.replace(now, phase=_patiently(job, runner))


def _run(job: Job, runner: Runner, now: life.Situation, poll: float) -> life.Situation:
    """One run on the workers, and its verdict."""

    def alive() -> bool:
        return _patiently(job, runner) in ("ready", "between")

    status, codes = runner.watch(tpu.run(job), poll, alive)
    phase = _patiently(job, runner)
    ended = life.verdict(status, codes, phase)
    runner.say(f"Run {now.runs + 1} {ended}; the machine is {phase}.")
    return dataclasses.replace(now, phase=phase, runs=now.runs + 1, last=ended)


def _patiently(job: Job, runner: Runner) -> str:
    """As `observe`; no answer (a network that is away) is no news."""
    try:
        return observe(job, runner)
    except Failure as error:
        runner.say(str(error))
        return "between"


def step(job: Job, only: str, *, logs: str, say: Callable[[str], None]) -> dict[str, Any]:
    """One step's commands, once. Raises Failure, or UsageError where workers refuse their input."""
    runner = Runner(say)
    for _, command in commands(job, logs, only):
        code = runner.run(command)
        if code == 2 and only == "run":
            raise UsageError("launch: the workers refused their input (exit code 2).")
        if code:
            raise Failure(f"launch: {only} failed: {command[0]} ended with {code}.")
    return {"ended": only, "commands": runner.ran}
