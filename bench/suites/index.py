"""Building restart points into a gzip stream, per program that made the stream: `ztoc build` against what else does that."""

import os
import shutil
import subprocess
import sys
import time

from common import peer, ratio_spread, row, run, say, sociblk, spread
from layout import Layout, material, programs

SPAN = 4 << 20
# A restart point every 4 MiB, written to a file, as a zTOC has them.
INDEXED_GZIP = "import indexed_gzip, sys; f = indexed_gzip.IndexedGzipFile(sys.argv[1], spacing=int(sys.argv[3])); f.build_full_index(); f.export_index(sys.argv[2])"


def suite(work, quick):
    rounds = 2 if quick else 5
    python = environment(work / "python")
    tar = make_tar(work, (20 if quick else 400) * 1_000_000)
    bytes_in = tar.stat().st_size
    rows, raw = [], {}
    for producer, blob in compressed(work, tar).items():
        out = work / "index"
        commands = {
            "sociblk": [sociblk(), "ztoc", "build", blob, "--output", out, "--span-size", str(SPAN)],
            "gzip -dc": ["gzip", "-dc", blob],
            "rapidgzip, 1 thread": [python.parent / "rapidgzip", "-P", "1", "--export-index", out, "-f", "-o", "/dev/null", blob],
            "rapidgzip, all CPUs": [python.parent / "rapidgzip", "-P", "0", "--export-index", out, "-f", "-o", "/dev/null", blob],
            "indexed_gzip": [python, "-c", INDEXED_GZIP, blob, out, str(SPAN)],
        }
        runs = {name: [] for name in commands}
        for _ in range(rounds):
            for name, command in commands.items():
                out.unlink(missing_ok=True)
                runs[name].append(measured(command))
        raw[producer] = runs
        wall = {name: [r["s"] for r in of] for name, of in runs.items()}
        ours = spread([bytes_in / 1e6 / s for s in wall["sociblk"]])
        cpu = spread([bytes_in / 1e6 / r["cpu_s"] for r in runs["sociblk"]])["median"]
        say(f"{producer}: " + ", ".join(f"{name} {spread(of)['median']:.2f} s" for name, of in wall.items()))
        for name in list(commands)[1:]:
            theirs = spread([bytes_in / 1e6 / s for s in wall[name]])
            rows.append(row(f"index of {producer}: time against {name}", ratio_spread(wall["sociblk"], wall[name]), "", peer=peer(name, theirs, "MB/s")))
        rows.append(row(f"index of {producer}: tar bytes a second", ours, "MB/s", note=f"{cpu:.0f} MB/s of CPU time"))
    return {"rows": rows, "raw": raw}


def measured(command):
    before = os.times()
    began = time.monotonic()
    subprocess.run([str(c) for c in command], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=True)
    took, after = time.monotonic() - began, os.times()
    return {"s": took, "cpu_s": after.children_user + after.children_system - before.children_user - before.children_system}


def environment(path):
    """A Python of its own with the two packages; pip takes them from wherever this machine is told to."""
    run(sys.executable, "-m", "venv", path)
    run(path / "bin" / "pip", "install", "--quiet", "rapidgzip", "indexed_gzip")
    return path / "bin" / "python3"


def make_tar(work, size):
    layout = Layout(work / "layout")
    block = material()
    layer = layout.layer(programs(block, 1, lambda _, out: out.written >= size))
    with open(work / "layer.tar", "wb") as file:
        subprocess.run(["gzip", "-dc", layout.blob(layer)], stdout=file, check=True)
    shutil.rmtree(layout.path)
    return work / "layer.tar"


def compressed(work, tar):
    """The same tar by different programs: what registries hold was made by docker (Go), buildkit, pigz, gzip."""
    commands = {
        "gzip -6": ["gzip", "-6", "-c", tar],
        "gzip -1": ["gzip", "-1", "-c", tar],
        "pigz -6": ["pigz", "-6", "-c", tar],
    }
    blobs = {}
    for number, (name, command) in enumerate(commands.items()):
        blobs[name] = work / f"layer-{number}.tar.gz"
        with open(blobs[name], "wb") as file:
            subprocess.run(command, stdout=file, check=True)
    blobs["Go's gzip (umoci)"] = by_umoci(work, tar)
    return blobs


def by_umoci(work, tar):
    layout = work / "umoci"
    run("umoci", "init", "--layout", layout)
    run("umoci", "new", "--image", f"{layout}:x")
    run("umoci", "raw", "add-layer", "--image", f"{layout}:x", tar)
    return max((layout / "blobs" / "sha256").iterdir(), key=lambda path: path.stat().st_size)
