"""The exact ELBO on the hold-out, each image counted once, by all ranks together."""

from contextlib import closing

from pipeline.config import TrainConfig
from pipeline.data import Dataset
from pipeline.evaluation.reading import in_order
from pipeline.evaluation.sums import Importance, evaluate_elbo
from pipeline.runs.history import HeldOut, Validation
from pipeline.training.state import TrainState
from pipeline.training.world import World
from pipeline.vae import VAE

IMPORTANCE = Importance(samples=16, images=256)
"""What the gap is measured on: cheap enough to be asked for at every validation."""


def validate(config: TrainConfig, state: TrainState, holdout: Dataset, world: World) -> HeldOut:
    """Each rank takes its slots of each batch, and the sums are added: exact at any world size."""
    with closing(
        in_order(
            holdout,
            config.preprocess,
            config.global_batch_size,
            rank=world.rank,
            world_size=world.size,
            columns=(),
            # Read once, beside a running loader: a cache would only hold what training needs.
            settings=config.loader.model_copy(update={"cache_folder": None}),
            stall_seconds=config.stall_seconds,
        )
    ) as loader:
        vae = state.ema.module
        assert isinstance(vae, VAE)
        sums = evaluate_elbo(
            vae, loader, config.seed, config.global_batch_size, world.device, IMPORTANCE
        )
    total = sums.with_values(world.sum(sums.to_tensor().to(world.device)))
    means = {name: value for name, value in total.means().items() if value is not None}
    terms = means | {"active_units": total.active_units()}
    return HeldOut(Validation(state.step, total.images, terms), total.kl_per_dimension())
