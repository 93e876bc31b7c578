"""The config.json of diffusers' AutoencoderKL, as a record, and what it is in our own words.

Of its other classes of images no word is read here but the size: diffusers builds them itself.
"""

import json
import logging
from dataclasses import dataclass, fields
from typing import Literal

from pydantic import TypeAdapter, ValidationError

from pipeline import storage
from pipeline.config import ModelConfig, PreprocessConfig
from pipeline.errors import ModelError, first_refusal
from pipeline.json_value import Json
from pipeline.latent_scale import LatentScale
from pipeline.vae.autoencoder_kl import MID, AutoencoderKL
from pipeline.vae.library_network import LibraryNetwork, parse_library_config
from pipeline.vae.vae import VAE

CLASS_NAME = "AutoencoderKL"

_LOG = logging.getLogger(__name__)
_PLAIN_DOWN, _ATTENTION_DOWN = "DownEncoderBlock2D", "AttnDownEncoderBlock2D"
_PLAIN_UP, _ATTENTION_UP = "UpDecoderBlock2D", "AttnUpDecoderBlock2D"


@dataclass(frozen=True)
class KlConfig:
    """Every argument of diffusers' AutoencoderKL, with its defaults; None as there."""

    in_channels: int = 3
    out_channels: int = 3
    down_block_types: tuple[str, ...] = (_PLAIN_DOWN,)
    up_block_types: tuple[str, ...] = (_PLAIN_UP,)
    block_out_channels: tuple[int, ...] = (64,)
    layers_per_block: int = 1
    act_fn: str = "silu"
    latent_channels: int = 4
    norm_num_groups: int = 32
    sample_size: int | tuple[int, ...] = 32
    scaling_factor: float = 0.18215
    shift_factor: float | None = None
    latents_mean: tuple[float, ...] | None = None
    latents_std: tuple[float, ...] | None = None
    force_upcast: bool = True
    use_quant_conv: bool = True
    use_post_quant_conv: bool = True
    mid_block_add_attention: bool = True

    @property
    def scale(self) -> LatentScale:
        """What it says of the latents."""
        return LatentScale(**{f.name: getattr(self, f.name) for f in fields(LatentScale)})

    @property
    def image_size(self) -> int:
        """Pixels of a side: of a rectangle, the shorter one."""
        return self.sample_size if isinstance(self.sample_size, int) else min(self.sample_size)

    def model(self, where: str, sigma: float) -> ModelConfig:
        """The network in our words, with a Gaussian likelihood that starts at `sigma`.

        Raises `ModelError` naming everything that makes it no autoencoder of images.
        """
        if wrong := self._wrong():
            raise ModelError(
                f"{where}: this {CLASS_NAME} can't be built here: {'; '.join(wrong)}. Everything "
                "else that diffusers' own class builds can."
            )
        convs = {
            (True, True): "both", (True, False): "quant", (False, True): "post_quant",
            (False, False): "none",
        }  # fmt: skip
        return ModelConfig.model_validate(
            {
                "kind": "autoencoder_kl",
                "latent_channels": self.latent_channels,
                "widths": self.block_out_channels,
                "layers": self.layers_per_block,
                "groups": self.norm_num_groups,
                "activation": _ACTIVATIONS[self.act_fn.lower()],
                "attention": self._attention(),
                "quant_convs": convs[self.use_quant_conv, self.use_post_quant_conv],
                "likelihood": "gaussian",
                "sigma": sigma,
            }
        )

    def preprocess(self, image_size: int | None = None) -> PreprocessConfig:
        """How images are read; `image_size` None: as large as `sample_size` says."""
        channels: Literal[1, 3] = 1 if self.in_channels == 1 else 3
        return PreprocessConfig(image_size=image_size or self.image_size, channels=channels)

    def scale_of(self, vae: VAE) -> LatentScale:
        """`scale`, whatever was built of it."""
        return self.scale

    def to_json(self) -> Json:
        """As diffusers writes it."""
        return {"_class_name": CLASS_NAME, **{f.name: getattr(self, f.name) for f in fields(self)}}

    def _attention(self) -> tuple[str, ...]:
        down = [f"down{n}" for n, t in enumerate(self.down_block_types) if t == _ATTENTION_DOWN]
        up = [f"up{n}" for n, t in enumerate(self.up_block_types) if t == _ATTENTION_UP]
        return (*((MID,) if self.mid_block_add_attention else ()), *down, *up)

    def _wrong(self) -> list[str]:
        wrong = []
        levels = len(self.block_out_channels)
        kinds = {
            "down_block_types": (self.down_block_types, (_PLAIN_DOWN, _ATTENTION_DOWN)),
            "up_block_types": (self.up_block_types, (_PLAIN_UP, _ATTENTION_UP)),
        }
        for name, (types, known) in kinds.items():
            if unknown := sorted(set(types) - set(known)):
                wrong.append(f"{name} has {', '.join(unknown)}, known are {' and '.join(known)}")
            if len(types) != levels:
                wrong.append(f"{name} has {len(types)} blocks for {levels} block_out_channels")
        if self.in_channels not in (1, 3) or self.in_channels != self.out_channels:
            wrong.append(
                f"in_channels {self.in_channels} and out_channels {self.out_channels}, where "
                "images have 1 or 3, the same at both ends"
            )
        if self.act_fn.lower() not in _ACTIVATIONS:
            wrong.append(f"act_fn {self.act_fn}, known are {', '.join(_ACTIVATIONS)}")
        if min(self.layers_per_block, self.latent_channels, self.norm_num_groups, levels) < 1:
            wrong.append("layers_per_block, latent_channels, norm_num_groups or the levels are 0")
        return wrong


