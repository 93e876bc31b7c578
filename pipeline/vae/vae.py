"""The VAE: a network, a likelihood and a posterior, from uint8 images to ELBO terms and back."""

import operator
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from pipeline.config import ModelConfig, PreprocessConfig
from pipeline.data.preprocess import Picture, picture_bytes, preprocess_image, several
from pipeline.errors import ConfigError, ModelError, SampleError
from pipeline.json_value import Json
from pipeline.latent_scale import LatentScale
from pipeline.vae.autoencoder_kl import AutoencoderKL, blocks_of
from pipeline.vae.conv import Conv
from pipeline.vae.elbo import Drawn, ElboTerms, elbo_terms
from pipeline.vae.library_network import LibraryNetwork
from pipeline.vae.likelihoods import (
    Bernoulli,
    ContinuousBernoulli,
    Gaussian,
    GaussianPerPixel,
    Laplace,
    Likelihood,
)
from pipeline.vae.logistic import COMPONENTS, DiscretisedLogistic, LogisticMixture
from pipeline.vae.mlp import Linear, Mlp
from pipeline.vae.networks import Network, NetworkShape, custom_network
from pipeline.vae.noise import Noise
from pipeline.vae.posterior import Posterior, posterior_from_moments
from pipeline.vae.prior import Latent, Prior

_GRIDS = ("autoencoder_kl", "library", "custom")
"""Kinds whose latents are a grid of the image, where there is more than one."""


