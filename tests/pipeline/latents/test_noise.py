import numpy as np
from scipy import stats

from pipeline.latents.noise import coin, normal_noise


def test_noise_is_standard_normal() -> None:
    values = normal_noise("key", 0, (50_000,))
    assert stats.kstest(values, "norm").pvalue > 0.01
    assert np.isfinite(values).all()


def test_keys_seeds_and_streams_have_noise_of_their_own_and_the_same_again() -> None:
    first = normal_noise("a", 0, (4, 8, 8))
    np.testing.assert_array_equal(first, normal_noise("a", 0, (4, 8, 8)))
    for other in [("b", 0, ""), ("a", 1, ""), ("a", 0, "epoch 1")]:
        drawn = normal_noise(other[0], other[1], (4, 8, 8), other[2])
        assert abs(np.corrcoef(first.ravel(), drawn.ravel())[0, 1]) < 0.2


def test_the_noise_of_a_key_is_the_same_for_ever() -> None:
    # Stores of samples, drawn long ago, must be made again byte for byte.
    expected = [-0.12481344491243362, 0.8255422711372375, -1.359626054763794]
    np.testing.assert_allclose(normal_noise("key", 7, (3,)), expected, rtol=1e-6)


def test_a_coin_is_fair_and_the_same_again() -> None:
    heads = [coin(f"key{number}", 3) for number in range(4000)]
    assert 1850 < sum(heads) < 2150
    assert heads == [coin(f"key{number}", 3) for number in range(4000)]
