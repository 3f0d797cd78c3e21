"""One run at a time in a run folder: a file `run.lock` that says who is at work there.

Two runs in one folder would delete each other's checkpoints and mix their metrics. A lock is judged as follows:

- Its process is on this machine: the lock holds as long as that process lives. A process that was killed, or a machine
  that has booted since, leaves a lock that the next run takes over at once.
- Its process is elsewhere (another machine or container): the lock holds as long as its file is touched, which its
  owner does every few seconds. The next run waits to see that; after `SILENT_SECONDS` without it, it takes over.
"""

import contextlib
import dataclasses
import json
import os
import socket
import tempfile
import threading
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

from xmodal.errors import TrainingError

FILE = "run.lock"
BEAT_SECONDS = 2.0  # between two touches of the file
SILENT_SECONDS = 60.0  # longer than a shared disk shows another machine an old time


@dataclasses.dataclass(frozen=True)
class Owner:
    """Who holds a lock.

    Attributes:
      host: name of the machine.
      pid: number of the process.
      since: when the run took the folder, for people.
      began: when the process began, in the kernel's count; tells it from a later one of the same number.
      boot: of the machine since its last start.
      space: in which the number of the process counts (containers have their own).
      token: differs for every lock.
    """

    host: str
    pid: int
    since: str
    began: str = ""
    boot: str = ""
    space: str = ""
    token: str = ""

    @classmethod
    def me(cls) -> "Owner":
        """This process, with a new token."""
        pid, since = os.getpid(), time.strftime("%Y-%m-%d %H:%M:%S")
        return cls(socket.gethostname(), pid, since, _began(pid), _boot(), _space(), uuid.uuid4().hex)

    def lives_here(self) -> bool | None:
        """Whether the process is at work on this machine; None when this machine cannot tell."""
        if self.host != socket.gethostname():
            return None
        if self.boot != _boot():
            return False
        if self.space != _space():
            return None
        began = _began(self.pid)
        try:
            os.kill(self.pid, 0)
        except ProcessLookupError:
            return False
        except PermissionError:  # another user's process, which the system may hide
            return began in ("", self.began)
        return began == self.began


class RunLock:
    """The lock of a run folder, as a context of everything that writes there.

    Args:
      workdir: the run folder, which exists.
      beat_seconds: time between two touches of the file.

    Raises:
      TrainingError: another run is at work in the folder.
    """

    def __init__(self, workdir: str | os.PathLike, beat_seconds: float = BEAT_SECONDS):
        self._path, self._me, self._beat = Path(workdir) / FILE, Owner.me(), beat_seconds
        self._lost = ""
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._touch, name="run-lock", daemon=True)
        _take(self._path, self._me)
        self._folder = _identity(self._path.parent)
        self._thread.start()

    def check(self) -> None:
        """Raises a TrainingError when the folder was deleted or is another run's now; costs nothing."""
        if self._lost:
            raise TrainingError(self._lost)

    def __enter__(self) -> "RunLock":
        return self

    def __exit__(self, *_) -> None:
        self._stop.set()
        self._thread.join()
        owner = _read(self._path)
        if owner and owner.token == self._me.token:
            with contextlib.suppress(OSError):
                self._path.unlink()

    def _touch(self) -> None:
        while not self._stop.wait(self._beat):
            with contextlib.suppress(OSError):  # a disk that fails now may answer at the next beat
                self._lost = self._look()
            if self._lost:
                return

    def _look(self) -> str:
        """Touches the lock; returns what has happened to it, or ""."""
        folder, owner = self._path.parent, _read(self._path)
        if owner is not None and owner.token != self._me.token:
            return (
                f"another run has taken over the run folder {folder} (process {owner.pid} on {owner.host}) after this "
                "one was silent for long; this one ends here"
            )
        if not self._path.exists():
            # What is still open or is written from now on would make a folder of that name again.
            if _identity(folder) != self._folder:
                return (
                    f"the run folder {folder} was deleted or replaced while the run was at work, so the run ends here. "
                    "The same command goes on from the newest checkpoint that is there, or begins anew"
                )
            with contextlib.suppress(OSError):
                _create(self._path, self._me)
        with contextlib.suppress(OSError):
            os.utime(self._path)
        return ""


def refuse_second(workdir: str | os.PathLike) -> None:
    """Raises a TrainingError when a run of this machine is at work in the folder.

    A look before time is spent; `RunLock` decides.
    """
    path = Path(workdir) / FILE
    owner = _read(path)
    if owner is not None and owner.lives_here():
        raise TrainingError(_refusal(path, owner))


