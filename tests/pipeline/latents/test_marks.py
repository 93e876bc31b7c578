from pathlib import Path

from pipeline.latents.marks import begin, begun, end, withdraw


def test_what_has_begun_is_seen_until_it_ends_and_each_process_has_a_mark_of_its_own(
    tmp_path: Path,
) -> None:
    store = str(tmp_path)
    assert begun(store) == set()
    first, second = (begin(store, "one", "monday") for _ in range(2))
    other = begin(store, "other", "monday")
    end(first, whole=False)
    end(first, whole=False)
    assert begun(store) == {"one", "other"}, "the second one goes on"
    end(second, whole=False)
    assert begun(store) == {"other"}
    end(other, whole=False)
    assert begun(store) == set()


def test_a_whole_snapshot_ends_the_marks_of_killed_encodings_of_its_dataset_alone(
    tmp_path: Path,
) -> None:
    store = str(tmp_path)
    begin(store, "one", "monday")  # killed
    begin(store, "one", "tuesday")
    end(begin(store, "one", "monday"), whole=True)
    assert begun(store) == {"one"}
    end(begin(store, "one", "tuesday"), whole=True)
    assert begun(store) == set()


def test_a_mark_is_withdrawn_only_while_it_keeps_nothing(tmp_path: Path) -> None:
    store = str(tmp_path)
    withdraw(begin(store, "one", "monday"))
    assert begun(store) == set()
    (tmp_path / "latents/one").mkdir(parents=True)
    (tmp_path / "latents/one/a.arrow").write_bytes(b"half of a shard")
    withdraw(begin(store, "one", "monday"))
    assert begun(store) == {"one"}
