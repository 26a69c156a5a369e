"""Indexing an image of 1 GB in six unequal layers, straight from a registry on loopback, against `gzip -dc` over its layers."""

import contextlib
import hashlib
import json
import os
import pathlib
import random
import shutil
import subprocess
import tarfile
import time
import zlib

from common import MIB, peer, ratio_spread, registry, row, run, say, sociblk, spread

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


def make_layout(layout, sizes):
    """An OCI layout with the tag `big`: layers of files that compress to about 40 %, as programs do, the same every time."""
    folder = layout / "blobs" / "sha256"
    folder.mkdir(parents=True)
    blobs, layers, diff_ids = [], [], []
    block = material()
    for number, size in enumerate(sizes):
        path = layout / f"layer-{number}"
        digest, diff_id = make_layer(path, size, number, block)
        blobs.append(path.rename(folder / digest))
        layers.append({"mediaType": "application/vnd.oci.image.layer.v1.tar+gzip", "digest": f"sha256:{digest}", "size": blobs[-1].stat().st_size})
        diff_ids.append(f"sha256:{diff_id}")

    def put(document):
        content = json.dumps(document).encode()
        digest = hashlib.sha256(content).hexdigest()
        (folder / digest).write_bytes(content)
        return {"digest": f"sha256:{digest}", "size": len(content)}

    machine = {"x86_64": "amd64", "aarch64": "arm64"}.get(os.uname().machine, os.uname().machine)
    config = put({"architecture": machine, "os": "linux", "config": {}, "rootfs": {"type": "layers", "diff_ids": diff_ids}})
    manifest = put({
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": {"mediaType": "application/vnd.oci.image.config.v1+json", **config},
        "layers": layers,
    })
    entry = {"mediaType": "application/vnd.oci.image.manifest.v1+json", **manifest, "annotations": {"org.opencontainers.image.ref.name": "big"}}
    (layout / "index.json").write_text(json.dumps({"schemaVersion": 2, "manifests": [entry]}))
    (layout / "oci-layout").write_text('{"imageLayoutVersion":"1.0.0"}')
    return layout, blobs


def material():
    """64 MiB of this machine's own programs and libraries, in an order that does not change."""
    parts, have = [], 0
    for folder in ("/usr/bin", "/usr/lib"):
        for path in sorted(pathlib.Path(folder).rglob("*")):
            if path.is_file() and not path.is_symlink() and 20_000 < path.stat().st_size < 4_000_000:
                parts.append(path.read_bytes())
                have += len(parts[-1])
            if have > 64 * MIB:
                return b"".join(parts)
    return b"".join(parts)


class Compressed:
    """A file that compresses what is written to it until enough has come out of it."""

    def __init__(self, path):
        self.file = open(path, "wb")
        self.zlib = zlib.compressobj(6, zlib.DEFLATED, 31)
        self.digest, self.diff_id, self.size = hashlib.sha256(), hashlib.sha256(), 0

    def put(self, piece):
        self.file.write(piece)
        self.digest.update(piece)
        self.size += len(piece)

    def write(self, piece):
        self.diff_id.update(piece)
        self.put(self.zlib.compress(piece))
        return len(piece)

    def close(self):
        self.put(self.zlib.flush())
        self.file.close()


def make_layer(path, size, number, block):
    """Writes a layer of about `size` compressed bytes; its digest and diffID."""
    chance = random.Random(number)
    out = Compressed(path)
    with tarfile.open(fileobj=out, mode="w|", format=tarfile.PAX_FORMAT) as tar:
        count = 0
        while out.size < size:
            length = min(int(chance.lognormvariate(10.5, 1.8)), 8 * MIB)
            at = chance.randrange(max(1, len(block) - length))
            info = tarfile.TarInfo(f"usr/share/{number}/{count % 200}/{count}")
            info.size, info.mode = min(length, len(block) - at), 0o644
            tar.addfile(info, Piece(block, at))
            count += 1
    out.close()
    return out.digest.hexdigest(), out.diff_id.hexdigest()


class Piece:
    """Bytes of a block as a file."""

    def __init__(self, block, at):
        self.block, self.at = block, at

    def read(self, length):
        part = self.block[self.at : self.at + length]
        self.at += len(part)
        return part
