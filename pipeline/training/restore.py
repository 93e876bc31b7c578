"""The state that training begins or goes on with: model, average, optimiser, all on this rank."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from pipeline.config import TrainConfig
from pipeline.data import Dataset, load_images
from pipeline.runs.checkpoint import Checkpoint, newest_checkpoint
from pipeline.runs.run import Run
from pipeline.training.ema import Ema
from pipeline.training.state import TrainState, make_optimizer
from pipeline.training.world import World
from pipeline.vae import VAE, ObjectiveState, build_vae, load_bundle
from pipeline.vae.start import freeze, start_from

STARTING_IMAGES = 256
"""First training images whose mean the untrained decoder is set to."""


@contextmanager
def numerics(config: TrainConfig) -> Iterator[None]:
    """The process's settings for a run: deterministic kernels, and one thread where it is `exact`.

    How many threads share a sum decides its last bits.
    """
    before = torch.are_deterministic_algorithms_enabled(), torch.get_num_threads()
    if config.deterministic or config.exact:
        torch.use_deterministic_algorithms(True)
    if config.exact:
        torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0])
        torch.set_num_threads(before[1])


def restore(
    config: TrainConfig, run: Run, world: World, dataset: Dataset
) -> tuple[TrainState, Checkpoint | None]:
    """The state at the newest checkpoint, or the initial one: it follows from seed and dataset."""
    checkpoint = newest_checkpoint(run) if world.rank == 0 else None
    step = world.broadcast(checkpoint.step if checkpoint else 0)
    if world.rank != 0 and step:
        checkpoint = newest_checkpoint(run, step)
    torch.manual_seed(config.seed)
    vae = build_vae(config.model, config.preprocess).to(world.device)
    if config.precision == "fp64":
        vae.double()
    if checkpoint is None:
        _begin(vae, config, run, dataset)
    if config.freeze:
        freeze(vae, config.freeze)
    state = TrainState(
        vae,
        _trained_module(config, vae, world),
        Ema(vae, config.optimizer.ema_decay),
        make_optimizer(config.optimizer, vae),
        scaler=torch.amp.GradScaler(world.device.type, enabled=config.precision == "fp16"),
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
        state.objective = ObjectiveState.from_json(checkpoint.objective)
    return state, checkpoint


def autocast_dtype(config: TrainConfig, world: World) -> torch.dtype | None:
    """The type that the networks compute in; None: that of the weights, without autocast.

    `auto` is bf16 on CUDA and on CPUs with avx512_bf16 or amx: elsewhere bf16 is 12 times slower.
    """
    match config.precision:
        case "fp32" | "fp64":
            return None
        case "fp16":
            return torch.float16
        case "bf16":
            return torch.bfloat16
    is_fast = world.device.type == "cuda" or torch.cpu._is_avx512_bf16_supported()
    return torch.bfloat16 if is_fast else None


def _begin(vae: VAE, config: TrainConfig, run: Run, dataset: Dataset) -> None:
    """Weights of `--init`, or a decoder that says the mean image.

    Measured on the mlp with Bernoulli pixels, MNIST, 1,500 steps: a held-out ELBO of -124.2 with
    the mean image, -170.9 without.
    """
    if config.init:
        start_from(vae, load_bundle(run.path("init"), config.model.own_classes), config.init)
        return
    batch = load_images(dataset, STARTING_IMAGES, vae.preprocess)
    good = batch.images[batch.valid]
    if len(good):
        mean = good.double().mean(dim=0) / 255
        vae.start_at(mean.float().to(next(vae.parameters()).device))


def _trained_module(config: TrainConfig, vae: VAE, world: World) -> nn.Module:
    """What a step calls: the model itself, compiled if asked, and wrapped for the other ranks."""
    module: nn.Module = torch.compile(vae) if config.compile else vae  # type: ignore[assignment]
    if world.size == 1 or config.exact:
        return module
    devices = [world.device] if world.device.type == "cuda" else None
    return DistributedDataParallel(module, device_ids=devices, gradient_as_bucket_view=True)
