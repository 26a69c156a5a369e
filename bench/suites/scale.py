"""Many layers on one daemon: what each costs while nobody reads. And one layer of a million files."""

import json
import os
import re
import shutil
import tarfile
import time

from common import MIB, REPO, process_memory, registry, row, run, say, sociblk, spread
from layout import Layout, material, programs
from stage import cpu_s

GOAL_MIB, GOAL_THREADS, GOAL_CPU = 60, 8, 0.1
LAYERS_AN_IMAGE = 100
FILES_A_LAYER = 100
SMALL = REPO / "tests" / "corpus" / "small-stored.tar.gz"


def suite(work, quick):
    counts = (1, 10) if quick else (1, 10, 100, 500)
    rounds = 1 if quick else 3
    idle_s = 5 if quick else 20
    files = 20_000 if quick else 1_000_000
    layout, images = make_layout(work / "layout", counts, files)
    of = {count: [] for count in counts}
    big = []
    with registry(work / "registry") as address:
        for number, image in enumerate(images):
            run("skopeo", "copy", "-q", "--dest-tls-verify=false", f"oci:{layout}:{image}", f"docker://{address}/{image}:1")
            run(sociblk(), "--root", work / "creator", "create", f"{address}/{image}:1", "--min-layer-size", "0", "--push")
            say(f"image {number + 1} of {len(images)} is indexed")
        for number in range(rounds):
            for count in counts:
                of[count].append(mounted(work, [f"{address}/{image}:1" for image in names(count)], idle_s))
            big.append(mounted(work, [f"{address}/files:1"], idle_s))
            said = ", ".join(f"{count} layers {runs[-1]['VmRSS'] / MIB:.1f} MiB in {runs[-1]['mount_s']:.2f} s" for count, runs in of.items())
            say(f"round {number + 1} of {rounds}: {said}; {files} files {big[-1]['VmRSS'] / MIB:.1f} MiB in {big[-1]['mount_s']:.2f} s")
    rows = []
    for count, runs in of.items():
        goals = count == counts[-1] and not quick
        rows += table(f"{count} layers", runs, idle_s, goals)
    rows += table(f"one layer of {files:,} files", big, idle_s, False)
    return {"rows": rows, "raw": {**{str(count): runs for count, runs in of.items()}, "files": big}}


def names(count):
    """The images that have `count` layers together."""
    if count < LAYERS_AN_IMAGE:
        return [f"layers-{count}"]
    return [f"hundred-{number}" for number in range(count // LAYERS_AN_IMAGE)]


def make_layout(path, counts, files):
    layout, block = Layout(path), material()
    tags = []
    layers = [layout.layer(programs(block, seed, lambda count, _: count >= FILES_A_LAYER, typical=2000)) for seed in range(max(counts))]
    for count in counts:
        for number, name in enumerate(names(count)):
            if name not in tags:
                share = min(count, LAYERS_AN_IMAGE)
                layout.tag(name, layers[number * share : (number + 1) * share])
                tags.append(name)

    def many(tar, _):
        for number in range(files):
            info = tarfile.TarInfo(f"data/{number // 1000}/{number}")
            info.mode = 0o644
            tar.addfile(info)

    layout.tag("files", [layout.layer(many)])
    return path, [*tags, "files"]


def mounted(work, images, idle_s):
    """Time until all images are mounted and listed; then the daemon, with nobody asking for anything."""
    root = work / "state"
    dirs = [work / f"mnt-{number}" for number in range(len(images))]
    try:
        # A daemon that has served something before: its frontend is up.
        dirs[0].mkdir(exist_ok=True)
        run(sociblk(), "--root", root, "mount", f"layer:{SMALL}", dirs[0])
        run(sociblk(), "--root", root, "umount", dirs[0])
        pid = int(re.search(r"pid (\d+)", run(sociblk(), "--root", root, "daemon", "status")).group(1))
        before = process_memory(pid)
        began = time.monotonic()
        for image, target in zip(images, dirs, strict=True):
            target.mkdir(exist_ok=True)
            run(sociblk(), "--root", root, "mount", image, target)
            os.listdir(target)
        mount_s = time.monotonic() - began
        layers = json.loads(run(sociblk(), "--root", root, "ls", "--json"))["layers"]
        time.sleep(idle_s / 2)
        cpu_before = cpu_s(pid)
        time.sleep(idle_s)
        figures = {**process_memory(pid), "idle_cpu_percent": (cpu_s(pid) - cpu_before) / idle_s * 100, "mount_s": mount_s, "layers": len(layers)}
        figures["descriptors_before"], figures["threads_before"], figures["bytes_before"] = before["descriptors"], before["threads"], before["VmRSS"]
        for target in dirs:
            run(sociblk(), "--root", root, "umount", target)
        return figures
    finally:
        run(sociblk(), "--root", root, "daemon", "stop")
        shutil.rmtree(root)


def table(what, runs, idle_s, goals):
    def of(name, scale=1):
        return spread([r[name] / scale for r in runs])

    def goal(value):
        return {"goal": value, "better": "low"} if goals else {}

    layers = runs[0]["layers"]
    each = spread([(r["descriptors"] - r["descriptors_before"]) / layers for r in runs])
    yield row(f"{what}: mounted and listed", of("mount_s"), "s")
    yield row(f"{what}: daemon memory", of("VmRSS", MIB), "MiB", **goal(GOAL_MIB), note=f"{of('RssAnon', MIB)['median']:.1f} MiB of it anonymous; {idle_s / 2:.0f} s after the last mount")
    yield row(f"{what}: threads", of("threads"), "", **goal(GOAL_THREADS), note=f"{runs[0]['threads_before']} before the first mount")
    yield row(f"{what}: descriptors a layer", each, "")
    yield row(f"{what}: CPU while idle", of("idle_cpu_percent"), "%", **goal(GOAL_CPU), note=f"over {idle_s} s")
