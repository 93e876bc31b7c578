"""The latent-diffusion family's own files: config.json and one safetensors, as in diffusers.

What our bundles know and these files don't is the likelihood (its deviation is no weight of
theirs), so reading asks for it; what they know and ours don't is the scaling factor of the latents.
"""

import json
from pathlib import Path
from typing import Self

import safetensors
import safetensors.torch
from pydantic import BaseModel, ConfigDict, ValidationError
from torch import Tensor

from pipeline import storage
from pipeline.config import ModelConfig, PreprocessConfig
from pipeline.errors import ModelError
from pipeline.vae.autoencoder_kl import EPSILON, GROUPS, RESNETS_PER_BLOCK, WIDTHS, AutoencoderKL
from pipeline.vae.bundle import put_weights
from pipeline.vae.vae import VAE, build_vae

CLASS_NAME = "AutoencoderKL"
WEIGHTS = "diffusion_pytorch_model.safetensors"

# Checkpoints from before diffusers 0.18 call the attention's projections by these names.
_OLD_NAMES = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}

_FIXED = {
    "act_fn": "silu",
    "layers_per_block": RESNETS_PER_BLOCK,
    "norm_num_groups": GROUPS,
    "mid_block_add_attention": True,
    "use_quant_conv": True,
    "use_post_quant_conv": True,
}


class _Config(BaseModel):
    """What config.json says of the network; all else in it is left alone."""

    model_config = ConfigDict(frozen=True)

    block_out_channels: tuple[int, ...]
    in_channels: int
    out_channels: int
    latent_channels: int
    sample_size: int = 256
    scaling_factor: float | None = None
    act_fn: str = "silu"
    layers_per_block: int = RESNETS_PER_BLOCK
    norm_num_groups: int = GROUPS
    mid_block_add_attention: bool = True
    use_quant_conv: bool = True
    use_post_quant_conv: bool = True

    @classmethod
    def read(cls, where: str) -> Self:
        """Raises `ModelError` for the config of anything else."""
        found = storage.read_json(where)
        if not isinstance(found, dict) or found.get("_class_name") != CLASS_NAME:
            raise ModelError(
                f"{where}: is no diffusers {CLASS_NAME} (its _class_name says otherwise)."
            )
        try:
            return cls.model_validate(found)
        except ValidationError as error:
            first = error.errors(include_url=False, include_input=False)[0]
            named = ".".join(map(str, first["loc"]))
            raise ModelError(
                f"{where}: {named}: {first['msg']}. Give a folder as diffusers saves it."
            ) from None


def is_diffusers(url: str) -> bool:
    """Whether a folder holds a diffusers AutoencoderKL."""
    where = storage.join(url, "config.json")
    if not storage.exists(where):
        return False
    config = storage.read_json(where)
    return isinstance(config, dict) and config.get("_class_name") == CLASS_NAME


def read_diffusers(url: str, sigma: float = 0.1, image_size: int | None = None) -> VAE:
    """The VAE in a diffusers folder, with a Gaussian likelihood that starts at `sigma`.

    `image_size`: of its preprocessing; None: the folder's `sample_size`. Raises `ModelError` naming
    every setting that this network does not have.
    """
    where = storage.join(url, "config.json")
    config = _Config.read(where)
    factor, width = _family(where, config)
    model = ModelConfig(
        kind="autoencoder_kl",
        factor=factor,
        latent_channels=config.latent_channels,
        width=width,
        likelihood="gaussian",
        sigma=sigma,
    )
    channels = 1 if config.in_channels == 1 else 3
    size = image_size or config.sample_size
    vae = build_vae(model, PreprocessConfig(image_size=size, channels=channels))
    weights = _read_weights(storage.join(url, WEIGHTS))
    named = {
        f"network.{_new_name(name)}": _shaped(name, tensor) for name, tensor in weights.items()
    }
    own = {name: value for name, value in vae.state_dict().items() if name not in named}
    put_weights(vae, named | {n: v for n, v in own.items() if n.startswith("likelihood.")}, url)
    vae.metadata = {"source": url, "scaling_factor": config.scaling_factor}
    return vae.eval()


def write_diffusers(vae: VAE, folder: Path | str, scaling_factor: float = 1.0) -> None:
    """Writes what `diffusers.AutoencoderKL.from_pretrained(folder)` reads.

    `scaling_factor`: 1 / deviation of the latents, which diffusion models multiply them with.
    Raises `ModelError` for other networks, and for likelihoods with more than a mean per pixel.
    """
    network = vae.network
    if not isinstance(network, AutoencoderKL) or vae.likelihood.num_parameters != (
        vae.preprocess.channels
    ):
        raise ModelError(
            f"a {vae.model_config.kind} network with {vae.model_config.likelihood} pixels is no "
            f"diffusers {CLASS_NAME}: that has kind autoencoder_kl and one value per pixel."
        )
    factor, width = vae.model_config.factor or 8, vae.model_config.width or 128
    widths = [width * times for times in WIDTHS[factor]]
    config = {
        "_class_name": CLASS_NAME,
        "in_channels": vae.preprocess.channels,
        "out_channels": vae.preprocess.channels,
        "block_out_channels": widths,
        "down_block_types": ["DownEncoderBlock2D"] * len(widths),
        "up_block_types": ["UpDecoderBlock2D"] * len(widths),
        "latent_channels": vae.latent_shape[0],
        "sample_size": vae.preprocess.image_size,
        "scaling_factor": scaling_factor,
        **_FIXED,
    }
    weights = {name: tensor.contiguous() for name, tensor in network.state_dict().items()}
    data = safetensors.torch.save(weights, metadata={"format": "pt"})
    storage.publish(storage.join(str(folder), WEIGHTS), data)
    text = json.dumps(config, indent=2, sort_keys=True) + "\n"
    storage.publish(storage.join(str(folder), "config.json"), text.encode())


def _family(where: str, config: _Config) -> tuple[int, int]:
    """Pixels per latent and the first level's channels, or every reason why it is none of ours."""
    widths = config.block_out_channels
    factor = 2 ** (len(widths) - 1)
    width = widths[0] if widths else 0
    stated = config.model_dump()
    wrong = {name: stated[name] for name, ours in _FIXED.items() if stated[name] != ours}
    if tuple(width * times for times in WIDTHS.get(factor, ())) != widths:
        wrong["block_out_channels"] = list(widths)
    if config.in_channels not in (1, 3) or config.in_channels != config.out_channels:
        wrong["in_channels"] = [config.in_channels, config.out_channels]
    if wrong:
        raise ModelError(
            f"{where}: this AutoencoderKL differs from the published ones in {wrong}. Known are "
            f"{_FIXED}, norms with epsilon {EPSILON}, and channels of {WIDTHS} times the first."
        )
    return factor, width


def _read_weights(where: str) -> dict[str, Tensor]:
    try:
        return {n: t.float() for n, t in safetensors.torch.load(storage.read(where)).items()}
    except safetensors.SafetensorError as error:
        raise ModelError(f"{where}: is no safetensors file: {error}") from None


def _new_name(name: str) -> str:
    """The present name of a weight: old checkpoints have others in the attention."""
    parts = name.split(".")
    if "attentions" in parts and parts[-2] in _OLD_NAMES:
        parts[-2] = _OLD_NAMES[parts[-2]]
    return ".".join(parts)


def _shaped(name: str, tensor: Tensor) -> Tensor:
    """Old attention projections are 1x1 convolutions: the same numbers with two axes more."""
    is_projection = "attentions" in name and tensor.dim() == 4
    return tensor[:, :, 0, 0] if is_projection else tensor
