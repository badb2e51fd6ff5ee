"""One run per folder: a lock that the system itself releases when the process that holds it ends, however it ends."""

import errno
import json
import os
import socket
from contextlib import suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

from filelock import FileLock, Timeout

CANNOT_LOCK = {errno.ENOSYS, errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP}


@dataclass(frozen=True)
class Holder:
    """The process that took a lock last; whether it still holds it, only trying tells."""

    host: str
    pid: int
    parent: int
    """process id of what launched it"""
    since: str
    """when, ISO 8601"""

    @classmethod
    def this(cls) -> "Holder":
        """This process, now."""
        now = datetime.now(UTC).isoformat(timespec="seconds")
        return cls(socket.gethostname(), os.getpid(), os.getppid(), now)

    @classmethod
    def read(cls, path: Path) -> "Holder | None":
        """What the lock file says; None if it is not there, or says nothing that can be understood."""
        with suppress(OSError, ValueError, TypeError):
            return cls(**json.loads(path.read_text(encoding="utf-8")))
        return None


class RunLock:
    """The lock of a run folder: the file `path`, whose content says who holds it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.before: Holder | None = None
        """who held it before"""
        # a soft lock, filelock's substitute where the system has none, would outlive a killed process
        self._lock = FileLock(path, blocking=False, thread_local=False, fallback_to_soft=False)

    def acquire(self) -> bool:
        """Take the lock, without waiting. False if the file system has no locks. Raises ValueError if it is taken."""
        self.before = Holder.read(self.path)
        locked = True
        try:
            self._lock.acquire()
        except Timeout:
            raise ValueError(f"{self.path.parent} is in use{_by(Holder.read(self.path))}") from None
        except OSError as error:
            if error.errno not in CANNOT_LOCK:
                raise
            locked = False
        with suppress(OSError):  # what it says is a help; the lock does not depend on it
            self.path.write_text(json.dumps(asdict(Holder.this())) + "\n", encoding="utf-8")
        return locked

    def release(self) -> None:
        """Let go of the lock, if it is held. The file stays, so that no two processes can hold two files."""
        self._lock.release(force=True)


def _by(holder: Holder | None) -> str:
    who = f" by process {holder.pid} on {holder.host} since {holder.since}" if holder else " by another process"
    return f"{who}; wait until it ends, stop it, or give another --run"
