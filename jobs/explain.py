"""Tell what each number of a run means, with its own figures, and which slip gives another one."""

from jobs.command import LOADING, Outcome, run_job
from pipeline.config import ExplainConfig
from pipeline.progress import phase


def main(config: ExplainConfig) -> Outcome:
    """Measures the model, puts its numbers into words, and writes them where asked."""
    with phase(LOADING):
        from pipeline.commands.explain import run_explanation

    found = run_explanation(config)
    where = "the same page with pictures: `--output FOLDER`"
    if found.page is not None:
        where = f"{found.page}: the same with its {len(found.figures)} pictures"
    return Outcome(found.to_json(), summary=[*found.text.splitlines(), "", where])


if __name__ == "__main__":
    run_job(ExplainConfig, main)
