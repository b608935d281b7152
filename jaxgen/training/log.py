"""What a run tells: `metrics.jsonl` always, TensorBoard, W&B by option, and progress on stderr."""

from __future__ import annotations

import contextlib
import json
import sys
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from jaxgen import files
from jaxgen.errors import UsageError, invalid
from jaxgen.training import hosts
from jaxgen.training.events import Events

console = Console(stderr=True, highlight=False, soft_wrap=True)


def say(message: str) -> None:
    """A line for the person at the terminal, on stderr; of other processes, warnings alone."""
    if hosts.first() or message.startswith("WARNING"):
        console.print(hosts.prefix() + message, markup=False)


class Log:
    """Scalars of a run, appended to `metrics.jsonl` and sent to TensorBoard and W&B.

    Opening it at `step` drops later lines: they are of work that was lost and is done again. Of
    many processes the first writes; the others' does nothing.
    """

    def __init__(
        self, workdir: Path, *, step: int, tensorboard: bool, wandb: str | None, config: Any
    ) -> None:
        """wandb: a project name, or None. Raises UsageError where W&B is asked for but missing."""
        self._file: Any = None
        self._board: Any = None
        self._wandb: Any = None
        if not hosts.first():
            return
        self.path = workdir / "metrics.jsonl"
        kept = [row for row in read_jsonl(self.path) if row["step"] <= step]
        files.write(self.path, "".join(json.dumps(row) + "\n" for row in kept))
        with files.writing(self.path):
            self._file = self.path.open("a", buffering=1)
        if tensorboard:
            self._board = Events(workdir / "tensorboard", step + 1)
        if wandb is not None:
            try:
                import wandb as client
            except ImportError as error:
                raise invalid(
                    "config.log.wandb", wandb, "None, as W&B is not installed", "pip install wandb"
                ) from error
            self._wandb = client.init(
                project=wandb,
                dir=str(workdir),
                config=dict(config),
                id=_wandb_id(workdir),
                resume="allow",
            )

    def scalars(self, step: int, values: Mapping[str, float], **words: str) -> None:
        """Write one line of numbers at `step`; `words` go to `metrics.jsonl` alone."""
        if self._file is None:
            return
        clean = files.plain({k: float(v) for k, v in values.items()})
        with files.writing(self.path):
            self._file.write(json.dumps({"step": step, **clean, **words}) + "\n")
        if self._board is not None:
            self._board.scalars(step, values)
        if self._wandb is not None:
            self._wandb.log(dict(values), step=step)

    def image(self, step: int, name: str, picture: np.ndarray) -> None:
        """Send a picture [H, W, 3] uint8 to TensorBoard."""
        if self._board is not None:
            self._board.image(step, name, picture)

    def close(self) -> None:
        """Flush and close everything."""
        if self._file is not None:
            with files.writing(self.path):
                self._file.close()
        if self._board is not None:
            self._board.close()
        if self._wandb is not None:
            self._wandb.finish()


def _wandb_id(workdir: Path) -> str:
    """The id of this workdir's run at W&B: made once, so that a resumed run is the same one."""
    path = workdir / "wandb_id"
    if not path.is_file():
        files.write(path, f"{uuid.uuid4().hex[:12]}\n")
    return path.read_text().strip()


def read_jsonl(path: Path) -> list[dict[str, Any]]:
    """The rows of a run's metrics; a line that was cut short by a kill is dropped.

    Raises UsageError for a file that is none of ours: no text, or without any such row.
    """
    try:
        lines = path.read_bytes().splitlines() if path.exists() else []
    except OSError as error:
        raise UsageError(f"{path}: cannot be read: {error.strerror or error}") from error
    rows = []
    for line in lines:
        with contextlib.suppress(ValueError):
            row = json.loads(line)
            if isinstance(row, dict) and isinstance(row.get("step"), int):
                rows.append(row)
    if len(lines) > 1 and not rows:
        raise UsageError(f"{path}: not the metrics of a run. Move it out of the workdir.")
    return rows


Advance = Callable[..., None]


@contextlib.contextmanager
def progress(title: str, total: int, done: int = 0, period: float = 10.0) -> Iterator[Advance]:
    """Progress as a bar on a terminal, as a line every `period` seconds elsewhere.

    Yields advance(done, text): how far we are, out of `total`, and what to show beside it. Of many
    processes the first shows it.
    """
    if not hosts.first():
        yield lambda now, text="": None
        return
    if console.is_terminal:
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.percentage:3.0f}%  {task.fields[text]}"),
            TimeElapsedColumn(),
            TextColumn("ETA"),
            TimeRemainingColumn(),
        )
        with Progress(*columns, console=console, transient=False) as bar:
            task = bar.add_task(title, total=total, completed=done, text="")
            yield lambda now, text="": bar.update(task, completed=now, text=text)
        return
    start = last = time.monotonic()
    first = done

    def advance(now: int, text: str = "") -> None:
        nonlocal last
        seconds = time.monotonic()
        if seconds - last < period and now < total:
            return
        last = seconds
        rate = (now - first) / max(seconds - start, 1e-9)
        left = f"{(total - now) / rate:.0f}s" if rate > 0 else "?"
        say(f"{title} {now}/{total} ({100 * now / max(total, 1):.0f}%)  {text}  ETA {left}")

    yield advance


def flush() -> None:
    """Flush both streams (before a hard exit)."""
    sys.stdout.flush()
    sys.stderr.flush()
