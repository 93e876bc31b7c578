"""Every knob of every job, as frozen models that refuse what they don't know.

A field's description gives its unit and the meaning of None; flags, YAML keys and `--help` are all
made from these models (`jobs/command.py`). Impossible combinations fail here, at construction.
"""

from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator


class Section(BaseModel):
    """A frozen group of knobs; an unknown key is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True)


Url = Annotated[str, Field(min_length=1)]
"""A local path or any fsspec URL, such as `s3://bucket/prefix`."""

Crop = Literal["center", "random", "pad", "stretch"]
Tail = Literal["pad", "drop", "wrap"]
Likelihood = Literal[
    "bernoulli",
    "continuous_bernoulli",
    "gaussian",
    "gaussian_fixed",
    "gaussian_per_pixel",
    "laplace",
    "logistic",
    "logistic_mixture",
]
LIKELIHOODS_WITH_SIGMA = ("gaussian", "gaussian_fixed", "laplace")


class PreprocessConfig(Section):
    """How image bytes become a `[C, image_size, image_size]` uint8 tensor; belongs to the model."""

    image_size: int = Field(32, gt=0, description="Height and width of the images, in pixels.")
    channels: Literal[1, 3] = Field(3, description="1 for grey images, 3 for RGB.")
    crop: Crop = Field("center", description="How a rectangle becomes a square.")


class ModelConfig(Section):
    """The network, its likelihood and its posterior."""

    kind: Literal["linear", "mlp", "conv", "autoencoder_kl", "custom"] = Field(
        "conv", description="The network's family."
    )
    latent_channels: int | None = Field(
        None,
        gt=0,
        description="Z of the latent [Z, h, w]; None: linear 8, mlp 50, conv 32, autoencoder_kl "
        "3, 4, 16, 64 for factor 4, 8, 16, 32.",
    )
    factor: Literal[4, 8, 16, 32] | None = Field(
        None, description="autoencoder_kl: pixels per latent in each direction; None: 8."
    )
    gradient_checkpointing: bool = Field(
        False, description="autoencoder_kl: compute again instead of keeping activations."
    )
    custom: str | None = Field(
        None, description="custom: import path of your own Network class, as package.module:Class."
    )
    latent_size: int | None = Field(
        None, gt=0, description="conv: h = w of the latent; None: 1, a vector for the whole image."
    )
    width: int | None = Field(
        None,
        gt=0,
        description="First level's channels (None: conv 32, autoencoder_kl 128); mlp: units (200).",
    )
    likelihood: Likelihood = Field(
        "gaussian",
        description="p(x|z), in nats of the uint8 image (bernoulli: of the binarised one).",
    )
    sigma: float | None = Field(
        None,
        ge=1 / 256,
        le=1,
        description="Gaussian's and Laplace's deviation, 1 is the whole range: where the learned "
        "one starts (None: 0.25) or what the fixed one stays at (None: 0.1).",
    )
    mixtures: int | None = Field(
        None, gt=0, description="logistic_mixture: components per pixel; None: 5."
    )
    posterior: Literal["diagonal", "full"] = Field(
        "diagonal", description="Covariance of q(z|x); full: linear and mlp only."
    )

    @model_validator(mode="after")
    def _makes_sense(self) -> Self:
        if self.posterior == "full" and self.kind not in ("linear", "mlp"):
            raise ValueError(f"posterior full is for linear and mlp, not for {self.kind}")
        for name, kinds in _KINDS_OF_KNOBS.items():
            if getattr(self, name) and self.kind not in kinds:
                raise ValueError(f"{name} is for {' and '.join(kinds)}, not for {self.kind}")
        if self.kind == "custom" and self.custom is None:
            raise ValueError("kind custom needs custom: package.module:Class")
        if self.mixtures is not None and self.likelihood != "logistic_mixture":
            raise ValueError(f"mixtures is for logistic_mixture, not for {self.likelihood}")
        if self.sigma is not None and self.likelihood not in LIKELIHOODS_WITH_SIGMA:
            raise ValueError(f"sigma means nothing for {self.likelihood}: leave it out")
        return self


_KINDS_OF_KNOBS = {
    "width": ("mlp", "conv", "autoencoder_kl", "custom"),
    "latent_size": ("conv", "custom"),
    "factor": ("autoencoder_kl",),
    "gradient_checkpointing": ("autoencoder_kl",),
    "custom": ("custom",),
}
"""Knobs of networks that not every kind reads."""


class ObjectiveConfig(Section):
    """What is optimised; the true ELBO is reported beside it whatever is chosen here.

    beta: log-likelihood - beta KL. free_bits: the same, with each latent dimension's KL counted as
    at least `free_nats`. geco: least KL with the reconstruction held at `target_bits_per_dim`.
    iwae: the bound of `samples` latents. autoencoder: the reconstruction at the mean alone.
    """

    kind: Literal["beta", "free_bits", "geco", "iwae", "autoencoder"] = Field(
        "beta",
        description="What is maximised: beta (the ELBO at beta 1), free_bits, geco, iwae ...",
    )
    beta: float = Field(1.0, ge=0, description="Weight of the KL term, after its warm-up if any.")
    warmup: Literal["none", "linear", "cyclical"] = Field(
        "none", description="How beta rises from 0: once, or again in each cycle's first half."
    )
    warmup_steps: int | None = Field(
        None, gt=0, description="Steps of the linear warm-up, or of one cycle."
    )
    free_nats: float | None = Field(
        None, gt=0, description="free_bits: nats of KL per latent dimension that cost nothing more."
    )
    target_bits_per_dim: float | None = Field(
        None, gt=0, description="geco: -log p(x|z) to hold, in bits per pixel and channel."
    )
    samples: int = Field(1, gt=0, description="K latents per image: multi-sample ELBO, or IWAE_K.")

    @property
    def needs_mean(self) -> bool:
        """Whether the loss is made of `log_likelihood_at_mean`."""
        return self.kind == "autoencoder"

    @model_validator(mode="after")
    def _makes_sense(self) -> Self:
        if self.kind not in ("beta", "free_bits") and (self.beta != 1 or self.warmup != "none"):
            raise ValueError(f"beta and its warm-up mean nothing for {self.kind}: leave them out")
        for name, kind in (("free_nats", "free_bits"), ("target_bits_per_dim", "geco")):
            if (getattr(self, name) is not None) != (self.kind == kind):
                raise ValueError(f"{name} belongs to kind {kind}: give both or neither")
        if (self.warmup_steps is not None) != (self.warmup != "none"):
            raise ValueError(
                "warmup_steps belongs to warmup linear or cyclical: give both or neither"
            )
        if self.kind == "iwae" and self.samples == 1:
            raise ValueError("iwae needs samples of 2 or more: with 1 it is the ELBO, kind beta")
        if self.kind == "autoencoder" and self.samples > 1:
            raise ValueError("autoencoder draws nothing: leave samples out")
        return self


class OptimizerConfig(Section):
    """AdamW and what surrounds it."""

    learning_rate: float = Field(1e-3, gt=0, description="Peak step size.")
    weight_decay: float = Field(0.0, ge=0, description="Decoupled weight decay.")
    warmup_steps: int = Field(50, ge=0, description="Steps of linear warm-up from 0.")
    schedule: Literal["constant", "cosine"] = Field("cosine", description="After the warm-up.")
    clip_norm: float = Field(100.0, gt=0, description="Largest gradient norm; above, it is scaled.")
    ema_decay: float = Field(
        0.999, ge=0, lt=1, description="Decay of the weights' average; 0: none."
    )


class LoaderConfig(Section):
    """Reading and decoding."""

    threads: int | None = Field(
        None, gt=0, description="Decoding threads of one rank; None: the cores this rank may use."
    )
    prefetch_batches: int = Field(4, gt=0, description="Decoded batches kept ready per rank.")
    memory_bytes: int = Field(
        512 * 2**20, gt=0, description="Limit on encoded bytes kept open by one rank."
    )
    bad_fraction: float = Field(
        0.001, ge=0, le=1, description="Largest share of bad samples before the run stops."
    )


class TrackingConfig(Section):
    """MLflow and Prometheus."""

    mlflow_uri: str | None = Field(
        None,
        description="MLflow's tracking URI; None: MLFLOW_TRACKING_URI, else sqlite under ./runs.",
    )
    experiment: str = Field("vae", description="MLflow experiment.")
    model_name: str = Field("vae", description="Name in MLflow's model registry.")
    alias: str = Field("candidate", description="Alias that the newly registered version gets.")
    every_steps: int = Field(10, gt=0, description="Steps between two points in MLflow.")
    metrics_host: str = Field("127.0.0.1", description="Address that /metrics is served on.")
    metrics_port: int = Field(0, ge=0, lt=65536, description="Port of /metrics; 0: a free one.")


class PackConfig(Section):
    """`jobs.pack`: folders, tars and zips of images become a sharded dataset."""

    source: tuple[Url, ...] = Field(
        (), description="Folders, tar or zip archives, globs, object-storage prefixes."
    )
    output: Url = Field(description="Where the dataset goes.")
    append: bool = Field(False, description="Add what an existing dataset has not seen yet.")
    remove: tuple[str, ...] = Field((), description="Keys to remove (with --append).")
    shard_bytes: int = Field(256 * 2**20, ge=4096, description="Target size of a shard, in bytes.")
    holdout: float = Field(
        0.0, ge=0, lt=1, description="Share split off by content hash into OUTPUT/holdout."
    )
    verify: Literal["full", "header"] = Field("full", description="How each image is checked.")
    annotations: Url | None = Field(
        None, description="Labels and captions by path: a .csv, .tsv, .jsonl or .parquet table."
    )
    encoding: Literal["keep", "jpeg", "webp"] = Field(
        "keep", description="keep: the original bytes; else each image is encoded anew."
    )
    quality: int = Field(90, ge=1, le=100, description="Quality of the new encoding.")
    short_side: int | None = Field(
        None, gt=0, description="Shorter side after encoding anew, in pixels; None: as it is."
    )
    min_side: int = Field(1, gt=0, description="Images with a shorter side are rejected, pixels.")
    pixel_limit: int = Field(
        89_478_485, gt=0, description="Images of more pixels are rejected as bombs."
    )
    checksum: bool = Field(
        False, description="With --append: compare contents, not sizes and tags of files."
    )
    limit: int | None = Field(None, gt=0, description="Pack that many inputs at most; None: all.")
    dry_run: bool = Field(False, description="Say how many, how large and how long, and end.")
    probe_seconds: float = Field(5, gt=0, description="How long --dry-run inspects, in seconds.")
    workers: int | None = Field(None, gt=0, description="Processes; None: one per core.")
    bad_fraction: float = Field(
        0.01, ge=0, le=1, description="Largest share of rejected inputs that still exits with 0."
    )
    quarantine_exit: int = Field(3, description="Exit code when the rejected exceed the budget.")

    @model_validator(mode="after")
    def _makes_sense(self) -> Self:
        if not self.source and not self.remove:
            raise ValueError("give --source URL (or --remove KEYS)")
        if self.short_side is not None and self.encoding == "keep":
            raise ValueError("short_side needs --encoding jpeg or webp: kept bytes keep their size")
        return self


class IndexConfig(Section):
    """`jobs.index`: adopt existing WebDataset tars in place, without copying them."""

    source: tuple[Url, ...] = Field(
        min_length=1, description="Tars, or folders and prefixes of tars; braces {000..009} too."
    )
    output: Url = Field(description="Where manifest and indexes go.")
    verify: Literal["full", "header", "none"] = Field(
        "header", description="How each image is checked: decoded, by its header, or not."
    )
    workers: int | None = Field(None, gt=0, description="Threads; None: one per core.")
    bad_fraction: float = Field(
        0.01, ge=0, le=1, description="Largest share of rejected samples that still exits with 0."
    )
    quarantine_exit: int = Field(3, description="Exit code when the rejected exceed the budget.")


class TrainConfig(Section):
    """`jobs.train`: train a VAE on a dataset, track it, register it; run again, it continues."""

    data: Url = Field(
        description="The dataset, as packed by jobs.pack (its train split, if split)."
    )
    run: str = Field(
        pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$",
        description="A stable name: starting it again continues the run.",
    )
    storage: Url = Field("./runs", description="Where runs and their checkpoints live.")
    steps: int = Field(
        1000, gt=0, description="Optimiser steps in all; more continue a finished run."
    )
    global_batch_size: int = Field(256, gt=0, description="Images per step over all workers.")
    image_size: int = Field(32, gt=0, description="Height and width of the images, in pixels.")
    channels: Literal[1, 3] = Field(3, description="1 for grey images, 3 for RGB.")
    crop: Crop = Field("center", description="How a rectangle becomes a square.")
    flip: bool = Field(False, description="Mirror every second image, by seed.")
    tail: Tail = Field("pad", description="What happens to an epoch's last, incomplete batch.")
    workers: int = Field(1, ge=0, description="Ray Train workers; 0: this process (or torchrun's).")
    seed: int = Field(0, ge=0, description="Seed of the order, the initial weights and the noise.")
    precision: Literal["auto", "bf16", "fp32"] = Field(
        "auto", description="Autocast type; auto: bf16 where the hardware has it, else fp32."
    )
    checkpoint_every: int = Field(500, gt=0, description="Steps between checkpoints.")
    keep_checkpoints: int = Field(3, gt=0, description="Newest checkpoints that are kept.")
    holdout: Url | None = Field(
        None, description="Held-out dataset; None: the `holdout` beside DATA when there is one."
    )
    evaluate_every: int = Field(500, gt=0, description="Steps between evaluations on the hold-out.")
    max_failures: int = Field(
        3, ge=0, description="Times that Ray replaces dead workers before the run fails."
    )
    model: ModelConfig = ModelConfig()
    objective: ObjectiveConfig = ObjectiveConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    loader: LoaderConfig = LoaderConfig()
    tracking: TrackingConfig = TrackingConfig()

    @property
    def preprocess(self) -> PreprocessConfig:
        """The model's preprocessing."""
        return PreprocessConfig(image_size=self.image_size, channels=self.channels, crop=self.crop)


