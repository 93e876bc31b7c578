"""One page of a run or a latent store: an HTML file that needs no network."""

from jobs.command import LOADING, Outcome, run_job
from pipeline.config import ReportConfig
from pipeline.masking import one_line
from pipeline.progress import phase


def main(config: ReportConfig) -> Outcome:
    """Writes the page."""
    with phase(LOADING):
        from pipeline.commands.report import run_report

    found = run_report(config)
    return Outcome(
        found.to_json(),
        summary=[f"{one_line(found.page)}: {found.bytes / 1e6:.1f} MB. Open it in a browser."],
    )


if __name__ == "__main__":
    run_job(ReportConfig, main)
