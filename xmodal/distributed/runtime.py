"""The process: how it joins the others, hears that it should stop, and ends when one of them fails."""

import contextlib
import itertools
import os
import select
import signal
import socket
import sys
import threading
import warnings
from collections.abc import Callable, Iterator

import jax
import numpy as np
from jax._src import distributed  # the coordination service has no public barrier
from jax._src.clusters import ClusterEnv
from jax.experimental import multihost_utils

from xmodal.config import ConfigError
from xmodal.distributed import peers
from xmodal.distributed.watchdog import Watchdog

HEARTBEAT_SECONDS = 60  # a process that is silent for longer is dead; the others then end as well
SHUTDOWN_SECONDS = 60  # how long a process that is done waits for the others
READER_SECONDS = 0.2  # how long the reader of a pipe has to die with the terminal
_CLUSTERS = {"slurm": "SLURM (SLURM_NTASKS)", "ompi": "Open MPI (OMPI_COMM_WORLD_SIZE)", "k8s": "Kubernetes"}
FOREVER_SECONDS = 10**7  # heartbeat of a single process, which may be suspended for a night and go on

_barriers = itertools.count()


class Runtime:
    """A process that has joined the run; use it as a context around everything that touches JAX.

    Inside the context SIGTERM, SIGHUP (the terminal is gone; not under nohup) and Ctrl-C no longer end the process:
    they make `preempted` true, at the same step on all processes. A second Ctrl-C ends it at once. An exception on one
    of several processes ends that process without waiting for the others, who would wait for it in a collective; who
    loses another process that way says which one it is.
    """

    def __init__(self):
        self._preempted = False
        self._interrupts = 0
        self._undo = contextlib.ExitStack()

    @classmethod
    def start(cls, compile_cache: str = "") -> "Runtime":
        """Joins the other processes, if there are any, and sets up the compile cache."""
        initialize()
        set_compile_cache(compile_cache)
        return cls()

    @property
    def process_index(self) -> int:
        """Number of this process, from 0."""
        return jax.process_index()

    @property
    def process_count(self) -> int:
        """Number of processes of the run."""
        return jax.process_count()

    def preempted(self, step: int) -> bool:
        """Whether to save and stop before step `step`.

        Every process must ask before every step: they agree on a step that all of them have yet to begin.
        """
        if not self._preempted and self.process_count > 1:
            self._preempted = multihost_utils.reached_preemption_sync_point(step)
        return self._preempted

    def watchdog(self, step_seconds: float, slow_seconds: float, evidence: Callable[[], list[str]] = list) -> Watchdog:
        """Returns a watchdog for this process (see there); use it as a context around the loop."""
        several = self.process_count > 1
        who = f" (process {self.process_index} of {self.process_count})" if several else ""
        return Watchdog(step_seconds, slow_seconds, who=who, evidence=evidence)

    def __enter__(self) -> "Runtime":
        if self.process_count > 1:
            sys.excepthook = _exit_at_once  # stays when the context ends: that is when the exception arrives
            peers.say_when_aborted()
        if threading.current_thread() is threading.main_thread():  # only there can signals be handled
            self._listen()
        return self

    def __exit__(self, kind, error, trace) -> None:
        self._undo.close()
        if error is not None and (line := peers.lost(error)):
            peers.end(line)

    def _listen(self) -> None:
        """Hears signals in a thread: the main thread may be inside a long computation, or stuck in one."""
        # With several processes SIGTERM belongs to JAX's preemption service, which tells all of them.
        signals = [signal.SIGINT] if self.process_count > 1 else [signal.SIGINT, signal.SIGTERM]
        if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:
            signals.append(signal.SIGHUP)
        reader, writer = socket.socketpair()
        writer.setblocking(False)
        before = signal.set_wakeup_fd(writer.fileno(), warn_on_full_buffer=False)
        thread = threading.Thread(target=self._hear, args=(reader,), name="signals", daemon=True)
        thread.start()
        self._undo.callback(reader.close)
        self._undo.callback(thread.join)
        self._undo.callback(writer.close)  # ends the thread
        self._undo.callback(signal.set_wakeup_fd, before)
        for number in signals:
            self._undo.callback(signal.signal, number, signal.signal(number, lambda *_: None))

    def _hear(self, reader: socket.socket) -> None:
        while received := reader.recv(1):
            self._on_signal(received[0])

    def _on_signal(self, number: int) -> None:
        if number == signal.SIGINT:
            self._interrupts += 1
            if self._interrupts > 1:
                os.write(2, b"\nCtrl-C again: quitting without saving\n")
                os._exit(128 + signal.SIGINT)
            os.write(2, b"\nCtrl-C: saving after this step and stopping; press it again to quit at once\n")
        if number == signal.SIGHUP:
            _leave_dead_terminal()
        if number in (signal.SIGINT, signal.SIGHUP) and self.process_count > 1:
            os.kill(os.getpid(), signal.SIGTERM)  # all processes must stop at the same step
        elif number in (signal.SIGINT, signal.SIGHUP, signal.SIGTERM):
            self._preempted = True


