import math

import pytest
import torch
from torch import Tensor, nn

from pipeline.config import ModelConfig, PreprocessConfig
from pipeline.vae import VAE, ElboTerms, Noise, build_vae, draw_noise
from tests.support.digit_models import TRAINED_ON
from tests.support.digit_models import images as digits

LIKELIHOODS = [
    "bernoulli",
    "continuous_bernoulli",
    "gaussian",
    "gaussian_fixed",
    "gaussian_per_pixel",
    "laplace",
    "logistic",
    "logistic_mixture",
]
KINDS: dict[str, dict[str, object]] = {
    "linear": {},
    "mlp": {"width": 16},
    "conv": {"width": 8},
    "autoencoder_kl": {"width": 32, "factor": 4},
}


def new_vae(kind: str = "conv", likelihood: str = "gaussian", **knobs: object) -> VAE:
    torch.manual_seed(0)
    model = ModelConfig(kind=kind, likelihood=likelihood, **{**KINDS[kind], **knobs})
    return build_vae(model, PreprocessConfig(image_size=8, channels=3))


def images(count: int = 4) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (count, 3, 8, 8), dtype=torch.uint8, generator=generator)


def terms_of(vae: VAE, *, autocast: bool = False) -> ElboTerms:
    with torch.autocast("cpu", torch.bfloat16, autocast):
        terms = vae(images(), draw_noise(vae, 0, 1, range(4)), at_mean=True)
    assert isinstance(terms, ElboTerms)
    return terms


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("likelihood", LIKELIHOODS)
def test_every_weight_of_every_model_gets_a_finite_gradient(kind: str, likelihood: str) -> None:
    vae = new_vae(kind, likelihood)
    terms = terms_of(vae)
    terms.elbo.sum().backward()
    for name, parameter in vae.named_parameters():
        assert parameter.grad is not None, name
        assert bool(torch.isfinite(parameter.grad).all()), name
    assert terms.elbo.shape == (4,)
    assert terms.kl_per_dimension.shape == (4, math.prod(vae.latent_shape))


@pytest.mark.parametrize("likelihood", LIKELIHOODS)
def test_terms_are_float32_and_within_half_a_percent_under_bfloat16(likelihood: str) -> None:
    vae = new_vae("conv", likelihood)
    exact, rounded = terms_of(vae), terms_of(vae, autocast=True)
    for name in ("elbo", "log_likelihood", "entropy_q", "cross_entropy_q_prior"):
        found, wanted = getattr(rounded, name), getattr(exact, name)
        assert found.dtype == torch.float32
        assert float((found / wanted - 1).detach().abs().max()) < 0.005, name


def test_networks_run_under_autocast_and_the_mathematics_does_not() -> None:
    vae = new_vae()
    seen: dict[str, torch.dtype] = {}
    vae.network.get_submodule("up").register_forward_hook(
        lambda *a: seen.update(decoder=a[2].dtype)
    )
    vae.network.get_submodule("to_moments").register_forward_hook(
        lambda *a: seen.update(encoder=a[2].dtype)
    )
    terms_of(vae, autocast=True)
    assert seen == {"decoder": torch.bfloat16, "encoder": torch.bfloat16}
    with torch.autocast("cpu", torch.bfloat16):
        assert vae.encode(images()).log_variance.dtype == torch.float32
        assert vae.decode(torch.zeros(2, *vae.latent_shape)).dtype == torch.float32


def test_double_weights_give_double_terms() -> None:
    vae = new_vae().double()
    terms = terms_of(vae)
    assert terms.elbo.dtype == torch.float64
    torch.testing.assert_close(terms.elbo, terms_of(new_vae()).elbo, check_dtype=False)


def test_an_image_has_the_same_terms_alone_and_in_a_batch() -> None:
    vae = new_vae()
    noise = draw_noise(vae, 0, 1, range(4))
    alone = vae(images()[2:3], Noise(noise.posterior[2:3], noise.pixels[2:3]))
    torch.testing.assert_close(alone.elbo, vae(images(), noise).elbo[2:3], rtol=1e-5, atol=0)


def test_log_likelihood_at_the_mean_is_another_number_than_its_expectation() -> None:
    vae = new_vae("linear", "gaussian_fixed")
    noise = draw_noise(vae, 0, 1, range(4), samples=64)
    terms = vae(images(), noise, at_mean=True)
    # A linear decoder loses tr(W S W') / 2 sigma^2 in the expectation: Jensen, never for free.
    assert bool((terms.log_likelihood_at_mean > terms.log_likelihood + 1).all())
    assert vae(images(), noise).log_likelihood_at_mean is None


def test_bernoulli_scores_and_encodes_the_same_binarised_image() -> None:
    vae = new_vae("mlp", "bernoulli")
    noise = draw_noise(vae, 0, 1, range(4))
    white = (noise.pixels * 255 < images()).to(torch.uint8) * 255
    torch.testing.assert_close(vae(white, noise).elbo, vae(images(), noise).elbo)
    torch.testing.assert_close(vae.prior.kl(vae.encode(white)), vae(images(), noise).kl)


def test_untrained_decoder_shows_grey_and_starts_at_a_mean_image() -> None:
    vae = new_vae()
    latents = torch.zeros(1, *vae.latent_shape)
    torch.testing.assert_close(
        vae.decode(latents), torch.full((1, 3, 8, 8), 0.5), atol=0.02, rtol=0
    )
    mean = torch.tensor([0.2, 0.5, 0.9]).view(3, 1, 1).expand(3, 8, 8)
    vae.start_at(mean)
    torch.testing.assert_close(vae.decode(latents)[0], mean, atol=0.02, rtol=0)


