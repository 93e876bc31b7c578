"""The state that training begins or goes on with: model, average, optimiser, all on this rank."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from pipeline.config import ModelConfig, OptimizerConfig, PreprocessConfig
from pipeline.data import Dataset, load_images
from pipeline.runs.checkpoint import Checkpoint, newest_checkpoint
from pipeline.runs.run import Run
from pipeline.training.gradients import Precision
from pipeline.training.state import COMPONENTS, Ema, TrainState, make_optimizer
from pipeline.training.world import World
from pipeline.vae import VAE, build_vae, load_bundle
from pipeline.vae.bundle import bundle_scale
from pipeline.vae.start import freeze, start_from

STARTING_IMAGES = 256
"""First training images whose mean the untrained decoder is set to."""


@dataclass(frozen=True)
class Init:
    """The model that `--init` called `name`, as a bundle."""

    name: str
    bundle: str


@dataclass(frozen=True)
class StateSettings:
    """Of what model and optimiser are made, and what they begin with."""

    model: ModelConfig
    preprocess: PreprocessConfig
    optimizer: OptimizerConfig
    seed: int
    precision: Precision
    init: Init | None
    freeze: Literal["encoder", "decoder"] | None
    compile: bool
    exact: bool
    deterministic: bool


@contextmanager
def numerics(settings: StateSettings) -> Iterator[None]:
    """The process's settings for a run: deterministic kernels, and one thread where it is `exact`.

    How many threads share a sum decides its last bits.
    """
    before = torch.are_deterministic_algorithms_enabled(), torch.get_num_threads()
    if settings.deterministic or settings.exact:
        torch.use_deterministic_algorithms(True)
    if settings.exact:
        torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0])
        torch.set_num_threads(before[1])


def restore(
    settings: StateSettings, run: Run, world: World, dataset: Dataset
) -> tuple[TrainState, Checkpoint | None]:
    """The state at the newest checkpoint, or the initial one: it follows from seed and dataset."""
    checkpoint = newest_checkpoint(run) if world.rank == 0 else None
    step = world.broadcast(checkpoint.step if checkpoint else 0)
    if world.rank != 0 and step:
        checkpoint = newest_checkpoint(run, step)
    torch.manual_seed(settings.seed)
    vae = build_vae(settings.model, settings.preprocess).to(world.device)
    if settings.precision == "fp64":
        vae.double()
    if checkpoint is None:
        _begin(vae, settings, dataset)
    if settings.freeze:
        freeze(vae, settings.freeze)
    if settings.freeze == "encoder" and settings.init:
        # The latents stay those of the model that it began with, and so does their scale.
        vae.scale = bundle_scale(settings.init.bundle)
    state = TrainState(
        vae,
        _trained_module(settings, vae, world),
        Ema(vae, settings.optimizer.ema_decay),
        make_optimizer(settings.optimizer, vae),
        scaler=torch.amp.GradScaler(world.device.type, enabled=settings.precision == "fp16"),
    )
    if checkpoint:
        vae.load_state_dict(checkpoint.model)
        state.ema.module.load_state_dict(checkpoint.ema)
        state.optimizer.load_state_dict(checkpoint.optimizer)
        state.scaler.load_state_dict(checkpoint.scaler)
        state.step = checkpoint.step
        state.images_seen = checkpoint.images_seen
        state.bad_images = checkpoint.bad_images
        state.skipped_in_a_row = checkpoint.skipped_in_a_row
        state.objective = checkpoint.objective
        state.terms = {name: checkpoint.terms[name] for name in COMPONENTS if checkpoint.terms}
    return state, checkpoint


def _begin(vae: VAE, settings: StateSettings, dataset: Dataset) -> None:
    """Weights of `--init`, or a decoder that says the mean image.

    Measured on the mlp with Bernoulli pixels, MNIST, 1,500 steps: a held-out ELBO of -124.2 with
    the mean image, -170.9 without.
    """
    if settings.init:
        start_from(
            vae, load_bundle(settings.init.bundle, settings.model.own_classes), settings.init.name
        )
        return
    batch = load_images(dataset, STARTING_IMAGES, vae.preprocess)
    good = batch.images[batch.valid]
    if len(good):
        mean = good.double().mean(dim=0) / 255
        vae.start_at(mean.float().to(next(vae.parameters()).device))


def _trained_module(settings: StateSettings, vae: VAE, world: World) -> nn.Module:
    """What a step calls: the model itself, compiled if asked, and wrapped for the other ranks."""
    module: nn.Module = torch.compile(vae) if settings.compile else vae  # type: ignore[assignment]
    if world.size == 1 or settings.exact:
        return module
    devices = [world.device] if world.device.type == "cuda" else None
    return DistributedDataParallel(module, device_ids=devices, gradient_as_bucket_view=True)