def _leave_dead_terminal() -> None:
    """Points output at nothing where its terminal is gone: printing would fail before the state is saved."""
    for number in (1, 2):
        if _gone(number):
            with contextlib.suppress(OSError):
                nothing = os.open(os.devnull, os.O_WRONLY)
                os.dup2(nothing, number)
                os.close(nothing)


def _gone(number: int) -> bool:
    """Whether a descriptor leads nowhere; `| tee log` may take a moment to die with its terminal."""
    try:
        os.write(number, b"")  # fails for a terminal, and never for a pipe
    except OSError:
        return True
    watch = select.poll()
    watch.register(number, 0)  # a pipe without a reader reports itself, unasked
    return bool(watch.poll(1000 * READER_SECONDS))


def initialize() -> None:
    """Joins the distributed run, before any device is used; with one process it is a run of one.

    Several processes are found by JAX itself (TPU pods, SLURM, Open MPI, Kubernetes) or named by the
    environment variables JAX_COORDINATOR_ADDRESS ("host:port" of process 0), JAX_NUM_PROCESSES and
    JAX_PROCESS_ID. Says for whom it waits, and waits XMODAL_JOIN_SECONDS (default 300) for them; XMODAL_ALONE=1 makes
    it a run of one whatever the environment says. Does nothing when JAX has joined already, or when its devices are
    already in use.

    Raises:
      ConfigError: only some of the variables are set, or they are not numbers. (Others that do not come end it all.)
    """
    if jax.distributed.is_initialized():
        return
    named = {} if _told_alone() else _from_environment()
    waits = "" if _told_alone() else _announcement(named)
    if waits:
        print(waits, file=sys.stderr, flush=True)
    timeouts = dict(
        heartbeat_timeout_seconds=HEARTBEAT_SECONDS, shutdown_timeout_seconds=SHUTDOWN_SECONDS,
        initialization_timeout=_join_seconds() + 60,  # at which JAX aborts with frames of C++; `_waiting` is earlier
    )  # fmt: skip
    try:
        with _waiting(waits):
            jax.distributed.initialize(**(_alone() if _told_alone() else named | timeouts))
    except ValueError as error:
        if named or "coordinator_address" not in str(error):  # that is JAX's word for: no cluster found
            raise
        jax.distributed.initialize(**_alone())
    except RuntimeError as error:
        if named or "before any JAX calls" not in str(error):
            raise


@contextlib.contextmanager
def _waiting(waits: str) -> Iterator[None]:
    """Ends the process when the others do not come in time."""
    if not waits:
        yield
        return

    def give_up():
        print(f"error: not all processes have come in {_join_seconds()} s. {waits}", file=sys.stderr, flush=True)
        os._exit(1)

    timer = threading.Timer(_join_seconds(), give_up)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def _told_alone() -> bool:
    return os.environ.get("XMODAL_ALONE", "0") not in ("", "0")


def _announcement(named: dict) -> str:
    """What is found of other processes and for whom this one waits; "" where there are none."""
    if named:
        found, count, index = "JAX_NUM_PROCESSES", named["num_processes"], named["process_id"]
        address = named["coordinator_address"]
    else:
        kind = cluster()
        if kind is None:
            return ""
        found = f"the environment is that of {_CLUSTERS.get(kind.name, kind.name or kind.__name__)}"
        try:
            count, index = kind.get_process_count(), kind.get_process_id()
            address = kind.get_coordinator_address(None, os.environ.get("JAX_COORDINATOR_PORT"))
        except Exception as error:  # what a cluster's server or a strange variable answers
            raise ConfigError(
                f"{found}, but it does not say which processes take part ({type(error).__name__}: {error}). Set "
                "XMODAL_ALONE=1 for a run of this process alone"
            ) from error
    if count == 1:
        return ""
    return (
        f"{found}: this is process {index} of {count} and waits up to {_join_seconds()} s (XMODAL_JOIN_SECONDS) for "
        f"the others at {address}. To run this process alone, set XMODAL_ALONE=1"
    )


