"""Indexing an image of 1 GB in six unequal layers, straight from a registry on loopback, against `gzip -dc` over its layers."""

import contextlib
import json
import os
import pathlib
import shutil
import subprocess
import time

from common import MIB, peer, ratio_spread, registry, row, run, say, sociblk, spread
from layout import Layout, material, programs

GOAL_RATIO = 0.5
GOAL_MIB = 150
# Compressed sizes, in MB: one large layer, as images have, and a tail. Together 1 GB.
LAYERS_MB = (400, 250, 150, 100, 70, 30)


def suite(work, quick):
    rounds = 2 if quick else 5
    scale = 0.1 if quick else 1
    layout, blobs = make_layout(work / "layout", [int(size * scale * 1e6) for size in LAYERS_MB])
    ours, peers, raw = [], [], []
    with registry(work / "registry") as address:
        image = f"{address}/big:1"
        run("skopeo", "copy", "-q", "--dest-tls-verify=false", f"oci:{layout}:big", f"docker://{image}")
        # Both sides read what the page cache holds.
        unpack(blobs)
        for number in range(rounds):
            figures = create(work, image)
            raw.append(figures)
            ours.append(figures["s"])
            peers.append(unpack(blobs))
            say(f"round {number + 1} of {rounds}: {ours[-1]:.2f} s, {figures['peak_bytes'] / MIB:.0f} MiB; gzip {peers[-1]:.2f} s")
    total = sum(blob.stat().st_size for blob in blobs)
    gzip = peer("gzip -dc, one layer after the other", spread(peers), "s")
    memory = spread([figures["peak_bytes"] / MIB for figures in raw])
    rows = [
        row(f"create of {total / 1e9:.2f} GB in {len(blobs)} layers", spread(ours), "s", peer=gzip, note=f"{os.cpu_count()} CPUs, which the registry shares"),
        row("the same, ratio to gzip -dc", ratio_spread(ours, peers), "", GOAL_RATIO, "low"),
        row("peak memory of that", memory, "MiB", GOAL_MIB, "low"),
    ]
    return {"rows": rows, "raw": {"create": raw, "gzip_s": peers}}


def create(work, image):
    """Wall time, CPU time and peak memory of one `create`, with nothing in its store."""
    root = work / "root"
    shutil.rmtree(root, ignore_errors=True)
    began = time.monotonic()
    process = subprocess.Popen(
        [sociblk(), "--root", root, "create", image, "--min-layer-size", "0", "--json"],
        stdout=subprocess.PIPE,
        stdin=subprocess.DEVNULL,
    )
    # `ru_maxrss` would count this very process, too, whose memory the new one has until it begins.
    peak_bytes = 0
    while True:
        with contextlib.suppress(OSError, StopIteration):
            peak_bytes = max(peak_bytes, high_water(process.pid))
        pid, status, usage = os.wait4(process.pid, os.WNOHANG)
        if pid:
            break
        time.sleep(0.01)
    took = time.monotonic() - began
    process.returncode = os.waitstatus_to_exitcode(status)
    out = process.stdout.read()
    if process.returncode != 0:
        raise RuntimeError(f"create: status {process.returncode}")
    layers = json.loads(out)["images"][0]["layers"]
    if len(layers) != len(LAYERS_MB) or not all(layer["ztoc"] for layer in layers):
        raise RuntimeError(f"create left layers out: {layers}")
    return {"s": took, "cpu_s": usage.ru_utime + usage.ru_stime, "peak_bytes": peak_bytes}


def high_water(pid):
    """The most memory that a process had so far, in bytes, once it runs the program in question."""
    if not os.readlink(f"/proc/{pid}/exe").endswith("sociblk"):
        return 0
    lines = pathlib.Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:"))


def unpack(blobs):
    """Seconds that gzip takes for all layers."""
    began = time.monotonic()
    for blob in blobs:
        with open(blob, "rb") as file:
            subprocess.run(["gzip", "-dc"], stdin=file, stdout=subprocess.DEVNULL, check=True)
    return time.monotonic() - began


def make_layout(path, sizes):
    """An OCI layout with the tag `big`: one layer of each size, in compressed bytes."""
    layout, block = Layout(path), material()
    layers = [layout.layer(programs(block, number, lambda _, out, size=size: out.size >= size)) for number, size in enumerate(sizes)]
    layout.tag("big", layers)
    return path, [layout.blob(layer) for layer in layers]
