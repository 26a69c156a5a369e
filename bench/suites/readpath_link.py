"""Reads of a layer behind a shaped link: how long they wait, and what is fetched for them. No mount, no root."""

import contextlib
import json
import subprocess
import sys

from common import MIB, REPO, bench_program, row, say, spread

# Rate, one-way delay. `wan` and `far` are those of the cold-start suite.
LINKS = {"wan": (200, 5), "far": (50, 25)}


def suite(work, quick):
    return measure(bench_program("readpath"), ["wan"] if quick else list(LINKS), 1 if quick else 5)


def measure(program, links, rounds, scenarios=()):
    raw = []
    with subprocess.Popen([program, "serve", *scenarios], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=REPO) as reader:
        server = reader.stdout.readline().strip()
        for number in range(rounds):
            for link in links:
                with behind(server, *LINKS[link]) as address:
                    print(address, file=reader.stdin, flush=True)
                    while (line := reader.stdout.readline().strip()) != "end":
                        raw.append({"link": link, **json.loads(line)})
                        say(f"round {number + 1} of {rounds}, {link}: {line}")
        reader.stdin.close()
    rows = []
    for link, scenario in dict.fromkeys((one["link"], one["scenario"]) for one in raw):
        of = [one for one in raw if (one["link"], one["scenario"]) == (link, scenario)]
        name = f"{link}, {scenario}"
        note = f"{spread([o['requests'] for o in of])['median']:.0f} requests on {spread([o['connections'] for o in of])['median']:.0f} connections"
        rows.append(row(f"{name}: all reads", spread([o["s"] for o in of]), "s", note=note))
        rows.append(row(f"{name}: half of the waits are below", spread([o["wait_ms"]["p50"] for o in of]), "ms"))
        rows.append(row(f"{name}: 99 of 100 waits are below", spread([o["wait_ms"]["p99"] for o in of]), "ms"))
        rows.append(row(f"{name}: fetched", spread([o["fetched_bytes"] / MIB for o in of]), "MiB", note=f"{of[0]['touched_span_bytes'] / MIB:.1f} MiB in the spans that are read"))
    return {"rows": rows, "raw": raw}


@contextlib.contextmanager
def behind(server, mbit, delay_ms):
    """An address that leads to `server` over a slow link."""
    arguments = [sys.executable, REPO / "bench" / "link.py", server, str(mbit), str(delay_ms), "slow-start"]
    with subprocess.Popen(arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as link:
        try:
            yield link.stdout.readline().strip()
        finally:
            link.stdin.close()
