"""Runs suites and writes their results. scripts/bench is the way to call it."""

import argparse
import datetime
import json
import pathlib
import platform
import signal
import sys
import traceback

import common
import report
from suites import cold_start, containerd, create, index, inflate, memory, metadata, micro, mount, readpath, readpath_link, readpath_vm, registry_link, scale, verify

SUITES = {
    "cold-start": cold_start.suite,
    "containerd": containerd.suite,
    "create": create.suite,
    "index": index.suite,
    "inflate": inflate.suite,
    "metadata": metadata.suite,
    "micro": micro.suite,
    "mount": mount.suite,
    "memory": memory.suite,
    "readpath": readpath.suite,
    "readpath-link": readpath_link.suite,
    "registry-link": registry_link.suite,
    "readpath-vm": readpath_vm.suite,
    "scale": scale.suite,
    "verify": verify.suite,
}


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--work", type=pathlib.Path, required=True)
    parser.add_argument("--results", type=pathlib.Path)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("suites", nargs="+", choices=SUITES)
    args = parser.parse_args()
    # Whoever ends the run ends what it has started, by the same ways out as an error.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda number, _: sys.exit(128 + number))
    name = f"{datetime.date.today().isoformat()}-{platform.node().split('.')[0]}{'-quick' if args.quick else ''}"
    results = args.results or common.REPO / "bench" / "results" / name
    results.mkdir(parents=True, exist_ok=True)
    failed = False
    for suite in args.suites:
        common.say(f"\n==> {suite}")
        work = args.work / suite
        work.mkdir()
        before = {"began": common.now(), "load_before": common.load()}
        try:
            measured = SUITES[suite](work, args.quick)
        except Exception:  # One suite that cannot run must not take the others' results with it.
            traceback.print_exc()
            failed = True
            continue
        document = {
            "suite": suite,
            "quick": args.quick,
            "commit": common.commit(),
            "machine": common.machine(),
            **before,
            "ended": common.now(),
            "load_after": common.load(),
            **measured,
        }
        (results / f"{suite}.json").write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
        for line in report.table_lines(document["rows"]):
            common.say(line)
    report.write(results)
    common.say(f"\n{results}")
    return failed


sys.exit(main())
