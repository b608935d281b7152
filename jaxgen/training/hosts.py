"""Many hosts: join the processes of a run, check that they are one run, and exchange words.

Every process runs the same program; process 0 writes the files. What is said here goes through the
key-value store of JAX's coordinator (`watch` says who is alive there); nothing is a collective.
"""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import json
import os
import signal
import socket
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
from jax._src import distributed  # the store has no public name yet

import jaxgen
from jaxgen import config as configs
from jaxgen.errors import UsageError, invalid
from jaxgen.training.rollcall import roll_call
from jaxgen.training.watch import Watch, begin, current, deadline

DECLARED = ("JAX_NUM_PROCESSES", "SLURM_NTASKS", "OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "WORLD_SIZE")
"""Variables in which launchers say how many processes they started."""

_DAY = 24 * 3600 * 1000


@dataclasses.dataclass(frozen=True)
class HostOptions:
    """`config.hosts`: how the processes of a run find each other, and how long they wait.

    count, coordinator, index: the number of processes, "host:port" of process 0, and which one this
    is. None: JAX_NUM_PROCESSES, JAX_COORDINATOR_ADDRESS and JAX_PROCESS_ID, else what Slurm, Open
    MPI, Kubernetes or a TPU pod say, else one process. count=1: alone, whatever those say.
    start_seconds: until all have come. silent_seconds: after so long without a word a process
    counts as lost, and the others stop. barrier_seconds: where all wait for each other.
    save_seconds: for a checkpoint to be written or read.
    """

    count: int | None = None
    coordinator: str | None = None
    index: int | None = None
    start_seconds: float = 300.0
    silent_seconds: float = 60.0
    barrier_seconds: float = 600.0
    save_seconds: float = 1800.0

    def __post_init__(self) -> None:
        """Raise UsageError for numbers that cannot be."""
        if self.count is not None and self.count < 1:
            raise invalid("config.hosts.count", self.count, "processes >= 1")
        if self.index is not None and not 0 <= self.index < (self.count or self.index + 1):
            raise invalid("config.hosts.index", self.index, "0 to config.hosts.count - 1")
        for name in ("start_seconds", "silent_seconds", "barrier_seconds", "save_seconds"):
            if getattr(self, name) <= 0:
                raise invalid(f"config.hosts.{name}", getattr(self, name), "seconds > 0")


@dataclasses.dataclass(frozen=True)
class _Place:
    """Where process 0 is, how many there are, which this is; `devices` of this machine, or all."""

    coordinator: str
    count: int
    index: int
    devices: list[int] | None = None


def join(options: HostOptions, *, lonely: bool = False) -> None:
    """Join the other processes; must come before JAX's first use of a device.

    lonely: whether this process may go on alone where a launcher speaks of several but nothing says
    how they find each other (a shell inside an allocation): what only reads a run may. A second
    call does nothing. Raises UsageError where there should be several processes but each would be
    alone, Lost where some did not come in time.
    """
    if current() is not None:
        return
    if not jax.distributed.is_initialized():
        place, declared = _place(options), _declared(options)
        if place is None or place.count == 1:
            if not lonely:
                _refuse_lonely(*declared)
            return
        if declared[1] > 1 and declared[1] != place.count:
            raise invalid(declared[0], declared[1], f"{place.count}, as many as are to join")
        with deadline(options.start_seconds + 30, "joining", "config.hosts.start_seconds"):
            _initialise(place, options)
    state = distributed.global_state
    watch = Watch(
        state.client,
        state.process_id,
        state.num_processes,
        address=state.coordinator_address or "",
        silent=options.silent_seconds,
        wait=options.barrier_seconds,
    )
    begin(watch)
    with deadline(options.start_seconds, "finding the devices", "config.hosts.start_seconds"):
        check_seen(state.num_processes)


def check_seen(joined: int) -> None:
    """Raise UsageError where the devices are not those of all that joined (a wrong TPU setting)."""
    seen = jax.process_count()
    if seen != joined:
        raise UsageError(
            f"config.hosts.count: {joined} processes have joined, but JAX sees the devices of "
            f"{seen}: each would train alone. Platform: {jax.default_backend()}."
        )


def _initialise(place: _Place, options: HostOptions) -> None:
    """Call the roll, then `jax.distributed.initialize`."""
    roll_call(place.coordinator, place.index, place.count, options.start_seconds)
    try:
        jax.distributed.initialize(
            place.coordinator,
            place.count,
            place.index,
            local_device_ids=place.devices,
            cluster_detection_method="deactivate",
            initialization_timeout=int(options.start_seconds) + 1,
            # JAX ends a process by a signal: that comes only where our own watch has failed.
            heartbeat_timeout_seconds=int(2 * options.silent_seconds) + 30,
            shutdown_timeout_seconds=int(options.barrier_seconds) + 1,
        )
    except RuntimeError as error:
        raise UsageError(
            f"config.hosts: the processes cannot join: {str(error).splitlines()[0]}"
        ) from error
    # JAX takes SIGTERM for its own preemption notice; it is ours (`jaxgen.training.interrupt`).
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, signal.getsignal(signal.SIGTERM) or signal.SIG_DFL)


def _place(options: HostOptions) -> _Place | None:
    """By the config, by JAX's variables, by the cluster; None where nothing speaks of others."""
    if options.count == 1:
        return None
    coordinator = options.coordinator or os.environ.get("JAX_COORDINATOR_ADDRESS")
    count = options.count or _number("JAX_NUM_PROCESSES")
    index = options.index if options.index is not None else _number("JAX_PROCESS_ID")
    if coordinator is not None and count is not None and index is not None:
        if not 0 <= index < count:
            raise invalid("config.hosts.index", index, f"0 to {count - 1}")
        return _Place(coordinator, count, index)
    cluster = _cluster(int(options.start_seconds))
    if cluster is not None:
        return _Place(
            coordinator or cluster.coordinator,
            count or cluster.count,
            cluster.index if index is None else index,
            cluster.devices,
        )
    if coordinator is not None or index is not None:
        given = {"coordinator": coordinator, "count": count, "index": index}
        raise invalid("config.hosts", given, "all three, or none of them")
    return None


