"""Which knob is named on a machine that changes its pace: paces are planted, no clock is looked at.

Of a planted training's true gain and what its machine gives at each look, only the first is the
knob's; it is what must be found.
"""

from collections.abc import Sequence

import pytest

from pipeline.config import TrainConfig
from pipeline.data import Dataset
from pipeline.pace.probes import Subject
from pipeline.pace.ranking import Ranking, rank
from pipeline.pace.trials import Trial
from tests.support.packed_digits import write_digits

AS_ASKED = 1000.0


@pytest.fixture(scope="module")
def subject(tmp_path_factory: pytest.TempPathFactory) -> Subject:
    data = str(write_digits(tmp_path_factory.mktemp("ranking"), 4))
    config = TrainConfig.model_validate({"data": data, "run": "bench", "workers": 0, "seed": 0})
    return Subject(Dataset.open(data), config, 1.0)


def ranked(
    subject: Subject, true_gains: Sequence[float], machine: Sequence[float], changing: str = ""
) -> Ranking:
    """Knobs "a", "b" ... of these gains, on a machine that gives these shares of its pace."""
    gain_of = {0: 1.0} | dict(enumerate(true_gains, start=1))
    trials = [
        Trial(name, "", subject.having(seed=seed), changes_training=name in changing)
        for seed, name in zip(range(1, len(gain_of)), "abcdef", strict=False)
    ]
    given = iter(machine)
    found = rank(subject, trials, lambda at: AS_ASKED * gain_of[at.config.seed] * next(given))
    assert next(given, None) is None, "one look at each knob, and one at the training beside each"
    return found


def test_the_best_knob_is_named_though_the_machine_lost_most_of_its_pace_before_its_turn(
    subject: Subject,
) -> None:
    slowing = [0.93**look for look in range(7)]
    found = ranked(subject, [1.2, 1.0, 1.3], slowing)
    # Against one look at the beginning and one at the end, "a" seems to bring 36%, "c" 10%.
    assert [tried.flag for tried in found.tried] == ["c", "a", "b"]
    assert [tried.gain for tried in found.tried] == pytest.approx([1.3, 1.2, 1.0], rel=0.02)
    best = found.best(changes_training=False)
    assert best is not None
    assert best.flag == "c"


def test_a_machine_that_grows_faster_is_not_taken_for_a_knob_that_helps(subject: Subject) -> None:
    found = ranked(subject, [1.0, 1.15, 1.0], [1.0, *[1.1] * 6])
    assert found.tried[1].flag == "a"
    assert found.tried[1].gain == pytest.approx(1.1 / 1.05)
    assert found.tried[1].at_least == pytest.approx(1.0)
    best = found.best(changes_training=False)
    assert best is not None
    assert best.flag == "b"
    assert found.drift == pytest.approx(0.1 / 1.05)


def test_a_knob_is_timed_again_where_the_machine_did_something_else_meanwhile(
    subject: Subject,
) -> None:
    found = ranked(subject, [2.0, 1.0], [1.0, 0.4, 0.1, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0])
    best = found.best(changes_training=False)
    assert best is not None
    assert best.flag == "a"
    assert (best.gain, best.at_least) == pytest.approx((2.0, 2.0))


def test_on_a_machine_that_is_never_steady_the_steadiest_of_three_attempts_counts(
    subject: Subject,
) -> None:
    found = ranked(subject, [1.5], [1.0, 1.0, 0.5, 0.5, 0.6, 0.6, 0.3])
    assert found.tried[0].gain == pytest.approx(1.5 * 0.5 / 0.55)
    assert found.tried[0].at_least == pytest.approx(1.5 * 0.5 / 0.6)


def test_no_knob_is_named_where_none_brings_more_than_two_looks_differ_by(subject: Subject) -> None:
    assert ranked(subject, [1.04, 0.9], [1.0] * 5).best(changes_training=False) is None
    assert ranked(subject, [1.1], [1.0, 1.0, 1.1]).best(changes_training=False) is None
    assert ranked(subject, [], [1.0]).best(changes_training=False) is None


def test_a_knob_that_makes_it_another_training_stands_apart_however_much_it_brings(
    subject: Subject,
) -> None:
    found = ranked(subject, [3.0, 1.4, 1.2, 2.0], [1.0] * 9, changing="ad")
    best, changing = (found.best(changes_training=kind) for kind in (False, True))
    assert best is not None
    assert changing is not None
    assert (best.flag, changing.flag) == ("b", "a")
    assert (best.gain, changing.gain) == pytest.approx((1.4, 3.0))