class EvaluateConfig(Section):
    """`jobs.evaluate`: exact held-out numbers and pictures of a model."""

    model: str = Field(description="models:/NAME@ALIAS, models:/NAME/VERSION or a bundle's path.")
    data: Url = Field(description="The dataset, usually the hold-out.")
    output: Url | None = Field(None, description="Folder for report and pictures; None: none.")
    importance_samples: int = Field(64, gt=0, description="K of the IWAE_K bound.")
    batch_size: int = Field(100, gt=0, description="Images per batch, over all workers.")
    seed: int = Field(0, ge=0, description="Seed of the noise.")
    workers: int = Field(0, ge=0, description="Ray tasks that share the images; 0: this process.")
    compare: tuple[str, ...] = Field((), description="More models, set beside it image by image.")
    split_images: int = Field(
        64, ge=0, le=256, description="First images whose posterior gap is split in two; 0: none."
    )
    latents: int = Field(
        10_000, gt=0, description="First images whose posteriors are kept for latent statistics."
    )
    tracking: TrackingConfig = TrackingConfig()


class ExplainConfig(Section):
    """`jobs.explain`: what each number means, with this run's own figures."""

    run: str | None = Field(None, description="A finished run's name.")
    storage: Url = Field("./runs", description="Where runs live (with --run).")
    model: str | None = Field(
        None, description="Instead of a run: models:/NAME@ALIAS, models:/NAME/VERSION or a bundle."
    )
    data: Url | None = Field(None, description="Images to measure on; None: the run's hold-out.")
    output: Url | None = Field(None, description="Folder for page and pictures; None: none.")
    importance_samples: int = Field(64, gt=0, description="K of the IWAE_K bound.")
    seed: int = Field(0, ge=0, description="Seed of the noise.")
    beta: float | None = Field(
        None, ge=0, description="Weight of the KL in training; None: the run's, 1 for a model."
    )
    my_elbo: float | None = Field(None, description="An ELBO you got elsewhere, nats per image.")
    my_kl: float | None = Field(None, description="A KL you got elsewhere, nats per image.")
    my_log_likelihood: float | None = Field(
        None, description="An E log p(x|z) you got elsewhere, nats per image."
    )
    tracking: TrackingConfig = TrackingConfig()

    @model_validator(mode="after")
    def _run_or_model(self) -> Self:
        if (self.run is None) == (self.model is None):
            raise ValueError("give --run NAME, or --model URI with --data URL, and not both")
        return self


