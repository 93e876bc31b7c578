"""Groups of knobs that several jobs share: preprocessing, loader, tracking."""

import inspect
import re
import shlex
import textwrap
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    field_validator,
    model_validator,
)
from pydantic.fields import FieldInfo

from pipeline.masking import secret_in, shell_word

_MOST = 2**63
"""Beyond it a number fits no machine's word, and no knob means it."""


def _told(name: str, info: FieldInfo) -> str:
    """A key as a docstring has it: its name, what it is, and its default."""
    kind = info.annotation
    if isinstance(kind, type) and issubclass(kind, Section):
        said = f"a dictionary of {kind.__name__}'s keys."
    else:
        default = "Required." if info.is_required() else f"Default: {info.default!r}."
        said = f"{info.description or ''} {default}".lstrip()
    return textwrap.fill(f"{name}: {said}", 88, initial_indent="  ", subsequent_indent="      ")


class Section(BaseModel):
    """A frozen group of knobs; an unknown key is an error, and so is a secret in a URL.

    A config is written down: in the run's folder, MLflow, Ray's list of jobs, the process table.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    first: ClassVar[tuple[str, ...]] = ()
    """The keys that people use first: `--help` shows them above the others. Empty: all."""
    interrupted: ClassVar[str] = "run the same command again."
    """What is kept of a job that a signal ends, and how it goes on."""
    is_look: ClassVar[bool] = False
    """Whether somebody waits for the job at a terminal: then what it waits for is told soon."""

    @classmethod
    def __pydantic_init_subclass__(cls, **_: Any) -> None:
        """For `help()` each key stands in the docstring, as `--help` of a job has it."""
        said = inspect.cleandoc(cls.__doc__ or "")
        keys = [_told(name, info) for name, info in cls.model_fields.items()]
        cls.__doc__ = "\n".join([said, "", "Keys:", *keys])

    @field_validator("*")
    @classmethod
    def _holds_no_secret(cls, value: Any) -> Any:
        for word in value if isinstance(value, tuple) else (value,):
            if isinstance(word, int) and abs(word) >= _MOST:
                raise ValueError("the number is too large for anything")
            if isinstance(word, str) and (found := secret_in(word)) is not None:
                raise ValueError(
                    f"the URL holds {found}, and configs are written down in many places. Take it "
                    "out: secrets come from the environment (AWS_ACCESS_KEY_ID, "
                    "MLFLOW_TRACKING_URI, MLFLOW_TRACKING_PASSWORD ...)"
                )
        return value


Url = Annotated[str, Field(min_length=1)]
"""A local path or any fsspec URL, such as `s3://bucket/prefix`."""

Crop = Literal["center", "random", "pad", "stretch"]
Resize = Literal["bilinear", "bicubic"]
Tail = Literal["pad", "drop", "wrap"]
AllowCustom = Annotated[
    tuple[str, ...],
    Field(
        description="Classes of your own that a model may be built with, as package.module:Class: "
        "no other is imported, whatever a bundle says."
    ),
]
ShardsBelow = Annotated[
    tuple[Url, ...],
    Field(
        description="Where the shards of adopted datasets may lie (jobs.index): nothing is read "
        "from anywhere else, whatever a dataset says."
    ),
]


Pushgateway = Annotated[
    str | None,
    Field(
        pattern=r"^https?://[^/]",
        description="http://HOST:9091 of a Prometheus Pushgateway, which hears how encodings end.",
    ),
]

# What several jobs are asked for in the same words.
A_DATASET = "A dataset, as jobs.pack or jobs.index made it."
A_STORE = "A latent store."
A_RUN = "A run's name below --storage."
MODEL_OF_STORE = "Where the store's model is; None: where it was when it encoded."
SIZE = "Which images' size, of a store that has several; None: its only one."
NAMED_MODEL = "models:/NAME@ALIAS, models:/NAME/VERSION, a bundle's path or a finished run."
LIMIT = "Only the first images, this many (jobs.encode: whole shards); None: all."
DRY_RUN = "Say images, bytes and time, from a short probe; write nothing."
REFUSED = "Largest share of refused images that exits with 0; beyond it 3. 1: always 0."
PRECISION = "Type of the network's arithmetic; auto: bf16 where the hardware has it, else fp32."
SEED = (
    "Seed of all that is drawn: a training's order, first weights and noise, a measurement's "
    "noise, a store's draws (part of its identity)."
)
KEYS = "Also list the images: key and path."
A_FOLDER_OF_PICTURES = "Folder for the pictures, and a page where there is one; None: none."
DELETE = "Remove it; without this it is said what would go, and nothing is changed."
ERASE = "Images, by key or path, to take out for good: all bytes and latents of theirs."
A_NEW_FOLDER = "A folder that is new, empty or holds the same already."
CHECK = "How each image is checked: decoded, or by its header."


class PreprocessConfig(Section):
    """How image bytes become a `[C, image_size, image_size]` uint8 tensor; belongs to the model."""

    image_size: int = Field(
        32, gt=0, le=2**16, description="Height and width of the images, in pixels."
    )
    channels: Literal[1, 3] = Field(3, description="1 for grey images, 3 for RGB.")
    crop: Crop = Field("center", description="How a rectangle becomes a square.")
    resize: Resize = Field("bilinear", description="Filter of the resizing, antialiased.")

    def held_out(self) -> "PreprocessConfig":
        """How images that are judged are read: as they are, also where training crops at random."""
        return self.model_copy(update={"crop": "center"}) if self.crop == "random" else self

    @property
    def preprocess(self) -> "PreprocessConfig":
        """These keys alone, of a job that has others too."""
        return PreprocessConfig(
            image_size=self.image_size, channels=self.channels, crop=self.crop, resize=self.resize
        )


class StorageConfig(Section):
    """Where a job finds runs by their names."""

    storage: Url = Field("./runs", description="Where runs and their checkpoints live.")

    @property
    def storage_flag(self) -> str:
        """What a command that is printed has behind a run's name, to find it in the same place."""
        default = StorageConfig.model_fields["storage"].default
        return "" if self.storage == default else f" --storage {shlex.quote(self.storage)}"


