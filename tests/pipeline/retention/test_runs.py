"""`jobs.runs`: what runs there are, and what of them may go."""

import os
import time
from itertools import count
from pathlib import Path
from typing import Any, Literal

import pytest

from jobs.runs import main
from pipeline import storage
from pipeline.config import RunsConfig, TrainConfig
from pipeline.errors import RunError, StorageError
from pipeline.latents import LatentStore
from pipeline.retention import runs as inventory
from pipeline.retention.runs import list_runs
from pipeline.runs.checkpoint import RECEIPT, newest_step
from pipeline.runs.lost_files import refuse_lost_work
from pipeline.runs.reason import Reason
from pipeline.runs.result import TrainingResult
from pipeline.runs.run import Pins, Run
from tests.support.ended import ended_after
from tests.support.killing import tree
from tests.support.small_store import encode, small_dataset, small_vae

TENSORS = b"t" * 1000


def result_of(run: Run, reason: Reason, model: str | None) -> TrainingResult:
    return TrainingResult(
        run=run.url, run_id=None, reason=reason, steps=8, samples=8, bad_samples=0,
        converged=False, run_seconds={}, elbo=-1.0, chosen_step=8, holdout_before=None,
        holdout_after=None, model=model, model_version=1, bundle=None, digest=None,
    )  # fmt: skip


def make_run(place: str, name: str, ended: Reason | None, model: str | None = None) -> Run:
    """A run of 8 steps with a checkpoint of 1,000 bytes, as a start leaves it."""
    config = TrainConfig(data="/d", run=name, storage=place, steps=8, checkpoint_every=4)
    run = Run.at(config)
    run.open(config, Pins("digest", None))
    start = run.claim()
    storage.publish(run.path("checkpoints", "step-8.pt"), TENSORS)
    receipt = RECEIPT.encode({"step": 8, "file": "step-8.pt", "bytes": 1000, "sha256": "0"})
    storage.publish(run.path("checkpoints", "step-00000008.json"), receipt)
    if ended is not None:
        found = result_of(run, ended, model)
        if ended == "done":
            run.finish(found)
        run.end(start, found)
    return run


def age(run: Run, days: float) -> None:
    """All of a local run was written so long ago."""
    then = time.time() - days * 86_400
    for path in Path(run.url).rglob("*"):
        if path.is_file():
            os.utime(path, (then, then))


@pytest.fixture
def four(place: str) -> str:
    """A finished and registered, a finished, a stopped and a living run."""
    make_run(place, "registered", "done", "models:/m@candidate")
    make_run(place, "finished", "done")
    make_run(place, "stopped", "stopped")
    make_run(place, "alive", None)
    return place


def answer(place: str, **options: Any) -> Any:
    return main(RunsConfig(storage=place, **options)).result


def names_in(place: str) -> set[str]:
    return {info.url.removeprefix(place).split("/")[1] for info in storage.list_objects(place)}


def test_runs_are_listed_with_state_step_bytes_and_model(four: str) -> None:
    (Path(four) / "not-a-run").mkdir() if "://" not in four else None
    storage.publish(storage.join(four, "other", "file.txt"), b"no run")
    rows = {row["run"]: row for row in answer(four)["runs"]}
    assert {name: row["state"] for name, row in rows.items()} == {
        "registered": "finished", "finished": "finished", "stopped": "stopped", "alive": "alive",
    }  # fmt: skip
    assert rows["registered"]["model"] == "models:/m/1"
    assert rows["alive"]["step"] == 8
    objects = list(storage.list_objects(storage.join(four, "alive")))
    assert rows["alive"]["bytes"] == sum(info.size for info in objects)
    assert 1000 < rows["alive"]["checkpoint_bytes"] < rows["alive"]["bytes"]


def test_checkpoints_of_finished_runs_go_only_with_delete_and_as_many_bytes_as_said(
    four: str,
) -> None:
    before = sorted(info.url for info in storage.list_objects(four))
    told = answer(four, remove="checkpoints")
    assert sorted(info.url for info in storage.list_objects(four)) == before, "a dry run"
    assert {each["run"] for each in told["removals"]} == {"registered", "finished"}
    done = answer(four, remove="checkpoints", delete=True)
    assert done["bytes"] == told["bytes"] > 2000
    left = {info.url for info in storage.list_objects(four)}
    gone = {url.removeprefix(four) for url in set(before) - left}
    assert gone == {
        f"/{run}/checkpoints/{name}"
        for run in ("registered", "finished")
        for name in ("step-8.pt", "step-00000008.json")
    }
    assert answer(four, remove="checkpoints", delete=True)["bytes"] == 0


