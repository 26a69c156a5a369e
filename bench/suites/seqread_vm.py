"""Reads of a complete layer through ublk, in the VM, against the kernel's loop device on the same image file."""

import gzip
import json
import random
import tarfile

from common import MIB, REPO, SCRIPTS, peer, ratio_spread, row, run, say, sociblk, spread

GOAL = 0.8
KERNEL = "7.2"
SMALL_FILES = 2000


def suite(work, quick):
    big_mib = 48 if quick else 128
    rounds = 3 if quick else 9
    layer, image, out = work / "layer.tar.gz", work / "layer.erofs", work / "out"
    say("a layer with a big file and many small ones ...")
    make_layer(layer, big_mib * MIB)
    run(sociblk(), "image", layer, "--output", image)
    guest = REPO / "bench" / "vm" / "seqread.py"
    shares = [arg for path in (sociblk(), layer, image, guest) for arg in ("--share", path)]
    # The layer file, the image and what is read of both stay in the guest's memory.
    options = ["--kernel", KERNEL, "--memory", "4G", "--timeout", "1800", "--output", out, "--env", f"SOCIBLK={sociblk()}"]
    run(SCRIPTS / "vm", "run", *options, *shares, "--", "python3", guest, layer, image, rounds)
    raw = json.loads((out / "seqread.json").read_text())
    about = f"Linux {raw['kernel']}, {raw['frontend']}, readahead {raw['readahead_kib']['ublk']} KiB against {raw['readahead_kib']['loop']}"
    rows = []
    cases = [
        ("big", "loop", "warm sequential read of one big file", GOAL),
        ("big", "loop_same_readahead", "the same, loop device with the readahead of ours", None),
        ("small", "loop", f"warm read of {SMALL_FILES} files of 16 KiB", None),
        ("random_1", "loop", "random 4 KiB direct reads, one at a time", None),
        ("random_32", "loop", "random 4 KiB direct reads, 32 at a time", None),
    ]
    for case, against, what, goal in cases:
        ours, theirs = raw["rates"][case]["ublk"], raw["rates"][case][against]
        unit = "reads/s" if case.startswith("random") else "MB/s"
        note = f"{spread(ours)['median']:.0f} {unit}; {about}"
        value = ratio_spread(ours, theirs)
        name = "loop device, EROFS" if not case.startswith("random") else "loop device"
        rows.append(row(what, value, "times the loop device", goal, "high" if goal else None, peer(name, spread(theirs), unit), note))
    return {"rows": rows, "raw": raw}


def make_layer(path, big_bytes):
    """One file of `big_bytes` and many of 16 KiB, of bytes that compress a little."""
    source = random.Random(1)
    block = b"".join(source.randbytes(3000) + b"." * 1096 for _ in range(256))
    with gzip.GzipFile(path, "wb", compresslevel=1, mtime=0) as zipped, tarfile.open(fileobj=zipped, mode="w|") as tar:
        def add(name, chunks, size):
            entry = tarfile.TarInfo(name)
            entry.size = size
            tar.addfile(entry, Chunks(chunks))

        add("big", (block for _ in range(big_bytes // len(block))), big_bytes)
        for number in range(SMALL_FILES):
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
