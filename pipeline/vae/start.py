"""Beginning with another model's weights, and holding a part of them still."""

from typing import Literal

import torch

from pipeline.errors import ModelError
from pipeline.vae.bundle import check_weights
from pipeline.vae.vae import VAE

Part = Literal["encoder", "decoder"]


def start_from(vae: VAE, source: VAE, name: str) -> None:
    """Copies the network's weights of `source` (called `name` in errors) into `vae`.

    The likelihood's own weights come along where both have the same likelihood. Raises
    `ModelError` naming what does not fit.
    """
    check_start(vae, source, name)
    vae.load_state_dict(_weights_for(vae, source))


def check_start(vae: VAE, source: VAE, name: str) -> None:
    """Raises `ModelError` unless `source` fits `vae`, which may lie on no device."""
    try:
        check_weights(vae, _weights_for(vae, source), name)
    except ModelError as error:
        if vae.image_shape == source.image_shape:
            raise
        made, wanted = ("x".join(map(str, v.image_shape)) for v in (source, vae))
        raise ModelError(
            f"{name}: was made for images of {made} (channels, height, width), this model is of "
            f"{wanted}, and their weights differ in shape. Give `--image-size "
            f"{source.image_shape[-1]} --channels {source.image_shape[0]}`."
        ) from error


def _weights_for(vae: VAE, source: VAE) -> dict[str, torch.Tensor]:
    alike = vae.model_config.likelihood == source.model_config.likelihood
    weights = {
        key: value
        for key, value in source.state_dict().items()
        if alike or not key.startswith("likelihood.")
    }
    own = vae.state_dict().items()
    return {key: value for key, value in own if key.startswith("likelihood.")} | weights


def freeze(vae: VAE, part: Part) -> None:
    """Takes a part's weights out of training: those that its output depends on.

    The decoder's are all of p(x|z), a learned deviation included. Raises `ModelError` where encoder
    and decoder share weights.
    """
    weights = dict(vae.named_parameters())
    encoder, decoder = _encoder(vae, weights), _decoder(vae, weights)
    if encoder & decoder:
        raise ModelError(
            f"encoder and decoder share weights ({', '.join(sorted(encoder & decoder)[:3])}): "
            "neither can be frozen alone."
        )
    for name in encoder if part == "encoder" else decoder:
        weights[name].requires_grad = False


def _encoder(vae: VAE, weights: dict[str, torch.nn.Parameter]) -> set[str]:
    device = next(iter(weights.values())).device
    posterior = vae.posterior_of(torch.zeros(1, *vae.image_shape, dtype=torch.uint8, device=device))
    return _reached(posterior.mean.sum() + posterior.log_variance.sum(), weights)


def _decoder(vae: VAE, weights: dict[str, torch.nn.Parameter]) -> set[str]:
    device = next(iter(weights.values())).device
    parameters = vae.decode_parameters(torch.zeros(1, *vae.latent_shape, device=device))
    likelihood = {name for name in weights if name.startswith("likelihood.")}
    return _reached(parameters.sum(), weights) | likelihood


def _reached(output: torch.Tensor, weights: dict[str, torch.nn.Parameter]) -> set[str]:
    """Names of the weights that `output` depends on, also where the slope happens to be zero."""
    gradients = torch.autograd.grad(output, list(weights.values()), allow_unused=True)
    return {name for name, found in zip(weights, gradients, strict=True) if found is not None}
