"""The daemon with ten mounted layers, idle: memory, threads, descriptors. Against containerd with the same images unpacked."""

import gzip
import hashlib
import json
import os
import pathlib
import re
import shutil
import time

from common import MIB, SCRIPTS, make_image, peer, process_memory, registry, row, run, say, sociblk, spread

GOAL_MIB = 40
STATES = {
    "mounted": "mounted, `ls` of each",
    "used": "a Python program has run in each",
    "read": "every byte has been read",
}


def suite(work, quick):
    rounds = 1 if quick else 3
    idle_s = 12 if quick else 20
    layouts = [make_image(), work / "layout"]
    repacked(layouts[0], layouts[1])
    frontend = "ublk" if os.path.exists("/dev/ublk-control") else "fuse-image"
    ours, peers = [], []
    with registry(work / "registry") as address:
        images = [f"{address}/demo:{number}" for number in (1, 2)]
        for image, layout in zip(images, layouts, strict=True):
            run("skopeo", "copy", "-q", "--dest-tls-verify=false", f"oci:{layout}:demo", f"docker://{image}")
            run(sociblk(), "--root", work / "creator", "create", image, "--min-layer-size", "0", "--push")
        shutil.rmtree(work / "creator")
        for number in range(rounds):
            ours.append(daemon(work, images, frontend, idle_s))
            peers.append(containerd(work, images, idle_s))
            shown = ", ".join(f"{state} {figures['VmRSS'] / MIB:.1f}" for state, figures in ours[-1].items())
            say(f"round {number + 1} of {rounds}: MiB {shown}; containerd {peers[-1]['VmRSS'] / MIB:.1f}")
    mib = lambda name, figures: spread([f[name] / MIB for f in figures])
    theirs = peer("containerd, both images unpacked and mounted", mib("VmRSS", peers), "MiB")
    rows = []
    for state, words in STATES.items():
        figures = [o[state] for o in ours]
        note = (
            f"{words}, then {idle_s} s idle; anonymous {mib('RssAnon', figures)['median']:.1f} MiB, "
            f"{figures[0]['threads']} threads, {figures[0]['descriptors']} descriptors; {frontend}"
        )
        rows.append(row(f"daemon memory with 10 layers, {state}", mib("VmRSS", figures), "MiB", GOAL_MIB, "low", theirs, note))
    most = spread([o["read"]["VmHWM"] / MIB for o in ours])
    rows.append(row("daemon memory at its highest while all that went on", most, "MiB"))
    return {"rows": rows, "raw": {"sociblk": ours, "containerd": peers}}


def daemon(work, images, frontend, idle_s):
    """Memory of one daemon after each state, each after some seconds in which nobody asks for anything."""
    root = work / "state"
    dirs = [work / f"mnt-{number}" for number in range(len(images))]
    figures = {}
    try:
        for image, target in zip(images, dirs, strict=True):
            target.mkdir(exist_ok=True)
            run(sociblk(), "--root", root, "mount", image, target, "--frontend", frontend)
            os.listdir(target)
        layers = json.loads(run(sociblk(), "--root", root, "ls", "--json"))["layers"]
        if len(layers) != 10:
            raise RuntimeError(f"{len(layers)} layers are mounted, not 10")
        pid = re.search(r"pid (\d+)", run(sociblk(), "--root", root, "daemon", "status")).group(1)
        figures["mounted"] = idle_memory(pid, idle_s)
        for target in dirs:
            run("chroot", target, "/usr/bin/python3", "/app/main.py")
        figures["used"] = idle_memory(pid, idle_s)
        for target in dirs:
            read_all(target)
        figures["read"] = idle_memory(pid, idle_s)
        for target in dirs:
            run(sociblk(), "--root", root, "umount", target)
    finally:
        run(sociblk(), "--root", root, "daemon", "stop")
        shutil.rmtree(root)
    return figures


def idle_memory(pid, idle_s):
    time.sleep(idle_s)
    return process_memory(pid)


def read_all(tree):
    for folder, _, names in os.walk(tree):
        for name in names:
            path = os.path.join(folder, name)
            if os.path.isfile(path) and not os.path.islink(path):
                with open(path, "rb") as file:
                    while file.read(MIB):
                        pass


def containerd(work, images, idle_s):
    """Memory of a containerd that has both images, as pulled and mounted."""
    base = work / "containerd"
    dirs = [work / f"full-{number}" for number in range(len(images))]
    ctr = lambda *args: run(SCRIPTS / "containerd", "ctr", base, *args)
    run(SCRIPTS / "containerd", "start", base)
    try:
        for image, target in zip(images, dirs, strict=True):
            target.mkdir(exist_ok=True)
            ctr("images", "pull", "--plain-http", image)
            ctr("images", "mount", image, target)
            os.listdir(target)
        return idle_memory(pathlib.Path(base / "pid").read_text().strip(), idle_s)
    finally:
        for target in dirs:
            if os.path.ismount(target):
                run("umount", target)
        run(SCRIPTS / "containerd", "stop", base)
        shutil.rmtree(base)


def repacked(source, target):
    """The same image in other blobs: every layer compressed anew. To a node these are five more layers."""
    shutil.copytree(source, target)
    blobs = target / "blobs" / "sha256"

    def put(content):
        digest = hashlib.sha256(content).hexdigest()
        (blobs / digest).write_bytes(content)
        return {"digest": f"sha256:{digest}", "size": len(content)}

    def get(descriptor):
        return (blobs / descriptor["digest"].split(":")[1]).read_bytes()

    index = json.loads((target / "index.json").read_text())
    for entry in index["manifests"]:
        manifest = json.loads(get(entry))
        for layer in manifest["layers"]:
            layer.update(put(gzip.compress(gzip.decompress(get(layer)), 5, mtime=0)))
        entry.update(put(json.dumps(manifest).encode()))
    (target / "index.json").write_text(json.dumps(index))
