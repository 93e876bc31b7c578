import hashlib
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
import torch

from pipeline.config import ObjectiveConfig
from pipeline.data import Dataset, Loader
from pipeline.errors import RunError
from pipeline.runs.checkpoint import CheckpointWriter, newest_checkpoint
from pipeline.runs.goodput import State, WallClock
from pipeline.runs.history import read_course, read_validations
from pipeline.runs.run import Run
from pipeline.training import stepper
from pipeline.training.holdout import HoldOut
from pipeline.vae import load_bundle
from tests.support.digit_models import pack_digits
from tests.support.worlds import train, train_config


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pack_digits(tmp_path_factory.mktemp("digits"))


def weights(config: Any) -> dict[str, torch.Tensor]:
    checkpoint = newest_checkpoint(Run.at(config))
    assert checkpoint is not None
    return {k: value for k, value in checkpoint.model.items() if isinstance(value, torch.Tensor)}


def global_keys(ranks: list[dict[str, Any]]) -> list[list[str]]:
    """The keys of each global batch: the ranks' parts, one after the other."""
    return [list(chain(*parts)) for parts in zip(*(rank["keys"] for rank in ranks), strict=True)]


def test_exact_gives_the_same_file_with_one_two_and_four_ranks(data: Path, tmp_path: Path) -> None:
    digests, files = set(), set()
    for ranks in (1, 2, 4):
        config = train_config(data, tmp_path, f"exact-{ranks}", exact=True, micro_batch_size=3)
        digests.add(train(config, ranks)[0]["digest"])
        file = tmp_path / f"exact-{ranks}" / "bundle" / "model.safetensors"
        files.add(hashlib.sha256(file.read_bytes()).hexdigest())
    assert len(digests) == len(files) == 1


def test_a_run_moved_to_other_world_sizes_has_the_same_batches_and_float64_weights(
    data: Path, tmp_path: Path
) -> None:
    # The rate of a cosine depends on the steps in all, so it is held constant in this comparison.
    constant = {"precision": "fp64", "optimizer": {"schedule": "constant"}}
    whole = train_config(data, tmp_path, "whole", **constant)
    undisturbed = train(whole)
    moved = train_config(data, tmp_path, "moved", steps=6, **constant)
    first = train(moved, 2)
    rest = train(moved.model_copy(update={"steps": 12}), 3)
    assert global_keys(first) + global_keys(rest) == global_keys(undisturbed)
    assert [*first[0]["losses"], *rest[0]["losses"]] == pytest.approx(
        undisturbed[0]["losses"], rel=1e-9
    )
    for name, expected in weights(whole).items():
        torch.testing.assert_close(weights(moved)[name], expected, rtol=0, atol=1e-9)


def test_what_a_network_drops_out_is_the_same_after_a_restart_and_at_another_world_size(
    data: Path, tmp_path: Path
) -> None:
    def config(run: str, steps: int = 12) -> Any:
        return train_config(
            data, tmp_path, run, steps=steps, exact=True, micro_batch_size=3,
            optimizer={"schedule": "constant"},
            model={"kind": "custom", "custom": "tests.support.dropout_network:Dropping"},
        )  # fmt: skip

    undisturbed = train(config("whole"))[0]
    train(config("restarted", 6))
    assert train(config("restarted"))[0]["digest"] == undisturbed["digest"]
    assert train(config("two"), 2)[0]["digest"] == undisturbed["digest"]


def test_micro_batches_add_up_to_the_same_step(data: Path, tmp_path: Path) -> None:
    whole = train_config(data, tmp_path, "whole", precision="fp64")
    parts = train_config(data, tmp_path, "parts", precision="fp64", micro_batch_size=5)
    one, two = train(whole)[0], train(parts)[0]
    assert two["losses"] == pytest.approx(one["losses"], rel=1e-12)
    on_two = train_config(data, tmp_path, "on-two", precision="fp64", micro_batch_size=5)
    assert train(on_two, 2)[0]["losses"] == pytest.approx(one["losses"], rel=1e-12)


