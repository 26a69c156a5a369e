"""In the guest of scripts/vm: reads of one complete layer, every frontend and the kernel's loop device in turns.
Usage: readpath.py LAYER IMAGE ROUNDS SMALL_FILES RANDOM_BYTES

Warm means: the layer file is complete and in the page cache, as is the image file of the loop device. Before each pass only the
reader's own pages (those of the mounted files) are dropped, so every byte comes through the frontend; counters prove both.
"""

import contextlib
import json
import os
import pathlib
import platform
import subprocess
import sys
import time

SOCIBLK = os.environ["SOCIBLK"]
SCRATCH = pathlib.Path("/scratch")
FRONTENDS = ("ublk", "fuse-image", "fuse-fs")
JOBS = 8
CHUNK = bytearray(1 << 20)
TICKS = os.sysconf("SC_CLK_TCK")
# What the kernel tells a FUSE server of one read: header and arguments.
FUSE_READ_BYTES = 80
RANDOM = {
    "random 4 KiB, 1 job": ("4k", 1, True),
    f"random 4 KiB, {JOBS} jobs": ("4k", JOBS, True),
    f"random 4 KiB unannounced, {JOBS} jobs": ("4k", JOBS, False),
    "random 128 KiB, 1 job": ("128k", 1, True),
    f"random 128 KiB, {JOBS} jobs": ("128k", JOBS, True),
}


def run(*command):
    done = subprocess.run([str(c) for c in command], stdout=subprocess.PIPE, stderr=subprocess.PIPE, stdin=subprocess.DEVNULL, text=True)
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(map(str, command))}: status {done.returncode}\n{done.stdout[-2000:]}{done.stderr[-2000:]}")
    return done.stdout


class Device:
    """Counts what came through a block device."""

    def __init__(self, device):
        self.name = os.path.basename(device)
        self.stat = pathlib.Path(f"/sys/block/{self.name}/stat")
        self.readahead_file = pathlib.Path(f"/sys/block/{self.name}/queue/read_ahead_kb")

    def counters(self):
        """Requests and bytes."""
        fields = self.stat.read_text().split()
        return int(fields[0]), int(fields[2]) * 512


class Server:
    """Counts what a FUSE server read of its local files, by its own system calls: one to get a request, one for its bytes."""

    def __init__(self, pid, readahead_file):
        self.io = pathlib.Path(f"/proc/{pid}/io")
        self.readahead_file = readahead_file

    def counters(self):
        fields = dict(line.split(": ") for line in self.io.read_text().splitlines())
        requests = int(fields["syscr"]) // 2
        return requests, int(fields["rchar"]) - requests * FUSE_READ_BYTES


class Way:
    """A mount of the layer, and how to know what came through it."""

    def __init__(self, tree, source, pid=None):
        self.tree, self.source, self.pid = tree, source, pid
        self.big = [tree / f"big-{number}" for number in range(JOBS)]
        self.small = sorted(tree.glob("small/*/*"))

    def readahead(self, kib=None):
        if self.source.readahead_file is None:
            return None
        if kib is not None:
            self.source.readahead_file.write_text(str(kib))
        return int(self.source.readahead_file.read_text())

    def cpu_s(self):
        """CPU time of the daemon. What loop costs is that of kernel threads, and not in here."""
        if self.pid is None:
            return 0
        fields = pathlib.Path(f"/proc/{self.pid}/stat").read_text().rsplit(")", 1)[1].split()
        return (int(fields[11]) + int(fields[12])) / TICKS


def disk_bytes():
    """What was read from the disk that layer files and images lie on: of what is warm, nothing. Programs come from others."""
    number = os.stat(SCRATCH).st_dev
    disk = pathlib.Path(f"/sys/dev/block/{os.major(number)}:{os.minor(number)}").resolve()
    return Device(disk.name).counters()[1]


def forget(paths):
    for path in paths:
        fd = os.open(path, os.O_RDONLY)
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(fd)


def measured(way, paths, read):
    """Runs `read`, which gives (bytes, seconds), and checks that it read what it says, through the frontend, from memory."""
    forget(paths)
    requests_before, bytes_before = way.source.counters()
    disk_before, daemon_before = disk_bytes(), way.cpu_s()
    total, seconds = read()
    requests, through = (after - before for after, before in zip(way.source.counters(), (requests_before, bytes_before), strict=True))
    disk = disk_bytes() - disk_before
    if through < total * 0.99:
        raise RuntimeError(f"{way.tree}: {total} bytes were read, {through} of them through the frontend")
    # Logs are there, too.
    if disk > max(total * 0.02, 1 << 20):
        raise RuntimeError(f"{way.tree}: {total} bytes were read, but {disk} from the disk: not warm")
    return {
        "bytes_per_s": total / seconds,
        "seconds": seconds,
        "bytes": total,
        "through_bytes": through,
        "requests": requests,
        "daemon_cpu_s": round(way.cpu_s() - daemon_before, 3),
    }


def in_order(paths):
    began, total = time.monotonic(), 0
    for path in paths:
        with open(path, "rb", buffering=0) as file:
            while count := file.readinto(CHUNK):
                total += count
    return total, time.monotonic() - began