def _take(path: Path, me: Owner) -> None:
    """Writes the lock, or takes over one that is left."""
    if path.is_dir():
        raise TrainingError(f"{path} is a folder, and a run keeps a file of that name: delete it or move it away")
    for _ in range(10):
        try:
            _create(path, me)
            return
        except FileExistsError:
            pass
        owner = _read(path)
        if owner is None and path.exists() and _silence(path) < BEAT_SECONDS:
            time.sleep(0.5)  # it is being written
            continue
        if owner is not None and _holds(path, owner):
            raise TrainingError(_refusal(path, owner))
        _remove_left(path, owner)
    raise TrainingError(
        f"{path} cannot be taken: others take it at the same time, or it cannot be read; try again, and if no run is "
        "at work there, delete it"
    )


def _create(path: Path, me: Owner) -> None:
    """Makes the file with its content in one step, so that nobody reads a half of it."""
    text = json.dumps(dataclasses.asdict(me))
    draft = path.with_name(f".{path.name}.{me.token}.tmp")
    try:
        draft.write_text(text, encoding="utf-8")
        try:
            os.link(draft, path)
        except FileExistsError:
            raise
        except OSError:  # a file system without hard links
            with open(path, "x", encoding="utf-8") as file:
                file.write(text)
    finally:
        draft.unlink(missing_ok=True)


def _remove_left(path: Path, judged: Owner | None) -> None:
    """Removes a lock that was judged to be left, and not the one that somebody else has put there meanwhile."""
    aside = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    with contextlib.suppress(FileNotFoundError):
        path.rename(aside)
        if _read(aside) != judged:
            with contextlib.suppress(OSError):
                os.link(aside, path)
        aside.unlink(missing_ok=True)


def _holds(path: Path, owner: Owner) -> bool:
    """Whether the lock is a living run's; waits to see that where the run is on another machine."""
    if (alive := owner.lives_here()) is not None:
        return alive
    silence, told = _silence(path), False
    while silence < SILENT_SECONDS:
        if not told:
            print(
                f"{path} was touched {silence:.0f} s ago by process {owner.pid} on {owner.host}: waiting for a sign of "
                f"life; after {SILENT_SECONDS:.0f} s without one this run takes over",
                flush=True,
            )
            told = True
        time.sleep(min(0.5, BEAT_SECONDS))
        if not path.exists():
            return False
        before, silence = silence, _silence(path)
        if silence < before:
            return True
    return False


def _refusal(path: Path, owner: Owner) -> str:
    return (
        f"--workdir {path.parent}: another run is at work there (process {owner.pid} on {owner.host}, since "
        f"{owner.since}). Wait for it or stop it, or name another --workdir"
    )


def _identity(folder: Path) -> tuple[int, int] | None:
    with contextlib.suppress(OSError):
        found = folder.stat()
        return found.st_dev, found.st_ino
    return None


def _read(path: Path) -> Owner | None:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        return Owner(**values) if type(values.get("pid")) is int else None
    except (OSError, ValueError, TypeError, AttributeError):
        return None


def _silence(path: Path) -> float:
    """Seconds since the file was touched, by the clock of the disk: that of its owner may be wrong."""
    with contextlib.suppress(OSError), tempfile.NamedTemporaryFile(dir=path.parent, prefix=".", suffix=".tmp") as now:
        return max(0.0, os.stat(now.name).st_mtime - path.stat().st_mtime)
    return 0.0


def _began(pid: int) -> str:
    """When a process began; "" for one that is dead and not yet waited for, and where the system does not say."""
    with contextlib.suppress(OSError):
        state, *fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return "" if state in "ZX" else fields[18]
    return ""


def _boot() -> str:
    with contextlib.suppress(OSError):
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return ""


def _space() -> str:
    with contextlib.suppress(OSError):
        return os.readlink("/proc/self/ns/pid")
    return ""


@contextlib.contextmanager
def hold(workdir: str | os.PathLike) -> Iterator[RunLock | None]:
    """Holds the lock of a run folder for a run of any number of processes; process 0 has it, the others get None.

    Raises:
      TrainingError: another run is at work there; on all processes.
    """
    import jax

    from xmodal.distributed.runtime import agreed

    lock, problem = None, ""
    if jax.process_index() == 0:
        try:
            lock = RunLock(workdir)
        except TrainingError as error:
            problem = str(error)
    if problem := agreed(problem):
        raise TrainingError(problem)
    if lock is None:
        yield None
    else:
        with lock:
            yield lock
