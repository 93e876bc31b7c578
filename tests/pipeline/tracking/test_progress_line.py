"""The live view's line and bar."""

import math

from pipeline.tracking.metric_table import MetricsReport
from pipeline.tracking.progress_line import numbers_of

REPORT = MetricsReport(
    step=40, images_per_second=1234.4, step_seconds=8.0, data_wait_seconds=2.0,
    memory_bytes=3 * 2**29, gpu_share=0.4, slowest_rank=3, slowest_rank_ratio=1.75,
    run_seconds={"productive": 6.0, "data_wait": 2.0, "idle": 50.0},
    terms={"elbo": -80.5, "log_likelihood": -70.25, "kl": 10.25, "beta": 1.0},
)  # fmt: skip


def test_all_numbers_stand_in_one_line_and_those_that_are_missing_are_left_out():
    assert numbers_of(REPORT) == (
        "elbo -80.50, log_likelihood -70.25, kl 10.25, 1,234 images/s, data wait 25%, "
        "GPU 40% of peak, goodput 75%, rank 3 is slow (1.8 times the median), memory 1.5 GiB"
    )
    assert numbers_of(MetricsReport(step=1, terms={"elbo": math.nan})) == ""
