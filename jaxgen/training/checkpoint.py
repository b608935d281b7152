"""Checkpoints: orbax, asynchronous and atomic, verified by digest, never a silent fresh start.

A checkpoint is `checkpoints/<step>/` with the train state and metadata. When one is complete, the
sha256 of every file in it is written beside it (`checkpoints/digests/<step>.json`): orbax notices a
truncated file but not a flipped bit. Restoring takes the newest checkpoint that is whole, says
loudly which ones were not, and is an error where checkpoints exist and none is whole.

Of many processes each writes and reads its part; the first checks and writes the digests, and all
take the checkpoint that it could read and they could.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import shutil
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp
from orbax.checkpoint import checkpoint_managers as policies

from jaxgen import files
from jaxgen.errors import UsageError
from jaxgen.training import hosts
from jaxgen.training.watch import deadline
from jaxgen.training.weights import LAYOUT, layout_trouble

PyTree = Any


class CheckpointError(UsageError):
    """A workdir whose checkpoints cannot be read, or cannot be written."""


class Checkpoints:
    """The checkpoints of one workdir.

    keep_last, keep_best, keep_every (steps): a checkpoint stays if any of the three wants it; best
    is by the lowest `loss` in its metadata. Use as a context manager: leaving it waits for the save
    under way.
    """

    def __init__(
        self,
        workdir: str | Path,
        *,
        keep_last: int = 2,
        keep_best: int = 0,
        keep_every: int | None = None,
        limits: hosts.HostOptions | None = None,
        say: Callable[[str], None] = print,
    ) -> None:
        """Open (and create) `workdir/checkpoints`; `say` gets warnings. limits: time limits."""
        self.limits = limits or hosts.HostOptions()
        self.folder = Path(workdir).absolute() / "checkpoints"
        self.say = say
        keep: list[Any] = [policies.LatestN(keep_last)]
        if keep_best:
            keep.append(
                policies.BestN(get_metric_fn=lambda m: m["loss"], reverse=True, n=keep_best)
            )
        if keep_every:
            keep.append(policies.EveryNSteps(keep_every))
        self._sealing: threading.Thread | None = None
        self._failure: tuple[int, Exception] | None = None
        self._manager = ocp.CheckpointManager(
            self.folder,
            options=ocp.CheckpointManagerOptions(
                preservation_policy=policies.AnyPreservationPolicy(keep),
                best_fn=(lambda m: -m["loss"]) if keep_best else None,
                enable_async_checkpointing=True,
                async_options=ocp.AsyncOptions(timeout_secs=int(self.limits.save_seconds) + 60),
            ),
        )

    def __enter__(self) -> Checkpoints:
        """Nothing to do: the folder is open."""
        return self

    def __exit__(self, *error: object) -> None:
        """Finish the save under way and close; its failure is raised unless another error is."""
        try:
            if error[0] is None:
                self.wait()
            else:
                with contextlib.suppress(Exception):
                    self.wait()
        finally:
            with contextlib.suppress(Exception):
                self._manager.close()

    def steps(self) -> list[int]:
        """Steps of all complete checkpoints, oldest first."""
        return sorted(self._manager.all_steps())

    def save(self, step: int, state: PyTree, meta: Mapping[str, Any], *, wait: bool) -> None:
        """Start saving `state` (a pytree of jax.Arrays) and JSON-able `meta` as number `step`.

        wait: return only when it is on disk. Raises CheckpointError where it, or the save before
        it, could not be written (no space left, no permission); what exists stays as it is. A save
        that takes longer than `limits.save_seconds` ends the process.
        """
        self.wait()
        if step in self.steps():
            return
        try:
            with self._limit(f"saving checkpoint {step}"):
                self._manager.save(
                    step,
                    args=ocp.args.Composite(
                        state=ocp.args.StandardSave(state),
                        meta=ocp.args.JsonSave(
                            {**meta, "layout": LAYOUT, "leaves": _signature(state)}
                        ),
                    ),
                    metrics={"loss": float(meta.get("loss", float("inf")))},
                )
        except Exception as error:  # orbax raises many types for one full disk
            raise self._unwritten(step, error) from error
        self._sealing = threading.Thread(target=self._seal, args=(step,), daemon=True)
        self._sealing.start()
        if wait:
            self.wait()

    def wait(self) -> None:
        """Return when no save is under way; raise CheckpointError if the last one failed."""
        if self._sealing is None:
            return
        with self._limit("writing a checkpoint"):
            self._sealing.join()
        self._sealing = None
        if self._failure is not None:
            (step, error), self._failure = self._failure, None
            raise self._unwritten(step, error) from error

    def _limit(self, what: str) -> contextlib.AbstractContextManager[None]:
        return deadline(self.limits.save_seconds, what, "config.hosts.save_seconds")

    def _unwritten(self, step: int, error: BaseException) -> CheckpointError:
        have = sorted(int(p.name) for p in self.folder.glob("[0-9]*") if p.name.isdigit())
        return CheckpointError(
            f"{self.folder}: checkpoint {step} could not be written: {_first_line(error)}. "
            f"Whole checkpoints that stay: {have or 'none'}. Free some space and run again."
        )

    def _seal(self, step: int) -> None:
        """Wait for orbax to make the checkpoint final, then write its digests."""
        try:
            self._manager.wait_until_finished()
            if not hosts.first():
                return
            digests = self.folder / "digests"
            write_atomic(digests / f"{step}.json", json.dumps(digest(self.folder / str(step))))
            for old in digests.glob("*.json"):
                if not (self.folder / old.stem).is_dir():
                    old.unlink(missing_ok=True)
        except Exception as error:  # raised again in `wait`, in the thread that can act on it
            self._failure = (step, error)

    def restore(
        self, abstract: PyTree, shardings: PyTree
    ) -> tuple[int, PyTree, dict[str, Any]] | None:
        """The newest whole checkpoint as (step, state, meta), or None where there are none at all.

        abstract: pytree of ShapeDtypeStruct that the state must match exactly; shardings: where
        each leaf goes. Raises CheckpointError where checkpoints exist but none can be read.
        """
        target = jax.tree.map(
            lambda a, s: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=s), abstract, shardings
        )
        steps = hosts.tell([int(step) for step in self.steps()])
        troubles: list[str] = []
        for step in reversed(steps):
            loaded, trouble = self._try(step, target)
            if trouble is not None:
                troubles.append(f"checkpoint {step}: {trouble}")
                self.say(f"WARNING: {self.folder}: {troubles[-1]}; trying the one before.")
                continue
            if troubles:
                # What is newer and broken would block the saves to come: set aside, not deleted.
                self._set_aside([s for s in steps if s > step])
                self.say(f"WARNING: going on from checkpoint {step}, the last whole one.")
            return step, loaded["state"], loaded["meta"]
        # Numbered folders are committed saves; one killed half-way has another name and is nothing.
        if steps or has_checkpoints(self.folder.parent):
            raise CheckpointError(
                f"{self.folder}: checkpoints exist but none can be read. "
                + "; ".join(troubles or ["orbax does not take them for checkpoints"])
                + ". Restore the files or choose another --workdir."
            )
        return None

    def _try(self, step: int, target: PyTree) -> tuple[Any, str | None]:
        """(what checkpoint `step` holds, None), or (None, what is wrong with it, for anyone)."""
        seconds, what = self.limits.barrier_seconds, f"reading checkpoint {step}"
        loaded = trouble = None
        # orbax reports damage by many types: ValueError, KeyError, OSError, JSONDecodeError.
        try:
            if hosts.first():
                self._verify(step)
        except Exception as error:
            trouble = _first_line(error)
        trouble = hosts.tell(trouble)
        if trouble is not None:
            return None, trouble
        try:
            with self._limit(what):
                self._match(step, target)
                loaded = self._manager.restore(
                    step,
                    args=ocp.args.Composite(
                        state=ocp.args.StandardRestore(target), meta=ocp.args.JsonRestore()
                    ),
                )
        except Exception as error:
            trouble = _first_line(error)
        return loaded, next(filter(None, hosts.gather(trouble, what, seconds)), None)

    def _set_aside(self, steps: list[int]) -> None:
        """Move broken checkpoints out of the way of the saves to come."""
        aside = self.folder.parent / "broken_checkpoints"
        if hosts.first():
            aside.mkdir(exist_ok=True)
            for step in steps:
                shutil.move(self.folder / str(step), aside / f"{step}_{time.time_ns()}")
        hosts.tell("moved")
        self._manager.reload()

    def _verify(self, step: int) -> None:
        sidecar = self.folder / "digests" / f"{step}.json"
        # Killed between orbax's commit and ours: whole, only unverified.
        if not sidecar.exists():
            return
        expected, digests = json.loads(sidecar.read_text()), digest(self.folder / str(step))
        bad = sorted(k for k in expected if digests.get(k) != expected[k])
        if bad:
            raise CheckpointError(f"files damaged or missing: {', '.join(bad[:3])}")

    def _match(self, step: int, target: PyTree) -> None:
        """Compare names, shapes and types as saved with the wanted ones (orbax casts silently)."""
        meta = self._manager.restore(step, args=ocp.args.Composite(meta=ocp.args.JsonRestore()))
        if (trouble := layout_trouble(meta["meta"].get("layout"))) is not None:
            raise CheckpointError(trouble)
        saved, wanted = meta["meta"]["leaves"], _signature(target)
        for name in sorted(set(saved) | set(wanted)):
            if saved.get(name) != wanted.get(name):
                raise CheckpointError(
                    f"{name} is {saved.get(name, 'absent')} in the checkpoint "
                    f"and {wanted.get(name, 'absent')} in this run: another config.model, or a "
                    "network that has changed since (CHANGELOG.md, Networks)"
                )


def _signature(tree: PyTree) -> dict[str, str]:
    """Dotted name -> "float32[4,3]" for every leaf."""
    return {
        jax.tree_util.keystr(path, simple=True, separator="."): (
            f"{leaf.dtype}[{','.join(map(str, leaf.shape))}]"
        )
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }


def has_checkpoints(workdir: Path) -> bool:
    """Whether a workdir holds a committed save, whole or damaged."""
    return any(p.name.isdigit() for p in (workdir / "checkpoints").glob("*"))


def digest(folder: Path) -> dict[str, str]:
    """sha256 of every file below `folder`, by relative path."""
    out = {}
    for file in sorted(p for p in folder.rglob("*") if p.is_file()):
        with file.open("rb") as stream:
            out[str(file.relative_to(folder))] = hashlib.file_digest(stream, "sha256").hexdigest()
    return out


def write_atomic(path: Path, data: str | bytes) -> None:
    """`files.write`, by the first of many processes; the others have the same data."""
    if hosts.first():
        files.write(path, data)


def _first_line(error: BaseException) -> str:
    return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0][:400]}"