class BudgetConfig(Section):
    """How much may be refused before a job counts as failed."""

    bad_fraction: float = Field(0.01, ge=0, le=1, description=REFUSED)


class PortionConfig(BudgetConfig):
    """What packing and encoding share: how much of the input they take."""

    limit: int | None = Field(None, gt=0, description=LIMIT)
    dry_run: bool = Field(False, description=DRY_RUN)


class MeasurementConfig(StorageConfig):
    """What measuring a model takes."""

    output: Url | None = Field(None, description=A_FOLDER_OF_PICTURES)
    importance_samples: int = Field(64, gt=0, description="K of the IWAE_K bound.")
    seed: int = Field(0, ge=0, description=SEED)


class LoaderConfig(Section):
    """Reading and decoding."""

    threads: int | None = Field(
        None, gt=0, description="Decoding threads of one rank; None: the cores this rank may use."
    )
    memory_bytes: int = Field(
        512 * 2**20, gt=0, description="Limit on encoded bytes kept open by one rank."
    )
    bad_fraction: float = Field(
        0.001, ge=0, le=1, description="Largest share of bad samples before the run stops."
    )
    cache_folder: str | None = Field(
        None, description="Local folder that keeps what was fetched, for the next epochs."
    )
    # 40 GiB: below the 50 GiB of disk that k8s/base/train.yaml gives a pod, which may not use more.
    cache_bytes: int = Field(40 * 2**30, gt=0, description="Limit on the chunks kept there.")
    cache_decoded: bool = Field(
        False, description="Keep decoded images there too (uncompressed; not with random crops)."
    )


_NAME_AND_ALIAS = r"^[^@/:\s]+(@[^@/:\s]+)?$"


def registrable(text: str) -> str:
    """MLflow refuses other names and aliases, but only when training is over."""
    name, at, alias = text.partition("@")
    if re.fullmatch(_NAME_AND_ALIAS, text) is None:
        raise ValueError("give NAME or NAME@ALIAS, without spaces, / and :")
    if name in (".", "..") or (at and not re.fullmatch(r"[\w-]{1,255}", alias)):
        raise ValueError(
            "an alias holds letters, digits, _ and - alone, and a name is not . or .., as MLflow "
            "wants it"
        )
    if alias.lower() == "latest" or re.fullmatch(r"[vV]\d+", alias):
        raise ValueError(f"MLflow keeps the alias {alias} for itself; give another one")
    if alias == "champion":
        raise ValueError(
            "the champion is whoever beats it: register under another alias or none, and then "
            f"`python -m jobs.models --promote {shell_word(f'models:/{name}/VERSION')}`"
        )
    return text


ModelAlias = Annotated[str, Field(pattern=_NAME_AND_ALIAS), AfterValidator(registrable)]
"""A name in MLflow's model registry, and an alias that is to move: NAME or NAME@ALIAS."""


class MetricsConfig(Section):
    """What Prometheus reads while a job lasts."""

    metrics: str = Field(
        "127.0.0.1:0",
        description="HOST:PORT that /metrics is served on; port 0: a free one.",
    )

    @property
    def metrics_host(self) -> str:
        """The address that is listened on."""
        return self.metrics.rpartition(":")[0]

    @property
    def metrics_port(self) -> int:
        """The port; 0: a free one."""
        return int(self.metrics.rpartition(":")[2])

    @model_validator(mode="after")
    def _is_a_port(self) -> Self:
        host, _, port = self.metrics.rpartition(":")
        is_port = re.fullmatch(r"\d{1,5}", port) is not None and int(port) <= 65535
        if host and not re.search(r"\s", host) and is_port:
            return self
        likely = port if re.fullmatch(r"\d{1,4}", port) else "0"
        raise ValueError(
            f"metrics {self.metrics}: is no HOST:PORT with a port from 0 to 65535; give "
            f"`--tracking.metrics 127.0.0.1:{likely}`"
        )


class TrackingConfig(MetricsConfig):
    """What a training leaves in MLflow. Where MLflow is says MLFLOW_TRACKING_URI, for every job."""

    experiment: str = Field("vae", description="MLflow experiment.")
    model: ModelAlias | None = Field(
        None,
        description="Name in MLflow's registry; None: the run's. The alias candidate moves to a "
        "better version on equal terms; with NAME@ALIAS that alias moves whatever it meant.",
    )
    every_steps: int = Field(10, gt=0, description="Steps between two points in MLflow.")
    register_every: int | None = Field(
        None,
        gt=0,
        description="Steps between checkpoints that are registered as versions of their own; None: "
        "the end only.",
    )

    def registered_as(self, run: str) -> tuple[str, str | None]:
        """The name of a run's model in MLflow's registry, and the alias that was asked for."""
        name, _, alias = (self.model or run).partition("@")
        return name, alias or None


class EncodingTrackingConfig(MetricsConfig):
    """What an encoding tells Prometheus."""

    pushgateway: Pushgateway = None
    expected_hours: float | None = Field(
        None,
        gt=0,
        description="An alert calls the store overdue when no encoding has left it whole for so "
        "long; None: never.",
    )
