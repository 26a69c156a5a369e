"""From the command to an answering `ls`: a five-layer image in a registry on loopback, against a full pull and unpack."""

import json
import os
import pathlib
import re
import shutil

from common import REPO, make_image, peer, registry, row, run, say, sociblk, spread, timed

GOAL_MS = 150
ACCEPT = ", ".join(
    f"application/vnd.{kind}"
    for kind in (
        "oci.image.index.v1+json",
        "oci.image.manifest.v1+json",
        "docker.distribution.manifest.list.v2+json",
        "docker.distribution.manifest.v2+json",
    )
)


def suite(work, quick):
    rounds = 2 if quick else 9
    layout = make_image()
    frontends = ["fuse-image"] + (["ublk"] if os.path.exists("/dev/ublk-control") else [])
    with registry(work / "registry") as address:
        image = f"{address}/demo:1"
        run("skopeo", "copy", "-q", "--dest-tls-verify=false", f"oci:{layout}:demo", f"docker://{image}")
        run(sociblk(), "--root", work / "creator", "create", image, "--min-layer-size", "0", "--push")
        shutil.rmtree(work / "creator")
        log = pathlib.Path(work / "registry" / "log")
        ways = {f"{frontend}, {state}": [] for frontend in frontends for state in ("cold", "warm", "again")}
        peers = []
        for number in range(rounds):
            for frontend in frontends:
                for state, figures in lazily(work, image, frontend, log).items():
                    ways[f"{frontend}, {state}"].append(figures)
            peers.append(in_full(work, image))
            shown = ", ".join(f"{way} {runs[-1]['ls_ms']:.0f} ms" for way, runs in ways.items())
            say(f"round {number + 1} of {rounds}: {shown}; in full {peers[-1]['ls_ms']:.0f} ms")
    full = peer("skopeo copy + umoci unpack", spread([p["ls_ms"] for p in peers]), "ms")
    words = {
        "cold": "no daemon runs, nothing is known",
        "warm": "daemon runs, image unknown",
        "again": "daemon runs, image mounted before",
    }
    rows = []
    for way, runs in ways.items():
        frontend, state = way.split(", ")
        rows.append(row(f"mount until ls, {way}", spread([r["ls_ms"] for r in runs]), "ms", peer=full, note=words[state]))
        beyond = spread([r["ls_ms"] - r["registry_ms"] for r in runs])
        answers = spread([r["registry_ms"] for r in runs])
        note = f"the same {len(runs[0]['requests'])} requests by curl, one after the other: {answers['median']:.0f} ms"
        rows.append(row(f"mount until ls, {way}, beyond the registry's answers", beyond, "ms", GOAL_MS, "low", note=note))
    return {"rows": rows, "raw": {"lazily": ways, "in full": peers}}


def lazily(work, image, frontend, log):
    """One round: without a daemon, with one that does not know the image, with one that does."""
    cold, warm = work / "state-cold", work / "state-warm"
    target = work / "mnt"
    target.mkdir(exist_ok=True)
    figures = {}
    try:
        figures["cold"] = mount(cold, image, target, frontend, log)
        # This daemon has served something before: its frontend is up. Of the image or its registry it knows nothing.
        small = REPO / "tests" / "corpus" / "small-stored.tar.gz"
        run(sociblk(), "--root", warm, "mount", f"layer:{small}", target, "--frontend", frontend)
        run(sociblk(), "--root", warm, "umount", target)
        figures["warm"] = mount(warm, image, target, frontend, log)
        figures["again"] = mount(warm, image, target, frontend, log)
    finally:
        for root in (cold, warm):
            if root.exists():
                run(sociblk(), "--root", root, "daemon", "stop")
                shutil.rmtree(root)
    return figures


def mount(root, image, target, frontend, log):
    """Mounts, looks, unmounts; then asks the registry the same with a client that does nothing else."""

    def until_ls():
        said = run(sociblk(), "--root", root, "mount", image, target, "--frontend", frontend, "--json")
        return json.loads(said), os.listdir(target)

    mark = log.stat().st_size
    ls_ms, (report, names) = timed(until_ls)
    run(sociblk(), "--root", root, "umount", target)
    if "usr" not in names or any(layer["index"] == "streamed" for layer in report["layers"]):
        raise RuntimeError(f"not the lazy mount that was meant: {names} {report}")
    requests = logged_requests(log, mark)
    return {
        "ls_ms": ls_ms,
        "daemon_ms": report["elapsed_ms"],
        "registry_ms": sum(bare_client_ms(image.split("/")[0], requests)),
        "requests": requests,
    }


def in_full(work, image):
    """The peer: everything fetched and unpacked before the first look."""
    layout, bundle = work / "full-layout", work / "full-bundle"

    def until_ls():
        run("skopeo", "copy", "-q", "--src-tls-verify=false", f"docker://{image}", f"oci:{layout}:demo")
        run("umoci", "unpack", "--image", f"{layout}:demo", bundle)
        return os.listdir(bundle / "rootfs")

    ls_ms, names = timed(until_ls)
    if "usr" not in names:
        raise RuntimeError(f"not the image that was meant: {names}")
    shutil.rmtree(layout)
    shutil.rmtree(bundle)
    return {"ls_ms": ls_ms}


def logged_requests(log, mark):
    """What the registry says it was asked behind byte `mark` of its log."""
    with open(log, encoding="utf-8") as file:
        file.seek(mark)
        lines = [line for line in file if 'msg="response completed"' in line]
    field = lambda name, line: re.search(rf'http\.re(?:quest|sponse)\.{name}="?([^" ]+)', line).group(1)
    return [{"method": field("method", line), "uri": field("uri", line), "status": int(field("status", line))} for line in lines]


def bare_client_ms(address, requests):
    """How long each of these requests takes one client that makes them one after the other on one connection."""
    command = []
    for request in requests:
        command += ["--next"] if command else []
        command += ["-sS", "-o", "/dev/null", "-w", "%{time_total} %{http_code}\n", "-H", f"Accept: {ACCEPT}"]
        command += ["-I"] if request["method"] == "HEAD" else []
        command += [f"http://{address}{request['uri']}"]
    answers = [line.split() for line in run("curl", *command).splitlines()] if command else []
    if [int(code) for _, code in answers] != [request["status"] for request in requests]:
        raise RuntimeError(f"the registry answers something else now: {answers} to {requests}")
    return [float(seconds) * 1000 for seconds, _ in answers]
