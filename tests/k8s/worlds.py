"""What Prometheus would have read of a cluster, by the minute: healthy, sick, recovered; a week.

A world is a dictionary of series: each name with a function of the minute. None: no sample.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

Values = Callable[[int], float | None]
World = dict[str, Values]

HOUR, DAY = 60, 24 * 60
FALLS_ILL, IS_SICK, ENDS = 3 * HOUR + 20, 4 * HOUR, 12 * HOUR
"""When a sickness begins, when its alert must fire and no other, and when it must be over."""


def always(value: float) -> Values:
    return lambda minute: value


def growing(per_minute: float, start: float = 0) -> Values:
    return lambda minute: start + per_minute * minute


def gone(_minute: int) -> None:
    return None


def during(begin: int, end: int, values: Values, before: Values, after: Values) -> Values:
    def value(minute: int) -> float | None:
        if begin <= minute < end:
            return values(minute)
        return before(minute) if minute < begin else after(minute)

    return value


def within(begin: int, end: int, values: Values) -> Values:
    """Of what is only there for a while."""
    return during(begin, end, values, gone, gone)


def ill(values: Values, healthy: Values, *, begin: int = FALLS_ILL) -> Values:
    """From `begin` until half an hour after the look."""
    return during(begin, IS_SICK + HOUR // 2, values, healthy, healthy)


def halting(healthy: Values) -> Values:
    """It stays as it was when the sickness began."""
    return ill(always(healthy(FALLS_ILL) or 0), healthy)


def slower(healthy_rate: float, rate: float, *, begin: int = FALLS_ILL) -> Values:
    """A counter that grows with another rate while the sickness lasts."""

    def value(minute: int) -> float:
        sick = max(0, min(minute, IS_SICK + HOUR // 2) - begin)
        return healthy_rate * (minute - sick) + rate * sick

    return value


def stamps(minutes: Values) -> Values:
    """A time stamp in seconds, of what is told in minutes."""

    def value(minute: int) -> float | None:
        found = minutes(minute)
        return None if found is None else 60 * found

    return value


NOW = growing(1)


def training(run: str = "r") -> World:
    """Of a run that trains from the first minute on."""
    label = f'{{run="{run}"}}'
    return {
        f'up{{job="vae/vae-runs",run="{run}"}}': always(1),
        f"vae_train_images_total{label}": growing(6000),
        f"vae_train_step_seconds_total{label}": growing(58),
        f"vae_train_data_wait_seconds_total{label}": growing(2),
        f'vae_run_seconds_total{{run="{run}",state="productive"}}': growing(56),
        f"vae_train_last_step_timestamp_seconds{label}": stamps(NOW),
        f"vae_train_nonfinite_steps_total{label}": always(0),
        f"vae_train_bad_images_total{label}": always(0),
        f"vae_train_step{label}": growing(100),
        f"vae_train_target_steps{label}": always(100_000),
        f"vae_checkpoint_step{label}": growing(100),
        f"vae_checkpoint_every_steps{label}": always(500),
        f"vae_train_restarts_total{label}": always(0),
        f"vae_train_start{label}": always(1),
        # Within its first tenth, and for longer than any alert waits.
        f"vae_holdout_active_units{label}": lambda minute: 0 if minute < 60 else 20,
        f"vae_holdout_step{label}": growing(100),
        f'vae_train_nats{{run="{run}",term="elbo"}}': growing(0.01, -200),
        f'vae_train_nats{{run="{run}",term="kl"}}': always(20),
        f'vae_holdout_nats{{run="{run}",term="elbo"}}': growing(0.01, -200),
        f"vae_tracking_unsent_points{label}": lambda minute: (3, 8, 2, 9, 1, 4, 7)[minute % 7],
    }


THERE = always(1)


def rayjob(name: str, status: str, values: Values = THERE) -> World:
    """KubeRay shows the present state of a RayJob that there is; see ray_job_metrics.go."""
    known = f'name="{name}",namespace="vae"'
    return {
        f'kuberay_job_deployment_status{{{known},deployment_status="{status}"}}': values,
        f"kuberay_job_info{{{known}}}": values,
    }


def night(minute: int) -> tuple[int, int]:
    """The day, and how many minutes its night, which begins at 01:00, is old."""
    return minute // DAY, minute % DAY - HOUR


def of_each_night(late: int) -> Values:
    """A time stamp: what each night leaves `late` minutes after it began."""

    def minutes(minute: int) -> float:
        day, age = night(minute)
        return (day if age >= late else day - 1) * DAY + HOUR + late

    return stamps(minutes)


def nightly() -> World:
    """A CronJob that runs each night for 90 minutes, and the store that it fills."""
    cron, store = '{cronjob="nightly",namespace="vae"}', '{store="s"}'
    lasts = 90
    return {
        f"kube_cronjob_status_last_schedule_time{cron}": of_each_night(0),
        f"kube_cronjob_status_last_successful_time{cron}": of_each_night(lasts),
        f"kube_cronjob_status_active{cron}": lambda m: 1 if 0 <= night(m)[1] < lasts else 0,
        f"kube_cronjob_spec_suspend{cron}": always(0),
        f"vae_encode_last_success_timestamp_seconds{store}": of_each_night(lasts - 5),
        f"vae_encode_last_end_timestamp_seconds{store}": of_each_night(lasts - 5),
        f"vae_encode_last_lost_shards{store}": always(0),
        f"vae_encode_expected_seconds{store}": always(26 * 3600),
    }


def encoding(store: str = "e") -> World:
    """Of an encoding that lasts."""
    label = f'{{store="{store}"}}'
    return {
        f'up{{job="vae/vae-runs",store="{store}"}}': always(1),
        f"vae_encode_images_total{label}": growing(1000),
        f"vae_encode_images_left{label}": growing(-1000, 10_000_000),
        f"vae_encode_last_shard_timestamp_seconds{label}": stamps(NOW),
        f"vae_encode_quarantined_shards_total{label}": always(0),
    }


HEALTHY: World = {
    **training(), **encoding(), **nightly(), **rayjob("j", "Running"),
    # What a try of last week left with the operator.
    'kuberay_job_execution_duration_seconds{name="j",namespace="vae",retry_count="0",'
    'job_deployment_status="Retrying"}': always(600),
}  # fmt: skip


@dataclass(frozen=True)
class Sickness:
    """By a part of their names: series that differ from the healthy world's; `also` are others."""

    changes: Mapping[str, Values]
    also: Mapping[str, Values] | None = None

    def world(self) -> World:
        values = dict(HEALTHY)
        for part, other in self.changes.items():
            touched = [name for name in values if part in name]
            assert touched, part
            values |= dict.fromkeys(touched, other)
        return values | dict(self.also or {})


