"""Every second of a run's wall clock is counted once, also of one that was killed."""

import json
import time
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from pipeline.runs import goodput
from pipeline.runs.goodput import STATES, State, Tally, WallClock, productive_share, taken_up
from pipeline.runs.run import Run
from tests.support.packed_digits import write_digits
from tests.support.warm import run
from tests.support.worlds import train, train_config


def spent(**seconds: float) -> dict[State, float]:
    return {state: seconds.get(state, 0.0) for state in STATES}


def test_a_first_start_counts_from_its_drivers_beginning() -> None:
    tally, state = taken_up(None, start=100.0, began=112.0)
    assert (tally, state) == (Tally(spent(start=12.0), until=112.0), "start")


def test_after_an_end_that_was_asked_for_the_run_was_idle() -> None:
    before = Tally(spent(productive=50.0), until=200.0, step=7, ended=True)
    tally, state = taken_up(before, start=1000.0, began=1010.0)
    assert (tally.seconds, state) == (spent(productive=50.0, idle=800.0, start=10.0), "start")
    assert (tally.step, tally.until, tally.ended) == (7, 1010.0, False)


def test_after_a_death_all_time_up_to_the_next_step_is_recovery() -> None:
    before = Tally(spent(productive=50.0), until=200.0, step=7)
    tally, state = taken_up(before, start=100.0, began=230.0)
    assert (tally.seconds, state) == (spent(productive=50.0, recover=30.0), "recover")


def test_clocks_that_disagree_take_no_second_away() -> None:
    before = Tally(spent(productive=50.0), until=200.0, ended=True)
    tally, _ = taken_up(before, start=190.0, began=199.0)
    assert tally.seconds == spent(productive=50.0)
    assert tally.until == 200.0


def test_steps_that_were_made_before_are_made_again(tmp_path: Path) -> None:
    run = Run(str(tmp_path))
    first, second = run.claim(), run.claim()
    (tmp_path / "time").mkdir()
    old: Any = {
        "seconds": {**spent(productive=9.0)},
        "until": time.time(),
        "step": 5,
        "ended": False,
    }
    (tmp_path / "time" / f"{first.name}.json").write_bytes(goodput.TALLY.encode(old))
    with closing(WallClock(run, second, writes=True)) as clock:
        clock.step(5)
        time.sleep(0.02)
        clock.step(6)
        time.sleep(0.02)
        totals = clock.totals()
    assert totals["redo"] > 0.0
    assert totals["productive"] > 9.0
    kept = json.loads((tmp_path / "time" / f"{second.name}.json").read_text())
    assert kept["step"] == 6


def test_a_claim_that_was_replaced_writes_nothing(tmp_path: Path) -> None:
    run = Run(str(tmp_path))
    older = run.claim()
    run.claim()
    with closing(WallClock(run, older, writes=True)) as clock:
        clock.step(1)
    assert not (tmp_path / "time").exists()


def test_a_start_that_died_before_its_first_tally_is_in_the_sum(tmp_path: Path) -> None:
    run = Run(str(tmp_path))
    run.claim()
    died = time.time()
    time.sleep(0.1)
    with closing(WallClock(run, run.claim(), writes=True)) as clock:
        totals = clock.totals()
    assert totals["recover"] >= 0.1
    assert sum(totals.values()) == pytest.approx(time.time() - died, abs=0.05)


def test_of_a_spoilt_tally_the_one_before_it_is_taken(tmp_path: Path) -> None:
    run = Run(str(tmp_path))
    first, second, third = run.claim(), run.claim(), run.claim()
    (tmp_path / "time").mkdir()
    old: Any = {
        "seconds": {**spent(productive=9.0)},
        "until": time.time(),
        "step": 5,
        "ended": True,
    }
    (tmp_path / "time" / f"{first.name}.json").write_bytes(goodput.TALLY.encode(old))
    (tmp_path / "time" / f"{second.name}.json").write_text('{"seconds": {')
    with closing(WallClock(run, third, writes=True)) as clock:
        assert clock.totals()["productive"] == 9.0


def test_a_spoilt_word_of_the_end_costs_no_tally(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    owned = Run(str(tmp_path))
    with closing(WallClock(owned, owned.claim(), writes=True)) as clock:
        clock.enter("productive")
        time.sleep(0.05)
    (tmp_path / "ended.json").write_text("{}")
    with closing(WallClock(owned, owned.claim(), writes=True)) as clock:
        assert clock.totals()["productive"] >= 0.05
    (said,) = [record.getMessage() for record in caplog.records]
    assert "ended.json" in said
    assert "is skipped" not in said


def test_goodput_is_the_productive_share_of_the_time_that_was_asked_for() -> None:
    assert productive_share(spent(productive=6.0, start=2.0, idle=100.0)) == 0.75
    assert productive_share({}) is None


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_digits(tmp_path_factory.mktemp("digits"), 120)


def test_the_states_add_up_to_the_wall_clock_through_kills(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(goodput, "WRITE_SECONDS", 0.1)
    config = train_config(data, tmp_path, "killed", steps=800, checkpoint_every=7)
    for step in (20, 50):
        ended = run(tmp_path, "tests.support.killed_training", config.model_dump_json(), str(step))
        assert ended.returncode == -9, ended.stderr
    result = train(config.model_copy(update={"steps": 800}))[0]
    # By the file system's clock: from the first claim to the last tally.
    claimed = (tmp_path / "killed/attempts/000001.000.json").stat().st_mtime
    written = max((tmp_path / "killed/time").iterdir()).stat().st_mtime
    seconds = result["run_seconds"]
    assert sum(seconds.values()) == pytest.approx(written - claimed, rel=0.01, abs=0.1)
    assert all(seconds[state] > 0 for state in STATES if state != "idle")
    assert seconds["idle"] == 0.0


def test_what_passes_between_a_claim_and_its_clock_belongs_to_the_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, now = Run(str(tmp_path)), time.time()
    with monkeypatch.context() as earlier:
        earlier.setattr(time, "time", lambda: now - 300)
        start = run.claim()
    with closing(WallClock(run, start, writes=True)) as clock:
        assert clock.totals()["start"] == pytest.approx(300, abs=30)


def test_the_third_start_goes_on_from_the_second_ones_tally(tmp_path: Path) -> None:
    run = Run(str(tmp_path))
    starts = [run.claim() for _ in range(3)]
    (tmp_path / "time").mkdir()
    for start, productive in zip(starts[:2], (9.0, 20.0), strict=True):
        seconds = {**spent(productive=productive)}
        old: Any = {"seconds": seconds, "until": time.time(), "step": 5, "ended": True}
        (tmp_path / "time" / f"{start.name}.json").write_bytes(goodput.TALLY.encode(old))
    with closing(WallClock(run, starts[2], writes=True)) as clock:
        assert clock.totals()["productive"] == 20.0


def test_each_second_is_booked_under_the_state_that_was_entered_last(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [50.0]
    run = Run(str(tmp_path))
    start = run.claim()
    with closing(WallClock(run, start, writes=False)) as clock:
        # A clock of the test's own, from here on.
        monkeypatch.setattr(time, "monotonic", lambda: now[0])
        clock.enter("data_wait")
        before = clock.totals()
        for wait, step, stand in ((1.0, 2.0, 4.0), (8.0, 16.0, 32.0)):
            now[0] += wait
            clock.step(1)
            now[0] += step
            clock.enter("checkpoint")
            now[0] += stand
            clock.enter("data_wait")
        passed = {state: spent - before[state] for state, spent in clock.totals().items()}
    assert passed == spent(data_wait=9.0, productive=18.0, checkpoint=36.0)
