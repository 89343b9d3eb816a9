"""Being stopped by a signal: the step under way is finished first, so that it can be saved."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType


@dataclass
class Request:
    """Whether somebody asked to stop.

    Attributes:
        signal: the number of the signal; None as long as there was none.
    """

    signal: int | None = None

    def obey(self) -> None:
        """Leave as the signal would have made the program leave.

        Raises:
            KeyboardInterrupt: after Ctrl-C.
            SystemExit: with 143 after SIGTERM.
        """
        if self.signal == signal.SIGINT:
            raise KeyboardInterrupt
        if self.signal is not None:
            raise SystemExit(128 + self.signal)


@contextmanager
def requests_to_stop() -> Iterator[Request]:
    """Take note of Ctrl-C and SIGTERM instead of leaving at once; a second one leaves.

    Python gives signals to its main thread only; in others nothing is noted.
    """
    request = Request()
    if threading.current_thread() is not threading.main_thread():
        yield request
        return

    def note(number: int, frame: FrameType | None) -> None:
        if request.signal is not None:
            request.obey()
        request.signal = number
        os.write(2, b"stopping after this step; once more leaves at once\n")

    before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield request
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
