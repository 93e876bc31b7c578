"""The one look into Ray's private modules, on the Ray that is installed here."""

import logging

import pytest
from ray.train.v2._internal.execution import context as ray_context
from ray.train.v2._internal.execution.preemption import PreemptionContext, PreemptionInfo

from pipeline.cluster import node_drain


def test_a_worker_sees_what_this_ray_says_of_its_node(monkeypatch: pytest.MonkeyPatch) -> None:
    """`TrainContext` is Ray's own, with the one field that is read; the others need a cluster."""
    found = object.__new__(ray_context.TrainContext)
    assert "preemption_context" in ray_context.TrainContext.__dataclass_fields__
    object.__setattr__(found, "preemption_context", PreemptionContext())
    monkeypatch.setattr(ray_context, "_train_context", found)
    assert node_drain.node_is_drained() is False
    found.preemption_context.preemption_info = object.__new__(PreemptionInfo)
    assert node_drain.node_is_drained() is True


def test_a_ray_that_keeps_it_elsewhere_costs_a_warning_and_no_run(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    found = object.__new__(ray_context.TrainContext)
    monkeypatch.setattr(ray_context, "_train_context", found)
    node_drain._warn.cache_clear()
    with caplog.at_level(logging.WARNING):
        assert [node_drain.node_is_drained() for _ in range(3)] == [False] * 3
    assert caplog.text.count("preemption_context") == 1
