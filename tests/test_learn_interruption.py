"""Being stopped by a signal: noted during a step, obeyed after it."""

from __future__ import annotations

import os
import signal
import threading

import pytest

from topwork.learn.interruption import Request, requests_to_stop

SIGNALS = [signal.SIGINT, signal.SIGTERM]
CODES = {signal.SIGTERM: 143}


@pytest.fixture(autouse=True)
def own_handlers():
    """Put handlers of ours in place, so that no signal of a test that fails ends the tests."""

    def unexpected(number: int, frame: object) -> None:
        raise AssertionError(f"signal {number} reached the handler from before")

    before = {number: signal.signal(number, unexpected) for number in SIGNALS}
    yield unexpected
    for number, handler in before.items():
        signal.signal(number, handler)


def send(number: int) -> None:
    os.kill(os.getpid(), number)
    for _ in range(100):  # handlers run between two instructions
        pass


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_is_noted_and_the_work_goes_on(number: int):
    done = []
    with requests_to_stop() as request:
        assert request.signal is None
        request.obey()  # nothing to obey
        send(number)
        done.append("the step under way")
        assert request.signal == number
    assert done == ["the step under way"]


@pytest.mark.parametrize("number", SIGNALS)
def test_it_is_obeyed_as_the_signal_would_have_been(number: int):
    with pytest.raises((KeyboardInterrupt, SystemExit)) as left, requests_to_stop() as request:
        send(number)
        request.obey()
    if number == signal.SIGINT:
        assert left.type is KeyboardInterrupt
    else:
        assert left.value.code == 143


@pytest.mark.parametrize("second", SIGNALS)
@pytest.mark.parametrize("first", SIGNALS)
def test_a_second_signal_leaves_at_once(first: int, second: int):
    after = []
    with pytest.raises((KeyboardInterrupt, SystemExit)), requests_to_stop():
        send(first)
        send(second)
        after.append("still here")
    assert after == []


def test_handlers_are_put_back(own_handlers):
    with requests_to_stop():
        assert all(signal.getsignal(number) is not own_handlers for number in SIGNALS)
    assert all(signal.getsignal(number) is own_handlers for number in SIGNALS)
    with pytest.raises(ValueError, match="inside"), requests_to_stop():
        raise ValueError("inside")
    assert all(signal.getsignal(number) is own_handlers for number in SIGNALS)


def test_in_another_thread_it_changes_nothing(own_handlers):
    found = []

    def work() -> None:
        with requests_to_stop() as request:
            found.append((request, [signal.getsignal(number) for number in SIGNALS]))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert found == [(Request(None), [own_handlers, own_handlers])]
