"""Ctrl-C and SIGTERM as a request: finish the step in hand, save, and leave."""

from __future__ import annotations

import signal
import threading
import types
from types import FrameType

from jaxgen.training.watch import current


class Interrupted(Exception):
    """The run was asked to stop and its state is saved; `code` is the exit code (128 + signal)."""

    agreed = True  # all processes stop at one point (`watch.watched`)

    def __init__(self, number: int, message: str = "") -> None:
        """`number` is the signal's."""
        super().__init__(message or f"stopped by {signal.Signals(number).name}")
        self.code = 128 + number


class Interrupts:
    """Context manager that turns SIGINT and SIGTERM into a flag looked at between steps.

    A compilation cannot be cut short from Python: the flag is seen when it is over. A second
    Ctrl-C raises KeyboardInterrupt at once. Outside the main thread, where signals cannot be
    caught, it does nothing. A signal to one of many processes stops all of them, at one step.
    """

    def __init__(self) -> None:
        """No signal yet."""
        self.number: int | None = None
        self._old: dict[int, object] = {}

    def __enter__(self) -> Interrupts:
        """Install the handlers."""
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._old[number] = signal.signal(number, self._handle)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: types.TracebackType | None,
    ) -> None:
        """Put the old handlers back."""
        for number, old in self._old.items():
            signal.signal(number, old)  # type: ignore[arg-type]

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.number is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.number = number
        watch = current()
        if watch is not None:
            watch.asked = number

    def reached(self) -> bool:
        """Whether to stop at this point. Every process must ask equally often."""
        watch = current()
        if watch is None:
            return self.number is not None
        watch.asked = watch.asked or self.number  # of before the processes joined
        agreed = watch.point()
        self.number = agreed or self.number
        return agreed is not None

    def check(self) -> None:
        """Raise `Interrupted` if the run is to stop here; a point of `reached`."""
        if self.reached():
            assert self.number is not None
            raise Interrupted(self.number)
