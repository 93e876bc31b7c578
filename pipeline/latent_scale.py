"""What a published autoencoder says of its latents: how a diffusion model scales them.

The fields bear the names of diffusers' configs; None: it says nothing.
"""

import math
from dataclasses import asdict, dataclass

from pipeline.errors import ModelError
from pipeline.json_value import Json


@dataclass(frozen=True)
class LatentScale:
    """A diffusion model sees (z - shift_factor) * scaling_factor.

    With `latents_mean` and `latents_std`, one number per channel, (z - latents_mean) *
    scaling_factor / latents_std. `force_upcast`: its networks need fp32.
    """

    scaling_factor: float | None = None
    shift_factor: float | None = None
    latents_mean: tuple[float, ...] | None = None
    latents_std: tuple[float, ...] | None = None
    force_upcast: bool | None = None

    def __post_init__(self) -> None:
        if (self.latents_mean is None) != (self.latents_std is None):
            raise ValueError("latents_mean and latents_std belong together: one of them is missing")
        if len(self.latents_mean or ()) != len(self.latents_std or ()):
            raise ValueError("latents_mean and latents_std are of different numbers of channels")
        numbers = (self.scaling_factor, self.shift_factor, *(self.latents_mean or ()))
        if not all(
            math.isfinite(n) for n in (*numbers, *(self.latents_std or ())) if n is not None
        ):
            raise ValueError("a number of the latents' scale is not finite")
        if self.scaling_factor == 0 or 0 in (self.latents_std or ()):
            raise ValueError("a scaling_factor or latents_std of 0 leaves nothing of a latent")

    @property
    def is_said(self) -> bool:
        """Whether anything is said of the latents' scale."""
        return (self.scaling_factor, self.shift_factor, self.latents_mean) != (None, None, None)

    def per_channel(self, channels: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Offset and factor of each channel: a diffusion model sees (z - offset) * factor.

        Raises `ModelError` where nothing is said, or of another number of channels.
        """
        scaling = 1.0 if self.scaling_factor is None else self.scaling_factor
        if not self.is_said:
            raise ModelError(
                "the model says nothing of its latents' scale: no scaling_factor, shift_factor or "
                "latents_mean came with it. Normalise by the store's own mean and deviation."
            )
        if self.latents_mean is None or self.latents_std is None:
            return (self.shift_factor or 0.0,) * channels, (scaling,) * channels
        if len(self.latents_mean) != channels:
            raise ModelError(
                f"latents_mean has {len(self.latents_mean)} numbers, the latents {channels} "
                "channels. The model's config.json is wrong: import it again."
            )
        return self.latents_mean, tuple(scaling / deviation for deviation in self.latents_std)

    def to_json(self) -> Json:
        """A JSON-able dictionary of every field."""
        return asdict(self)


UNSAID = LatentScale()
"""Nothing is said."""
