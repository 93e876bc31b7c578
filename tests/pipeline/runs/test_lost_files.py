"""A run that has lost something says what before it goes on; `--begin-anew` takes it away."""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from pipeline import storage
from pipeline.config import ModelConfig, PreprocessConfig, TrainConfig
from pipeline.errors import RunError
from pipeline.runs.checkpoint import RECEIPT
from pipeline.runs.lost_files import refuse_lost_work
from pipeline.runs.run import Pins, Run
from pipeline.vae import build_vae, save_bundle
from tests.support.rayjobs import result_of


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """A finished run of 8 steps with a bundle, and the receipt of its last checkpoint."""
    config = TrainConfig(data="/d", run="r", storage=str(tmp_path), steps=8, checkpoint_every=4)
    run = Run.at(config)
    run.open(config, Pins("digest", None))
    receipt = RECEIPT.encode({"step": 8, "file": "step-8.pt", "bytes": 1, "sha256": "0"})
    storage.publish(run.path("checkpoints", "step-00000008.json"), receipt)
    model = build_vae(ModelConfig(kind="linear"), PreprocessConfig(image_size=8, channels=1))
    digest = save_bundle(model, run.path("bundle"))
    run.finish(replace(result_of(run, "done", 8), bundle=run.path("bundle"), digest=digest))
    return run


def check(run: Run, *, keeps_best: bool = False, begin_anew: bool = False) -> None:
    refuse_lost_work(run, steps=8, checkpoint_every=4, keeps_best=keeps_best, begin_anew=begin_anew)


def test_a_whole_run_and_one_that_never_began_pass(run: Run, tmp_path: Path) -> None:
    check(run)
    check(Run(str(tmp_path / "never")))


@pytest.mark.parametrize(
    ("gone", "said"),
    [
        ("checkpoints", r"the checkpoint of step 8 is gone; there is none"),
        ("bundle", r"bundle: the model in it is gone"),
        ("run.json", r"run.json: is gone, and .*result.json"),
    ],
)
def test_what_is_gone_is_named_with_the_way_out(run: Run, gone: str, said: str) -> None:
    path = Path(run.path(gone))
    path.unlink() if path.is_file() else shutil.rmtree(path)
    with pytest.raises(RunError, match=rf"{said}(.|\n)*--begin-anew"):
        check(run)


def test_begin_anew_removes_what_is_left_and_keeps_the_claims(run: Run) -> None:
    run.claim()
    shutil.rmtree(run.path("bundle"))
    check(run, begin_anew=True)
    assert not storage.exists(run.path("run.json"))
    assert run.result() is None
    assert run.newest_start().number == 1
    check(run)


def test_the_best_weights_are_missed_only_where_a_run_keeps_them(run: Run) -> None:
    with pytest.MonkeyPatch.context() as patched:
        # As after a look at the hold-out at step 4.
        patched.setattr("pipeline.runs.lost_files.newest_validation", lambda _: 8)
        check(run)
        with pytest.raises(RunError, match="best: the model in it is gone"):
            check(run, keeps_best=True)