def _join_seconds() -> int:
    text = os.environ.get("XMODAL_JOIN_SECONDS") or "300"
    if not text.isdigit() or not int(text):
        raise ConfigError(f"XMODAL_JOIN_SECONDS={text!r}: expected a whole number of seconds")
    return int(text)


def several_announced() -> bool:
    """Whether the environment speaks of several processes; looks at variables only, and joins nothing."""
    return not _told_alone() and (bool(os.environ.get("JAX_NUM_PROCESSES")) or cluster() is not None)


def cluster() -> type[ClusterEnv] | None:
    """Returns what JAX takes for the cluster of this process (SLURM, Open MPI, a TPU pod, Kubernetes), or None."""
    kinds = ClusterEnv._cluster_types
    return next((kind for kind in kinds if not kind.opt_in_only_method and kind.is_env_present()), None)


def _from_environment() -> dict:
    names = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")
    values = {name: os.environ[name] for name in names if os.environ.get(name)}
    if not values:
        return {}
    if missing := [name for name in names if name not in values]:
        raise ConfigError(f"the environment sets {', '.join(values)} but not {', '.join(missing)}; "
                          "a run of several processes needs all three, a run of one needs none")  # fmt: skip
    address, count, index = values.values()
    if ":" not in address or not count.isdigit() or not index.isdigit() or int(index) >= int(count):
        raise ConfigError(
            "expected JAX_COORDINATOR_ADDRESS=host:port, JAX_NUM_PROCESSES=n and JAX_PROCESS_ID in 0..n-1, "
            f"got {address!r}, {count!r} and {index!r}"
        )
    return {"coordinator_address": address, "num_processes": int(count), "process_id": int(index)}


def _alone() -> dict:
    """What `jax.distributed.initialize` is told for a run of one."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    return dict(
        coordinator_address=address, num_processes=1, process_id=0,
        coordinator_bind_address=address,  # JAX's default listens to the whole network
        cluster_detection_method="deactivate", heartbeat_timeout_seconds=FOREVER_SECONDS,
    )  # fmt: skip


def barrier(name: str, seconds: float = 600.0) -> None:
    """Waits until all processes are here; unlike a collective it ends, and says who is missing.

    Args:
      name: of the place, for the message.
      seconds: how long to wait.

    Raises:
      RuntimeError: not all processes came in time.
    """
    if jax.process_count() == 1:
        return
    try:
        distributed.global_state.client.wait_at_barrier(
            f"xmodal/{name}/{next(_barriers)}", timeout_in_ms=int(seconds * 1000)
        )
    except jax.errors.JaxRuntimeError as error:
        raise RuntimeError(
            f"process {jax.process_index()} waited {seconds:g} s at {name!r} for the other "
            f"{jax.process_count() - 1} processes: {error}"
        ) from error


def from_first(value: int) -> int:
    """Returns the value that process 0 has (below 2**31); all processes must ask."""
    return value if jax.process_count() == 1 else int(multihost_utils.broadcast_one_to_all(np.int32(value)))


def agreed(problem: str) -> str:
    """Returns this process's problem, or that another process has one, or ""; all processes must ask.

    It lets all of them turn back where only some have failed.
    """
    if jax.process_count() == 1:
        return problem
    failed = np.flatnonzero(multihost_utils.process_allgather(np.array(bool(problem))))
    return problem or (f"it failed on process {failed[0]}" if failed.size else "")


def set_compile_cache(directory: str) -> None:
    """Keeps compiled programs in `directory` for later runs; "" keeps none.

    JAX runs what it finds there, so it is made for this user only. The environment's
    JAX_COMPILATION_CACHE_DIR takes precedence.
    """
    if not directory or os.environ.get("JAX_COMPILATION_CACHE_DIR"):
        return
    directory = os.path.expanduser(directory)
    if "://" not in directory:
        try:
            os.makedirs(directory, mode=0o700, exist_ok=True)
        except OSError as error:
            warnings.warn(f"log.compile_cache: nothing is kept, {error}", stacklevel=2)
            return
    jax.config.update("jax_compilation_cache_dir", directory)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)


def _exit_at_once(kind, value, trace) -> None:
    """Ends the process without JAX's farewell, in which it would wait for the others, who wait for it."""
    sys.__excepthook__(kind, value, trace)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(1)
