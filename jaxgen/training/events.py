"""TensorBoard's event files, written in the caller's thread.

tensorboardX's own writer has a thread and a bounded queue: where the disk is full the thread dies
and the queue blocks the run.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from jaxgen import files


class Events:
    """An event file in `folder`. Raises `files.Unwritable` where it cannot be written.

    step: where a run goes on; TensorBoard forgets what older files say of this step and later.
    """

    def __init__(self, folder: Path, step: int) -> None:
        """Begin a file."""
        # Here, since it imports PyTorch where that is installed: seconds.
        from tensorboardX import summary
        from tensorboardX.event_file_writer import EventsWriter
        from tensorboardX.proto import event_pb2

        self._summary, self._event, self._folder = summary, event_pb2, files.folder(folder)
        with files.writing(folder):
            self._writer = EventsWriter(str(folder / "events"))
        self._add(step, session_log=event_pb2.SessionLog(status=event_pb2.SessionLog.START))

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Numbers by name."""
        for name, value in values.items():
            self._add(step, summary=self._summary.scalar(name, value))

    def image(self, step: int, name: str, picture: np.ndarray) -> None:
        """A picture [H, W, 3] uint8."""
        self._add(step, summary=self._summary.image(name, picture, dataformats="HWC"))

    def close(self) -> None:
        """Close the file."""
        with files.writing(self._folder):
            self._writer.close()

    def _add(self, step: int, **what: Any) -> None:
        with files.writing(self._folder):
            self._writer.write_event(self._event.Event(step=step, wall_time=time.time(), **what))
            self._writer.flush()
