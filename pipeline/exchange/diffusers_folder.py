"""An autoencoder as diffusers keeps it: a folder with config.json and safetensors.

What our bundles know and these files don't is the likelihood (its deviation is no weight of
theirs), so reading asks for it. What they say of the latents' scale is kept, both ways.
"""

import json
from pathlib import Path

import safetensors.torch
import torch
from torch import Tensor

from pipeline import storage
from pipeline.errors import ModelError, first_refusal
from pipeline.exchange.diffusers_config import (
    CLASS_NAME,
    KlConfig,
    LibraryConfig,
    config_of,
    parse_config,
)
from pipeline.exchange.weight_files import WEIGHTS, read_weights
from pipeline.json_value import Json
from pipeline.vae.bundle import check_weights, claimed_vae, digest_of, put_weights
from pipeline.vae.library_network import CLASSES, LibraryNetwork
from pipeline.vae.vae import VAE, build_vae

CONFIG = "config.json"

# Checkpoints from before diffusers 0.18 call the attention's projections by these names.
_OLD_NAMES = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}


def find_diffusers(url: str) -> str | None:
    """The folder of a diffusers model: `url`, or the `vae` of the pipeline there; None: neither."""
    for folder in (url, storage.join(url, "vae")):
        if _read_config(folder) is not None:
            return folder
    return None


def read_diffusers(url: str, sigma: float = 0.1, image_size: int | None = None) -> VAE:
    """The VAE in a diffusers folder, with a Gaussian likelihood that starts at `sigma`.

    `image_size`: of its preprocessing; None: the folder's `sample_size`. Its digest is the one
    that its bundle has. Raises `ModelError` for other classes, by their names, and for what no
    network of images has.
    """
    folder = find_diffusers(url)
    if folder is None:
        raise ModelError(f"{url}: holds no {CONFIG} of a diffusers model.")
    where, config = storage.join(folder, CONFIG), _read_config(folder) or {}
    if config["_class_name"] in CLASSES:
        asked: KlConfig | LibraryConfig = LibraryConfig(config)
        under = "network.model"
    elif config["_class_name"] == CLASS_NAME:
        asked, under = parse_config(config, where), "network"
    else:
        raise ModelError(
            f"{where}: is a diffusers {config['_class_name']}; of diffusers' classes those of "
            f"single images are read: {CLASS_NAME}, {', '.join(CLASSES)}. Wrap another one in a "
            "network of your own (kind custom)."
        )
    try:
        model, preprocess = asked.model(where, sigma), asked.preprocess(image_size)
    except ValueError as error:  # pydantic's among them
        raise ModelError(
            f"{where}: asks for a network that can't be: {first_refusal(error)[:300]}"
        ) from None
    claimed = claimed_vae(model, preprocess, where)
    own = claimed.state_dict()
    theirs = {f"{under}.{_new_name(n)}": tensor for n, tensor in read_weights(folder).items()}
    named = {name: _shaped(tensor, own.get(name)) for name, tensor in theirs.items()}
    check_weights(claimed, named | _likelihood(claimed), folder)
    with torch.random.fork_rng(devices=[]):
        vae = build_vae(model, preprocess)
    put_weights(vae, named | _likelihood(vae), folder)
    vae.scale, vae.metadata = asked.scale_of(vae), {"source": url}
    vae.digest = digest_of(vae)
    return vae.eval()


def write_diffusers(vae: VAE, folder: Path | str) -> None:
    """Writes what `diffusers.AutoencoderKL.from_pretrained(folder)` reads.

    Of another class of theirs, that one. Raises `ModelError` for other networks, and for
    likelihoods with more than a mean per pixel.
    """
    if isinstance(vae.network, LibraryNetwork):
        config, weights = vae.network.config, vae.network.model.state_dict()
    else:
        config, weights = config_of(vae).to_json(), vae.network.state_dict()
    weights = {name: tensor.contiguous() for name, tensor in weights.items()}
    data = safetensors.torch.save(weights, metadata={"format": "pt"})
    # The config last: only with it is a folder a model.
    storage.publish(storage.join(str(folder), WEIGHTS), data)
    text = json.dumps(config, indent=2, sort_keys=True) + "\n"
    storage.publish(storage.join(str(folder), CONFIG), text.encode())


def _read_config(folder: str) -> Json | None:
    """The config.json of a diffusers model in this folder, None where there is none."""
    where = storage.join(folder, CONFIG)
    config = storage.read_json(where) if storage.exists(where) else None
    is_theirs = isinstance(config, dict) and isinstance(config.get("_class_name"), str)
    return config if is_theirs else None


def _likelihood(vae: VAE) -> dict[str, Tensor]:
    """The weights that no file of theirs has."""
    own = vae.state_dict().items()
    return {name: value for name, value in own if name.startswith("likelihood.")}


def _new_name(name: str) -> str:
    """The present name of a weight: old checkpoints have others in the attention."""
    parts = name.split(".")
    if "attentions" in parts and parts[-2] in _OLD_NAMES:
        parts[-2] = _OLD_NAMES[parts[-2]]
    return ".".join(parts)


def _shaped(tensor: Tensor, own: Tensor | None) -> Tensor:
    """Old attention projections are 1x1 convolutions: the same numbers with two axes more."""
    is_projection = own is not None and own.dim() == 2 and tensor.shape[2:] == (1, 1)
    return tensor[:, :, 0, 0] if is_projection else tensor
