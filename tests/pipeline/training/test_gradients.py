"""In which type the networks compute; what `exact` can't be is in the tests of the step."""

import pytest
import torch

from pipeline.training.gradients import Precision, autocast_dtype


@pytest.mark.parametrize(
    ("precision", "dtype"),
    [("fp64", None), ("fp32", None), ("fp16", torch.float16), ("bf16", torch.bfloat16)],
)
def test_a_precision_that_is_named_is_taken_on_every_device(
    precision: Precision, dtype: torch.dtype | None
) -> None:
    assert autocast_dtype(precision, torch.device("cpu")) is dtype
    assert autocast_dtype(precision, torch.device("cuda")) is dtype


@pytest.mark.parametrize("has_bf16", [False, True])
def test_auto_is_bf16_only_where_the_hardware_has_it(
    has_bf16: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: has_bf16)
    found = autocast_dtype("auto", torch.device("cpu"))
    assert found is (torch.bfloat16 if has_bf16 else None)
    assert autocast_dtype("auto", torch.device("cuda")) is torch.bfloat16
