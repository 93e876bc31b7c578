"""A trace of some steps, as torch's profiler sees them, in the run's storage."""

import tempfile
from pathlib import Path

from torch.profiler import ProfilerActivity, profile

from pipeline import storage
from pipeline.runs.run import Run


class StepTrace:
    """Traces the steps A to B of `A:B` (B left out) into RUN/profile/trace-A-B.json.

    A run that ends before leaves those that it made, under their own numbers.

    Chrome's `about:tracing` and Perfetto show it. Without a span it does nothing.
    """

    def __init__(self, run: Run, span: str | None) -> None:
        self._run = run
        self._first, self._last = (int(part) for part in span.split(":")) if span else (-1, -1)
        self._traced = 0
        self._profile: profile | None = None

    def before(self, step: int) -> None:
        """Called before optimiser step `step` (the first is 1)."""
        if step == self._first:
            self._profile = profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA])
            self._profile.start()

    def after(self, step: int) -> None:
        """Called after it; writes the trace when the span is over."""
        self._traced = step
        if step + 1 >= self._last:
            self.close()

    def close(self) -> None:
        """Writes what was traced and is not written yet."""
        if self._profile is None:
            return
        traced, self._profile = self._profile, None
        traced.stop()
        with tempfile.TemporaryDirectory(prefix="vae-trace-") as folder:
            path = Path(folder) / "trace.json"
            traced.export_chrome_trace(str(path))
            name = f"trace-{self._first}-{self._traced + 1}.json"
            storage.publish(self._run.path("profile", name), path)
