"""From nothing to a container's first output through containerd: our snapshotter against its own, over a shaped link."""

import contextlib
import os
import pathlib
import re
import subprocess
import sys
import time

from common import REPO, SCRIPTS, make_image, peer, ratio_spread, registry, row, run, say, sociblk, spread

GOAL_RATIO = 5
GOAL_PREPARE_MS = 20
# 200 Mbit/s, 10 ms round trip.
LINK = {"mbit": 200, "delay_ms": 5}
COMMAND = ["/usr/bin/python3", "/app/main.py"]


def suite(work, quick):
    rounds = 2 if quick else 5
    ours, peers, prepares, raw = [], [], [], []
    with shaped_registry(work) as (near, far):
        run("skopeo", "copy", "-q", "--dest-tls-verify=false", f"oci:{make_image()}:demo", f"docker://{near}/demo:1")
        run(sociblk(), "--root", work / "creator", "create", f"{near}/demo:1", "--min-layer-size", "0", "--push")
        image = f"{far}/demo:1"
        for number in range(rounds):
            lazily = start(work / f"lazy-{number}", image, lazy=True)
            plainly = start(work / f"plain-{number}", image, lazy=False)
            ours.append(lazily["s"])
            peers.append(plainly["s"])
            prepares += lazily["again_ms"]
            raw.append({"sociblk": lazily, "overlayfs": plainly})
            say(f"round {number + 1} of {rounds}: {ours[-1]:.2f} s (pull {lazily['pull_s']:.2f} s); overlayfs {peers[-1]:.2f} s")
    link = f"{LINK['mbit']} Mbit/s, {2 * LINK['delay_ms']} ms round trip"
    rows = [
        row(f"pull and run until the first output, {link}", spread(ours), "s", peer=peer("containerd's overlayfs snapshotter", spread(peers), "s")),
        row("how much faster", ratio_spread(peers, ours), "", GOAL_RATIO, "high"),
        row("Prepare of an indexed layer, artifacts local", spread(prepares), "ms", GOAL_PREPARE_MS, "low", note="as the service counts it, of layers that are shown anew"),
    ]
    return {"rows": rows, "raw": raw}


def start(work, image, lazy):
    """Times of a pull and a run with empty stores."""
    work.mkdir()
    containerd, state, socket = work / "containerd", work / "state", work / "sock"
    process = None
    try:
        if lazy:
            log = open(work / "serve.log", "w", encoding="utf-8")
            process = subprocess.Popen([sociblk(), "--root", state, "serve", "--address", socket], stdout=log, stderr=log, stdin=subprocess.DEVNULL)
            until(socket.exists)
        run(SCRIPTS / "containerd", "start", containerd, *([socket] if lazy else []))
        snapshotter = ["--snapshotter", "sociblk"] if lazy else []
        drop_caches()
        began = time.monotonic()
        if lazy:
            run(sociblk(), "rpull", image, "--containerd-address", containerd / "sock")
        else:
            ctr(containerd, "images", "pull", "--plain-http", image)
        pulled = time.monotonic()
        out = ctr(containerd, "run", "--rm", *snapshotter, image, "bench", *COMMAND)
        took = time.monotonic()
        if not out.startswith("hello from python"):
            raise RuntimeError(f"the container said {out!r}")
        again = []
        if lazy:
            ctr(containerd, "images", "rm", "--sync", image)
            run(sociblk(), "rpull", image, "--containerd-address", containerd / "sock")
            shown = re.findall(r"layer is shown .*\bms=(\d+)", (work / "serve.log").read_text(encoding="utf-8"))
            again = [int(ms) for ms in shown[len(shown) // 2 :]]
        ctr(containerd, "images", "rm", "--sync", image)
        return {"s": took - began, "pull_s": pulled - began, "again_ms": again}
    finally:
        subprocess.run([SCRIPTS / "containerd", "stop", containerd], check=False)
        if process:
            subprocess.run([sociblk(), "--root", state, "daemon", "stop"], check=False, stderr=subprocess.DEVNULL)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(30)
            process.kill()


def ctr(containerd, *command):
    return run(SCRIPTS / "containerd", "ctr", containerd, *command)


def until(condition):
    for _ in range(600):
        if condition():
            return
        time.sleep(0.05)
    raise RuntimeError("the service did not start")


def drop_caches():
    os.sync()
    pathlib.Path("/proc/sys/vm/drop_caches").write_text("3\n")


@contextlib.contextmanager
def shaped_registry(work):
    """A registry on loopback, and its address behind a link like that of a far one."""
    with registry(work / "registry") as address:
        arguments = [sys.executable, REPO / "bench" / "link.py", address, str(LINK["mbit"]), str(LINK["delay_ms"])]
        with subprocess.Popen(arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as link:
            try:
                yield address, link.stdout.readline().strip()
            finally:
                link.stdin.close()