def test_training_ends_early_with_the_best_weights(data: Path, tmp_path: Path) -> None:
    # A rate at which the ELBO soon gets worse.
    config = train_config(
        data, tmp_path, "early", holdout=str(data), steps=200, evaluate_every=2, patience=3,
        optimizer={"learning_rate": 0.5, "schedule": "constant", "warmup_steps": 0, "ema_decay": 0},
    )  # fmt: skip
    ended = train(config)[0]
    elbos = [terms["elbo"] for terms in ended["validations"]]
    best = max(range(len(elbos)), key=elbos.__getitem__)
    assert ended["converged"]
    assert ended["step"] < 200
    assert len(elbos) - 1 - best == 3
    assert ended["chosen"] == 2 * best
    bundle = load_bundle(Run.at(config).path("bundle"))
    metadata: Any = bundle.metadata
    assert metadata["holdout"]["elbo"] == elbos[best]


def test_a_collapse_and_a_divergence_are_told_when_they_are_seen(
    data: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config = train_config(
        data, tmp_path, "ill", holdout=str(data), steps=40, evaluate_every=10, precision="fp64",
        objective=ObjectiveConfig(beta=1000.0),
        optimizer={"learning_rate": 0.02, "schedule": "constant", "warmup_steps": 0},
    )  # fmt: skip
    train(config)
    assert caplog.text.count("Posterior collapse") == 1


def test_an_autoencoder_is_not_judged_by_its_elbo(data: Path, tmp_path: Path) -> None:
    config = train_config(
        data, tmp_path, "plain", holdout=str(data), objective=ObjectiveConfig(kind="autoencoder")
    )
    assert train(config)[0]["chosen"] == 12
    metadata: Any = load_bundle(Run.at(config).path("bundle")).metadata
    assert metadata["objective"] == {"kind": "autoencoder", "beta": 0.0, "samples": 1}


def test_a_bundle_tells_the_kl_weight_that_geco_ended_with(data: Path, tmp_path: Path) -> None:
    aim = ObjectiveConfig(kind="geco", target_bits_per_dim=0.5)
    config = train_config(data, tmp_path, "geco", objective=aim)
    train(config)
    metadata: Any = load_bundle(Run.at(config).path("bundle")).metadata
    told = metadata["objective"]
    checkpoint = newest_checkpoint(Run.at(config))
    assert checkpoint is not None
    assert told["beta"] == checkpoint.objective.beta != 1
    assert (told["kind"], told["target_bits_per_dim"]) == ("geco", 0.5)


def test_a_start_that_finds_all_steps_made_ends_the_run_with_the_last_ones_terms(
    data: Path, tmp_path: Path
) -> None:
    """As when a start was killed between its last checkpoint and its result."""
    config = train_config(data, tmp_path, "late", steps=6)
    ended = train(config)[0]
    again = train(config)[0]
    assert again["losses"] == []
    assert again["terms"] == ended["terms"] != {}
    assert again["digest"] == ended["digest"]


def test_what_is_frozen_stays_and_the_rest_moves(data: Path, tmp_path: Path) -> None:
    source = train_config(data, tmp_path, "source")
    train(source)
    config = train_config(data, tmp_path, "frozen", init="source", freeze="decoder")
    init = Run.at(config).path("init")
    Path(init).parent.mkdir(parents=True)
    Path(init).symlink_to(Run.at(source).path("bundle"))
    train(config)
    before, after = load_bundle(init).state_dict(), weights(config)
    for name, value in before.items():
        moved = not torch.equal(value, after[name])
        assert moved == name.startswith("network.encoder"), name


def test_a_run_that_only_skips_steps_ends_with_their_keys(data: Path, tmp_path: Path) -> None:
    config = train_config(
        data, tmp_path, "lost", steps=30,
        optimizer={"learning_rate": 1e30, "clip_norm": 1e30, "warmup_steps": 0},
    )  # fmt: skip
    with pytest.raises(RunError, match="not finite in 20 steps in a row"):
        train(config)
    lists = sorted((tmp_path / "lost" / "skipped").glob("*.json"))
    assert len(lists) == 20


def test_compiling_changes_no_loss_beyond_rounding(data: Path, tmp_path: Path) -> None:
    plain = train(train_config(data, tmp_path, "plain"))[0]
    compiled = train(train_config(data, tmp_path, "compiled", compile=True, steps=12))[0]
    assert compiled["losses"] == pytest.approx(plain["losses"], rel=1e-4)


def test_float16_scales_its_gradients_and_trains(data: Path, tmp_path: Path) -> None:
    config = train_config(data, tmp_path, "half", precision="fp16", steps=40)
    ended = train(config)[0]
    assert sum(ended["skipped"]) < 20
    assert ended["losses"][-1] < ended["losses"][0]
    checkpoint = newest_checkpoint(Run.at(config))
    assert checkpoint is not None
    scale = checkpoint.scaler["scale"]
    assert isinstance(scale, float)
    assert scale > 0


def test_the_order_counts_every_image_once_in_an_epoch(data: Path, tmp_path: Path) -> None:
    samples = len(Dataset.open(str(data)))
    ended = train(train_config(data, tmp_path, "once", steps=samples // 24))[0]
    seen = list(chain(*ended["keys"]))
    assert len(seen) == len(set(seen)) == samples


def test_checkpoints_by_the_clock_change_no_bit_and_are_gone_on_from(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = train_config(data, tmp_path, "plain", steps=5, checkpoint_every=100)
    by_clock = plain.model_copy(update={"run": "by-clock"})
    expected = train(plain)
    monkeypatch.setattr("pipeline.runs.checkpoint.FIRST_SECONDS", 0.0)
    found = train(by_clock)
    assert found[0]["digest"] == expected[0]["digest"]
    steps = [
        Path(tmp_path / name / "checkpoints").glob("step*.json") for name in ("plain", "by-clock")
    ]
    assert [sorted(int(path.stem[5:]) for path in paths) for paths in steps] == [[5], [1, 5]]


def test_who_stops_before_the_first_step_has_made_none_and_saved_nothing(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.runs.stop.StopSignal.requested", True)
    config = train_config(data, tmp_path, "early")
    (told,) = train(config)
    assert (told["step"], told["losses"], told["digest"]) == (0, [], None)
    assert newest_checkpoint(Run.at(config)) is None


def test_each_part_of_the_loop_is_booked_under_its_own_state(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    entered, seen = ["start"], set()
    enter = WallClock.enter

    def noted(self: WallClock, state: State) -> None:
        entered.append(state)
        enter(self, state)

    monkeypatch.setattr(WallClock, "enter", noted)

    def watch(owner: Any, name: str) -> None:
        real = getattr(owner, name)

        def done(*given: Any, **named: Any) -> Any:
            seen.add((name, entered[-1]))
            return real(*given, **named)

        monkeypatch.setattr(owner, name, done)

    for owner, name in (
        (Loader, "_collect"), (stepper, "train_step"), (CheckpointWriter, "save"),
        (CheckpointWriter, "finish"), (HoldOut, "save_final"),
    ):  # fmt: skip
        watch(owner, name)
    config = train_config(data, tmp_path, "booked")
    train(config)
    assert seen == {
        ("_collect", "data_wait"), ("train_step", "productive"), ("save", "checkpoint"),
        ("finish", "checkpoint"), ("save_final", "checkpoint"),
    }  # fmt: skip
    # A start that finds all steps made, and only the model to be written.
    entered[:] = ["start"]
    seen.clear()
    train(config)
    assert seen == {("finish", "checkpoint"), ("save_final", "checkpoint")}


def test_a_look_after_a_restart_tells_of_the_steps_before_it_to_the_same_bytes(
    data: Path, tmp_path: Path
) -> None:
    def config(run: str, steps: int = 12) -> Any:
        return train_config(
            data, tmp_path, run, steps=steps, holdout=str(data), checkpoint_every=4,
            optimizer={"schedule": "constant"},
        )  # fmt: skip

    def looks(run: str) -> dict[str, bytes]:
        files = (tmp_path / run / "history").iterdir()
        return {path.name: path.read_bytes() for path in files}

    train(config("whole"))
    train(config("restarted"))
    # As a kill after step 8 leaves it: the look at step 6, the checkpoint of step 8.
    folder = tmp_path / "restarted"
    for path in folder.glob("checkpoints/*"):
        if "step-00000008" not in path.name and "step-00000004" not in path.name:
            path.unlink()
    for path in folder.glob("history/0000000012.*"):
        path.unlink()
    train(config("restarted"))
    run = Run(str(folder))
    course = torch.cat([read_course(run, each) for each in read_validations(run)])
    assert course[:, 0].tolist() == list(range(1, 13))
    assert looks("restarted") == looks("whole")