class EncodeConfig(Section):
    """`jobs.encode`: a dataset becomes a latent store, exactly once."""

    model: str = Field(description="models:/NAME@ALIAS, models:/NAME/VERSION or a bundle's path.")
    data: Url = Field(description="The dataset to encode.")
    output: Url = Field(description="Where the latent store lives.")
    actors: int = Field(1, ge=0, description="Ray actors; 0: encode in this process.")
    cores: float = Field(1, gt=0, description="CPU cores that one actor asks Ray for.")
    gpus: float | None = Field(
        None, ge=0, description="GPUs per actor; None: 1 where the cluster has any, else 0."
    )
    shards_in_flight: int | None = Field(
        None,
        gt=0,
        description="Shards that one actor works on at a time; None: its cores + 1, at most 8.",
    )
    threads: int = Field(1, gt=0, description="Decoding threads per shard in flight.")
    batch_size: int = Field(64, gt=0, description="Images per batch; part of the store's identity.")
    dtype: Literal["float16", "float32"] = Field("float16", description="Type of stored latents.")
    content: Literal["moments", "mean", "sample"] = Field(
        "moments", description="Mean and log-variance, the mean alone, or one draw per image."
    )
    seed: int = Field(0, ge=0, description="Seed of `--content sample`; part of the identity.")
    flip: bool = Field(False, description="Store the mirrored images' latents as well.")
    columns: tuple[str, ...] = Field((), description="Source columns to copy, such as label.")
    precision: Literal["auto", "bf16", "fp32"] = Field("auto", description="Autocast type.")
    attempts: int = Field(3, gt=0, description="Tries per shard before it is quarantined.")
    bad_fraction: float = Field(0.001, ge=0, le=1, description="Largest share of failed images.")
    quarantine_exit: int = Field(3, description="Exit code when parts failed past the budget.")
    limit: int | None = Field(
        None, gt=0, description="Encode the first shards that hold this many images; None: all."
    )
    dry_run: bool = Field(False, description="Probe for `probe_seconds`, say the cost, and end.")
    probe_seconds: float = Field(30, gt=0, description="How long --dry-run encodes, in seconds.")
    report_samples: int = Field(
        64, ge=0, description="Images decoded again for the report's PSNR; 0: none."
    )
    tracking: TrackingConfig = TrackingConfig()


