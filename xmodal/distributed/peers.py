"""What a process says when another one of its run is gone, in place of the frames of a broken connection."""

import ctypes
import os
import re
import signal
import socket
import sys

import jax
from jax._src import distributed  # the coordination service has no public barrier

from xmodal.errors import TrainingError

ASK_SECONDS = 10.0  # how long the living have to answer
_BROKEN = re.compile(
    r"gloo|nccl|connection (closed|reset|refused|lost)|broken pipe|socket closed|unavailable|heartbeat|barrier|peer"
    r"|deadline.exceeded|coordination|another task",
    re.IGNORECASE,
)
_handlers = []  # a C library keeps no reference to a Python function


def lost(error: BaseException) -> str:
    """Returns one line when the error is that of a process that has lost another one, else "".

    All who have lost it find each other within `ASK_SECONDS`; who does not come is gone.
    """
    of_jax = isinstance(error, RuntimeError) and not isinstance(error, TrainingError)
    if jax.process_count() == 1 or not of_jax or not _BROKEN.search(str(error)):
        return ""
    missing = _missing()
    return _line(missing) if missing is not None else ""


def say_when_aborted() -> None:
    """Lets a process that JAX's C++ aborts, as when process 0 is gone, end with one line and exit code 1."""

    def aborted(_: int) -> None:
        reason = [0] if jax.process_index() and not _coordinator_answers() else []
        os.write(2, f"error: {_line(reason)}\n".encode())
        os._exit(1)

    handler = ctypes.CFUNCTYPE(None, ctypes.c_int)(aborted)
    _handlers.append(handler)
    library = ctypes.CDLL(None)
    library.signal.argtypes, library.signal.restype = (ctypes.c_int, ctypes.c_void_p), ctypes.c_void_p
    library.signal(signal.SIGABRT, ctypes.cast(handler, ctypes.c_void_p))


def end(line: str) -> None:
    """Ends this process without waiting for anybody."""
    print(f"error: {line}", file=sys.stderr)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(1)


def _line(missing: list[int]) -> str:
    numbers = " and ".join(map(str, missing))
    who = f"process {numbers} is" if len(missing) == 1 else f"processes {numbers} are" if missing else "another one is"
    return (
        f"process {jax.process_index()} of {jax.process_count()} ends, because {who} gone (killed, out of memory, or "
        "its machine is down; its own output says more). The same command on all machines goes on from the last "
        "checkpoint"
    )


def _missing() -> list[int] | None:
    """Returns the processes that do not answer; [] when it cannot be said who, None when all do."""
    try:
        distributed.global_state.client.wait_at_barrier("xmodal/who is gone", timeout_in_ms=int(1000 * ASK_SECONDS))
    except Exception as error:
        if not _coordinator_answers():
            return [0]
        named = {int(number) for number in re.findall(r"task[:_ /]*(?:id=)?(\d+)", str(error))} - {jax.process_index()}
        if jax.process_count() == 2:
            named = {1 - jax.process_index()}
        return sorted(named)
    return None


def _coordinator_answers() -> bool:
    host, _, port = distributed.global_state.coordinator_address.rpartition(":")
    try:
        with socket.create_connection((host.strip("[]"), int(port)), timeout=3.0):
            return True
    except OSError:
        return False
