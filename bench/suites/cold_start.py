"""Programs that people run in containers, from nothing until they are ready, over links of three kinds."""

import json
import os
import time

from common import MIB, SCRIPTS, peer, ratio_spread, registry, row, run, say, sociblk, spread
from stage import Node, link

GOAL_RATIO = 8
GOAL_SECOND_RUN = 2
GOAL_FETCHED = 1.5
COMMAND = ["/app/start"]
# What is run over each link. The big images would take an hour over the others and tell what `wan` tells.
PLAN = {
    "wan": ["python", "nginx", "redis", "node", "postgres", "ml", "everything"],
    "lan": ["python", "nginx", "redis", "node", "postgres"],
    "far": ["python", "nginx", "redis", "node"],
}
# The goals' words: the link and the image that each is about.
RATIO_OF = ("wan", "ml")
SECOND_RUN_OF = ("lan", {"python", "nginx", "redis", "node"})
WHOLE = "everything"


def suite(work, quick):
    plan = {"wan": ["nginx", "python"]} if quick else chosen(os.environ.get("COLD_START", ""))
    rounds = 1 if quick else 3
    wanted = sorted({name for names in plan.values() for name in names})
    layout = run(SCRIPTS / "make-workloads", *wanted).strip()
    rows, raw, touched = [], {}, {}
    with registry(work / "registry") as near:
        for name in wanted:
            say(f"index and load order of {name}")
            image = f"{near}/{name}:1"
            run("skopeo", "copy", "-q", "--dest-tls-verify=false", f"oci:{layout}:{name}", f"docker://{image}")
            run(sociblk(), "--root", work / "creator", "create", image, "--min-layer-size", "0", "--push")
            touched[name] = record(work / "recorder", image, COMMAND)
        for link_name, names in plan.items():
            with link(near, link_name) as far:
                for name in names:
                    runs = raw[f"{name}, {link_name}"] = alternate(work, f"{far}/{name}:1", rounds)
                    rows += table(name, link_name, runs, touched[name])
    return {"rows": rows, "raw": raw, "touched_bytes": touched}


def chosen(text):
    """`wan=nginx,ml lan=python`: part of the plan; all of it where nothing is said."""
    return {link_name: names.split(",") for link_name, _, names in (word.partition("=") for word in text.split())} or PLAN


def record(work, image, command, ready="ready"):
    """Runs the program once, and puts what it read beside the image, order and excerpt; blob bytes of the spans that it touched."""
    with Node(work, "auto", NO_ORDER) as node:
        node.pull(image)
        node.run(image, command, ready)
        root = ["--root", node.state]
        run(sociblk(), *root, "record", "save", image, "--name", "start", "-o", work / "order.json")
        run(sociblk(), *root, "prefetch", "push", image, "--name", "start")
        touched = json.loads((work / "order.json").read_text(encoding="utf-8"))["bytes"]
    run("rm", "-rf", "--one-file-system", work)
    return touched


# Name, frontend and settings of what runs one after the other in each round.
NO_ORDER = '[load_order]\npolicy = "off"\n'
TRUSTING = '[load_order]\ntrusted_excerpts = ["*"]\n'
CONTENDERS = {
    "excerpt": ("auto", TRUSTING),
    "load order": ("auto", ""),
    "no load order": ("auto", NO_ORDER),
    "fuse-fs": ("fuse-fs", NO_ORDER),
    "overlayfs": (None, ""),
}


def alternate(work, image, rounds):
    """Each contender in turn, and again: what disturbs the machine for a while disturbs all."""
    runs = {name: [] for name in CONTENDERS}
    for number in range(rounds):
        for name, (frontend, settings) in CONTENDERS.items():
            runs[name].append(cold(work / "node", image, frontend, settings))
            run("rm", "-rf", "--one-file-system", work / "node")
        said = ", ".join(f"{name} {of[-1]['ready_s']:.2f} s" for name, of in runs.items())
        say(f"{image.rsplit('/')[-1]} round {number + 1} of {rounds}: {said}")
    return runs


def cold(work, image, frontend, settings):
    """A pull and a run with empty stores, then a second run."""
    with Node(work, frontend, settings) as node:
        cpu_before = node.cpu_s()
        began = time.monotonic()
        node.pull(image)
        pull_s = time.monotonic() - began
        first = node.run(image, COMMAND)
        stats = node.stats()
        cpu_s = node.cpu_s() - cpu_before
        second = node.run(image, COMMAND)
        return {
            "pull_s": pull_s,
            "first_output_s": pull_s + first["started"] / 1e3,
            "ready_s": pull_s + first["ready"] / 1e3,
            "run_ms": first["ready"],
            "second_run_ms": second["ready"],
            "cpu_s": cpu_s,
            "peak_bytes": node.peak_bytes(),
            "fetched_bytes": stats and stats["fetched_bytes"],
            "requests": stats and stats["requests"],
        }


def table(name, link_name, runs, touched_bytes):
    """Rows of one image over one link."""
    of = {contender: {key: [r[key] for r in rs] for key in rs[0]} for contender, rs in runs.items()}
    full = of["overlayfs"]
    theirs = peer("overlayfs, full pull", spread(full["ready_s"]), "s")
    for contender in ("excerpt", "load order", "no load order", "fuse-fs"):
        ours = of[contender]
        note = (
            f"pull {median(ours['pull_s']):.2f} s, first output {median(ours['first_output_s']):.2f} s, "
            f"{median(ours['fetched_bytes']) / MIB:.1f} MiB in {median(ours['requests']):.0f} requests until ready; "
            f"CPU {median(ours['cpu_s']):.2f} s (overlayfs {median(full['cpu_s']):.2f} s), peak {median(ours['peak_bytes']) / MIB:.0f} MiB"
        )
        yield row(f"{name}, {link_name}, {contender}: until ready", spread(ours["ready_s"]), "s", peer=theirs, note=note)
    for contender in ("excerpt", "load order"):
        yield from against(name, link_name, contender, of, touched_bytes)


def against(name, link_name, contender, of, touched_bytes):
    """One contender with a recorded order beside the full pull, its own second run, and what it had to fetch."""
    ours, plain = of[contender], of["no load order"]
    goal = {"goal": GOAL_RATIO, "better": "high"} if (link_name, name) == RATIO_OF else {}
    if name == WHOLE:
        goal = {"goal": 1, "better": "high"}
    yield row(f"{name}, {link_name}: full pull / {contender}", ratio_spread(of["overlayfs"]["ready_s"], ours["ready_s"]), "", **goal)
    goal = {"goal": GOAL_SECOND_RUN, "better": "low"} if link_name == SECOND_RUN_OF[0] and name in SECOND_RUN_OF[1] else {}
    yield row(
        f"{name}, {link_name}, {contender}: first run / second run",
        ratio_spread(ours["run_ms"], ours["second_run_ms"]),
        "",
        **goal,
        note=f"without: {ratio_spread(plain['run_ms'], plain['second_run_ms'])['median']:.1f}",
    )
    share = spread([fetched / touched_bytes for fetched in ours["fetched_bytes"]])
    yield row(
        f"{name}, {link_name}, {contender}: fetched / touched",
        share,
        "",
        GOAL_FETCHED if name != WHOLE else None,
        "low",
        note=f"{touched_bytes / MIB:.1f} MiB of spans touched; fetched until ready, background completion included",
    )


def median(values):
    return spread(values)["median"]
