"""From image archives to registered VAEs and verified latent stores, exact at every step."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pipeline.vae import VAE


def load_model(uri: str) -> "VAE":
    """The VAE behind `models:/NAME@ALIAS`, `models:/NAME/VERSION` or a bundle's path.

    Its checksums are verified. Needs `vae-pipeline[pull]`, not Ray. Raises `ModelError` saying
    which names, aliases or versions there are.
    """
    from pipeline.registry.models import load_model as load

    return load(uri)
