"""Programs that people run in containers, from nothing until they are ready, over links of three kinds."""

import time

from common import SCRIPTS, peer, ratio_spread, registry, row, run, say, sociblk, spread
from stage import Node, link, link_words

GOAL_RATIO = 8
GOAL_SECOND_RUN = 2
COMMAND = ["/app/start"]
# What is run over each link. Over the slowest one the big images would take an hour and tell what `wan` tells.
PLAN = {
    "wan": ["python", "nginx", "redis", "node", "postgres", "ml", "everything"],
    "lan": ["python", "nginx", "redis", "node", "postgres", "ml", "everything"],
    "far": ["python", "nginx", "redis", "node"],
}
# The goals' words: the link and the image that each is about.
RATIO_OF = ("wan", "ml")
SECOND_RUN_OF = ("lan", {"python", "nginx", "redis", "node"})
WHOLE = "everything"


def suite(work, quick):
    plan = {"wan": ["nginx", "python"]} if quick else PLAN
    rounds = 1 if quick else 3
    wanted = sorted({name for names in plan.values() for name in names})
    layout = run(SCRIPTS / "make-workloads", *wanted).strip()
    rows, raw = [], {}
    with registry(work / "registry") as near:
        for name in wanted:
            say(f"index of {name}")
            run("skopeo", "copy", "-q", "--dest-tls-verify=false", f"oci:{layout}:{name}", f"docker://{near}/{name}:1")
            run(sociblk(), "--root", work / "creator", "create", f"{near}/{name}:1", "--min-layer-size", "0", "--push")
        for link_name, names in plan.items():
            with link(near, link_name) as far:
                for name in names:
                    runs = raw[f"{name}, {link_name}"] = alternate(work, f"{far}/{name}:1", rounds)
                    rows += table(name, link_name, runs)
    return {"rows": rows, "raw": raw}


def contenders():
    """Name and frontend of what runs one after the other in each round."""
    return {"sociblk": "auto", "overlayfs": None}


def alternate(work, image, rounds):
    """Each contender in turn, and again: what disturbs the machine for a while disturbs all."""
    runs = {name: [] for name in contenders()}
    for number in range(rounds):
        for name, frontend in contenders().items():
            runs[name].append(cold(work / "node", image, frontend))
            run("rm", "-rf", "--one-file-system", work / "node")
        said = ", ".join(f"{name} {of[-1]['ready_s']:.2f} s" for name, of in runs.items())
        say(f"{image.rsplit('/')[-1]} round {number + 1} of {rounds}: {said}")
    return runs


def cold(work, image, frontend):
    """A pull and a run with empty stores, then a second run."""
    with Node(work, frontend) as node:
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


def table(name, link_name, runs):
    """Rows of one image over one link."""
    of = {contender: {key: [r[key] for r in rs] for key in rs[0]} for contender, rs in runs.items()}
    ours, full = of["sociblk"], of["overlayfs"]
    ratio_goal = {"goal": GOAL_RATIO, "better": "high"} if (link_name, name) == RATIO_OF else {}
    if name == WHOLE:
        ratio_goal = {"goal": 1, "better": "high"}
    second_goal = {"goal": GOAL_SECOND_RUN, "better": "low"} if link_name == SECOND_RUN_OF[0] and name in SECOND_RUN_OF[1] else {}
    fetched = spread([n / 2**20 for n in ours["fetched_bytes"]])
    note = f"pull {median(ours['pull_s']):.2f} s, first output {median(ours['first_output_s']):.2f} s, {median(ours['requests']):.0f} requests"
    full_note = f"overlayfs: pull {median(full['pull_s']):.2f} s, CPU {median(full['cpu_s']):.2f} s; ours CPU {median(ours['cpu_s']):.2f} s, peak {median(ours['peak_bytes']) / 2**20:.0f} MiB"
    yield row(f"{name}, {link_words(link_name)}: until ready", spread(ours["ready_s"]), "s", peer=peer("overlayfs, full pull", spread(full["ready_s"]), "s"), note=note)
    yield row(f"{name}, {link_name}: how much faster than a full pull", ratio_spread(full["ready_s"], ours["ready_s"]), "", **ratio_goal, note=full_note)
    yield row(f"{name}, {link_name}: first run / second run", ratio_spread(ours["run_ms"], ours["second_run_ms"]), "", **second_goal)
    yield row(f"{name}, {link_name}: fetched until ready", fetched, "MiB")


def median(values):
    return spread(values)["median"]
