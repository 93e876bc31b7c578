"""A registered model out to another library's format."""

from collections.abc import Collection
from dataclasses import dataclass

from pipeline import storage
from pipeline.exchange.diffusers_folder import write_diffusers
from pipeline.json_value import Json
from pipeline.registry.models import load_model


@dataclass(frozen=True)
class Exported:
    """Where a model was written, its digest, and what its files say of its latents."""

    output: str
    digest: str
    scale: Json


def export_model(uri: str, output: str, allow_custom: Collection[str] = ()) -> Exported:
    """Writes a registry URI's model, or a folder's, to `output` as diffusers reads it."""
    vae, output = load_model(uri, allow_custom), storage.absolute(output)
    write_diffusers(vae, output)
    return Exported(output, str(vae.digest), vae.scale.to_json())
