from pipeline.edges.goodput import Goodput


def snapshot(session: int, step: int, seconds: float) -> dict:
    return {"session": session, "step": step, "step_seconds_total": seconds}


def test_seconds_of_replayed_steps_bring_nothing_forward():
    goodput = Goodput()
    for each in (
        snapshot(1, 0, 0.0), snapshot(1, 10, 5.0),  # 5 s for ten new steps
        snapshot(2, 4, 0.0), snapshot(2, 9, 2.5),  # replays
        snapshot(2, 13, 6.5),  # 4 s for steps 10 to 13, of which three are new
    ):  # fmt: skip
        goodput.update(each)
    assert goodput.useful_seconds == 5.0 + 3.0


def test_a_recorder_that_takes_over_counts_from_what_it_first_hears():
    goodput = Goodput()
    goodput.update(snapshot(3, 1000, 700.0))
    assert goodput.useful_seconds == 0.0
    goodput.update(snapshot(3, 1001, 701.0))
    assert goodput.useful_seconds == 1.0
