"""What a run tells: `metrics.jsonl` always, TensorBoard, W&B by option, and progress on stderr."""

from __future__ import annotations

import contextlib
import json
import math
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from jaxgen.errors import invalid
from jaxgen.training import hosts

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
        kept = [r for r in read_jsonl(self.path) if r["step"] <= step]
        self.path.write_text("".join(json.dumps(r) + "\n" for r in kept))
        self._file = self.path.open("a", buffering=1)
        if tensorboard:
            # Here, since it imports PyTorch where that is installed: seconds.
            from tensorboardX import SummaryWriter

            self._board = SummaryWriter(str(workdir / "tensorboard"), purge_step=step + 1)
        if wandb is not None:
            try:
                import wandb as client
            except ImportError as error:
                raise invalid(
                    "config.log.wandb", wandb, "None, as W&B is not installed", "pip install wandb"
                ) from error
            self._wandb = client.init(
                project=wandb, dir=str(workdir), config=dict(config), resume="allow"
            )

    def scalars(self, step: int, values: Mapping[str, float], **words: str) -> None:
        """Write one line of numbers at `step`; `words` go to `metrics.jsonl` alone."""
        if self._file is None:
            return
        # JSON has no NaN: what is not finite is written as text.
        clean = {k: (float(v) if math.isfinite(v) else str(float(v))) for k, v in values.items()}
        self._file.write(json.dumps({"step": step, **clean, **words}) + "\n")
        if self._board is not None:
            for name, value in values.items():
                self._board.add_scalar(name, value, step)
        if self._wandb is not None:
            self._wandb.log(dict(values), step=step)

    def image(self, step: int, name: str, picture: np.ndarray) -> None:
        """Send a picture [H, W, 3] uint8 to TensorBoard."""
        if self._board is not None:
            self._board.add_image(name, picture, step, dataformats="HWC")

    def close(self) -> None:
        """Flush and close everything."""
        if self._file is not None:
            self._file.close()
        if self._board is not None:
            self._board.close()
        if self._wandb is not None:
            self._wandb.finish()


def read_jsonl(path: Path) -> list[dict[str, Any]]:
    """The whole lines of a JSONL file; a last line cut short by a kill is dropped."""
    rows = []
    if path.exists():
        for line in path.read_text().splitlines():
            with contextlib.suppress(json.JSONDecodeError):
                rows.append(json.loads(line))
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
