"""Probe storage, MLflow, Ray, GPU, memory, disk and clock; say what is wrong and what mends it."""

from jobs.command import Outcome, run_job
from pipeline.config import DoctorConfig
from pipeline.masking import safe_line


def main(config: DoctorConfig) -> Outcome:
    """Prints each finding as it is made; 1 if any failed."""
    from dataclasses import asdict

    from pipeline.commands.doctor import examine

    checks, lines = [], []
    for check in examine(config):
        print("\n".join(map(safe_line, check.lines())), flush=True)
        lines += check.lines()
        checks.append(asdict(check))
    ok = all(check["level"] != "failed" for check in checks)
    failed = sum(check["level"] == "failed" for check in checks)
    summary = ["Nothing is wrong." if ok else f"{failed} of {len(checks)} checks failed."]
    if config.support_file is not None:
        from pipeline import storage
        from pipeline.commands.support import support_file

        data = support_file(lines, storage.absolute(config.storage))
        storage.publish(config.support_file, data)
        summary.append(
            f"{config.support_file}: {len(data):,} bytes, with no secret that we know of."
        )
    return Outcome({"ok": ok, "checks": checks}, 0 if ok else 1, summary)


if __name__ == "__main__":
    run_job(DoctorConfig, main)
