import copy
from pathlib import Path

import torch

from pipeline.config import ObjectiveConfig
from pipeline.runs.best import keep_if_best, save_final
from pipeline.runs.facts import RunFacts
from pipeline.runs.history import Validation
from pipeline.runs.run import Run
from pipeline.vae import VAE, ObjectiveState, optimised
from tests.support.digit_models import digits_vae


def vae_of(weight: float) -> VAE:
    vae = copy.deepcopy(digits_vae())  # which other tests share
    with torch.no_grad():
        next(vae.parameters()).fill_(weight)
    return vae


def saved(run: Run, validations: list[Validation]) -> tuple[str, int]:
    """The digest of what a run ends with, whose last weights are all 4, and its step."""
    objective = optimised(ObjectiveConfig(), 4, ObjectiveState())
    facts = RunFacts("best", "0", "holdout", objective, steps=4, images_seen=40)
    digest, chosen = save_final(run, vae_of(4.0), validations, facts, keeps_best=True)
    assert chosen is not None
    return digest, chosen.step


def looks(*elbos: tuple[int, float]) -> list[Validation]:
    return [Validation(step, 10, {"elbo": elbo}) for step, elbo in elbos]


def test_the_figures_of_a_run_are_those_of_its_weights_also_after_a_start_that_died(
    tmp_path: Path,
) -> None:
    run = Run(str(tmp_path / "run"))
    seen = looks((2, -5.0), (4, -6.0))
    keep_if_best(run, seen[:1], vae_of(2.0))
    best, step = saved(run, seen)
    assert step == 2
    # A start validated step 3, kept its weights, and died before its checkpoint.
    keep_if_best(run, looks((2, -5.0), (3, -1.0)), vae_of(3.0))
    last, step = saved(run, seen)
    assert step == 4
    assert last == saved(run, seen[1:])[0] != best
