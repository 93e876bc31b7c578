"""A model's folder, whoever made it: a bundle of ours, or a diffusers autoencoder."""

from collections.abc import Collection

from pipeline.errors import ModelError
from pipeline.exchange.diffusers_folder import find_diffusers, read_diffusers
from pipeline.vae.bundle import is_bundle, load_bundle
from pipeline.vae.vae import VAE


def is_model_folder(url: str) -> bool:
    """Whether a folder says that it holds a model, of ours or of diffusers."""
    return is_bundle(url) or find_diffusers(url) is not None


def load_folder(url: str, allow_custom: Collection[str] = (), *, digest: str | None = None) -> VAE:
    """The VAE in a bundle's folder, or in that of a diffusers autoencoder or pipeline.

    `allow_custom` and `digest` as `load_bundle` has them. Raises `ModelError` saying what the
    folder is where it can't be read.
    """
    if is_bundle(url) or find_diffusers(url) is None:
        return load_bundle(url, allow_custom, digest=digest)
    vae = read_diffusers(url)
    if digest is not None and vae.digest != digest:
        raise ModelError(
            f"{url}: has digest {str(vae.digest)[:16]}, asked for was {digest[:16]}: "
            "another model lies there now. Name the model that was meant."
        )
    return vae
