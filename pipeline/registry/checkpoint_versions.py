"""Registration on the way: a checkpoint's averaged weights become a version of their own."""

import logging
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass

from pipeline.background import Repeated
from pipeline.config import ModelConfig, ObjectiveConfig, PreprocessConfig
from pipeline.errors import PipelineError
from pipeline.registry.models import RegisteredModel, model_tags, register
from pipeline.registry.promotion import place_alias
from pipeline.runs.checkpoint import newest_checkpoint, newest_step
from pipeline.runs.facts import RunFacts
from pipeline.runs.run import Run
from pipeline.tracking.version import git_revision
from pipeline.vae import build_vae, load_bundle, optimised, save_bundle

logger = logging.getLogger(__name__)

_SECONDS = 5.0
"""Between two looks for a checkpoint: a listing each, and minutes lie between versions."""


@dataclass(frozen=True)
class VersionSettings:
    """What a run's versions in the registry are called, made of and told of.

    `every`: steps between checkpoints that are registered; None: the end only. `alias`: one that
    was asked for by name.
    """

    run: Run
    run_name: str
    data: str
    holdout: str | None
    model: ModelConfig
    preprocess: PreprocessConfig
    objective: ObjectiveConfig
    name: str
    alias: str | None
    every: int | None


@contextmanager
def registered_on_the_way(
    settings: VersionSettings, run_id: Callable[[], str | None]
) -> Iterator[None]:
    """While the block runs, each `every` steps a checkpoint is registered; None: none is.

    `run_id` gives the MLflow run's id, None as long as it is not known. What fails is a warning,
    and is tried again: training does not wait for any of it.
    """
    every = settings.every
    if every is None:
        yield
        return
    registered = 0

    def look() -> None:
        nonlocal registered
        try:
            step, known = newest_step(settings.run), run_id()
            if step // every > registered // every and known is not None:
                model = register_checkpoint(settings, known)
                logger.info("step %d is registered as %s", step, model.uri)
                registered = step
        except PipelineError as error:
            logger.warning("a checkpoint is not registered: %s", error)

    with closing(Repeated("registrar", _SECONDS, look)):
        yield


def register_checkpoint(settings: VersionSettings, run_id: str) -> RegisteredModel:
    """Registers the newest checkpoint's average; with its ELBO if it was validated at that step."""
    run = settings.run
    checkpoint = newest_checkpoint(run)
    assert checkpoint is not None, "a receipt was seen"
    vae = build_vae(settings.model, settings.preprocess)
    vae.load_state_dict(checkpoint.ema)
    held = [found for found in checkpoint.validations if found.step == checkpoint.step]
    url = run.path("bundles", f"step-{checkpoint.step:08d}")
    pins = run.pins()
    assert pins is not None, "a run with a checkpoint was opened"
    facts = RunFacts(
        run=settings.run_name,
        dataset_digest=pins.dataset,
        holdout_data=settings.holdout,
        objective=optimised(settings.objective, checkpoint.step, checkpoint.objective),
        steps=checkpoint.step,
        images_seen=checkpoint.images_seen,
    )
    save_bundle(vae, url, facts.to_json(held[-1].terms if held else None))
    tags = registration_tags(settings, url, held[-1].elbo if held else None)
    tags["steps"] = str(checkpoint.step)
    model = register(url, settings.name, run_id, tags, allow_custom=settings.model.own_classes)
    place_alias(model, settings.alias)
    return model


def registration_tags(settings: VersionSettings, bundle: str, elbo: float | None) -> dict[str, str]:
    """Where a version comes from, and the held-out ELBO that it is promoted by, if there is one."""
    run = settings.run
    vae, pins = load_bundle(bundle, settings.model.own_classes), run.pins()
    assert pins is not None, "a run with a bundle was opened"
    tags = {
        **model_tags(vae),
        "run": run.url,
        "data": settings.data,
        "dataset_digest": pins.dataset,
        "git_revision": git_revision(),
    }
    step = (vae.metadata or {}).get("step")
    if step is not None:
        tags["step"] = str(step)
    if pins.holdout is not None and elbo is not None:
        tags |= {"holdout_digest": pins.holdout, "holdout_elbo": repr(elbo)}
    return tags