def test_a_finished_run_without_checkpoints_gives_its_result_and_refuses_more_steps(
    four: str,
) -> None:
    answer(four, remove="checkpoints", delete=True)
    run = Run(storage.join(four, "finished"))
    asked: Any = {"checkpoint_every": 4, "keeps_best": False, "begin_anew": False}
    refuse_lost_work(run, steps=8, **asked)
    with pytest.raises(RunError, match=r"were removed \(jobs.runs\).*step 9.*--init.*--begin-anew"):
        refuse_lost_work(run, steps=9, **asked)
    storage.delete(run.path("checkpoints", "removed.json"))
    with pytest.raises(RunError, match="the checkpoint of step 8 is gone"):
        refuse_lost_work(run, steps=8, **asked)


def test_whole_runs_go_when_the_registry_has_their_model_and_others_when_they_are_named(
    four: str,
) -> None:
    found = main(RunsConfig(storage=four, remove="runs", delete=True))
    assert found.exit_code == 0
    assert any("finished: its model is not in the registry" in line for line in found.summary)
    assert names_in(four) == {"finished", "stopped", "alive"}
    assert main(RunsConfig(storage=four, run=("stopped",), remove="runs", delete=True)).result
    assert names_in(four) == {"finished", "alive"}
    if "://" not in four:
        assert sorted(path.name for path in Path(four).iterdir()) == ["alive", "finished"]


@pytest.mark.parametrize("what", ["checkpoints", "runs"])
def test_a_run_that_is_alive_is_refused(four: str, what: Literal["checkpoints", "runs"]) -> None:
    before = {info.url for info in storage.list_objects(four)}
    found = main(RunsConfig(storage=four, run=("alive",), remove=what, delete=True))
    assert found.exit_code == 1
    assert any("is alive: it was written to" in line for line in found.summary)
    assert {info.url for info in storage.list_objects(four)} == before


def test_a_stopped_runs_checkpoints_are_refused_since_it_goes_on_from_them(four: str) -> None:
    found = main(RunsConfig(storage=four, run=("stopped",), remove="checkpoints", delete=True))
    assert found.exit_code == 1
    assert any("its checkpoints are what it goes on from" in line for line in found.summary)


def test_age_and_keep_last_choose(tmp_path: Path) -> None:
    place = str(tmp_path / "runs")
    for name, days in (("old", 40.0), ("middle", 20.0), ("new", 1.0)):
        age(make_run(place, name, "done", "models:/m/1"), days)

    def gone(**options: object) -> list[str]:
        return [each["run"] for each in answer(place, remove="runs", **options)["removals"]]

    assert gone() == ["middle", "new", "old"]
    assert gone(older_days=30.0) == ["old"]
    assert gone(keep_last=1) == ["middle", "old"]
    assert gone(keep_last=2, older_days=30.0) == ["old"]
    assert gone(keep_last=3) == []


def test_a_run_without_an_end_that_nobody_wrote_to_is_silent_and_goes_only_by_name(
    tmp_path: Path,
) -> None:
    place = str(tmp_path / "runs")
    age(make_run(place, "killed", None), inventory.ALIVE_SECONDS / 86_400 + 0.01)
    assert answer(place)["runs"][0]["state"] == "silent"
    assert answer(place, remove="runs", delete=True)["removals"] == []
    assert names_in(place) == {"killed"}
    assert answer(place, run=("killed",), remove="runs", delete=True)["bytes"] > 1000
    assert answer(place)["runs"] == []


def test_a_removal_that_is_killed_anywhere_goes_on_to_the_same_end(tmp_path: Path) -> None:
    for survives in count():
        place = str(tmp_path / f"runs{survives}")
        make_run(place, "r", "done", "models:/m/1")
        with ended_after(survives) as refused:
            answer(place, remove="runs", delete=True)
        if not refused:
            break
        assert [row["state"] for row in answer(place)["runs"]] == ["finished"]
        answer(place, remove="runs", delete=True)
        assert answer(place)["runs"] == []
    assert survives > 4
    assert answer(place)["runs"] == []


@pytest.mark.parametrize("what", ["checkpoints", "runs"])
def test_a_run_that_somebody_began_to_continue_since_it_was_listed_is_left_alone(
    place: str, what: Literal["checkpoints", "runs"]
) -> None:
    run = make_run(place, "r", "done", "models:/m/1")
    (listed,) = inventory.list_runs(place)
    run.claim()
    before = {info.url for info in storage.list_objects(place)}
    found = inventory.removal(place, listed, what, named=True, delete=True)
    assert "is alive" in found.refused
    assert {info.url for info in storage.list_objects(place)} == before


@pytest.mark.parametrize("what", ["checkpoints", "runs"])
def test_nothing_is_removed_through_a_link(
    tmp_path: Path, what: Literal["checkpoints", "runs"]
) -> None:
    place, beyond = tmp_path / "runs", tmp_path / "beyond"
    make_run(str(place), "r", "done", "models:/m/1")
    make_run(str(beyond), "far", "done", "models:/m/1")
    (place / "far").symlink_to(beyond / "far")
    (beyond / "mine.txt").write_text("mine")
    (place / "r/checkpoints/notes").symlink_to(beyond)
    before = {path: path.read_bytes() for path in beyond.rglob("*") if path.is_file()}
    asked: Any = {"remove": what, "delete": True}
    found = answer(str(place), **asked)["removals"]
    assert [each["run"] for each in found] == ["far", "r"]
    assert all("is a link to another folder" in each["refused"] for each in found)
    assert {path: path.read_bytes() for path in beyond.rglob("*") if path.is_file()} == before
    (place / "r/checkpoints/notes").unlink()
    assert answer(str(place), run=("r",), **asked)["bytes"] > 1000


