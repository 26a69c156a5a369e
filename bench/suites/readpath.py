"""Reads and look-ups of a layer that is all there, and first reads of one that is not: one frontend against the other, the
kernel's EROFS and the host's own file system, all under overlayfs, over the same bytes."""

import contextlib
import io
import json
import os
import pathlib
import random
import shutil
import tarfile

import reads
from common import MIB, peer, ratio_spread, registry, row, run, say, sociblk, spread

GOAL_WALK = 5
GOAL_RANDOM = 2
GOAL_SEQUENTIAL = 0.9
FILES_PER_DIRECTORY = 100
# fuse-fs with its requests over io_uring, and the kernel's switch for that.
OVER_RINGS = "fuse-fs-io_uring"
RING_SWITCH = pathlib.Path("/sys/module/fuse/parameters/enable_uring")
JOBS = 8


def suite(work, quick):
    files, big_bytes, rounds = (4000, 4 * MIB, 2) if quick else (100_000, 64 * MIB, 7)
    # The names that a round's single calls are made with.
    asked = 2000 if quick else 20_000
    say(f"a layer of {files} files and {JOBS} big ones ...")
    tar = work / "layer.tar"
    make_layer(tar, files, big_bytes)
    frontends = ["fuse-image", "fuse-fs"] + (["ublk"] if os.path.exists("/dev/ublk-control") else [])
    with contextlib.ExitStack() as stack:
        address = stack.enter_context(registry(work / "registry"))
        image = push(work, tar, address)
        if stack.enter_context(rings_switched_on()):
            frontends.append(OVER_RINGS)
        ways = {name: stack.enter_context(frontend(work, image, name)) for name in frontends}
        ways["kernel EROFS"] = stack.enter_context(kernel_erofs(work, tar))
        ways["host"] = stack.enter_context(host(work, tar))
        source = random.Random(3)
        names = [name(number) for number in source.sample(range(files), asked)]
        directories = sorted({os.path.dirname(name(number)) for number in range(files)})
        figures = {}
        for number in range(rounds):
            for way, (mount, again) in ways.items():
                for what, value in measure(mount, again, names, directories, number).items():
                    figures.setdefault(what, {}).setdefault(way, []).append(value)
                say(f"round {number + 1} of {rounds}: {way}, walk {figures['walk, fresh'][way][-1]:.2f} s")
        memory = {way: state_bytes(work, way) for way in frontends}
        cold = {}
        for number in range(max(2, rounds // 2)):
            for way in frontends:
                for what, value in first_reads(work, image, way, number).items():
                    cold.setdefault(what, {}).setdefault(way, []).append(value)
    return {"rows": rows(figures, cold, memory, files, quick), "raw": {"warm": figures, "cold": cold, "memory": memory}}


def name(number):
    directory = number // FILES_PER_DIRECTORY
    return f"tree/{directory // 40}/{directory}/file-{number}"


def make_layer(path, files, big_bytes):
    """Small files of skewed sizes with an extended attribute each, and big ones, one for each job."""
    source = random.Random(7)
    block = b"".join(source.randbytes(3000) + b"." * 1096 for _ in range(256))
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as tar:
        for number in range(files):
            entry = tarfile.TarInfo(name(number))
            entry.size = min(int(source.paretovariate(0.8) * 100), 32_768)
            entry.pax_headers = {"SCHILY.xattr.user.bench": "value"}
            at = source.randrange(len(block) - entry.size)
            tar.addfile(entry, io.BytesIO(block[at : at + entry.size]))
        for number in range(JOBS):
            entry = tarfile.TarInfo(f"big-{number}")
            entry.size = big_bytes
            tar.addfile(entry, io.BytesIO(block * (big_bytes // len(block))))


def push(work, tar, address):
    layout = work / "layout"
    run("umoci", "init", "--layout", layout)
    run("umoci", "new", "--image", f"{layout}:bench")
    run("umoci", "raw", "add-layer", "--image", f"{layout}:bench", tar)
    image = f"{address}/bench:1"
    run("skopeo", "copy", "-q", "--dest-tls-verify=false", f"oci:{layout}:bench", f"docker://{image}")
    shutil.rmtree(layout)
    run(sociblk(), "--root", work / "creator", "create", image, "--min-layer-size", "0", "--push")
    shutil.rmtree(work / "creator")
    return image


@contextlib.contextmanager
def rings_switched_on():
    """Whether the kernel offers FUSE over io_uring, switched on for as long as this lasts."""
    try:
        before = RING_SWITCH.read_text()
        RING_SWITCH.write_text("Y")
    except OSError as error:
        say(f"SKIPPED: {OVER_RINGS}: {error}")
        yield False
        return
    try:
        yield True
    finally:
        RING_SWITCH.write_text(before)


def mount_image(root, image, target, frontend):
    rings = frontend == OVER_RINGS
    kind = "fuse-fs" if rings else frontend
    root.mkdir(mode=0o700, exist_ok=True)
    config = root / "config.toml"
    config.write_text(f"[fuse]\nio_uring = {str(rings).lower()}\n")
    command = [sociblk(), "--root", root, "--config", config]
    report = json.loads(run(*command, "mount", image, target, "--frontend", kind, "--json"))
    log = (root / "daemon.log").read_text()
    if rings and "FUSE over io_uring, which the settings ask for" in log:
        raise RuntimeError(f"not over io_uring: {log}")
    if any(layer["index"] == "streamed" for layer in report["layers"]):
        raise RuntimeError(f"not the lazy mount that was meant: {report}")


@contextlib.contextmanager
def frontend(work, image, kind):
    """A mount with all its bytes present, and a way to have it anew, with nothing of it in the kernel."""
    root, target = work / f"state-{kind}", work / f"mnt-{kind}"
    target.mkdir()

    def again():
        run(sociblk(), "--root", root, "umount", target)
        mount_image(root, image, target, kind)

    mount_image(root, image, target, kind)
    try:
        run("sh", "-c", 'find "$1" -type f -print0 | xargs -0 cat >/dev/null', "sh", target)
        yield target, again
    finally:
        run(sociblk(), "--root", root, "daemon", "stop")


@contextlib.contextmanager
def overlay(lower, target):
    """A read-only overlay of one directory, as containers see it."""
    empty = pathlib.Path(f"{target}-empty")
    for directory in (target, empty):
        directory.mkdir(exist_ok=True)
    run("mount", "-t", "overlay", "-o", f"ro,lowerdir={lower}:{empty}", "bench", target)
    try:
        yield
    finally:
        run("umount", target)


@contextlib.contextmanager
def kernel_erofs(work, tar):
    """The same metadata and the same tar in one image file, through the kernel's loop device where there is one."""
    image, lower, target = work / "layer.erofs", work / "erofs", work / "mnt-erofs"
    lower.mkdir()
    run(sociblk(), "image", tar, "--output", image)
    options = "ro,loop" if os.path.exists("/dev/loop-control") else "ro"
    stack = contextlib.ExitStack()

    def again():
        stack.close()
        run("mount", "-t", "erofs", "-o", options, image, lower)
        stack.callback(run, "umount", lower)
        stack.enter_context(overlay(lower, target))

    try:
        again()
        yield target, again
    finally:
        stack.close()


@contextlib.contextmanager
def host(work, tar):
    """The files themselves on the file system that all the others have theirs on. It cannot be had anew."""
    lower, target = work / "files", work / "mnt-host"
    lower.mkdir()
    run("tar", "--xattrs", "--xattrs-include=user.*", "-xf", tar, "-C", lower)
    with overlay(lower, target):
        yield target, None


def measure(mount, again, names, directories, seed):
    """One round over one way. Seconds for walks, calls, reads or bytes a second for all else."""
    found = {}
    if again:
        again()
    # The first walk of a fresh mount asks the server for everything; the second one nobody.
    found["walk, fresh"] = reads.walk(mount / "tree")
    found["walk, known"] = reads.walk(mount / "tree")
    paths, directories = [mount / path for path in names], [mount / path for path in directories]
    if again:
        again()
    for kind in ("stat", "readdir", "getxattr", "open and close"):
        found[f"{kind}, first"] = reads.operations(kind, directories if kind == "readdir" else paths)
        found[f"{kind}, again"] = reads.operations(kind, directories if kind == "readdir" else paths)
    big = [mount / f"big-{number}" for number in range(JOBS)]
    for kind in reads.READS:
        for jobs in (1, JOBS):
            # The second of two: memory that a virtual machine has not touched before must be found by its host, which costs more
            # than the read. What the first one frees the second one gets.
            rates = [reads.reads(kind, big[:jobs], seed) for _ in range(2)]
            found[f"{kind}, {jobs} jobs"] = rates[-1]
    return found


def first_reads(work, image, kind, seed):
    """Reads of bytes that are not here yet: a root of its own, empty, and a registry on loopback."""
    root, target = work / "state-cold", work / "mnt-cold"
    target.mkdir(exist_ok=True)
    found = {}
    for what, path in (("sequential", "big-0"), ("random 4 KiB", "big-1")):
        try:
            mount_image(root, image, target, kind)
            found[what] = reads.reads(what, [target / path], seed, drop=False)
        finally:
            run(sociblk(), "--root", root, "daemon", "stop")
            shutil.rmtree(root)
    return found


def state_bytes(work, kind):
    """Anonymous memory of the daemon after all this."""
    pid = run(sociblk(), "--root", work / f"state-{kind}", "daemon", "status").split("pid ")[1].split(",")[0]
    status = pathlib.Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in status if line.startswith("RssAnon:"))


def tie(ours, theirs):
    """Whether the quartiles overlap."""
    (low, high), (other_low, other_high) = spread(ours)["quartiles"], spread(theirs)["quartiles"]
    return low <= other_high and other_low <= high


def rows(figures, cold, memory, files, quick):
    out = []

    def compare(what, ours, theirs, values, unit, goal=None, inverse=False, scale=1):
        """Ratio above 1: `ours` is better."""
        if ours not in values or theirs not in values:
            return
        mine, other = [v * scale for v in values[ours]], [v * scale for v in values[theirs]]
        ratio = ratio_spread(other, mine) if inverse else ratio_spread(mine, other)
        note = f"{ours}: {spread(mine)['median']:.3g} {unit}" + ("; a tie" if tie(mine, other) else "")
        about = peer(theirs, spread(other), unit)
        out.append(row(f"{what}: {ours} against {theirs}", ratio, "times", None if quick else goal, "high" if goal else None, about, note))

    products = [way for way in ("ublk", "fuse-image", OVER_RINGS) if way in memory]
    for product in products:
        for state in ("fresh", "known"):
            goal = GOAL_WALK if state == "fresh" and product != OVER_RINGS else None
            compare(f"walk of {files} files, {state} mount", product, "fuse-fs", figures[f"walk, {state}"], "s", goal, inverse=True)
        for kind in ("stat", "readdir", "getxattr", "open and close"):
            for state in ("first", "again"):
                compare(f"{kind}, {state}", product, "fuse-fs", figures[f"{kind}, {state}"], "calls/s")
        for kind, (_, unit) in reads.READS.items():
            for jobs in (1, JOBS):
                values = figures[f"{kind}, {jobs} jobs"]
                scale = 1e-6 if unit == "bytes" else 1
                unit_of = "MB/s" if unit == "bytes" else f"{unit}/s"
                goal = GOAL_RANDOM if product == "ublk" and (kind, jobs) == ("random 4 KiB", JOBS) else None
                what = f"warm {kind}, {jobs} job{'s' * (jobs > 1)}"
                compare(what, product, "fuse-fs", values, unit_of, goal, scale=scale)
                goal = GOAL_SEQUENTIAL if product == "ublk" and kind == "sequential" else None
                compare(what, product, "kernel EROFS", values, unit_of, goal, scale=scale)
                compare(what, product, "host", values, unit_of, scale=scale)
        for what, values in cold.items():
            unit_of, scale = ("MB/s", 1e-6) if what == "sequential" else ("reads/s", 1)
            compare(f"cold {what}, 1 job", product, "fuse-fs", values, unit_of, scale=scale)
    for way, anonymous in memory.items():
        value = spread([anonymous / MIB])
        out.append(row(f"anonymous memory of the daemon, {files} files known to the kernel, {way}", value, "MiB"))
    return out
