"""From nothing to a container's first output through containerd: our snapshotter, with what is known of the start and without,
against its own, over a shaped link."""

import re
import time

from common import make_image, peer, ratio_spread, row, run, say, sociblk, spread
from stage import Node, link_words, shaped_registry
from suites.cold_start import NO_ORDER, TRUSTING, record

GOAL_RATIO = 5
GOAL_PREPARE_MS = 20
LINK = "wan"
COMMAND = ["/usr/bin/python3", "/app/main.py"]


# The same image under three names, each with an index of its own.
INDEXES = {
    "demo": [],
    "guessed": ["--prefetch-program"],
    "guessed-fine": ["--prefetch-program", "--span-size", "1048576"],
}
# Name, image, frontend and settings of what runs one after the other in each round.
CONTENDERS = {
    "nothing recorded": ("demo", "auto", NO_ORDER),
    "nothing recorded, index made with --prefetch-program": ("guessed", "auto", ""),
    "nothing recorded, the same with spans of 1 MiB": ("guessed-fine", "auto", ""),
    "load order": ("demo", "auto", ""),
    "excerpt": ("demo", "auto", TRUSTING),
    "overlayfs": ("demo", None, ""),
}


def suite(work, quick):
    rounds = 2 if quick else 5
    runs = {name: [] for name in CONTENDERS}
    with shaped_registry(work, LINK) as (near, far):
        for name, options in INDEXES.items():
            run("skopeo", "copy", "-q", "--dest-tls-verify=false", f"oci:{make_image()}:demo", f"docker://{near}/{name}:1")
            run(sociblk(), "--root", work / "creator", "create", f"{near}/{name}:1", "--min-layer-size", "0", "--push", *options)
        record(work / "recorder", f"{near}/demo:1", COMMAND, "hello")
        for number in range(rounds):
            for at, (name, (image, frontend, settings)) in enumerate(CONTENDERS.items()):
                runs[name].append(start(work / f"{number}-{at}", f"{far}/{image}:1", frontend, settings))
            said = ", ".join(f"{name} {of[-1]['s']:.2f} s" for name, of in runs.items())
            say(f"round {number + 1} of {rounds}: {said}")
    return {"rows": list(table(runs)), "raw": runs}


def table(runs):
    took = {name: [r["s"] for r in of] for name, of in runs.items()}
    theirs = peer("containerd's overlayfs snapshotter", spread(took["overlayfs"]), "s")
    for name in list(CONTENDERS)[:-1]:
        yield row(f"pull and run until the first output, {link_words(LINK)}, {name}", spread(took[name]), "s", peer=theirs)
        yield row(f"how much faster, {name}", ratio_spread(took["overlayfs"], took[name]), "", GOAL_RATIO, "high")
    prepares = [ms for r in runs["nothing recorded"] for ms in r["again_ms"]]
    note = "as the service counts it, of layers that are shown anew"
    yield row("Prepare of an indexed layer, artifacts local", spread(prepares), "ms", GOAL_PREPARE_MS, "low", note=note)


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
