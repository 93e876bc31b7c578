"""Progress as people read it: in a real terminal of any width, and in a log."""

import io
import sys
import time
from pathlib import Path

import pytest

from pipeline.progress import Progress
from tests.support.terminal import terminal

_NOTE = "elbo -4533.14, log_likelihood -4533.12, kl 0.02, 231 images/s, data wait 14%, goodput 15%"

_WORK = f"""
import logging, time
from pipeline.log_lines import log_to_stderr
from pipeline.progress import Progress, phase
log_to_stderr()
with phase("starting Ray"):
    time.sleep(0.5)
with Progress("a-run-with-a-long-name", 400, "steps", done=100) as progress:
    for count in range(20):
        time.sleep(0.05)
        progress.advance(15, {_NOTE!r})
        if count == 10:
            logging.getLogger("x").warning("the disk is nearly full")
"""


@pytest.mark.parametrize("columns", [40, 80, 200])
def test_a_terminal_of_any_width_scrolls_no_line_but_the_last_state_and_the_warnings(
    tmp_path: Path, columns: int
) -> None:
    (tmp_path / "work.py").write_text(_WORK)
    with terminal(tmp_path, ["work.py"], columns) as window:
        lines = window.wait_for("exit code 0")
    warning, bar, *notes, _ = lines
    assert warning == "WARNING: the disk is nearly full"
    assert bar.startswith("a-run-with-a-long-name: 100%")
    # Of what is told, the bar itself is the first that a narrow window does without.
    assert columns < 80 or "steps/s]" in bar
    assert " ".join(note.strip() for note in notes) == _NOTE, "nothing of it is cut off"
    assert len(notes) == {40: 4, 80: 2, 200: 1}[columns]


def test_a_line_that_is_too_long_does_without_its_rate_and_is_not_cut(
    monkeypatch: pytest.MonkeyPatch, clock: "_Clock"
) -> None:
    progress = Progress("bounds of 32 drawn images of a run", 81_920, "steps")
    for _ in range(3):
        clock.now += 10
        progress.advance(10_000)
    whole, short = progress.lines(200)[0], progress.lines(80)[0]
    assert "left" in short
    assert len(short) <= 80 < len(whole)
    assert "steps/s" in whole


def test_a_dumb_terminal_gets_lines_as_a_log_does(
    monkeypatch: pytest.MonkeyPatch, clock: "_Clock"
) -> None:
    log = io.StringIO()
    monkeypatch.setattr(log, "isatty", lambda: True)
    monkeypatch.setattr(sys, "stderr", log)
    monkeypatch.setenv("TERM", "dumb")
    with Progress("r", 400, "steps") as progress:
        clock.now += 61
        progress.advance(10)
        assert log.getvalue() == "r: 10/400 steps [1:01]\n"


class _Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> _Clock:
    clock = _Clock()
    monkeypatch.setattr(time, "monotonic", clock)
    return clock


def test_the_time_left_follows_from_finished_units_not_from_the_start(clock: _Clock) -> None:
    progress = Progress("train", 400, "steps")
    clock.now += 110  # Ray starts
    progress.advance(1)
    for _ in range(10):
        clock.now += 2
        progress.advance(1)
    assert progress.rate == pytest.approx(0.5)
    assert "12:58 left" in progress.lines()[0]  # 389 steps of 2 s
    assert "2.0 s each" in progress.lines()[0]


def test_a_log_gets_a_line_a_minute_and_none_while_nothing_happens(
    clock: _Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = io.StringIO()
    monkeypatch.setattr(sys, "stderr", log)
    with Progress("train", 1000, "steps") as progress:
        for _ in range(600):
            clock.now += 1
            progress.advance(1)
        for _ in range(600):
            clock.now += 1
            progress.advance(0)
    lines = log.getvalue().splitlines()
    assert len(lines) == 10
    assert lines[-1].startswith("train: 600/1000 steps [")
    assert "\x1b" not in log.getvalue()


def test_steps_that_were_told_of_in_one_burst_have_no_rate(clock: _Clock) -> None:
    progress = Progress("train", 30, "steps")
    clock.now += 1.3  # A short run: the view looks once a second.
    progress.advance(20)
    clock.now += 0.00005
    progress.advance(10)
    assert progress.rate is None
    assert progress.lines()[0].endswith("30/30 steps [0:01]")


_CELL = """
import pipeline.progress as progress


class Clock:
    now = 1000.0

    def monotonic(self):
        return self.now


progress.time = clock = Clock()
with progress.phase("starting Ray"):
    pass
with progress.Progress("r", 400, "steps") as shown:
    for _ in range(40):
        clock.now += 1
        shown.advance(1)
"""


@pytest.mark.slow
@pytest.mark.process
def test_a_notebook_shows_a_line_after_5_seconds_and_then_every_15(tmp_path: Path) -> None:
    nbformat, nbclient = pytest.importorskip("nbformat"), pytest.importorskip("nbclient")
    cell = nbformat.v4.new_code_cell(_CELL)
    notebook = nbformat.v4.new_notebook(cells=[cell])
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))
        nbclient.NotebookClient(notebook, timeout=120, kernel_name="python3").execute()
    said = "".join(out.get("text", "") for out in notebook.cells[0].outputs).splitlines()
    assert [line.partition(" [")[0] for line in said] == [
        "starting Ray ...", "r: 5/400 steps", "r: 20/400 steps", "r: 35/400 steps",
        "r: 40/400 steps",
    ]  # fmt: skip


@pytest.mark.parametrize("job", ["report", "decode"])
def test_a_job_that_loads_for_seconds_says_so_at_once_and_takes_the_line_away(
    tmp_path: Path, job: str
) -> None:
    asked = {"report": ["--run", "nowhere"], "decode": ["--store", "nowhere", "--output", "out"]}
    with terminal(tmp_path, ["-m", f"jobs.{job}", *asked[job]]) as window:
        window.wait_for("loading torch and what else is needed ...")
        text = " ".join(window.wait_for("exit code 1"))
    assert "nowhere" in text
    assert "loading" not in text