def _cluster(seconds: int) -> _Place | None:
    """What JAX can find out by itself: Slurm, Open MPI, Kubernetes, TPU pods."""
    from jax._src.clusters import ClusterEnv

    try:
        detected = ClusterEnv.auto_detect_unset_distributed_params(
            None, None, None, None, None, seconds
        )
    except (RuntimeError, OSError, ValueError):  # no metadata server, a half-set environment
        return None
    coordinator, count, index, devices = detected
    if coordinator is None or count is None or index is None:
        return None
    return _Place(coordinator, count, index, None if devices is None else list(devices))


def _declared(options: HostOptions) -> tuple[str, int]:
    """(who says so, how many processes the launcher started); 1 where nobody says."""
    if options.count is not None:
        return "config.hosts.count", options.count
    for name in DECLARED:
        number = _number(name)
        if number is not None:
            return name, number
    workers = os.environ.get("TPU_PROCESS_ADDRESSES", os.environ.get("TPU_WORKER_HOSTNAMES", ""))
    slices = _number("MEGASCALE_NUM_SLICES") or 1
    return "TPU_WORKER_HOSTNAMES", (workers.count(",") + 1) * slices


def _number(name: str) -> int | None:
    text = os.environ.get(name)
    if not text:
        return None
    if not text.isdigit():
        raise invalid(name, text, "a whole number")
    return int(text)


def _refuse_lonely(name: str, declared: int) -> None:
    """Raise UsageError where a process that is alone should be one of several."""
    seen = jax.process_count()
    if declared > 1 or seen > 1:
        raise UsageError(
            f"{name}: {declared} processes were started and JAX sees the devices of {seen}, but "
            "nothing says how they find each other: each would train alone in the same --workdir. "
            "Set config.hosts.coordinator=HOST:PORT, config.hosts.count and config.hosts.index "
            "(or JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID); "
            "config.hosts.count=1 if this is one process on purpose."
        )


def first() -> bool:
    """Whether this process writes the files: alone, or number 0."""
    return current() is None or jax.process_index() == 0


def prefix() -> str:
    """What marks this process's lines on stderr; nothing for the first."""
    watch = current()
    return "" if watch is None else watch.prefix


_words = itertools.count()


def gather(value: Any, what: str, seconds: float) -> list[Any]:
    """A JSON-able value of every process, in their order. All must call it; `what`: for messages.

    A process that has not come after `seconds` ends the run with a message.
    """
    watch = current()
    if watch is None:
        return [value]
    room = f"jaxgen/words/{next(_words)}"
    with deadline(seconds, what, "config.hosts.barrier_seconds"):
        watch.client.key_value_set(f"{room}/{watch.index:06d}", json.dumps(value))
        watch.client.wait_at_barrier(room, int(1000 * (seconds + 60)))
        return [json.loads(text) for _, text in sorted(watch.client.key_value_dir_get(room + "/"))]


def tell(value: Any) -> Any:
    """The first process's JSON-able value, on all of them; they wait as long as it lives."""
    watch = current()
    if watch is None:
        return value
    key = f"jaxgen/words/{next(_words)}"
    if first():
        watch.client.key_value_set(key, json.dumps(value))
    return json.loads(watch.client.blocking_key_value_get(key, _DAY))


def agree(facts: Mapping[str, Any], seconds: float) -> None:
    """Raise UsageError, on all processes, where one has other facts than the first.

    facts: nested, JSON-able. The code and its versions are always among them.
    """
    if current() is None:
        return
    mine = json.loads(json.dumps({**facts, "code": _code(), "jax": jax.__version__}))
    changes = list(configs.differences(tell(mine), mine))
    differs = [f"{k} is {b!r}, not {a!r}" for k, a, b in changes]
    where = socket.gethostname()
    said = gather([where, differs], "comparing configs and code", seconds)
    wrong = [
        f"  process {index} ({host}): {'; '.join(differs[:5])}"
        for index, (host, differs) in enumerate(said)
        if differs
    ]
    if wrong:
        raise UsageError("the processes of one run differ from process 0:\n" + "\n".join(wrong))


def check_shared(folder: Path, seconds: float) -> None:
    """Raise UsageError, on all processes, unless all see what the first writes to `folder`."""
    if current() is None:
        return
    token = os.urandom(8).hex() if first() else ""
    token = tell(token)
    file = folder / f".seen_by_all_{token}"
    if first():
        folder.mkdir(parents=True, exist_ok=True)
        file.write_text(token)
    tell("written")
    blind = not folder.is_dir() or file.name not in os.listdir(folder)
    said = gather([socket.gethostname(), blind], "looking at --workdir", seconds)
    if first():
        file.unlink()
    names = [f"process {i} ({host})" for i, (host, blind) in enumerate(said) if blind]
    if names:
        raise invalid(
            "--workdir",
            str(folder),
            f"a folder that all processes share; {', '.join(names)} do not see what process 0 "
            "writes there",
        )


def _code() -> str:
    """A digest of this package's source."""
    digest = hashlib.sha256()
    root = Path(jaxgen.__file__).parent
    for path in sorted(root.rglob("*.py")):
        digest.update(str(path.relative_to(root)).encode() + b"\0" + path.read_bytes())
    return f"jaxgen {jaxgen.__version__} {digest.hexdigest()[:12]}"
