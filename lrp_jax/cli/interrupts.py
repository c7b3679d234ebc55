"""Interrupted commands end at once, whatever they are doing, and leave nothing half-written."""

from __future__ import annotations

import os
import signal
import socket
import sys
import threading
from types import FrameType
from typing import NoReturn

from lrp_jax.files import abandon

_GRACE = 0.5  # seconds that Python has to end by itself, after which it is ended
_SAID = {signal.SIGINT: "interrupted", signal.SIGTERM: "terminated"}


class SignalledError(KeyboardInterrupt):
    """A signal came.

    Attributes:
        number: which.
    """

    def __init__(self, number: int) -> None:
        super().__init__()
        self.number = number


class Watch:
    """Ends the process soon after SIGINT or SIGTERM, with status 130 or 143; a context, for the main thread.

    Python raises KeyboardInterrupt when the main thread is back from what it called, which may take a minute, and at
    its end it waits for a compilation that runs. So another thread sees the signal at once, gives the command half a
    second to clean up, and ends the process. An interactive session goes on, if the command ends in that time.
    """

    def __init__(self) -> None:
        self._done, self._silent = threading.Event(), threading.Lock()

    def __enter__(self) -> None:
        self._reading, self._writing = socket.socketpair()
        if threading.current_thread() is not threading.main_thread():
            return  # signals are the main thread's
        self._writing.setblocking(False)
        self._before = signal.set_wakeup_fd(self._writing.fileno(), warn_on_full_buffer=False)
        handlers = {number: signal.getsignal(number) for number in _SAID}
        usual = (signal.SIG_DFL, signal.default_int_handler)
        self._handlers = {number: handler for number, handler in handlers.items() if handler in usual}
        for number in self._handlers:
            signal.signal(number, _signalled)
        threading.Thread(target=self._watch, daemon=True).start()

    def __exit__(self, *_: object) -> None:
        self._done.set()
        if threading.current_thread() is threading.main_thread():
            signal.set_wakeup_fd(self._before)
            for number, handler in self._handlers.items():
                signal.signal(number, handler)
        self._writing.close()  # which ends the thread

    def end(self, error: KeyboardInterrupt) -> int:
        """Say what ended the command, and end the process, if it was a signal; else the exit status."""
        if not isinstance(error, SignalledError):
            return self._say(signal.SIGINT)
        status = self._say(error.number)
        if not hasattr(sys, "ps1"):
            if sys.stdout is not None:
                sys.stdout.flush()
            os._exit(status)
        return status

    def _say(self, number: int) -> int:
        """Say it once; the exit status, as shells have it."""
        if self._silent.acquire(blocking=False):
            said = _SAID[signal.Signals(number)]
            print(f"lrp-jax: {said}; the files written so far are whole.", file=sys.stderr, flush=True)
        return 128 + number

    def _watch(self) -> None:
        with self._reading:
            while data := self._reading.recv(1):
                number = data[0]
                if number in _SAID and signal.getsignal(number) != signal.SIG_IGN and not self._done.wait(_GRACE):
                    abandon()
                    if sys.stderr.isatty():
                        sys.stderr.write("\x1b[?25h\n")  # the cursor, which a bar hides
                    os._exit(self._say(number))


def _signalled(number: int, _: FrameType | None) -> NoReturn:
    raise SignalledError(number)
