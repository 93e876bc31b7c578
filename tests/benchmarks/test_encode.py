import json

from tests.support import warm
from tests.support.warm import ROOT


def test_the_encoding_benchmark_prints_its_ratios_as_one_json_line() -> None:
    command = ["tests.benchmarks.encode", "--images", "400", "--size", "16", "--latents", "256"]
    found = warm.run(ROOT, *command, "--parts", "small", "reading", "device")
    assert found.returncode == 0, found.stderr
    result = json.loads(found.stdout)
    assert result["small"]["ratio"] > 0
    assert result["reading"]["over_webdataset"] > 0
    assert result["device"]["equal_digests"]


def test_the_reading_benchmark_prints_its_ratios_as_one_json_line() -> None:
    command = ["tests.benchmarks.latents", "--latents", "256", "--rounds", "1", "--parts", "4"]
    found = warm.run(ROOT, *command)
    assert found.returncode == 0, found.stderr
    result = json.loads(found.stdout)["4"]
    assert result["over_memmap"] > 0
    assert result["drawn_over_memmap"] > 0
    assert result["consumer_cpu_ms"]["mean"] > 0
