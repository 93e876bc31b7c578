from typing import Literal

import pytest
import torch
from torch import Tensor, nn

from pipeline.config import ModelConfig, OptimizerConfig, PreprocessConfig
from pipeline.errors import ModelError
from pipeline.training.state import make_optimizer
from pipeline.vae import VAE, build_vae, draw_noise
from pipeline.vae.networks import NetworkShape
from pipeline.vae.start import freeze, start_from
from tests.support.digit_models import sigma_of

KINDS: dict[str, dict[str, object]] = {
    "linear": {},
    "mlp": {"width": 16},
    "conv": {"width": 8},
    "autoencoder_kl": {"width": 32, "factor": 4},
}


class Tied(nn.Module):
    """One matrix for both ways."""

    def __init__(self, shape: NetworkShape, model: ModelConfig) -> None:
        super().__init__()
        self.latent_shape = (4, 1, 1)
        self.weight = nn.Parameter(torch.randn(4, 3 * 16 * 16) / 100)

    def encode(self, images: Tensor) -> Tensor:
        mean = images.flatten(1) @ self.weight.T
        return torch.cat([mean, torch.zeros_like(mean)], 1)[..., None, None]

    def decode(self, latents: Tensor) -> Tensor:
        return (latents.flatten(1) @ self.weight).view(-1, 3, 16, 16)


def new_vae(kind: str, seed: int = 0, likelihood: str = "gaussian", **knobs: object) -> VAE:
    torch.manual_seed(seed)
    known = KINDS.get(kind, {})
    config = ModelConfig.model_validate({"kind": kind, "likelihood": likelihood, **known, **knobs})
    return build_vae(config, PreprocessConfig(image_size=16))


def images() -> Tensor:
    return torch.randint(0, 256, (2, 3, 16, 16), dtype=torch.uint8)


@pytest.mark.parametrize("kind", KINDS)
def test_a_frozen_encoder_keeps_its_posterior_and_a_frozen_decoder_its_images(kind: str) -> None:
    for part in ("encoder", "decoder"):
        vae = new_vae(kind)
        freeze(vae, part)
        batch, latents = images(), torch.randn(2, *vae.latent_shape)
        mean, image = vae.encode(batch).mean.detach(), vae.decode(latents).detach()
        (-vae(batch, draw_noise(vae, 0, 1, range(2))).elbo.mean()).backward()
        with torch.no_grad():
            for weight in vae.parameters():
                if weight.grad is not None:
                    weight.sub_(0.1 * weight.grad.sign())
        assert torch.equal(vae.encode(batch).mean, mean) == (part == "encoder")
        assert torch.equal(vae.decode(latents), image) == (part == "decoder")


def test_the_decoders_own_deviation_is_frozen_with_it() -> None:
    vae = new_vae("conv")
    freeze(vae, "decoder")
    assert not vae.likelihood.scale.requires_grad


def test_shared_weights_are_not_frozen_by_half() -> None:
    vae = new_vae("custom", custom=f"{__name__}:Tied")
    with pytest.raises(ModelError, match="share weights"):
        freeze(vae, "encoder")


def test_weights_come_from_another_model_and_another_likelihood_keeps_its_own() -> None:
    source, vae = new_vae("mlp", 1), new_vae("mlp", 2, "laplace", sigma=0.05)
    start_from(vae, source, "source")
    batch = images()
    assert torch.equal(vae.encode(batch).mean, source.encode(batch).mean)
    assert float(sigma_of(vae).detach()) == pytest.approx(0.05, rel=1e-5)


def test_a_model_that_does_not_fit_is_refused_with_what_is_missing() -> None:
    with pytest.raises(ModelError, match=r"runs/other: the weights don't fit this model"):
        start_from(new_vae("mlp"), new_vae("conv"), "runs/other")


@pytest.mark.parametrize("kind", KINDS)
def test_the_memory_format_of_images_changes_no_moment_beyond_rounding(kind: str) -> None:
    vae, batch = new_vae(kind), images()
    first = vae.encode(batch).mean
    second = vae.encode(batch.contiguous(memory_format=torch.channels_last)).mean
    torch.testing.assert_close(first, second, rtol=1e-5, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "backend"),
    [
        ("linear", "inductor"),
        ("mlp", "inductor"),
        ("conv", "inductor"),
        # Its many layers take a minute or two of C++ compiling: captured and differentiated alone.
        ("autoencoder_kl", "aot_eager"),
    ],
)
def test_a_compiled_model_gives_the_same_terms_and_gradients(kind: str, backend: str) -> None:
    vae, batch = new_vae(kind), images()
    noise = draw_noise(vae, 0, 1, range(2))
    compiled, expected = torch.compile(vae, backend=backend)(batch, noise), vae(batch, noise)
    for name in ("elbo", "kl", "log_likelihood"):
        torch.testing.assert_close(
            getattr(compiled, name), getattr(expected, name), rtol=1e-4, atol=1e-3
        )
    weights = list(vae.parameters())
    found = torch.autograd.grad(compiled.elbo.mean(), weights)
    wanted = torch.autograd.grad(expected.elbo.mean(), weights)
    # Some are zero but for rounding: a bias before a norm of one channel per group.
    largest = max(float(gradient.abs().max()) for gradient in wanted)
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6 * largest)


@pytest.mark.parametrize("part", ["encoder", "decoder"])
def test_the_optimiser_holds_what_is_not_frozen_and_nothing_else(
    part: Literal["encoder", "decoder"],
) -> None:
    vae = new_vae("conv")
    everything = dict(vae.named_parameters())
    freeze(vae, part)
    optimizer = make_optimizer(OptimizerConfig(), vae)
    held = {id(weight) for group in optimizer.param_groups for weight in group["params"]}
    left_out = {name for name, weight in everything.items() if id(weight) not in held}
    layers = {"encoder": ("down", "to_moments"), "decoder": ("up", "from_latents")}[part]
    wanted = {name for name in everything if name.split(".")[1] in layers}
    assert left_out == wanted | ({"likelihood.scale"} if part == "decoder" else set())
