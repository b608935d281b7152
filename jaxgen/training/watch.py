"""The watch of a run of many processes: who is alive, where each is, and when all are to stop.

A killed or hung process leaves the others in a collective that may never end, and no exception
reaches Python there. So every process tells the coordinator's key-value store once a period that it
lives and where it is; process 0 judges who is silent, the others obey its verdict and judge process
0. A verdict is printed and ends the process on the spot (`os._exit`): after a loss JAX cannot be
shut down in an orderly way. All that is said here goes through the store: no collective, nothing
the step waits for.
"""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import json
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any

import jax

from jaxgen.errors import Failure, Lost, UsageError

LOST = Lost.code
AGAIN = "run the same command again to resume"
SOON = 10.0
"""Seconds of silence that are enough once a computation has failed, as it does when one is lost."""

_HEART, _PASSED, _LEFT, _ALL = "jaxgen/heart/", "jaxgen/passed/", "jaxgen/left/", "jaxgen/all/"


class Watch:
    """One process's part of the watch. Attributes that the run sets:

    step: updates done. doing: what the process is at, in words. pace: seconds a step that the host
    itself took (None: not known yet). asked: the number of a signal that wants the run to stop.
    """

    def __init__(
        self, client: Any, index: int, count: int, *, address: str, silent: float, wait: float
    ) -> None:
        """client: JAX's. silent: seconds without a word that count as lost. wait: at the end."""
        self.client, self.index, self.count = client, index, count
        self.address, self.silent, self.wait = address, silent, wait
        self.period = min(1.0, silent / 4)
        self.host = socket.gethostname()
        self.step, self.doing = 0, "starting"
        self.pace: float | None = None
        self.asked: int | None = None
        self.stop: dict[str, Any] | None = None
        self.records: dict[int, dict[str, Any]] = {}
        self._since: dict[int, float] = {}
        self._beat, self._trouble, self._code = 0, False, 0
        self._failure: dict[str, Any] = {}
        self._passed, self._held, self._gate = 0, False, threading.Lock()
        self._stop_at: int | None = None
        self._ended = threading.Event()
        self._ending = threading.Lock()
        self._talked = time.monotonic()

    def start(self) -> None:
        """Begin to talk and to listen."""
        self._send()
        for target in (self._talk, self._guard):
            threading.Thread(target=target, daemon=True).start()
        atexit.register(self._leave)
        _on_abort(self._aborted)

    def name(self, index: int) -> str:
        """A process as people find it: its number and its machine."""
        return f"process {index} ({self.records.get(index, {}).get('host', 'host unknown')})"

    def paces(self) -> dict[int, float]:
        """Each process's `pace`, as last heard; process 0 hears all."""
        known = {**self.records, self.index: {"pace": self.pace}}
        return {i: float(r["pace"]) for i, r in known.items() if r.get("pace") is not None}

    # Stopping together.

    def point(self) -> int | None:
        """A signal's number if the run is to stop at this point, the same one on every process.

        All processes must call it equally often: a step, a batch of samples.
        """
        with self._gate:
            self._passed += 1
            if self._stop_at is None or self._passed < self._stop_at:
                return None
            return int(self.stop["number"]) if self.stop else None

    def _agree(self) -> None:
        """Choose the first point that no process has passed; all wait before theirs meanwhile."""
        if not self._held:
            self._held = self._gate.acquire()
            self.client.key_value_set(f"{_PASSED}{self.index}", str(self._passed))
        passed = [int(value) for _, value in self.client.key_value_dir_get(_PASSED)]
        if len(passed) == self.count:
            self._stop_at = max(passed) + 1
            self._held = False
            self._gate.release()

    # Talking.

    def _send(self) -> None:
        self._beat += 1
        record = {
            "beat": self._beat,
            "host": self.host,
            "step": self.step,
            "doing": self.doing,
            "pace": self.pace,
            "asked": self.asked,
            "trouble": self._trouble,
            **self._failure,
        }
        key = f"{_HEART}{self.index}"
        self.client.key_value_set(key, json.dumps(record), allow_overwrite=True)

    def _talk(self) -> None:
        """Say that we live, hear the others, obey or judge; once a period."""
        while not self._ended.wait(0.02 if self._held else self.period):
            with contextlib.suppress(jax.errors.JaxRuntimeError):  # `_guard` sees if it lasts
                self._send()
                if self.index == 0:
                    self._judge()
                else:
                    self._hear(0, json.loads(self.client.key_value_try_get(f"{_HEART}0")))
                self._obey(dict(self.client.key_value_dir_get(_ALL)))
                self._talked = time.monotonic()

    def _hear(self, index: int, record: dict[str, Any]) -> None:
        now, before = time.monotonic(), self.records.get(index)
        self.records[index] = record
        if before is None or before["beat"] != record["beat"]:
            self._since[index] = now
        limit = min(self.silent, SOON) if self._trouble else self.silent
        silence = now - self._since[index]
        if silence > limit and index != self.index:
            self._lost(index, silence)

    def _lost(self, index: int, silence: float) -> None:
        record = self.records.get(index, {})
        at = f" since step {record['step']} ({record['doing']})" if record else ""
        self.end(
            f"{self.name(index)} has not been heard of for {silence:.0f} s{at}: stopping; {AGAIN}"
        )

    def _judge(self) -> None:
        """Process 0: hear all; who failed, who asks to stop, who is silent?"""
        left = self._left()
        records = {
            int(key.removeprefix(_HEART)): json.loads(value)
            for key, value in self.client.key_value_dir_get(_HEART)
        }
        self._trouble |= any(r["trouble"] for r in records.values())
        for index, record in records.items():
            if "failed" in record:
                self.end(f"{self.name(index)} stopped: {record['failed']}", record["code"])
            if record["asked"] is not None and self.stop is None:
                self.stop = {"number": record["asked"], "index": index}
                self.client.key_value_set(f"{_ALL}stop", json.dumps(self.stop))
        for index, record in records.items():
            if index not in left:
                self._hear(index, record)

    def _obey(self, said: dict[str, str]) -> None:
        verdict, stop = said.get(f"{_ALL}verdict"), said.get(f"{_ALL}stop")
        if verdict is not None and self.index != 0:
            self.end(**json.loads(verdict), heard=True)
        if stop is not None and self._stop_at is None:
            self.stop = json.loads(stop)
            self._agree()

    def _guard(self) -> None:
        """End when the store has not answered for too long: process 0 hangs, or the network."""
        while not self._ended.is_set():
            woke = time.monotonic()
            time.sleep(self.period)
            if time.monotonic() - woke > self.silent / 2:
                self._talked = time.monotonic()  # it was we who slept
            silence = time.monotonic() - self._talked
            if self.index != 0 and silence > self.silent:
                self._lost(0, silence)

    # Ending.

    def end(self, message: str, code: int = LOST, heard: bool = False) -> None:
        """Print a verdict, tell the others unless we heard it of them, and end this process."""
        with self._ending:
            if self._code:  # this process is ending already, and has said why
                return
            print(f"{self.prefix}jaxgen: {message}", file=sys.stderr, flush=True)
            with contextlib.suppress(Exception):
                self._tell(message, code, heard)
            os._exit(code)

    def _tell(self, message: str, code: int, heard: bool = False) -> None:
        if self.index != 0:
            if not heard:
                self._failure = {"failed": message, "code": code}
            # A thread of its own: where process 0 hangs, the store never answers.
            sent = threading.Thread(target=self._mark, daemon=True)
            sent.start()
            sent.join(self.period)
            return
        verdict = json.dumps({"message": message, "code": code})
        self.client.key_value_set(f"{_ALL}verdict", verdict)
        # The store ends with this process: let those who still listen hear first.
        end = time.monotonic() + 4 * self.period + 1
        while len(self._left()) < self.count - 1 and time.monotonic() < end:
            time.sleep(self.period / 4)

    def _mark(self) -> None:
        with contextlib.suppress(jax.errors.JaxRuntimeError):
            self._send()
            self.client.key_value_set(f"{_LEFT}{self.index}", "", allow_overwrite=True)

    def _left(self) -> set[int]:
        return {int(k.removeprefix(_LEFT)) for k, _ in self.client.key_value_dir_get(_LEFT)}

    @property
    def prefix(self) -> str:
        """What marks the lines of all processes but the first."""
        return f"[process {self.index}] " if self.index else ""

    def failed(self, error: BaseException) -> None:
        """Tell the others of an exception that ends the run here, unless they know more of it.

        A computation fails at once where another process is lost: then the verdict names it, and
        this does not return.
        """
        if self._code:
            return
        if _from_jax(error):
            self._trouble = True
            line = str(error).strip().splitlines()[0][:200]
            limit = min(self.silent, SOON) + 4 * self.period
            print(
                f"{self.prefix}jaxgen: {type(error).__name__}: {line}\n"
                f"{self.prefix}jaxgen: looking for a lost process, {limit:.0f} s at most",
                file=sys.stderr,
                flush=True,
            )
            time.sleep(limit)
        with self._ending, contextlib.suppress(Exception):
            self._code = exit_code(error)
            self._tell(_first_line(error), self._code)

    def _leave(self) -> None:
        """At exit: wait for the others, process 0 until all have come; name those who do not."""
        if self._code:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(self._code)
        self.doing = "done"
        with contextlib.suppress(jax.errors.JaxRuntimeError):
            self.client.key_value_set(f"{_LEFT}{self.index}", "", allow_overwrite=True)
            begun = time.monotonic()
            while not self._all_left():
                if self.index == 0 and time.monotonic() - begun > self.wait:
                    late = sorted(set(range(1, self.count)) - self._left())
                    names = ", ".join(map(self.name, late))
                    self.end(f"{names}: not done {self.wait:g} s after process 0")
                time.sleep(self.period / 4)
        self._ended.set()

    def _all_left(self) -> bool:
        if self.index != 0:
            return f"{_ALL}left" in dict(self.client.key_value_dir_get(_ALL))
        if len(self._left()) < self.count:
            return False
        self.client.key_value_set(f"{_ALL}left", "", allow_overwrite=True)
        return True

    def _aborted(self) -> None:
        """JAX ends this process: say so where it is because process 0 is gone."""
        host, _, port = self.address.rpartition(":")
        try:
            socket.create_connection((host, int(port)), timeout=2.0).close()
        except OSError:
            message = f"{self.name(0)}, which coordinates, is gone: stopping; {AGAIN}\n"
            os.write(2, f"{self.prefix}jaxgen: {message}".encode())
            os._exit(LOST)

    def where(self) -> str:
        """Where the other processes are, as far as this one knows."""
        known = sorted((i, r) for i, r in self.records.items() if i != self.index)
        return "; ".join(f"{self.name(i)}: step {r['step']}, {r['doing']}" for i, r in known)


