"""What a rank surely needs of memory: its loader, its model with all that trains it, a step."""

from dataclasses import dataclass

import torch
from torch import Tensor

from pipeline.data import Dataset
from pipeline.data.loader import reader_needs
from pipeline.data.order import slots_of
from pipeline.machine import Need, free_memory_bytes, refuse_beyond_memory
from pipeline.runs.run import Run
from pipeline.training.batches import open_pinned
from pipeline.training.gradients import autocast_dtype
from pipeline.training.settings import TrainSettings
from pipeline.training.world import World
from pipeline.vae import VAE, build_vae


@dataclass(frozen=True)
class RankNeeds:
    """Of main memory, and of the device's where that is another.

    `images`: of a global batch. `of_images`: the bytes that grow with it.
    """

    host: tuple[Need, ...]
    gpu: tuple[Need, ...]
    images: int
    of_images: int


def needs_of(
    settings: TrainSettings, dataset: Dataset, ranks: int, device: torch.device
) -> RankNeeds:
    """A lower bound for the first of `ranks` ranks, which has the fewest images of each batch."""
    batches, step = settings.batches, settings.step
    images = len(slots_of(0, ranks, batches.global_batch_size))
    reader = reader_needs(dataset, batches.preprocess, images, batches.loader)
    model = _model_needs(settings, min(images, step.micro_batch_size or images), device)
    on_gpu = device.type == "cuda"
    grows = [reader[0], *([] if on_gpu or step.micro_batch_size else model[1:])]
    return RankNeeds(
        host=reader if on_gpu else (*reader, *model),
        gpu=model if on_gpu else (),
        images=batches.global_batch_size,
        of_images=sum(need.bytes for need in grows),
    )


def refuse_ranks_beyond_memory(needs: RankNeeds, ranks: int) -> None:
    """Raises `ConfigError` where `ranks` ranks that begin on this machine find too little."""
    free, each, first = free_memory_bytes(), list(needs.host), ""
    if ranks > 1:
        each = [Need(f"{what} of {ranks} workers", ranks * n, mend) for what, n, mend in each]
        first = "fewer `--workers N`, or "
    if free is not None and needs.of_images:
        fixed = sum(need.bytes for need in needs.host) - needs.of_images
        fits = int(needs.images * (free / 2 / ranks - fixed) / needs.of_images)
        if ranks <= fits < needs.images:
            first = f"`--global-batch-size {fits}`, or {first}"
    refuse_beyond_memory(each, free, first)


def refuse_beyond_rank(settings: TrainSettings, run: Run, world: World) -> None:
    """The same on a rank itself, which sees its own machine and its own device."""
    dataset, _ = open_pinned(run, settings.data, settings.holdout, settings.shards_below)
    needs = needs_of(settings, dataset, world.size, world.device)
    refuse_ranks_beyond_memory(needs, 1)
    if needs.gpu:
        # Of all it has: what a rank before this one held may not be given back yet.
        refuse_beyond_memory(needs.gpu, torch.cuda.mem_get_info(world.device)[1])


def _model_needs(settings: TrainSettings, images: int, device: torch.device) -> tuple[Need, ...]:
    """Nothing for a network of somebody's own: what that holds only building it would tell."""
    state = settings.state
    if state.model.kind == "custom":
        return ()
    with torch.device("meta"):
        vae = build_vae(state.model, state.preprocess)
    width = 8 if state.precision == "fp64" else 4
    weights = width * sum(weight.numel() for weight in vae.parameters())
    # Weights and their average; gradients and AdamW's two moments of those that are not frozen.
    copies = 2 if state.freeze else 5
    mend = "a smaller `--model.width N`"
    model = Need("the model, its average and its optimiser", copies * weights, mend)
    if state.freeze or state.compile:  # Then less is kept of a step, and who knows how much.
        return (model,)
    per_image = _kept_bytes(vae, settings.step.objective.samples) * width // 4
    if autocast_dtype(settings.step.precision, device) is not None:
        per_image //= 2
    step = f"a step of {images:,} images"
    return model, Need(step, images * per_image, "a smaller `--micro-batch-size N`")


def _kept_bytes(vae: VAE, samples: int) -> int:
    """What the networks keep of one image in float32 for the backward pass, counted without it."""
    weights = {weight.untyped_storage()._cdata for weight in vae.parameters()}
    kept: dict[int, Tensor] = {}

    def keep(tensor: Tensor) -> Tensor:
        place = tensor.untyped_storage()._cdata
        if place not in weights:
            kept[place] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        moments = vae.network.encode(torch.zeros(1, *vae.image_shape, device="meta"))
        decoded = vae.network.decode(torch.zeros(samples, *vae.latent_shape, device="meta"))
    del moments, decoded
    return sum(tensor.untyped_storage().nbytes() for tensor in kept.values())
