"""Autoencoders of single images that the library `diffusers` has, run by that library itself.

Nothing of it is copied: a config names one of `CLASSES`, the library builds it, encodes and
decodes. Its version is no part of a model's digest: two versions may round otherwise.
"""

from typing import Any

import torch
from pydantic import TypeAdapter
from torch import Tensor, nn

from pipeline import storage
from pipeline.config.import_path import told
from pipeline.errors import ModelError, StorageError, is_shortage
from pipeline.json_value import Json
from pipeline.latent_scale import LatentScale
from pipeline.vae.networks import Network, NetworkShape
from pipeline.vae.posterior import LOG_VARIANCE_RANGE

CLASSES = (
    "AsymmetricAutoencoderKL",
    "AutoencoderDC",
    "AutoencoderKLFlux2",
    "AutoencoderKLHunyuanImage",
    "AutoencoderTiny",
    "VQModel",
)
"""Of images alone, one latent grid for each, nothing random in either direction."""
_SCALE = ("scaling_factor", "shift_factor", "latents_mean", "latents_std", "force_upcast")


class LibraryNetwork(Network):
    """One of `CLASSES`, from its config.json as text; `has_posterior`: or a mean alone."""

    def __init__(self, shape: NetworkShape, text: str) -> None:
        super().__init__()
        self.config = parse_library_config(text, "--model.library")
        if shape.num_parameters != shape.channels:
            raise ModelError(
                f"{self.config['_class_name']} gives one value per pixel: give `--model.likelihood "
                "gaussian`."
            )
        self.model: Any = _build(self.config)
        size = shape.image_size
        try:
            mean, log_variance = self._moments(next(self.model.parameters()), shape.channels, size)
        except Exception as error:  # The library raises what it likes for a config without sense.
            if is_shortage(error):
                raise
            raise ModelError(
                f"{self.config['_class_name']}: failed on a black image of {size} pixels: "
                f"{told(error)}"
            ) from error
        self.latent_shape = (mean.shape[1], mean.shape[2], mean.shape[3])
        self.has_posterior = log_variance is not None

    def encode(self, images: Tensor) -> Tensor:
        """See `Network`; without a posterior the log-variances are the least there are."""
        mean, log_variance = _halves(self.model.encode(images))
        if log_variance is None:
            log_variance = torch.full_like(mean, LOG_VARIANCE_RANGE[0])
        return torch.cat([mean, log_variance], dim=1)

    def decode(self, latents: Tensor) -> Tensor:
        """See `Network`."""
        found: Tensor = self.model.decode(latents).sample
        return found

    def start_at(self, parameters: Tensor) -> None:
        """Leaves it as the library made it."""

    @property
    def scale(self) -> LatentScale:
        """What the config says of the latents, defaults of its class among it."""
        given = {name: self.model.config.get(name) for name in _SCALE}
        return TypeAdapter(LatentScale).validate_python(given)

    @torch.no_grad()
    def _moments(self, like: Tensor, channels: int, size: int) -> tuple[Tensor, Tensor | None]:
        training = self.model.training
        self.model.eval()
        mean, log_variance = _halves(self.model.encode(like.new_zeros(1, channels, size, size)))
        decoded = self.model.decode(mean).sample
        self.model.train(training)
        if mean.dim() != 4 or decoded.shape != (1, channels, size, size):
            raise ValueError(f"latents {tuple(mean.shape)} decode to {tuple(decoded.shape)}")
        return mean, log_variance


def parse_library_config(text: str, where: str) -> Json:
    """A config as its class takes it, and `_class_name`; `ModelError` for a class not known."""
    try:
        config = storage.parse_json(text.encode(), where)
    except StorageError as error:
        raise ModelError(str(error)) from None
    name = config.get("_class_name") if isinstance(config, dict) else None
    if name not in CLASSES:
        raise ModelError(
            f"{where}: names the class {name!r}; through diffusers itself can be had "
            f"{', '.join(CLASSES)}."
        )
    plain = {key: value for key, value in config.items() if not key.startswith("_")}
    _check_sizes(plain, str(name), where)
    return {"_class_name": name, **plain}


_MOST_WHOLE, _MOST_LISTED, _MOST_LAYERS = 2**20, 100, 1000
"""Of a whole number; of a list; of layers in all blocks together. No autoencoder comes near."""


def _check_sizes(config: Json, name: str, where: str) -> None:
    """Raises `ModelError` for a config of a network so large that it takes long to be refused.

    The library makes each layer one after the other, before its weights can be compared.
    """
    values, blocks = list(config.values()), 1
    while values:
        value = values.pop()
        if isinstance(value, list):
            blocks = max(blocks, len(value))
            values += value if len(value) <= _MOST_LISTED else [_MOST_WHOLE + 1]
        elif isinstance(value, dict):
            values += value.values()
        elif isinstance(value, int | float) and not abs(value) <= _MOST_WHOLE:
            raise ModelError(
                f"{where}: {name} of sizes that no network of images has (a number over "
                f"{_MOST_WHOLE:,}, or a list of more than {_MOST_LISTED})."
            )
    layers = 0
    for key, value in config.items():
        if "layers" in key or key.endswith("_blocks"):
            each = [value] if isinstance(value, int) else value if isinstance(value, list) else []
            numbers = [number for number in each if isinstance(number, int)]
            layers += sum(numbers) * (blocks if isinstance(value, int) else 1)
    if layers > _MOST_LAYERS:
        raise ModelError(f"{where}: {name} of {layers:,} layers, over {_MOST_LAYERS:,}.")


def _build(config: Json) -> nn.Module:
    name = config["_class_name"]
    try:
        import diffusers
    except ImportError:
        raise ModelError(
            f"{name} is encoded and decoded by the library diffusers, which is not installed: "
            "install this package with its extra `interop`."
        ) from None
    try:
        made_by = getattr(diffusers, str(name))
        model: Any = made_by.from_config({k: v for k, v in config.items() if k != "_class_name"})
    except Exception as error:  # As above.
        if is_shortage(error):
            raise
        raise ModelError(
            f"{name}: diffusers can't build it of its config: {told(error)}"
        ) from error
    built: nn.Module = model
    return built


def _halves(found: Any) -> tuple[Tensor, Tensor | None]:
    """Mean and log-variance of what a class's `encode` gives; None where it has no posterior."""
    if hasattr(found, "latent_dist"):
        return found.latent_dist.mean, found.latent_dist.logvar
    return (found.latents if hasattr(found, "latents") else found.latent), None
