"""Running the Criterion benchmarks of bench/micro, and reading what they found."""

import json
import os

from common import REPO, run


def measure(program, home, quick):
    """One run of a benchmark program with its results, and whatever it lays down meanwhile, below `home`: by group and name the
    median of Criterion's samples in nanoseconds, and the bytes that each made, where it says so."""
    home.mkdir()
    seconds = "1" if quick else "2"
    options = ["--bench", "--noplot", "--warm-up-time", "0.5", "--measurement-time", seconds, "--sample-size", "10"]
    run(program, *options, cwd=REPO, env={**os.environ, "CRITERION_HOME": str(home), "TMPDIR": str(home)})
    found = {}
    for file in home.glob("*/*/new/benchmark.json"):
        about = json.loads(file.read_text())
        estimates = json.loads((file.parent / "estimates.json").read_text())
        size = (about["throughput"] or {}).get("Bytes")
        found[about["group_id"], about["function_id"]] = (estimates["median"]["point_estimate"], size)
    return found