class DecodeConfig(Section):
    """`jobs.decode`: latents back to images, all or some, between two or along a direction."""

    store: Url = Field(description="The latent store.")
    output: Url = Field(description="A folder for the images.")
    model: str | None = Field(None, description="The model; None: the one the store names.")
    keys: tuple[str, ...] = Field((), description="Keys to decode; none: all, in store order.")
    limit: int | None = Field(None, gt=0, description="Decode the first so many; None: all.")
    interpolate: bool = Field(False, description="Between the two keys given, in `steps` images.")
    direction: tuple[str, ...] = Field(
        (), description="Two keys: each of `keys` moves along the second's mean minus the first's."
    )
    steps: int = Field(8, ge=2, description="Images from one end to the other.")
    sheet: bool = Field(False, description="One contact sheet in place of single PNG files.")
    sample: bool = Field(False, description="Decode draws from the posterior, not its mean.")
    seed: int = Field(0, ge=0, description="Seed of the draws.")
    batch_size: int = Field(64, gt=0, description="Latents per batch.")
    tracking: TrackingConfig = TrackingConfig()

    @model_validator(mode="after")
    def _keys_fit(self) -> Self:
        if self.interpolate and (len(self.keys) != 2 or self.direction):
            raise ValueError("--interpolate goes between exactly two --keys, without --direction")
        if self.direction and (len(self.direction) != 2 or not self.keys):
            raise ValueError("--direction takes two keys, and --keys say what moves along it")
        return self


