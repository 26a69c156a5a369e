"""Proving an index against its image (`sociblk index verify`), against `gzip -dc`, which only inflates."""

import contextlib
import json
import os
import resource
import subprocess
import time

from common import peer, registry, row, run, say, sociblk, spread

from . import create

GOAL_MB_S = 250


def suite(work, quick):
    rounds = 2 if quick else 5
    scale = 0.1 if quick else 1
    layout, blobs = create.make_layout(work / "layout", [int(size * scale * 1e6) for size in create.LAYERS_MB])
    tar_bytes = sum(inflated(blob) for blob in blobs)
    ours, peers, raw = [], [], []
    with registry(work / "registry") as address:
        image = f"{address}/big:1"
        run("skopeo", "copy", "-q", "--dest-tls-verify=false", f"oci:{layout}:big", f"docker://{image}")
        run(sociblk(), "--root", work / "root", "create", image, "--min-layer-size", "0", "--push")
        for number in range(rounds):
            figures = verify(work, image)
            raw.append(figures)
            ours.append(tar_bytes / figures["cpu_s"] / 1e6)
            peers.append(tar_bytes / create.unpack(blobs) / 1e6)
            say(f"round {number + 1} of {rounds}: {ours[-1]:.0f} MB/s of CPU time, {figures['s']:.2f} s; gzip {peers[-1]:.0f} MB/s")
    gzip = peer("gzip -dc, one layer after the other", spread(peers), "MB/s")
    wall = spread([figures["s"] for figures in raw])
    rows = [
        row(f"index verify, tar bytes a second of one core ({tar_bytes / 1e9:.2f} GB of tar)", spread(ours), "MB/s", GOAL_MB_S, "high", peer=gzip),
        row("the same, wall time of all layers", wall, "s", note=f"{os.cpu_count()} CPUs, which the registry shares"),
    ]
    return {"rows": rows, "raw": {"verify": raw, "gzip_mb_s": peers}}


def inflated(blob):
    """Length of a layer's tar."""
    with open(blob, "rb") as file, contextlib.closing(subprocess.Popen(["gzip", "-dc"], stdin=file, stdout=subprocess.PIPE).stdout) as out:
        length = 0
        while piece := out.read(1 << 20):
            length += len(piece)
        return length


def verify(work, image):
    """Wall time and CPU time of one run, with nothing in its store: what is proven is what the registry has."""
    root = work / "verifier"
    run("rm", "-rf", root)
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    began = time.monotonic()
    told = json.loads(run(sociblk(), "--root", root, "index", "verify", image, "--json"))
    took = time.monotonic() - began
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    if told["outcome"] != "proven":
        raise RuntimeError(f"index verify: {told['outcome']}")
    return {"s": took, "cpu_s": after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime}