class VAE(nn.Module):
    """Trained through `forward` alone (that is what DDP wraps); encodes and decodes without it.

    `digest` and `metadata` are those of the bundle it was loaded from or saved to, else None.
    `scale` is what whoever published the model says of its latents.
    """

    def __init__(
        self,
        model_config: ModelConfig,
        preprocess: PreprocessConfig,
        network: Network,
        likelihood: Likelihood,
    ) -> None:
        super().__init__()
        self.model_config = model_config
        self.preprocess = preprocess
        self.network = network
        self.likelihood = likelihood
        self.digest: str | None = None
        self.metadata: Json | None = None
        self.scale = LatentScale()

    def extra_repr(self) -> str:
        """What torch shows above the networks: images in, latents out."""
        image, latent = [", ".join(map(str, s)) for s in (self.image_shape, self.latent_shape)]
        return f"images uint8 [B, {image}], latents [B, {latent}], on {self.device}"

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """(Z, h, w)."""
        return self.network.latent_shape

    @property
    def latent(self) -> Latent:
        """The space that z lies in."""
        return Latent(self.latent_shape)

    @property
    def prior(self) -> Prior:
        """p(z)."""
        return Prior(self.latent)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(C, H, W)."""
        size = self.preprocess.image_size
        return (self.preprocess.channels, size, size)

    @property
    def uses_pixel_noise(self) -> bool:
        """Whether the likelihood's target depends on `Noise.pixels`."""
        return self.likelihood.uses_pixel_noise

    @property
    def dtype(self) -> torch.dtype:
        """Of the weights: float32, or float64 after `.double()`."""
        return next(self.network.parameters()).dtype

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.network.parameters()).device

    @property
    def pixels_per_latent(self) -> int | None:
        """In each direction, where the latents are a grid of the image, which may then be larger;
        else None."""
        side = self.latent_shape[1]
        is_grid = self.model_config.kind in _GRIDS and side > 1
        return self.preprocess.image_size // side if is_grid else None

    @property
    def has_posterior(self) -> bool:
        """Whether the encoder says how sure it is; some classes of others give a mean alone."""
        return not isinstance(self.network, LibraryNetwork) or self.network.has_posterior

    def refuse_without_posterior(self, what: str) -> None:
        """Raises `ModelError` where there is none: without it there is no ELBO."""
        if not self.has_posterior:
            raise ModelError(
                f"{what}: this network gives one latent per image and no posterior, so that it has "
                "no ELBO. It can be encoded with (`--content mean`) and decoded with."
            )

    def forward(self, images: Tensor, noise: Noise, at_mean: bool = False) -> ElboTerms:
        """ELBO terms of uint8 images [B, C, H, W]; the networks alone run under autocast.

        `at_mean` adds the log-likelihood at the posterior's mean, for a second decoding.
        """
        _check_noise(noise)
        target = self.likelihood.target(images, noise.pixels.to(self.dtype))
        if self.likelihood.is_binary:
            # The binarised image is the datum: encoder and likelihood see the same one.
            moments = self.network.encode(self._to_input(2 * target - 1))
        else:
            moments = self.network.encode(self._scaled(images))
        device = images.device.type
        with torch.autocast(device, enabled=False):
            posterior = self._posterior(moments)
            samples = posterior.sample(noise.posterior.to(posterior.mean.dtype))
            if samples.dim() == posterior.mean.dim():
                samples = samples.unsqueeze(1)
            wanted = samples
            if at_mean:
                wanted = torch.cat([samples, posterior.mean.unsqueeze(1)], 1)
        parameters = self.decode_parameters(wanted.flatten(0, 1))
        with torch.autocast(device, enabled=False):
            parameters = parameters.view(*wanted.shape[:2], *parameters.shape[1:])
            drawn = Drawn(posterior, samples, parameters)
            return elbo_terms(self.likelihood, self.prior, drawn, target)

    def pixels(self, pictures: Picture | Sequence[Picture]) -> Tensor:
        """Pictures, or a single one, cropped and resized for the model: uint8 [B, C, H, W].

        A picture is a dataset's sample (`dataset[7]`) or a file's bytes, which give the very pixels
        of training, or a PIL image or a NumPy array uint8 [H, W], [H, W, 3] or [H, W, 4] (RGBA): of
        a large JPEG these give others by some levels, since its bytes are shrunk in decoding. What
        is transparent is laid on white, as in training. Raises `SampleError` for any other.
        """
        settings = self.preprocess.held_out()
        ready = [preprocess_image(picture_bytes(each), settings) for each in several(pictures)]
        none = np.empty((0, *self.image_shape), np.uint8)
        return torch.from_numpy(np.stack(ready) if ready else none).to(self.device)

    def reconstruct(self, images: Tensor) -> Tensor:
        """Images uint8 [B, C, H, W], decoded from the posterior's mean: as many in [0, 1]."""
        with torch.inference_mode():
            return self.decode(self.encode(images).mean)

    def sample(self, count: int, seed: int = 0) -> Tensor:
        """The mean images of `count` draws from the prior: [count, C, H, W] in [0, 1].

        The same ones at each call: another `seed` draws others.
        """
        number = _whole(count, "takes how many images, 0 or more")
        drawn = torch.Generator().manual_seed(_whole(seed, "takes a seed, 0 or more, as `seed=1`"))
        noise = torch.randn((number, *self.latent_shape), generator=drawn)
        with torch.inference_mode():
            return self.decode(noise.to(self.device))

    def encode(self, images: Tensor) -> Posterior:
        """q(z|x) of uint8 images [B, C, H, W]; grey ones too under Bernoulli, not binarised.

        Its tensors have no graph: `forward` is what is trained through. Raises `SampleError` for
        anything else: `pixels` makes them of pictures.
        """
        _check_images(self, images)
        with torch.no_grad():
            return self.posterior_of(images)

    def posterior_of(self, images: Tensor) -> Posterior:
        """As `encode`, unchecked and with the graph to the weights."""
        moments = self.network.encode(self._scaled(images))
        with torch.autocast(images.device.type, enabled=False):
            return self._posterior(moments)

    def decode(self, latents: Tensor) -> Tensor:
        """The mean image of p(x|z) of latents [B, Z, h, w]: [B, C, H, W] in [0, 1], level / 255.

        It has a graph only to latents that ask for one. Raises `SampleError` for other shapes.
        """
        _check_latents(self, latents)
        with torch.set_grad_enabled(torch.is_grad_enabled() and latents.requires_grad):
            parameters = self.decode_parameters(latents)
            with torch.autocast(latents.device.type, enabled=False):
                return self.likelihood.mean(parameters)

    def draw(self, latents: Tensor, generator: torch.Generator) -> Tensor:
        """One image from p(x|z) of latents [B, Z, h, w]: uint8 [B, C, H, W]."""
        _check_latents(self, latents)
        parameters = self.decode_parameters(latents)
        with torch.autocast(latents.device.type, enabled=False):
            return self.likelihood.draw(parameters, generator)

    def decode_parameters(self, latents: Tensor) -> Tensor:
        """The likelihood's parameters for latents [B, Z, h, w], at least float32."""
        return at_least_float32(self.network.decode(self._to_input(latents.to(self.dtype))))

    def start_at(self, mean_image: Tensor) -> None:
        """Moves the decoder's output bias to a mean image [C, H, W] in [0, 1].

        A user's own network need not know how: then nothing happens.
        """
        start = getattr(self.network, "start_at", None)
        if start is not None:
            start(self.likelihood.start_at(mean_image.to(self.dtype)))

    def _posterior(self, moments: Tensor) -> Posterior:
        return posterior_from_moments(
            self.model_config.posterior, at_least_float32(moments), self.latent_shape
        )

    def _scaled(self, images: Tensor) -> Tensor:
        """uint8 to [-1, 1]."""
        return self._to_input(images).to(self.dtype) / 127.5 - 1

    def _to_input(self, values: Tensor) -> Tensor:
        # Channels last is how convolutions are fastest, on CPUs and on tensor cores.
        return values.contiguous(memory_format=torch.channels_last)


def _check_noise(noise: object) -> None:
    """Raises `ConfigError` for what `forward` does not take."""
    if not isinstance(noise, Noise):
        raise ConfigError(
            f"VAE: is called with images and a `Noise`, as training does; found "
            f"{type(noise).__name__}. To look: `vae.encode(images)`, `vae.decode(latents)`, "
            "`vae.reconstruct(images)`, `vae.sample(4)`."
        )