class ExportConfig(Section):
    """`jobs.export`: a latent store as WebDataset tars, byte for byte reproducible."""

    store: Url = Field(description="The latent store.")
    output: Url = Field(description="Where the tars go; a new, empty or unfinished export.")
    layout: Literal["npy", "safetensors"] = Field(
        "npy", description="KEY.mean.npy and KEY.logvar.npy, or one KEY.safetensors, per image."
    )


class StoresConfig(Section):
    """`jobs.stores`: list what a latent store holds, and remove what no snapshot names."""

    output: Url = Field(description="The latent store, as given to jobs.encode.")
    gc: bool = Field(False, description="List what no snapshot names, with a token to confirm.")
    drop: tuple[str, ...] = Field(
        (), description="Identities or snapshots (their first digits) to give up, with --gc."
    )
    confirm: str | None = Field(
        None, description="The token of a dry run: delete just what it listed."
    )


class VerifyConfig(Section):
    """`jobs.verify`: prove a dataset or a latent store whole."""

    dataset: Url | None = Field(None, description="A dataset's URL.")
    store: Url | None = Field(None, description="A latent store's URL.")

    @model_validator(mode="after")
    def _one_of_both(self) -> Self:
        if (self.dataset is None) == (self.store is None):
            raise ValueError("give --dataset URL or --store URL, and not both")
        return self


class PullConfig(Section):
    """`jobs.pull`: a registered model's bundle to disk, checksums verified."""

    model: str = Field(description="models:/NAME@ALIAS or models:/NAME/VERSION.")
    output: Url = Field(description="A local folder that is new, empty or holds the same bundle.")
    tracking: TrackingConfig = TrackingConfig()


class DemoConfig(Section):
    """`jobs.demo`: the whole way, on handwritten digits or on a folder of your own."""

    images: str | None = Field(None, description="A folder tree of images; None: digits.")
    steps: int = Field(400, gt=0, description="Training steps.")
    workers: int = Field(2, ge=1, description="Ray Train workers and encoding actors.")
