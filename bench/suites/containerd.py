"""From nothing to a container's first output through containerd: our snapshotter against its own, over a shaped link."""

import re
import time

from common import make_image, peer, ratio_spread, row, run, say, sociblk, spread
from stage import Node, link_words, shaped_registry

GOAL_RATIO = 5
GOAL_PREPARE_MS = 20
LINK = "wan"
COMMAND = ["/usr/bin/python3", "/app/main.py"]


def suite(work, quick):
    rounds = 2 if quick else 5
    ours, peers, prepares, raw = [], [], [], []
    with shaped_registry(work, LINK) as (near, far):
        run("skopeo", "copy", "-q", "--dest-tls-verify=false", f"oci:{make_image()}:demo", f"docker://{near}/demo:1")
        run(sociblk(), "--root", work / "creator", "create", f"{near}/demo:1", "--min-layer-size", "0", "--push")
        image = f"{far}/demo:1"
        for number in range(rounds):
            lazily = start(work / f"lazy-{number}", image, "auto")
            plainly = start(work / f"plain-{number}", image, None)
            ours.append(lazily["s"])
            peers.append(plainly["s"])
            prepares += lazily["again_ms"]
            raw.append({"sociblk": lazily, "overlayfs": plainly})
            say(f"round {number + 1} of {rounds}: {ours[-1]:.2f} s (pull {lazily['pull_s']:.2f} s); overlayfs {peers[-1]:.2f} s")
    rows = [
        row(f"pull and run until the first output, {link_words(LINK)}", spread(ours), "s", peer=peer("containerd's overlayfs snapshotter", spread(peers), "s")),
        row("how much faster", ratio_spread(peers, ours), "", GOAL_RATIO, "high"),
        row("Prepare of an indexed layer, artifacts local", spread(prepares), "ms", GOAL_PREPARE_MS, "low", note="as the service counts it, of layers that are shown anew"),
    ]
    return {"rows": rows, "raw": raw}


def start(work, image, frontend):
    """Times of a pull and a run with empty stores."""
    with Node(work, frontend) as node:
        began = time.monotonic()
        node.pull(image)
        pulled = time.monotonic()
        first_ms = node.run(image, COMMAND, "hello")["hello"]
        again = []
        if frontend:
            node.ctr("images", "rm", "--sync", image)
            node.pull(image)
            shown = re.findall(r"layer is shown .*\bms=(\d+)", node.log())
            again = [int(ms) for ms in shown[len(shown) // 2 :]]
        return {"s": pulled - began + first_ms / 1e3, "pull_s": pulled - began, "again_ms": again}
