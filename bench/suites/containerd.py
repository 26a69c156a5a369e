"""From nothing to a container's first output through containerd: our snapshotter, without and with a recorded start, against its
own, over a shaped link."""

import re
import time

from common import make_image, peer, ratio_spread, row, run, say, sociblk, spread
from stage import Node, link_words, shaped_registry
from suites.cold_start import NO_ORDER, TRUSTING, record

GOAL_RATIO = 5
GOAL_PREPARE_MS = 20
LINK = "wan"
COMMAND = ["/usr/bin/python3", "/app/main.py"]


def suite(work, quick):
    rounds = 2 if quick else 5
    ours, guessed, helped, peers, prepares, raw = [], [], [], [], [], []
    with shaped_registry(work, LINK) as (near, far):
        # The same image under another name, with an index that knows what its program needs.
        for name, options in (("demo", []), ("guessed", ["--prefetch-program"])):
            run("skopeo", "copy", "-q", "--dest-tls-verify=false", f"oci:{make_image()}:demo", f"docker://{near}/{name}:1")
            run(sociblk(), "--root", work / "creator", "create", f"{near}/{name}:1", "--min-layer-size", "0", "--push", *options)
        record(work / "recorder", f"{near}/demo:1", COMMAND, "hello")
        image = f"{far}/demo:1"
        for number in range(rounds):
            lazily = start(work / f"lazy-{number}", image, "auto", NO_ORDER)
            guess = start(work / f"guessed-{number}", f"{far}/guessed:1", "auto")
            recorded = start(work / f"recorded-{number}", image, "auto", TRUSTING)
            plainly = start(work / f"plain-{number}", image, None)
            ours.append(lazily["s"])
            guessed.append(guess["s"])
            helped.append(recorded["s"])
            peers.append(plainly["s"])
            prepares += lazily["again_ms"]
            raw.append({"sociblk": lazily, "sociblk, program prefetched": guess, "sociblk, excerpt": recorded, "overlayfs": plainly})
            say(f"round {number + 1} of {rounds}: {ours[-1]:.2f} s (pull {lazily['pull_s']:.2f} s); with --prefetch-program {guessed[-1]:.2f} s; with an excerpt {helped[-1]:.2f} s; overlayfs {peers[-1]:.2f} s")
    theirs = peer("containerd's overlayfs snapshotter", spread(peers), "s")
    rows = [
        row(f"pull and run until the first output, {link_words(LINK)}", spread(ours), "s", peer=theirs, note="nothing recorded"),
        row("how much faster", ratio_spread(peers, ours), "", GOAL_RATIO, "high"),
        row("the same, index made with --prefetch-program", spread(guessed), "s", peer=theirs, note="nothing recorded"),
        row("how much faster, with --prefetch-program", ratio_spread(peers, guessed), "", GOAL_RATIO, "high"),
        row("the same after a recorded start, with its excerpt", spread(helped), "s", peer=theirs),
        row("how much faster, with an excerpt", ratio_spread(peers, helped), "", GOAL_RATIO, "high"),
        row("Prepare of an indexed layer, artifacts local", spread(prepares), "ms", GOAL_PREPARE_MS, "low", note="as the service counts it, of layers that are shown anew"),
    ]
    return {"rows": rows, "raw": raw}


def start(work, image, frontend, settings=""):
    """Times of a pull and a run with empty stores."""
    with Node(work, frontend, settings) as node:
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