@pytest.mark.parametrize("likelihood", LIKELIHOODS)
def test_drawn_images_are_uint8_and_follow_the_generator(likelihood: str) -> None:
    vae = new_vae("conv", likelihood)
    latents = torch.randn(2, *vae.latent_shape, generator=torch.manual_seed(0))
    first = vae.draw(latents, torch.Generator().manual_seed(1))
    assert first.dtype == torch.uint8
    assert first.shape == (2, 3, 8, 8)
    assert torch.equal(first, vae.draw(latents, torch.Generator().manual_seed(1)))
    assert not torch.equal(first, vae.draw(latents, torch.Generator().manual_seed(2)))


@pytest.mark.parametrize(
    "knobs",
    [
        {"kind": "conv", "posterior": "full"},
        {"kind": "linear", "width": 8},
        {"kind": "mlp", "latent_size": 4},
        {"kind": "conv", "factor": 8},
        {"kind": "conv", "gradient_checkpointing": True},
        {"kind": "custom"},
        {"kind": "conv", "custom": "a:B"},
        {"likelihood": "bernoulli", "sigma": 0.1},
    ],
)
def test_knobs_that_make_no_sense_together_fail_at_construction(knobs: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="Value error"):
        ModelConfig(**knobs)


def both_precisions(kind: str, likelihood: str, steps: int, **knobs: object) -> list[ElboTerms]:
    """Held-out digits under a model trained on digits of 8 pixels: float32, then bfloat16."""
    torch.manual_seed(0)
    known = {"kind": kind, "likelihood": likelihood, **KINDS[kind], **knobs}
    vae = build_vae(ModelConfig.model_validate(known), PreprocessConfig(image_size=8, channels=1))
    optimizer = torch.optim.Adam(vae.parameters(), 3e-3)
    generator = torch.Generator().manual_seed(0)
    for step in range(1, steps + 1):
        chosen = torch.randint(0, TRAINED_ON, (64,), generator=generator)
        loss = -vae(digits()[0][chosen], draw_noise(vae, 0, step, range(64))).elbo.mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    held_out, noise = digits()[0][TRAINED_ON : TRAINED_ON + 200], draw_noise(vae, 0, 0, range(200))
    found = []
    for autocast in (False, True):
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, autocast):
            found.append(vae(held_out, noise, at_mean=True))
    return found


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "likelihood", "steps", "knobs"),
    [
        ("linear", "gaussian", 150, {}),
        ("linear", "bernoulli", 150, {}),
        ("mlp", "gaussian", 150, {}),
        ("mlp", "bernoulli", 150, {}),
        ("conv", "gaussian", 150, {}),
        ("conv", "bernoulli", 150, {}),
        ("autoencoder_kl", "gaussian_fixed", 10, {"sigma": 0.05}),
    ],
)
def test_every_term_of_a_trained_models_batch_is_within_half_a_percent_under_bfloat16(
    kind: str, likelihood: str, steps: int, knobs: dict[str, object]
) -> None:
    exact, rounded = both_precisions(kind, likelihood, steps, **knobs)
    # Nearer the prior the KL is made of means that bfloat16 rounds: the next test.
    assert float(exact.kl.mean()) > 0.1
    for name in exact.COMPONENTS:
        found, wanted = float(getattr(rounded, name).mean()), float(getattr(exact, name).mean())
        assert found == pytest.approx(wanted, rel=0.005), name


def test_a_collapsed_posteriors_kl_is_within_half_a_thousandth_of_a_nat_under_bfloat16() -> None:
    exact, rounded = both_precisions("autoencoder_kl", "bernoulli", 20)
    # Seen: 1% of these 0.04 nats, 6% of 0.0003.
    assert float(exact.kl.mean()) < 0.1
    assert float(rounded.kl.mean()) == pytest.approx(float(exact.kl.mean()), abs=5e-4)
    assert float(rounded.elbo.mean()) == pytest.approx(float(exact.elbo.mean()), rel=0.005)


def trained(vae: VAE) -> tuple[list[float], dict[str, Tensor]]:
    """Losses of four AdamW steps in float64, and what the convolutions of the last one held."""
    vae = vae.double()
    seen: dict[str, Tensor] = {}
    for name, layer in vae.named_modules():
        if isinstance(layer, nn.Conv2d):

            def note(
                layer: nn.Module, inputs: tuple[Tensor], output: Tensor, name: str = name
            ) -> None:
                seen.update({f"{name} reads": inputs[0], f"{name} gives": output})
                seen[f"{name} weighs"] = layer.get_parameter("weight")

            layer.register_forward_hook(note)
    optimizer = torch.optim.AdamW(vae.parameters(), 1e-3, fused=True)
    losses = []
    for step in range(1, 5):
        loss = -vae(images(), draw_noise(vae, 0, step, range(4))).elbo.mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    return losses, seen


@pytest.mark.parametrize("kind", ["conv", "autoencoder_kl"])
def test_training_with_channels_last_loses_what_it_loses_without(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    found, _ = trained(new_vae(kind))
    monkeypatch.setattr(VAE, "_to_input", lambda self, values: values.contiguous())
    contiguous = new_vae(kind)
    contiguous.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]  # torch has it
    plain, seen = trained(contiguous)
    assert all(tensor.is_contiguous() for tensor in seen.values())
    assert found == pytest.approx(plain, rel=1e-9)


def test_every_convolution_reads_weighs_and_gives_channels_last_in_a_step() -> None:
    _, seen = trained(new_vae("autoencoder_kl"))
    assert len(seen) > 100
    for name, tensor in seen.items():
        assert tensor.is_contiguous(memory_format=torch.channels_last), name
