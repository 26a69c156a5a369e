"""What a read costs that finds its bytes here, and the record of what is here: Criterion's bench/micro/lookup.rs and present_record.rs."""

import criterion
from common import bench_program, row, say, spread

NS, US, MS = ("ns", 1), ("µs", 1e3), ("ms", 1e6)
CPU, WALL = "CPU time", "wall time"
# Criterion's names in each program.
CASES = {
    "lookup": [
        ("lookup", "pieces of 4 KiB", "a random 4 KiB of the device to its pieces, layer of 100,000 files", NS, CPU),
        ("lookup", "pieces of 128 KiB", "the same, 128 KiB", NS, CPU),
        ("lookup", "spans of 4 KiB", "the layer range of such 4 KiB to its spans", NS, CPU),
        ("lookup", "spans of 128 KiB", "the same, 128 KiB", NS, CPU),
        ("cached", "read of 4 KiB", "a read of such 4 KiB that finds all here: cut, held, released; without the copy", NS, CPU),
        ("cached", "read of 128 KiB", "the same, 128 KiB", NS, CPU),
    ],
    "present_record": [
        ("record", "hold and release", "one span held and released, of 100,000", NS, CPU),
        ("record", "slot encoded", "one slot of the record (32 spans) encoded", NS, CPU),
        ("record", "parsed", "record of 100,000 spans parsed", US, CPU),
        ("record", "geometry", "identity of a table of 100,000 spans", MS, CPU),
        ("record", "opened", "layer of 100,000 spans, all recorded, opened and closed", MS, CPU),
        ("disk", "32 spans marked", "32 spans of 4 KiB written and marked", US, WALL),
        ("disk", "32 spans flushed", "those 32 flushed: data, then record", MS, WALL),
    ],
}


def suite(work, quick):
    rounds = 2 if quick else 7
    rows, raw = [], {}
    for name, cases in CASES.items():
        program = bench_program(name)
        measured = []
        for number in range(rounds):
            found = criterion.measure(program, work / f"{name}-{number}", quick)
            measured.append({f"{group}: {case}": ns for (group, case), (ns, _) in found.items()})
            say(f"{name}, round {number + 1} of {rounds}: " + ", ".join(f"{case} {ns:,.0f}" for case, ns in measured[-1].items()))
        raw[name] = measured
        for group, case, what, (unit, ns), clock in cases:
            rows.append(row(what, spread([m[f"{group}: {case}"] / ns for m in measured]), unit, note=clock))
    return {"rows": rows, "raw": {"nanoseconds": raw}}
