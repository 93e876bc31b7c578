import torch
from torch import nn

from pipeline.training.state import Ema


def test_the_average_of_bfloat16_weights_moves_although_each_step_is_below_their_resolution() -> (
    None
):
    # In bfloat16 an average at 0.9999 stays where it was for ever: 1 + 1e-4 rounds to 1.
    module = nn.Linear(1, 1, bias=False).to(torch.bfloat16)
    nn.init.ones_(module.weight)
    ema = Ema(module, decay=0.9999)
    nn.init.constant_(module.weight, 2.0)
    for step in range(100_000, 120_000):
        ema.update(module, step)
    expected = 2.0 - 0.9999**20_000
    assert abs(ema.module.get_parameter("weight").item() - expected) < 1e-3


def test_without_decay_the_average_is_the_present_weights() -> None:
    module = nn.Linear(3, 2)
    ema = Ema(module, decay=0.0)
    with torch.no_grad():
        module.weight.add_(1.0)
    ema.update(module, 1)
    assert torch.equal(ema.module.get_parameter("weight"), module.weight)


def test_the_first_step_leaves_the_initial_weights_mostly_behind() -> None:
    module = nn.Linear(1, 1, bias=False)
    nn.init.zeros_(module.weight)
    ema = Ema(module, decay=0.999)
    nn.init.ones_(module.weight)
    ema.update(module, 1)
    assert ema.module.get_parameter("weight").item() > 0.85
