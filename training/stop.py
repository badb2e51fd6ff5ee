"""Graceful shutdown. Signals, or the death of the launcher, stop all processes together between two updates.

The signal handler only records the signal. The loop calls `agreed` between updates, which returns the same on every
process, and then saves a checkpoint as usual.
"""

import os
import signal
from contextlib import suppress
from types import FrameType, TracebackType

from training.processes import largest

EXIT_CODE = 75
"""Exit code of a run that was asked to stop and has saved: EX_TEMPFAIL. The same command resumes the run."""

SIGNALS = [getattr(signal, name) for name in ("SIGTERM", "SIGINT", "SIGUSR1", "SIGHUP") if hasattr(signal, name)]
LAUNCHER_DIED = "the end of its launcher"
REASONS = ["", *(signal.Signals(number).name for number in SIGNALS), LAUNCHER_DIED]
_LAUNCHERS = ("TORCHELASTIC_RUN_ID", "ACCELERATE_MIXED_PRECISION")  # set by torchrun, by accelerate launch
_PARENT = os.getppid()


class Stop:
    """Inside the block `SIGNALS` request a stop instead of ending the process. A second Ctrl-C ends it at once.

    accelerate's launcher does not forward signals, so a process also stops if its launcher is gone. Under `nohup`
    SIGHUP, the end of the terminal, has no effect.
    """

    def __init__(self) -> None:
        self.reason = 0  # index into REASONS
        self._previous: dict[int, object] = {}
        self._launched = any(name in os.environ for name in _LAUNCHERS)

    def __enter__(self) -> "Stop":
        for number in SIGNALS:
            if number.name != "SIGHUP" or signal.getsignal(number) != signal.SIG_IGN:
                self._previous[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for number, previous in self._previous.items():
            signal.signal(number, previous)  # type: ignore[arg-type]
        self._previous.clear()

    def agreed(self) -> str | None:
        """The reason to stop, or None; the same on every process. Must be called by all of them."""
        if not self.reason and self._launched and os.getppid() != _PARENT:
            self.reason = REASONS.index(LAUNCHER_DIED)
        return REASONS[largest(self.reason)] or None

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.reason = self.reason or 1 + SIGNALS.index(number)
        if number == signal.SIGINT:
            signal.signal(number, signal.SIG_DFL)  # the default: it also ends a process that hangs in a library
            with suppress(OSError):  # the terminal may be gone
                os.write(2, b"\nstopping after this update; Ctrl-C again: at once\n")
