"""What decides the bytes of a latent store: weights, preprocessing, precision and options."""

import hashlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

from pydantic import TypeAdapter

from pipeline import storage
from pipeline.errors import ConfigError
from pipeline.json_value import Json

Content = Literal["moments", "mean", "sample"]
Precision = Literal["bf16", "fp32"]
StoredType = Literal["float16", "float32"]

RESERVED_COLUMNS = ("key", "position", "mean", "logvar", "sample")
_FORMAT_VERSION = 1


@dataclass(frozen=True)
class EncodeOptions:
    """Everything about an encoding, apart from the model, that changes a stored byte.

    `content`: mean and log-variance, the mean alone, or one draw per image with `seed`. `flip` adds
    the mirrored image's latents as columns of their own. `batch_size` counts: a convolution's
    rounding depends on the batch's shape. `columns` are copied from the source samples.
    """

    precision: Precision
    batch_size: int = 64
    dtype: StoredType = "float16"
    content: Content = "moments"
    seed: int = 0
    flip: bool = False
    columns: tuple[str, ...] = ()
    kinds: tuple[str, ...] = ()
    """Of each column, as `pipeline.data.column_types` names them; none: all of them are text."""

    def __post_init__(self) -> None:
        for name in self.columns:
            if name.removesuffix("_flipped") in RESERVED_COLUMNS:
                raise ConfigError(
                    f"columns: {name!r} is the name of one of the store's own columns "
                    f"({', '.join(RESERVED_COLUMNS)}). Rename it in the source, or leave it out."
                )

    @property
    def column_kinds(self) -> dict[str, str]:
        """The kind of each column, by name, in the file's order."""
        kinds = self.kinds or ("",) * len(self.columns)
        return dict(zip(self.columns, kinds, strict=True))

    @property
    def tensors(self) -> tuple[str, ...]:
        """The names of the tensor columns, in the file's order."""
        names = {"moments": ("mean", "logvar"), "mean": ("mean",), "sample": ("sample",)}
        plain = names[self.content]
        return plain + tuple(f"{name}_flipped" for name in plain) if self.flip else plain


@dataclass(frozen=True)
class Identity:
    """Two stores with the same identity hold the same numbers; anything else never mixes."""

    model_digest: str
    preprocess_digest: str
    latent_shape: tuple[int, int, int]
    options: EncodeOptions

    @property
    def digest(self) -> str:
        """32 hexadecimal digits."""
        return hashlib.sha256(storage.canonical_json(self.to_json())).hexdigest()[:32]

    def to_json(self) -> Json:
        """A JSON-able dictionary of every field that counts."""
        options = asdict(self.options)
        options["columns"] = list(self.options.columns)
        options["kinds"] = list(self.options.kinds)
        if not set(self.options.kinds) - {"", "string"}:
            del options["kinds"]  # text is what columns are when nothing is said
        # A seed that nothing draws with must not split stores that are equal.
        options["seed"] = self.options.seed if self.options.content == "sample" else None
        return {
            "version": _FORMAT_VERSION,
            "model_digest": self.model_digest,
            "preprocess_digest": self.preprocess_digest,
            "latent_shape": list(self.latent_shape),
            "options": options,
        }

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> "Identity":
        """The inverse of `to_json`; raises `ValueError` for anything else."""
        options = dict(value["options"])
        options["seed"] = options["seed"] or 0
        options.setdefault("kinds", ())
        found = TypeAdapter(cls).validate_python({**value, "options": options})
        if min(found.latent_shape) < 1 or found.options.batch_size < 1:
            raise ValueError(f"latents of the shape {found.latent_shape}")
        return found
