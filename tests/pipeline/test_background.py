"""Work beside the main thread is done at once, again, and, if asked, once more at the end."""

import threading

import pytest

from pipeline.background import Repeated


def test_it_works_at_once_and_again_and_no_more_when_close_has_returned() -> None:
    calls: list[str] = []
    thrice = threading.Event()

    def work() -> None:
        calls.append(threading.current_thread().name)
        if len(calls) == 3:
            thrice.set()

    repeated = Repeated("again", 0.001, work)
    assert thrice.wait(600)
    repeated.close()
    made = len(calls)
    assert "again" not in [thread.name for thread in threading.enumerate()]
    assert set(calls) == {"again"}
    assert len(calls) == made


@pytest.mark.parametrize(("last", "made"), [(False, 1), (True, 2)])
def test_between_two_looks_of_an_hour_the_end_comes_at_once(last: bool, made: int) -> None:
    calls, begun = [], threading.Event()

    def work() -> None:
        calls.append(1)
        begun.set()

    repeated = Repeated("hourly", 3600, work, last=last)
    assert begun.wait(600)
    repeated.close()
    assert len(calls) == made


def test_close_waits_for_work_that_is_under_way_for_as_long_as_it_is_told() -> None:
    begun, go_on = threading.Event(), threading.Event()

    def work() -> None:
        begun.set()
        go_on.wait(600)

    repeated = Repeated("slow", 3600, work)
    assert begun.wait(600)
    repeated.close(0.01)
    assert "slow" in [thread.name for thread in threading.enumerate()]
    go_on.set()
    repeated.close()
    assert "slow" not in [thread.name for thread in threading.enumerate()]