def at_random(way, kind, bytes_each, seed):
    """fio, each job in a file of its own, no place twice."""
    block, jobs, announced = RANDOM[kind]
    options = [f"--bs={block}", f"--numjobs={jobs}", f"--io_size={bytes_each}", f"--fadvise_hint={int(announced)}", f"--randseed={seed}"]
    always = ["--readonly", "--rw=randread", "--ioengine=psync", "--invalidate=0", "--random_generator=lfsr", "--thread", "--group_reporting"]
    out = run("fio", "--name=x", f"--directory={way.tree}", "--filename_format=big-$jobnum", *options, *always, "--gtod_reduce=1", "--output-format=json")
    read = json.loads(out[out.index("{") :])["jobs"][0]["read"]
    return read["io_bytes"], read["runtime"] / 1000


@contextlib.contextmanager
def frontend(layer, kind):
    """Served by a daemon of its own, so that no two share a layer file or a thread."""
    root, target = SCRATCH / f"state-{kind}", SCRATCH / f"mnt-{kind}"
    target.mkdir()
    try:
        run(SOCIBLK, "--root", root, "mount", f"layer:{layer}", target, "--frontend", kind)
        served = json.loads(run(SOCIBLK, "--root", root, "ls", "--json"))["layers"][0]
        if served["present_bytes"] != served["layer_bytes"] or not served["frontend"].startswith(kind):
            raise RuntimeError(f"not the complete layer that was meant: {served}")
        pid = int(run(SOCIBLK, "--root", root, "daemon", "status").split("pid ")[1].split(",")[0])
        yield Way(target, Device(served["device"]) if kind == "ublk" else Server(pid, None), pid), served["frontend"]
    finally:
        run(SOCIBLK, "--root", root, "daemon", "stop")


@contextlib.contextmanager
def loop(image):
    """EROFS on the kernel's loop device, and overlayfs on that, as all others have it."""
    with contextlib.ExitStack() as undo:
        # Beside the layer files, on the same file system.
        copy, lower, empty, target = (SCRATCH / name for name in ("image", "erofs", "empty", "mnt-loop"))
        run("cp", image, copy)
        for directory in (lower, empty, target):
            directory.mkdir()
        device = run("losetup", "--find", "--show", "--read-only", copy).strip()
        undo.callback(run, "losetup", "--detach", device)
        run("mount", "-t", "erofs", "-o", "ro", device, lower)
        undo.callback(run, "umount", lower)
        run("mount", "-t", "overlay", "-o", f"ro,lowerdir={lower}:{empty}", "bench", target)
        undo.callback(run, "umount", target)
        yield Way(target, Device(device))


def main():
    layer, image, rounds, small, random_bytes = sys.argv[1], sys.argv[2], *map(int, sys.argv[3:])
    with contextlib.ExitStack() as undo:
        ways, names = {}, {}
        for kind in FRONTENDS:
            ways[kind], names[kind] = undo.enter_context(frontend(layer, kind))
        ways["loop"] = undo.enter_context(loop(image))
        # All show the same, and what they show is in the page cache from here on.
        sums = {way: [line.split()[0] for line in run("sha256sum", *at.big, *at.small).splitlines()] for way, at in ways.items()}
        if len(ways["loop"].small) != small or any(found != sums["loop"] for found in sums.values()):
            raise RuntimeError("the mounts do not show the same files")
        # fio comes from a disk, too.
        at_random(ways["loop"], "random 4 KiB, 1 job", 4096, 0)
        os.sync()
        default = {way: at.readahead() for way, at in ways.items()}
        runs = {}

        def note(case, name, way, paths, read):
            runs.setdefault(case, {}).setdefault(name, []).append(measured(way, paths, read))

        for seed in range(1, rounds + 1):
            for name, way in ways.items():
                note("sequential", name, way, way.big[:1], lambda way=way: in_order(way.big[:1]))
            # The readahead of a mounted file system is that of its device, now.
            ways["loop"].readahead(default["ublk"])
            note("sequential", "loop, our readahead", ways["loop"], ways["loop"].big[:1], lambda: in_order(ways["loop"].big[:1]))
            ways["loop"].readahead(default["loop"])
            for name, way in ways.items():
                note("small", name, way, way.small, lambda way=way: in_order(way.small))
            for kind in RANDOM:
                for name, way in ways.items():
                    # One job reads as much as eight, up to half of its file.
                    each = random_bytes * (4 if RANDOM[kind][1] == 1 else 1) * (4 if RANDOM[kind][0] == "128k" else 1)
                    each = min(each, os.path.getsize(way.big[0]) // 2)
                    note(kind, name, way, way.big, lambda way=way, kind=kind, each=each: at_random(way, kind, each, seed))
            print(f"round {seed} of {rounds}", file=sys.stderr, flush=True)
        result = {"kernel": platform.release(), "frontends": names, "readahead_kib": default, "runs": runs}
    pathlib.Path("/output/readpath.json").write_text(json.dumps(result))


main()
