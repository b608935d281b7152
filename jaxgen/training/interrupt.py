"""Ctrl-C and SIGTERM as a request: finish the step in hand, save, and leave."""

from __future__ import annotations

import signal
import threading
import types
from types import FrameType


class Interrupted(Exception):
    """The run was asked to stop and its state is saved; `code` is the exit code (128 + signal)."""

    def __init__(self, number: int, message: str = "") -> None:
        """`number` is the signal's."""
        super().__init__(message or f"stopped by {signal.Signals(number).name}")
        self.code = 128 + number


class Interrupts:
    """Context manager that turns SIGINT and SIGTERM into a flag looked at between steps.

    A compilation cannot be cut short from Python: the flag is seen when it is over. A second
    Ctrl-C raises KeyboardInterrupt at once. Outside the main thread, where signals cannot be
    caught, it does nothing.
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

    def check(self) -> None:
        """Raise `Interrupted` if a signal came."""
        if self.number is not None:
            raise Interrupted(self.number)