def test_another_name_of_a_run_is_no_second_run(tmp_path: Path) -> None:
    make_run(str(tmp_path), "r", "done", "models:/m/1")
    (tmp_path / "latest").symlink_to("r")
    assert [row["run"] for row in answer(str(tmp_path))["runs"]] == ["r"]
    assert answer(str(tmp_path), remove="runs", keep_last=1, delete=True)["removals"] == []
    assert (tmp_path / "r/run.json").exists()


def test_a_name_without_a_run_is_an_error_that_says_how_to_find_them(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"nix: there is no run here.*jobs.runs --storage"):
        answer(str(tmp_path), run=("nix",))


def test_a_place_that_does_not_exist_is_an_error_and_no_empty_list(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="does not exist"):
        answer(str(tmp_path / "none"))


def test_a_run_that_is_named_twice_counts_once(tmp_path: Path) -> None:
    place = str(tmp_path / "runs")
    make_run(place, "mine", "done", "models:/m/1")
    once = inventory.list_runs(place, ["mine"])
    assert inventory.list_runs(place, ["mine", "mine"]) == once


def test_names_with_a_line_break_and_a_file_in_the_folders_place_are_told_on_one_line(
    tmp_path: Path,
) -> None:
    make_run(str(tmp_path / "runs"), "mine", "done", "models:/m/1")
    (tmp_path / "runs/mine").rename(tmp_path / "runs/new\nline")
    found = main(RunsConfig(storage=str(tmp_path / "runs"), remove="runs"))
    assert not [line for line in found.summary if "\n" in line]
    with pytest.raises(RunError) as error:
        main(RunsConfig(storage=str(tmp_path / "runs"), run=("a\nb",)))
    assert "\n" not in str(error.value)
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="file: is a file, not a folder"):
        main(RunsConfig(storage=str(tmp_path / "file")))


def test_where_nothing_can_be_written_the_older_checkpoints_make_room_and_the_newest_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = make_run(str(tmp_path), "one", "done", "models:/one@candidate")
    for name in ("step-00000004.json", "step-00000004-abc123.pt"):
        storage.publish(run.path("checkpoints", name), b"older")
    before = newest_step(run)
    monkeypatch.setattr(inventory, "note_removed", refuse)
    (one,) = list_runs(str(tmp_path), ["one"])
    with pytest.raises(StorageError, match="QuotaExceeded"):
        inventory.removal(str(tmp_path), one, "checkpoints", named=True, delete=True)
    left = {path.name for path in (tmp_path / "one/checkpoints").iterdir()}
    assert "step-00000004.json" not in left
    assert "step-00000004-abc123.pt" not in left
    assert newest_step(run) == before


def refuse(run: Run, step: int) -> None:
    raise StorageError("writing failed: QuotaExceeded 403")


def test_a_latent_store_beside_runs_is_no_run_and_nothing_of_it_goes(tmp_path: Path) -> None:
    dataset = small_dataset(tmp_path / "data", range(6))
    store = encode(small_vae(), dataset, tmp_path / "runs/latents")
    (tmp_path / "runs/latents/attempts").mkdir(exist_ok=True)
    (tmp_path / "runs/latents/attempts/outcome.json").write_text("{}")
    make_run(str(tmp_path / "runs"), "one", "done")
    before = tree(tmp_path / "runs/latents")
    assert [run.run for run in list_runs(str(tmp_path / "runs"))] == ["one"]
    with pytest.raises(RunError, match=r"is a latent store, no run.*jobs\.stores --store"):
        list_runs(str(tmp_path / "runs"), ["latents"])
    assert tree(tmp_path / "runs/latents") == before
    assert len(LatentStore.open(store.url)) > 0


def test_what_the_removal_of_checkpoints_or_runs_costs_is_said_first(four: str) -> None:
    for what, cost in (
        ("checkpoints", "Without its checkpoints a run can't be trained on, whatever `--steps`"),
        ("runs", "A removed run can't be trained on"),
    ):
        asked = {"run": ("registered",), "remove": what, "storage": four}
        told = main(RunsConfig.model_validate(asked)).summary
        assert told[-2].endswith("The same command with `--delete` removes it.")
        assert told[-1].startswith(cost)
    done = main(RunsConfig.model_validate(asked | {"delete": True})).summary
    assert " removed." in done[-2]
    again = main(RunsConfig(storage=four, remove="checkpoints", older_days=99)).summary
    assert again[-1] == "0 bytes would go."
