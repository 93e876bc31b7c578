import torch

from pipeline.vae.mlp import Linear, Mlp
from pipeline.vae.networks import NetworkShape


def test_the_papers_network_has_the_papers_number_of_weights() -> None:
    network = Mlp(NetworkShape(1, 28, 1))
    encoder = 784 * 200 + 200 + 200 * 200 + 200 + 2 * (200 * 50 + 50)
    decoder = 50 * 200 + 200 + 200 * 200 + 200 + 200 * 784 + 784
    assert sum(weight.numel() for weight in network.parameters()) == encoder + decoder


def test_a_full_posterior_gets_a_triangle_more() -> None:
    network = Mlp(NetworkShape(1, 4, 1, "full"), latent_channels=3, width=5)
    assert network.encode(torch.zeros(2, 1, 4, 4)).shape == (2, 3 + 3 + 3, 1, 1)


def test_start_at_sets_every_pixel() -> None:
    for network in (Mlp(NetworkShape(1, 4, 1)), Linear(NetworkShape(1, 4, 1))):
        wanted = torch.rand(1, 4, 4)
        network.start_at(wanted)
        with torch.no_grad():
            shown = network.decode(torch.zeros(1, *network.latent_shape))
        tolerance = 1e-6 if isinstance(network, Linear) else 1e-5
        torch.testing.assert_close(shown[0], wanted, atol=tolerance, rtol=0)


def test_linear_is_linear() -> None:
    network = Linear(NetworkShape(1, 4, 1), latent_channels=3)
    first, second = torch.randn(2, 1, 3, 1, 1)
    zero = network.decode(torch.zeros(1, 3, 1, 1))
    both = network.decode(first + second) - zero
    torch.testing.assert_close(both, network.decode(first) + network.decode(second) - 2 * zero)
