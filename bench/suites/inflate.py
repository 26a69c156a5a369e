"""Inflating and indexing, ours and C zlib's, in turns. CPU time of one thread, by the Criterion benchmark bench/micro/inflate.rs."""

import criterion
from common import bench_program, peer, ratio_spread, row, say, spread

SPAN_GOAL = 2.4
BUILD_GOAL = 1.75
# Criterion's names, and the goal against C zlib in the same group.
CASES = [
    ("spans", "sociblk", "whole-span inflate from a checkpoint", "C zlib", SPAN_GOAL),
    ("zTOC", "sociblk build", "zTOC build", "C zlib, inflate only", BUILD_GOAL),
    ("zTOC", "sociblk build, blob digest", "zTOC build with the blob's digest", "C zlib, inflate only", None),
    ("zTOC", "sociblk build, blob digest, diffID", "zTOC build with the blob's digest and the diffID", "C zlib, inflate only", None),
]


def suite(work, quick):
    program = bench_program("inflate")
    rounds = 2 if quick else 7
    measured = []
    for number in range(rounds):
        found = criterion.measure(program, work / f"round-{number}", quick)
        # Layer megabytes a second of CPU time; the groups' names end with the layer's.
        measured.append({(group.split(" of ")[0], name): size / ns * 1e3 for (group, name), (ns, size) in found.items()})
        say(f"round {number + 1} of {rounds}: " + ", ".join(f"{name} {value:.0f}" for (_, name), value in measured[-1].items()))
    rows = []
    for group, ours, what, theirs, goal in CASES:
        our_rates = [m[group, ours] for m in measured]
        peer_rates = [m[group, theirs] for m in measured]
        ratio = ratio_spread(our_rates, peer_rates)
        note = f"{spread(our_rates)['median']:.0f} MB/s"
        rows.append(row(what, ratio, "times C zlib", goal, "high" if goal else None, peer(theirs, spread(peer_rates), "MB/s"), note))
    raw = [{f"{group}: {name}": value for (group, name), value in m.items()} for m in measured]
    return {"rows": rows, "raw": {"layer_megabytes_per_cpu_second": raw}}
