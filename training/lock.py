"""Lock of a run folder: one process at a time. The operating system releases it when the process ends or is killed."""

import errno
import json
import os
import socket
from contextlib import suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

from filelock import FileLock, Timeout

from storage.read import is_regular, read_json

CANNOT_LOCK = {errno.ENOSYS, errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP}


@dataclass(frozen=True)
class Holder:
    """The last holder of a lock. It may no longer hold it; only an attempt to acquire the lock shows that."""

    host: str
    pid: int
    parent: int
    """process id of its launcher"""
    since: str
    """when, ISO 8601"""

    @classmethod
    def this(cls) -> "Holder":
        """This process, now."""
        now = datetime.now(UTC).isoformat(timespec="seconds")
        return cls(socket.gethostname(), os.getpid(), os.getppid(), now)

    @classmethod
    def read(cls, path: Path) -> "Holder | None":
        """The content of a lock file; None if it does not exist or cannot be read."""
        with suppress(OSError, ValueError, TypeError):
            return cls(**read_json(path))
        return None


class RunLock:
    """The lock of a folder: the file `path`, whose content describes the holder.

    Messages name the folder (by default the one that holds the file), and the flag that gives another one.
    """

    def __init__(self, path: Path, folder: Path | None = None, flag: str = "--run") -> None:
        self.path = path
        self._folder, self._flag = folder or path.parent, flag
        self.before: Holder | None = None
        """the previous holder"""
        # without soft locks, filelock's fallback on systems without locks: they would outlive a killed process
        self._lock = FileLock(path, blocking=False, thread_local=False, fallback_to_soft=False)

    def acquire(self) -> bool:
        """Acquire the lock without waiting. False if the file system has no locks. Raises ValueError if it is taken.

        A link or a named pipe in the place of the file is removed.
        """
        if self.path.is_symlink() or not (is_regular(self.path) or self.path.is_dir()):
            self.path.unlink(missing_ok=True)
        self.before = Holder.read(self.path)
        locked = True
        try:
            self._lock.acquire()
        except Timeout:
            holder = Holder.read(self.path)
            by = f"process {holder.pid} on {holder.host} since {holder.since}" if holder else "another process"
            way_out = f"wait until it ends, stop it, or give another {self._flag}"
            raise ValueError(f"{self._folder} is in use by {by}; {way_out}") from None
        except OSError as error:
            if error.errno not in CANNOT_LOCK:
                raise
            locked = False
        with suppress(OSError):  # only for messages; the lock does not depend on the content
            self.path.write_text(json.dumps(asdict(Holder.this())) + "\n", encoding="utf-8")
        return locked

    def release(self) -> None:
        """Release the lock, if it is held. The file stays, so that two processes cannot lock two different files."""
        self._lock.release(force=True)