def _whole(number: object, need: str) -> int:
    """A number as Python's own, NumPy's too; raises `ConfigError` for what is none, or below 0."""
    try:
        found = operator.index(number)  # type: ignore[arg-type]
    except TypeError:
        found = -1
    if found < 0:
        raise ConfigError(f"sample: {need}; found {number!r}")
    return found


def _check_images(vae: VAE, images: Tensor) -> None:
    """Raises `SampleError` for what `encode` does not take."""
    expected = f"uint8 [B, {', '.join(map(str, vae.image_shape))}]"
    _check_tensor("images", images, expected, "of pictures `vae.pixels` makes them")
    found = f"{images.dtype} {list(images.shape)}".removeprefix("torch.")
    if images.dtype != torch.uint8:
        raise SampleError(
            "unsupported",
            f"images: found {found}, need {expected}, 0 to 255. For values in [0, 1]: "
            "`(values * 255).round().to(torch.uint8)`; of pictures `vae.pixels` makes them",
        )
    factor = vae.pixels_per_latent
    fits = images.shape[1:] == vae.image_shape or (
        factor and images.dim() == 4 and images.shape[1] == vae.image_shape[0]
        and not any(side % factor for side in images.shape[2:])
    )  # fmt: skip
    if images.dim() != 4 or not fits:
        raise SampleError(
            "unsupported",
            f"images: found {found}, this model needs {expected}. `vae.pixels(pictures)` crops "
            "and resizes them",
        )


def _check_latents(vae: VAE, latents: Tensor) -> None:
    """Raises `SampleError` for what is no latents of this model."""
    expected = f"[B, {', '.join(map(str, vae.latent_shape))}]"
    _check_tensor("latents", latents, expected, "a store's `to_numpy()` gives such an array")
    fits = latents.dim() == 4 and (
        latents.shape[1:] == vae.latent_shape
        or (vae.pixels_per_latent and latents.shape[1] == vae.latent_shape[0])
    )
    if not fits:
        one = " One alone: `latent[None]`." if latents.shape == vae.latent_shape else ""
        raise SampleError(
            "unsupported",
            f"latents: found {list(latents.shape)}, this model needs {expected}.{one}",
        )


def _check_tensor(what: str, given: object, expected: str, source: str) -> None:
    """Raises `SampleError` for what is no tensor."""
    if isinstance(given, Tensor):
        return
    kind, hint = type(given).__name__, source
    if isinstance(given, np.ndarray):
        kind = f"a NumPy array {given.dtype} {list(given.shape)}"
        hint = "`torch.from_numpy(array)` makes one"
    raise SampleError("unsupported", f"{what}: found {kind}, need a tensor {expected}; {hint}")


def at_least_float32(values: Tensor) -> Tensor:
    """float16 and bfloat16 become float32; float64 stays."""
    return values.to(torch.promote_types(values.dtype, torch.float32))


def build_vae(model: ModelConfig, preprocess: PreprocessConfig) -> VAE:
    """A new VAE; its weights come from torch's global generator, which the caller seeds."""
    likelihood = _likelihood(model, preprocess.channels)
    shape = NetworkShape(
        preprocess.channels, preprocess.image_size, likelihood.num_parameters, model.posterior
    )
    vae = VAE(model, preprocess, _network(model, shape), likelihood)
    return vae.to(memory_format=torch.channels_last)  # type: ignore[call-overload,no-any-return]


def _network(model: ModelConfig, shape: NetworkShape) -> Network:
    match model.kind:
        case "linear":
            return Linear(shape, model.latent_channels or 8)
        case "mlp":
            return Mlp(shape, model.latent_channels or 50, model.width or 200)
        case "conv":
            size = model.latent_size or 1
            return Conv(shape, model.latent_channels or 32, size, model.width or 32)
        case "autoencoder_kl":
            blocks = blocks_of(model)
            return AutoencoderKL(shape, blocks, gradient_checkpointing=model.gradient_checkpointing)
        case "library":
            return LibraryNetwork(shape, model.library or "")
        case "custom":
            return custom_network(model, shape)


def _likelihood(model: ModelConfig, channels: int) -> Likelihood:
    match model.likelihood:
        case "bernoulli":
            return Bernoulli(channels)
        case "continuous_bernoulli":
            return ContinuousBernoulli(channels)
        case "gaussian":
            return Gaussian(channels, model.starting_sigma, learned=True)
        case "gaussian_fixed":
            return Gaussian(channels, model.starting_sigma, learned=False)
        case "gaussian_per_pixel":
            return GaussianPerPixel(channels)
        case "laplace":
            return Laplace(channels, model.starting_sigma, learned=True)
        case "logistic":
            return DiscretisedLogistic(channels)
        case "logistic_mixture":
            return LogisticMixture(channels, COMPONENTS)