def healthy(part: str) -> Values:
    (found,) = [values for name, values in HEALTHY.items() if part in name]
    return found


def _halts(part: str) -> Sickness:
    return Sickness({part: halting(healthy(part))})


FAILED = {
    'kuberay_job_deployment_status{name="f",namespace="vae",deployment_status="Running"}':
        during(0, FALLS_ILL, always(1), gone, gone),
    'kuberay_job_deployment_status{name="f",namespace="vae",deployment_status="Failed"}':
        during(0, FALLS_ILL, gone, gone, always(1)),
    'kuberay_job_info{name="f",namespace="vae"}': always(1),
}  # fmt: skip
RETRIED = {
    'kuberay_job_execution_duration_seconds{name="f",namespace="vae",retry_count="0",'
    'job_deployment_status="Retrying"}': during(0, FALLS_ILL, gone, gone, always(90)),
}  # fmt: skip
A_NIGHT_THAT_FAILS = during(
    HOUR, IS_SICK + HOUR, stamps(always(-DAY)), stamps(always(-DAY)), stamps(always(IS_SICK))
)
THE_NIGHT_BEFORE = during(
    0, IS_SICK + HOUR, stamps(always(FALLS_ILL - 26 * HOUR)), gone, stamps(always(IS_SICK))
)

