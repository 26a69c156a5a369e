"""Reads of a complete layer in the VM: ublk and the other frontends, and the kernel's loop device on an image of the same files."""

import gzip
import json
import random
import tarfile

from common import MIB, REPO, SCRIPTS, peer, ratio_spread, row, run, say, sociblk, spread

GOAL_RANDOM = 2.0
GOAL_SEQUENTIAL = 0.9
KERNEL = "7.2"
BIG_FILES = 8


def suite(work, quick):
    big_mib, small_files, rounds, random_bytes = (8, 300, 2, MIB) if quick else (32, 1000, 5, 2 * MIB)
    layer, image, out = work / "layer.tar.gz", work / "layer.erofs", work / "out"
    say(f"a layer with {BIG_FILES} big files and many small ones ...")
    make_layer(layer, big_mib * MIB, small_files)
    run(sociblk(), "image", layer, "--output", image)
    guest = REPO / "bench" / "vm" / "readpath.py"
    shares = [arg for path in (sociblk(), layer, image, guest) for arg in ("--share", path)]
    # Three layer files, the image and what is read of them stay in the guest's memory.
    options = ["--kernel", KERNEL, "--memory", "8G", "--timeout", "3600", "--output", out, "--env", f"SOCIBLK={sociblk()}"]
    run(SCRIPTS / "vm", "run", *options, *shares, "--", "python3", guest, layer, image, rounds, small_files, random_bytes)
    raw = json.loads((out / "readpath.json").read_text())
    return {"rows": rows(raw, small_files), "raw": raw}


def rows(raw, small_files):
    readahead = raw["readahead_kib"]
    about = f"Linux {raw['kernel']}, {raw['frontends']['ublk']}"
    out = []

    def compare(case, ours, theirs, what, goal=None, extra=""):
        mine, other = raw["runs"][case][ours], raw["runs"][case][theirs]
        by_read = case.startswith("random")
        unit, value = ("reads/s", reads_per_s(case)) if by_read else ("MB/s", lambda one: one["bytes_per_s"] / 1e6)
        values, others = [value(one) for one in mine], [value(one) for one in other]
        tie = "; a tie" if overlap(values, others) else ""
        through = sum(one["through_bytes"] for one in mine) / sum(one["bytes"] for one in mine)
        note = f"{ours}: {spread(values)['median']:.0f} {unit}{tie}; {through:.2f} bytes asked of it per byte read; {about}{extra}"
        if theirs.startswith("fuse"):
            note += "; daemon's CPU time per MB read: " + " ms against ".join(f"{daemon_ms_per_mb(side):.1f}" for side in (mine, other)) + " ms"
        ratio = ratio_spread(values, others)
        out.append(row(f"{what}: {ours} against {theirs}", ratio, "times", goal, "high" if goal else None, peer(theirs, spread(others), unit), note))

    with_readahead = f", readahead {readahead['ublk']} KiB against {readahead['loop']}"
    compare("sequential", "ublk", "loop", "warm sequential read of a big file", GOAL_SEQUENTIAL, with_readahead)
    compare("sequential", "ublk", "loop, our readahead", "warm sequential read of a big file")
    randoms = [case for case in raw["runs"] if case.startswith("random")]
    for case in ["sequential", "small", *randoms]:
        what = {"sequential": "warm sequential read of a big file", "small": f"warm read of {small_files} files of 16 KiB"}.get(case, f"warm {case}")
        goal = GOAL_RANDOM if case == f"random 4 KiB, {BIG_FILES} jobs" else None
        compare(case, "ublk", "fuse-fs", what, goal)
        compare(case, "ublk", "fuse-image", what)
        if case != "sequential":
            compare(case, "ublk", "loop", what)
        compare(case, "fuse-image", "fuse-fs", what)
    return out


def reads_per_s(case):
    bytes_each = 4096 if "4 KiB" in case else 128 << 10
    return lambda one: one["bytes_per_s"] / bytes_each


def daemon_ms_per_mb(runs):
    return sum(one["daemon_cpu_s"] for one in runs) / sum(one["bytes"] for one in runs) * 1e9


def overlap(ours, theirs):
    """Whether the quartiles do."""
    (low, high), (other_low, other_high) = spread(ours)["quartiles"], spread(theirs)["quartiles"]
    return low <= other_high and other_low <= high


def make_layer(path, big_bytes, small_files):
    """Big files, one for each job, and many of 16 KiB, of bytes that compress a little."""
    source = random.Random(1)
    block = b"".join(source.randbytes(3000) + b"." * 1096 for _ in range(256))
    with gzip.GzipFile(path, "wb", compresslevel=1, mtime=0) as zipped, tarfile.open(fileobj=zipped, mode="w|") as tar:
        def add(name, chunks, size):
            entry = tarfile.TarInfo(name)
            entry.size = size
            tar.addfile(entry, Chunks(chunks))

        for number in range(BIG_FILES):
            # No two alike.
            add(f"big-{number}", (block[number * 512 :] + block[: number * 512] for _ in range(big_bytes // len(block))), big_bytes)
        for number in range(small_files):
            at = source.randrange(len(block) - 16384)
            add(f"small/{number // 100}/{number}", iter([block[at : at + 16384]]), 16384)


class Chunks:
    """Bytes from an iterator, as a file to read from."""

    def __init__(self, chunks):
        self.chunks, self.left = chunks, b""

    def read(self, size):
        while len(self.left) < size:
            chunk = next(self.chunks, None)
            if chunk is None:
                break
            self.left += chunk
        taken, self.left = self.left[:size], self.left[size:]
        return taken
