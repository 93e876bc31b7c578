"""From image archives to registered VAEs and verified latent stores, exact at every step."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Collection

    from pipeline.vae import VAE


def load_model(uri: str, allow_custom: "Collection[str]" = ()) -> "VAE":
    """The VAE behind `models:/NAME@ALIAS`, `models:/NAME/VERSION` or a bundle's path.

    Its checksums are verified. A network of somebody's own is built only if `allow_custom` names
    its class, as package.module:Class. Needs `vae-pipeline[pull]`, not Ray. Raises `ModelError`
    saying which names, aliases or versions there are.
    """
    from pipeline.registry.models import load_model as load

    return load(uri, allow_custom=allow_custom)
