"""EROFS metadata from a zTOC: 20,000 files against mkfs.erofs on the same files, and 1,000,000 files."""

import json
import os
import tempfile

from common import MIB, bench_program, peer, row, run, say, spread, timed

PHASES = ("read", "parse", "tree", "image")


def suite(work, quick):
    program = bench_program("metadata")
    rounds = 3 if quick else 15
    ztoc, layer = work / "20k.ztoc", work / "20k.tar.gz"
    say("a layer of 20,000 files ...")
    run(program, "make", 20_000, 5000, ztoc, layer)
    ours, peers, raw = [], [], []
    # The peer has the files before it, unpacked, in memory: nothing but making the image is timed.
    with tempfile.TemporaryDirectory(dir="/dev/shm", prefix="sociblk.") as memory:
        files, image = f"{memory}/files", f"{memory}/image"
        os.mkdir(files)
        unpack_ms, _ = timed(run, "tar", "-C", files, "-xf", layer)
        for _ in range(rounds):
            measured = json.loads(run(program, "measure", ztoc, 3))
            raw.append(measured)
            ours.append(median_ms(measured))
            mkfs_ms, _ = timed(run, "mkfs.erofs", "--quiet", image, files)
            peers.append(mkfs_ms)
            os.unlink(image)
    small = raw[0]
    count = small["inodes"]
    bytes_per_file = [m["at_rest_bytes"] / m["inodes"] for m in raw]
    rows = [
        row(
            "metadata of a 20,000-file layer from its zTOC",
            spread(ours),
            "ms",
            30,
            "low",
            peer("mkfs.erofs, files unpacked in memory", spread(peers), "ms"),
            f"zTOC of {small['ztoc_bytes'] / MIB:.1f} MiB read, checked, laid out: {small['metadata_bytes'] / MIB:.1f} MiB of metadata; "
            f"unpacking for the peer took {unpack_ms:.0f} ms more",
        ),
        row("the same, CPU time", spread([median_ms(m, "_cpu_ms") for m in raw]), "ms"),
        row("sha256 of those metadata", spread([p["digest_ms"] for m in raw for p in m["passes"]]), "ms"),
        row("memory at rest", spread(bytes_per_file), "bytes a file", 150, "low", note=f"{count} inodes; extent table and spans"),
        row("most memory while building", spread([m["peak_heap_bytes"] / m["inodes"] for m in raw]), "bytes a file"),
    ]
    if not quick:
        large, large_rows = million(work, program)
        raw = {"20k": raw, "1m": large}
        rows += large_rows
    return {"rows": rows, "raw": raw}


def million(work, program):
    ztoc = work / "1m.ztoc"
    say("a layer of 1,000,000 files ...")
    run(program, "make", 1_000_000, 1000, ztoc)
    # Each in a process of its own: the first pass is what a daemon sees, and its peak.
    raw = [json.loads(run(program, "measure", ztoc, 1)) for _ in range(5)]
    ztoc.unlink()
    first = raw[0]
    note = f"zTOC of {first['ztoc_bytes'] / MIB:.0f} MiB, {first['metadata_bytes'] / MIB:.0f} MiB of metadata"
    return raw, [
        row("metadata of a 1,000,000-file layer", spread([median_ms(m) for m in raw]), "ms", note=note),
        row("peak resident memory while building them", spread([m["peak_rss_bytes"] / MIB for m in raw]), "MiB"),
        row("memory at rest, 1,000,000 files", spread([m["at_rest_bytes"] / m["inodes"] for m in raw]), "bytes a file", 150, "low"),
    ]


def median_ms(measured, suffix="_ms"):
    """The median pass of one process, from reading the zTOC to finished metadata."""
    sums = sorted(sum(p[name + suffix] for name in PHASES) for p in measured["passes"])
    return sums[len(sums) // 2]