_SIZE, _MOST_SIZE = 256, 4096
"""Pixels of a side, where a config says none, and as many as it may say: one image is tried."""


@dataclass(frozen=True)
class LibraryConfig:
    """The config.json of another class, which diffusers itself understands."""

    config: Json

    def model(self, where: str, sigma: float) -> ModelConfig:
        """The network, with a Gaussian likelihood that starts at `sigma`."""
        known = parse_library_config(json.dumps(self.config), where)
        text = storage.canonical_json(known).decode()
        return ModelConfig(kind="library", library=text, likelihood="gaussian", sigma=sigma)

    def preprocess(self, image_size: int | None = None) -> PreprocessConfig:
        """How images are read; `image_size` None: `sample_size`, or where it says none, 256."""
        said = self.config.get("sample_size") or _SIZE
        channels = self.config.get("in_channels", 3)
        side = image_size or said
        try:
            side = min(side) if isinstance(side, list) else side
            found = PreprocessConfig.model_validate({"image_size": side, "channels": channels})
        except (ValidationError, TypeError):
            found = None
        if found is None or (image_size is None and found.image_size > _MOST_SIZE):
            raise ModelError(
                f"{self.config['_class_name']}: images of {channels} channels and {side} pixels; "
                "they have 1 or 3 channels here, and so many pixels a side."
            )
        return found

    def scale_of(self, vae: VAE) -> LatentScale:
        """What the built class says, its defaults among it."""
        assert isinstance(vae.network, LibraryNetwork)
        return vae.network.scale


_ACTIVATIONS = {"silu": "silu", "swish": "silu", "mish": "mish", "gelu": "gelu", "relu": "relu"}


def parse_config(config: Json, where: str) -> KlConfig:
    """The record of a parsed config.json; raises `ModelError` naming `where` and what is wrong."""
    known = {f.name for f in fields(KlConfig)}
    if unknown := sorted(name for name in config.keys() - known if not name.startswith("_")):
        _LOG.warning("%s: diffusers' class ignores %s, and so it is here", where, unknown)
    try:
        found = TypeAdapter(KlConfig).validate_python(
            {name: value for name, value in config.items() if name in known}
        )
        LatentScale.__post_init__(found.scale)
    except (ValidationError, ValueError) as error:
        said = first_refusal(error)[:300]
        raise ModelError(f"{where}: is no config of an {CLASS_NAME}: {said}") from None
    return found


def config_of(vae: VAE) -> KlConfig:
    """The config that diffusers needs to build the same network.

    `scaling_factor` is 1 where nothing is known. Raises `ModelError` for other networks, and for
    likelihoods with more than a mean per pixel.
    """
    network, channels = vae.network, vae.preprocess.channels
    if not isinstance(network, AutoencoderKL) or vae.likelihood.num_parameters != channels:
        raise ModelError(
            f"a {vae.model_config.kind} network with {vae.model_config.likelihood} pixels is no "
            f"diffusers {CLASS_NAME}: that has kind autoencoder_kl and one value per pixel."
        )
    blocks, scale = network.blocks, vae.scale
    levels = range(len(blocks.widths))
    return KlConfig(
        in_channels=channels,
        out_channels=channels,
        down_block_types=tuple(
            _ATTENTION_DOWN if f"down{n}" in blocks.attention else _PLAIN_DOWN for n in levels
        ),
        up_block_types=tuple(
            _ATTENTION_UP if f"up{n}" in blocks.attention else _PLAIN_UP for n in levels
        ),
        block_out_channels=blocks.widths,
        layers_per_block=blocks.layers,
        act_fn=blocks.activation,
        latent_channels=blocks.latent_channels,
        norm_num_groups=blocks.groups,
        sample_size=vae.preprocess.image_size,
        scaling_factor=1.0 if scale.scaling_factor is None else scale.scaling_factor,
        shift_factor=scale.shift_factor,
        latents_mean=scale.latents_mean,
        latents_std=scale.latents_std,
        force_upcast=scale.force_upcast is not False,
        use_quant_conv=blocks.quant_conv,
        use_post_quant_conv=blocks.post_quant_conv,
        mid_block_add_attention=MID in blocks.attention,
    )
