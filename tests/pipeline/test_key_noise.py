import numpy as np
from scipy import stats

from pipeline.key_noise import coins, normal_noise


def test_noise_is_standard_normal() -> None:
    values = normal_noise(["key"], 0, (50_000,))[0]
    assert stats.kstest(values, "norm").pvalue > 0.01
    assert np.isfinite(values).all()


def test_keys_seeds_and_streams_have_noise_of_their_own_and_the_same_again() -> None:
    first = normal_noise(["a"], 0, (4, 8, 8))[0]
    np.testing.assert_array_equal(first, normal_noise(["b", "a", "c"], 0, (4, 8, 8))[1])
    for other in [("b", 0, ""), ("a", 1, ""), ("a", 0, "epoch 1")]:
        drawn = normal_noise([other[0]], other[1], (4, 8, 8), other[2])
        assert abs(np.corrcoef(first.ravel(), drawn.ravel())[0, 1]) < 0.2


def test_the_noise_of_a_key_is_the_same_for_ever() -> None:
    # Stores of samples, drawn long ago, must be made again byte for byte.
    expected = [-0.12481344491243362, 0.8255422711372375, -1.359626054763794]
    np.testing.assert_allclose(normal_noise(["key"], 7, (3,))[0], expected, atol=1e-6)


def test_a_coin_is_fair_and_the_same_again() -> None:
    keys = [f"key{number}" for number in range(4000)]
    heads = coins(keys, 3)
    assert 1850 < sum(heads) < 2150
    assert (heads[::-1] == coins(keys[::-1], 3)).all()
    assert (heads != coins(keys, 3, "another stream")).mean() > 0.4
