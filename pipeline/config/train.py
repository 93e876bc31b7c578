"""What `jobs.train` is asked for."""

import re
from typing import ClassVar, Literal, Self

from pydantic import Field, model_validator

from pipeline.config.network import ModelConfig
from pipeline.config.optimisation import ObjectiveConfig, OptimizerConfig
from pipeline.config.sections import (
    A_DATASET,
    DRY_RUN,
    PRECISION,
    SEED,
    LoaderConfig,
    PreprocessConfig,
    ShardsBelow,
    StorageConfig,
    TrackingConfig,
    Url,
)


class TrainConfig(PreprocessConfig, StorageConfig):
    """`jobs.train`: train a VAE on a dataset, track it, register it; run again, it continues."""

    interrupted: ClassVar[str] = (
        "the same command goes on from the last checkpoint, if there is one."
    )

    first: ClassVar[tuple[str, ...]] = (
        "data",
        "run",
        "storage",
        "steps",
        "global_batch_size",
        "image_size",
        "workers",
        "holdout",
        "checkpoint_every",
        "evaluate_every",
        "init",
        "dry_run",
    )

    data: Url = Field(description=A_DATASET)
    run: str = Field(
        pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$",
        description="A stable name: starting it again continues the run.",
    )
    dry_run: bool = Field(False, description=DRY_RUN)
    profile: str | None = Field(
        None,
        pattern=r"^\d+:\d+$",
        description="A:B: trace steps A to B-1, 100 at most, into the run's folder.",
    )
    sweep: str | None = Field(
        None, description="KEY=A,B,...: a run per value (objective.beta=0.5,1,4), compared."
    )
    steps: int = Field(
        1000, gt=0, description="Optimiser steps in all; more continue a finished run."
    )
    global_batch_size: int = Field(256, gt=0, description="Images per step over all workers.")
    flip: bool = Field(False, description="Mirror every second image, by seed.")
    transform: str | None = Field(
        None,
        description="Your own augmentation, as MODULE:FUNCTION, called with uint8 images "
        "[n, C, S, S] and int64 seeds [n]; it gives images of that shape: docs/extend.md.",
    )
    workers: int | str = Field(
        1,
        description="Ray Train workers; 2..8: as many as there is room for, again whenever nodes "
        "come or go; 0: this process (or torchrun's).",
    )
    cpus_per_worker: int | None = Field(
        None,
        gt=0,
        description="Cores that Ray keeps for each worker, and torch's threads in it; None: an "
        "equal share of this machine's, or what a cluster at RAY_ADDRESS gives: one.",
    )
    stall_seconds: float = Field(
        600,
        gt=0,
        description="A worker that does not answer the others for so long is replaced (by Ray; "
        "torchrun ends), and so long a wait for one sample is an error.",
    )
    seed: int = Field(0, ge=0, description=SEED)
    precision: Literal["auto", "bf16", "fp16", "fp32", "fp64"] = Field(
        "auto",
        description=PRECISION,
    )
    micro_batch_size: int | None = Field(
        None, gt=0, description="Images per forward pass of a worker; None: all of its share."
    )
    exact: bool = Field(
        False,
        description="Add micro-batches' gradients in one order: the same bits with any workers.",
    )
    deterministic: bool = Field(False, description="Only kernels that give the same bits again.")
    compile: bool = Field(False, description="torch.compile the model (needs a C++ compiler).")
    init: str | None = Field(
        None, description="Begin with the weights of a registered model, a bundle or a run."
    )
    freeze: Literal["encoder", "decoder"] | None = Field(
        None, description="The part whose weights stay as they are."
    )
    begin_anew: bool = Field(
        False,
        description="If something of this run is lost or damaged, remove the rest and begin at "
        "step 0; a whole run goes on.",
    )
    checkpoint_every: int = Field(
        500,
        gt=0,
        description="Steps between checkpoints; one is also left after "
        "the first minute, every 10 minutes, and when the run is stopped.",
    )
    holdout: Url | None = Field(
        None, description="Held-out dataset; None: the `holdout` beside DATA when there is one."
    )
    evaluate_every: int = Field(500, gt=0, description="Steps between evaluations on the hold-out.")
    no_register: bool = Field(
        False,
        description="Keep the model out of MLflow's registry, as for a trial; the same command "
        "without it registers it.",
    )
    patience: int | None = Field(
        None, gt=0, description="Evaluations without a better ELBO after which training ends."
    )
    max_failures: int = Field(
        3, ge=0, description="Times that Ray replaces dead workers before the run fails."
    )
    model: ModelConfig = ModelConfig()
    objective: ObjectiveConfig = ObjectiveConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    loader: LoaderConfig = LoaderConfig()
    shards_below: ShardsBelow = ()
    tracking: TrackingConfig = TrackingConfig()

    @model_validator(mode="after")
    def _an_image_for_each(self) -> Self:
        if not re.fullmatch(r"\d+|[1-9]\d*\.\.[1-9]\d*", str(self.workers)):
            raise ValueError(
                f"workers {self.workers}: is neither a number nor a range; give `--workers "
                "NUMBER`, or a range as `--workers 2..8`"
            )
        if self.min_workers > self.max_workers:
            raise ValueError(
                f"workers {self.workers}: the first number is the smaller one; give `--workers "
                f"{self.max_workers}..{self.min_workers}`"
            )
        if self.max_workers > self.global_batch_size:
            raise ValueError(
                f"workers {self.workers} is more than global_batch_size {self.global_batch_size}: "
                "each worker needs an image per step; give fewer `--workers N`, or a larger "
                "`--global-batch-size`"
            )
        return self

    @model_validator(mode="after")
    def _registered_or_not(self) -> Self:
        if self.no_register and self.tracking.register_every is not None:
            raise ValueError(
                "no_register and tracking.register_every exclude each other: leave out "
                "`--tracking.register-every` or `--no-register`"
            )
        return self

    @model_validator(mode="after")
    def _a_trace_that_fits_into_memory(self) -> Self:
        first, last = map(int, (self.profile or "1:2").split(":"))
        if not 1 <= first < last <= first + 100:
            raise ValueError(
                f"profile {self.profile}: A:B needs 1 <= A < B <= A + 100; give `--profile A:B` so"
            )
        return self

    @model_validator(mode="after")
    def _exactly(self) -> Self:
        if not self.exact:
            return self
        workers, micro = max(1, self.max_workers), self.micro_batch_size
        if micro is None or self.global_batch_size % (micro * workers):
            share, rest = divmod(self.global_batch_size, workers)
            hint = (
                f"a global_batch_size of {share * workers + workers} has: give "
                f"`--global-batch-size {(share + 1) * workers}`"
                if rest
                else f"give `--micro-batch-size {max(1, share // 2)}`"
            )
            raise ValueError(
                f"exact needs a micro_batch_size that divides global_batch_size / workers "
                f"({self.global_batch_size} / {workers}); it is {micro}; {hint}"
            )
        if self.precision == "fp16":
            raise ValueError("exact and fp16 exclude each other: give `--precision bf16` or fp32")
        return self

    @property
    def min_workers(self) -> int:
        """The fewest workers that train."""
        return int(str(self.workers).partition("..")[0])

    @property
    def max_workers(self) -> int:
        """The most workers that train; 0: this process, or torchrun's."""
        return int(str(self.workers).rpartition("..")[2])
