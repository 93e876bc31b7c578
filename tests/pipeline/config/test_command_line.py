"""What somebody may have meant by a flag that there is not."""

import pytest

from pipeline.config import EncodeConfig, TrainConfig
from pipeline.config.command_line import flag_name, keys_of, near_names

NAMES = [flag_name(path)[2:] for path, _ in keys_of(TrainConfig)]


@pytest.mark.parametrize(
    ("word", "meant"),
    [
        ("epochs", "steps"),  # what others call it
        ("learning-rate", "optimizer.learning-rate"),  # without its section
        ("lr", "optimizer.learning-rate"),  # by initials
        ("batch-size", "global-batch-size"),  # a part
        ("imagesize", "image-size"),  # likeness
        ("optimiser.learning-rate", "optimizer.learning-rate"),  # a section in British
        ("model.kin", "model.kind"),
    ],
)
def test_the_flag_that_was_meant_comes_first(word: str, meant: str) -> None:
    found = near_names(word, NAMES)
    assert found[0] == meant
    assert len(found) == len(set(found)) <= 3


def test_for_what_is_like_nothing_no_flag_is_made_up() -> None:
    assert near_names("qqqqqq", NAMES) == []


def test_keys_of_sections_are_followed_and_sections_are_none_themselves() -> None:
    paths = [path for path, _ in keys_of(EncodeConfig)]
    assert ("tracking", "pushgateway") in paths
    assert ("tracking",) not in paths


@pytest.mark.parametrize("value", [float("inf"), float("nan")])
@pytest.mark.parametrize("keys", ["stall_seconds", "optimizer.learning_rate", "objective.beta"])
def test_no_number_of_a_configuration_is_infinite_or_none(keys: str, value: float) -> None:
    """JSON has no such numbers, and a run's configuration is kept as JSON."""
    section, _, key = keys.rpartition(".")
    given = {section: {key: value}} if section else {key: value}
    with pytest.raises(ValueError, match="finite number"):
        TrainConfig(data="d", run="r", **given)