_watch: Watch | None = None


def current() -> Watch | None:
    """The watch of this process, or None where it is alone."""
    return _watch


def begin(watch: Watch) -> None:
    """Make `watch` the one of this process."""
    global _watch
    _watch = watch
    watch.start()


@contextlib.contextmanager
def watched() -> Iterator[None]:
    """What ends the run here ends it on all processes. An agreed stop passes: all make it."""
    try:
        yield
    except BaseException as error:
        if _watch is not None and not getattr(error, "agreed", False):
            _watch.failed(error)
        raise


@contextlib.contextmanager
def deadline(seconds: float, what: str, option: str) -> Iterator[None]:
    """End the process (exit code 75) with a message if the block takes longer than `seconds`."""

    def expire() -> None:
        message = f"{what} has taken longer than {seconds:g} s ({option}): stopping; {AGAIN}"
        if _watch is None:
            print(f"jaxgen: {message}", file=sys.stderr, flush=True)
            os._exit(LOST)
        where = _watch.where()
        _watch.end(message + (f". {where}" if where else ""))

    # Process 0 knows where all are, so it speaks first.
    later = 2 * _watch.period if _watch is not None and _watch.index else 0.0
    timer = threading.Timer(seconds + later, expire)
    timer.daemon = True
    before = None if _watch is None else _watch.doing
    if _watch is not None:
        _watch.doing = what
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
        if _watch is not None and before is not None:
            _watch.doing = before


def exit_code(error: BaseException) -> int:
    """What the command line exits with after an exception."""
    if isinstance(error, UsageError):
        return 2
    if isinstance(error, Failure):
        return getattr(error, "code", 1)
    return 130 if isinstance(error, KeyboardInterrupt) else 1


def _from_jax(error: BaseException | None) -> bool:
    """Whether an exception is JAX's, or was raised because of one."""
    seen = 0
    while error is not None and seen < 20:
        if isinstance(error, jax.errors.JaxRuntimeError):
            return True
        error, seen = error.__cause__ or error.__context__, seen + 1
    return False


def _first_line(error: BaseException) -> str:
    return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0][:300]}"


_HANDLERS: list[Any] = []


def _on_abort(act: Any) -> None:
    """Call `act` when JAX's own threads abort the process, which Python cannot see.

    A C handler: `abort` raises the signal in the thread that calls it, which holds no lock of ours.
    If `act` returns, the process dies of the signal as it would have.
    """
    handler = ctypes.CFUNCTYPE(None, ctypes.c_int)(lambda number: act())
    _HANDLERS.append(handler)  # must outlive this call
    library = ctypes.CDLL(None)
    library.signal.restype = ctypes.c_void_p
    library.signal(int(signal.SIGABRT), handler)
