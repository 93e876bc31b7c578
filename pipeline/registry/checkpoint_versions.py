"""Registration on the way: a checkpoint's averaged weights become a version of their own."""

import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from pipeline.config import TrainConfig
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


@contextmanager
def registered_on_the_way(
    config: TrainConfig, run: Run, run_id: Callable[[], str | None]
) -> Iterator[None]:
    """While the block runs, each `tracking.register_every` steps a checkpoint is registered.

    `run_id` gives the MLflow run's id, None as long as it is not known. What fails is a warning,
    and is tried again: training does not wait for any of it.
    """
    every = config.tracking.register_every
    if every is None:
        yield
        return
    ended = threading.Event()

    def watch() -> None:
        registered = 0
        while not ended.wait(_SECONDS):
            try:
                step, known = newest_step(run), run_id()
                if step // every > registered // every and known is not None:
                    model = register_checkpoint(config, run, known)
                    logger.info("step %d is registered as %s", step, model.uri)
                    registered = step
            except PipelineError as error:
                logger.warning("a checkpoint is not registered: %s", error)

    thread = threading.Thread(target=watch, name="registrar", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def register_checkpoint(config: TrainConfig, run: Run, run_id: str) -> RegisteredModel:
    """Registers the newest checkpoint's average; with its ELBO if it was validated at that step."""
    checkpoint = newest_checkpoint(run)
    assert checkpoint is not None, "a receipt was seen"
    vae = build_vae(config.model, config.preprocess)
    vae.load_state_dict(checkpoint.ema)
    held = [found for found in checkpoint.validations if found.step == checkpoint.step]
    url = run.path("bundles", f"step-{checkpoint.step:08d}")
    pins = run.pins()
    assert pins is not None, "a run with a checkpoint was opened"
    facts = RunFacts(
        run=config.run,
        dataset_digest=pins.dataset,
        holdout_data=config.holdout,
        objective=optimised(config.objective, checkpoint.step, checkpoint.objective),
        steps=checkpoint.step,
        images_seen=checkpoint.images_seen,
    )
    save_bundle(vae, url, facts.to_json(held[-1].terms if held else None))
    tags = registration_tags(config, run, url, held[-1].elbo if held else None)
    tags["steps"] = str(checkpoint.step)
    name, alias = config.tracking.registered_as(config.run)
    model = register(url, name, run_id, tags, allow_custom=config.model.own_classes)
    place_alias(model, alias)
    return model


def registration_tags(
    config: TrainConfig, run: Run, bundle: str, elbo: float | None
) -> dict[str, str]:
    """Where a version comes from, and the held-out ELBO that it is promoted by, if there is one."""
    vae, pins = load_bundle(bundle, config.model.own_classes), run.pins()
    assert pins is not None, "a run with a bundle was opened"
    tags = {
        **model_tags(vae),
        "run": run.url,
        "data": config.data,
        "dataset_digest": pins.dataset,
        "git_revision": git_revision(),
    }
    if pins.holdout is not None and elbo is not None:
        tags |= {"holdout_digest": pins.holdout, "holdout_elbo": repr(elbo)}
    return tags
