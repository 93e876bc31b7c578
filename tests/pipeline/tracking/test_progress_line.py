"""The live view's line and bar."""

from pipeline.tracking.progress_line import numbers_of

SNAPSHOT = {
    "step": 40, "images_per_second": 1234.4, "step_seconds_total": 8.0,
    "data_wait_seconds_total": 2.0, "memory_bytes": 3 * 2**29, "gpu_share": 0.4,
    "run_seconds_total": {"productive": 6.0, "data_wait": 2.0, "idle": 50.0},
    "slowest_rank": 3, "slowest_rank_ratio": 1.75,
    "terms": {"elbo": -80.5, "log_likelihood": -70.25, "kl": 10.25, "beta": 1.0},
}  # fmt: skip


def test_all_numbers_stand_in_one_line_and_those_that_are_missing_are_left_out():
    assert numbers_of(SNAPSHOT) == (
        "elbo -80.50, log_likelihood -70.25, kl 10.25, 1,234 images/s, data wait 25%, "
        "GPU 40% of peak, goodput 75%, rank 3 is slow (1.8 times the median), memory 1.5 GiB"
    )
    assert numbers_of({"step": 1}) == ""