SICK: dict[str, list[Sickness]] = {
    "VaeStalled": [_halts("vae_train_last_step_timestamp_seconds")],
    "VaeRunUnreachable": [
        # The exporter died: all of its series are stale, and only `up` is left to tell.
        Sickness(
            {'up{job="vae/vae-runs",run': ill(always(0), always(1))}
            | {name: ill(gone, values) for name, values in training().items() if "up{" not in name}
        ),
        Sickness(
            {'up{job="vae/vae-runs",store': ill(always(0), always(1))}
            | {name: ill(gone, values) for name, values in encoding().items() if "up{" not in name}
        ),
    ],
    "VaeJobFailed": [Sickness({}, FAILED)],
    "VaeJobRetried": [
        Sickness({}, RETRIED),
        # The same number of a later job of this name: only how long it took differs.
        Sickness({"kuberay_job_execution_duration": during(
            0, FALLS_ILL, always(600), gone, always(30))}),
    ],
    "VaeThroughputDrop": [Sickness({"vae_train_images_total": slower(6000, 3000)})],
    "VaeDataStarvation": [Sickness({"vae_train_data_wait_seconds_total": slower(2, 20)})],
    "VaeNonFinite": [
        Sickness({"vae_train_nonfinite_steps_total": slower(0, 3, begin=IS_SICK - 5)})],
    "VaeNoCheckpoint": [_halts("vae_checkpoint_step")],
    "VaeRestartStorm": [
        Sickness({"vae_train_restarts_total": slower(0, 1, begin=IS_SICK - 10)}),
        Sickness({"vae_train_start": lambda minute: 1 + max(0, min(minute, IS_SICK) - 200) // 10}),
    ],
    "VaePosteriorCollapse": [
        Sickness({"vae_holdout_active_units": ill(always(0), healthy("vae_holdout_active"))}),
        Sickness({"vae_holdout_active_units": ill(always(3), healthy("vae_holdout_active"))}),
    ],
    "VaeDivergence": [Sickness({'vae_train_nats{run="r",term="elbo"}': ill(
        lambda minute: -201 - 5 * (minute - 210), growing(0.01, -200), begin=210)})],
    "VaeBadImages": [Sickness({"vae_train_bad_images_total": slower(0, 8)})],
    "VaeTrackingBacklog": [Sickness({"vae_tracking_unsent_points": ill(
        lambda minute: 12 * (minute - FALLS_ILL), always(3))})],
    "VaeEncodeStalled": [_halts("vae_encode_last_shard_timestamp_seconds")],
    "VaeEncodeOverdue": [
        # The night never began: neither CronJob nor encoding say anything of a failure.
        Sickness({
            "vae_encode_last_success": THE_NIGHT_BEFORE,
            "vae_encode_last_end": THE_NIGHT_BEFORE,
        }),
    ],
    "VaeEncodeFailed": [
        Sickness({"vae_encode_last_end": ill(stamps(always(FALLS_ILL)), healthy("last_end"))}),
        Sickness({"vae_encode_last_success": ill(gone, healthy("encode_last_success"))}),
    ],
    "VaeNightlyFailed": [
        Sickness({
            "last_successful_time": A_NIGHT_THAT_FAILS,
            "status_active": during(HOUR, FALLS_ILL, always(1), always(0), always(0)),
        }),
        Sickness({"last_successful_time": ill(gone, healthy("last_successful_time"))}),
    ],
    "VaeQuarantine": [
        Sickness({"vae_encode_last_lost_shards": ill(always(1), always(0))}),
        Sickness({"vae_encode_quarantined_shards_total": slower(0, 1, begin=IS_SICK - 5)}),
    ],
}  # fmt: skip


def week() -> World:
    """Seven days in which nothing is wrong, and much begins and ends."""
    world: World = dict(nightly())

    def add(part: Mapping[str, Any], begin: int, end: int) -> None:
        world.update({name: within(begin, end, values) for name, values in part.items()})

    # One that lasts for all of the week; it is restarted once, when a node is drained, and looks
    # at its hold-out for five minutes every six hours.
    long = training("long")
    every, lasts = 6 * HOUR, 5

    def without_looks(minute: int) -> int:
        return minute - lasts * (minute // every) + max(0, lasts - minute % every)

    label = '{run="long"}'
    world |= long | {
        f"vae_train_target_steps{label}": always(100_000_000),
        f"vae_train_images_total{label}": lambda m: 6000.0 * without_looks(m),
        f"vae_train_step_seconds_total{label}": lambda m: 58.0 * without_looks(m),
        f"vae_train_data_wait_seconds_total{label}": lambda m: 2.0 * without_looks(m),
        f"vae_train_last_step_timestamp_seconds{label}":
            lambda m: 60.0 * (m if m % every >= lasts else m - m % every),
        f"vae_train_restarts_total{label}": lambda m: 0.0 if m < 3 * DAY else 1.0,
    }  # fmt: skip
    add(rayjob("train-long", "Running"), 0, 7 * DAY)
    # One is finished after two days and a half, and one stopped after a few hours. Their heads stay
    # for four minutes without an endpoint, their RayJobs for good.
    for run, begin, end in (("done", 300, 60 * HOUR), ("stopped", DAY, DAY + 5 * HOUR)):
        add(training(run), begin, end)
        target = f'vae_train_target_steps{{run="{run}"}}'
        world[target] = within(begin, end, always(100 * 60 * HOUR))
        up = f'up{{job="vae/vae-runs",run="{run}"}}'
        world[up] = during(end, end + 4, always(0), world[up], gone)
        add(rayjob(f"train-{run}", "Running"), begin, end)
        # A port that is scraped for good, as operations.md says of runs on one machine.
        static = f'up{{job="vae-runs",instance="{run}:9465"}}'
        world[static] = during(begin, end, always(1), always(0), always(0))
        ended = rayjob(f"train-{run}", "Complete", during(0, end, gone, gone, always(1)))
        info = f'kuberay_job_info{{name="train-{run}",namespace="vae"}}'
        world |= ended | {info: during(0, begin, gone, gone, always(1))}
    # One encoding by hand, told to the Pushgateway, which keeps it.
    begin, end = DAY + 9 * HOUR, DAY + 11 * HOUR
    add(encoding("one-off"), begin, end)
    world['vae_encode_images_left{store="one-off"}'] = within(
        begin, end, growing(-1000, 1000 * end)
    )
    for name in ("last_success_timestamp_seconds", "last_end_timestamp_seconds"):
        told = during(0, end, gone, gone, stamps(always(end)))
        world[f'vae_encode_{name}{{store="one-off"}}'] = told
    world['vae_encode_last_lost_shards{store="one-off"}'] = during(0, end, gone, gone, always(0))
    # The nights' encoding: there for an hour of each.
    for name, values in encoding("s").items():
        world[name] = lambda m, v=values: v(m) if 20 <= night(m)[1] < 85 else None  # type: ignore[misc]
    return world
