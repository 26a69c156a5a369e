"""In the guest of scripts/vm: reads through ublk and through a loop device, in turns. Usage: seqread.py LAYER IMAGE ROUNDS

Warm means: the layer is complete in the layer file, the image is a file beside it, and both lie in the page cache. Before each
pass only the reader's own pages (those of the mounted EROFS) are dropped, so every byte comes through the device; the
device's own counters are the proof.
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
ROOT = "/scratch/state"
CHUNK = bytearray(1 << 20)


def run(*command):
    return subprocess.run([str(c) for c in command], check=True, stdout=subprocess.PIPE, stdin=subprocess.DEVNULL, text=True).stdout


def read_file(path):
    with open(path, "rb", buffering=0) as file:
        total = 0
        while count := file.readinto(CHUNK):
            total += count
    return total


def forget(paths):
    for path in paths:
        fd = os.open(path, os.O_RDONLY)
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(fd)


def device_bytes(device):
    return int(pathlib.Path(f"/sys/block/{device}/stat").read_text().split()[2]) * 512


def requests(device):
    return int(pathlib.Path(f"/sys/block/{device}/stat").read_text().split()[0])


def read_rate(device, paths):
    """Megabytes a second, all of which came through the device, and the mean request size."""
    forget(paths)
    bytes_before, requests_before = device_bytes(device), requests(device)
    began = time.monotonic()
    total = sum(read_file(path) for path in paths)
    elapsed = time.monotonic() - began
    through = device_bytes(device) - bytes_before
    if through < total * 0.99:
        raise RuntimeError(f"{device}: {total} bytes were read, {through} of them from the device")
    return total / elapsed / 1e6, through / max(requests(device) - requests_before, 1)


def random_rate(device, depth, seconds):
    options = ["--direct=1", "--rw=randread", "--bs=4k", "--ioengine=io_uring", "--time_based", "--readonly", "--output-format=json"]
    out = run("fio", "--name=x", f"--filename=/dev/{device}", f"--iodepth={depth}", f"--runtime={seconds}", *options)
    return json.loads(out[out.index("{") :])["jobs"][0]["read"]["iops"]


def readahead(device, kib=None):
    file = pathlib.Path(f"/sys/block/{device}/queue/read_ahead_kb")
    if kib is not None:
        file.write_text(str(kib))
    return int(file.read_text())


def mount_erofs(device, name):
    target = pathlib.Path("/scratch") / name
    target.mkdir()
    run("mount", "-t", "erofs", "-o", "ro", f"/dev/{device}", target)
    return target


def main():
    layer, image, rounds = sys.argv[1], sys.argv[2], int(sys.argv[3])
    with contextlib.ExitStack() as undo:
        os.mkdir("/scratch/mnt")
        run(SOCIBLK, "--root", ROOT, "mount", f"layer:{layer}", "/scratch/mnt", "--frontend", "ublk")
        undo.callback(run, SOCIBLK, "--root", ROOT, "daemon", "stop")
        served = json.loads(run(SOCIBLK, "--root", ROOT, "ls", "--json"))["layers"][0]
        if served["present_bytes"] != served["layer_bytes"]:
            raise RuntimeError(f"the layer is not complete: {served}")
        ublk = os.path.basename(served["device"])
        # Beside the layer file, on the same file system.
        copy = "/scratch/image"
        run("cp", image, copy)
        loop = os.path.basename(run("losetup", "--find", "--show", "--read-only", copy).strip())
        undo.callback(run, "losetup", "--detach", f"/dev/{loop}")
        devices = {"ublk": ublk, "loop": loop}
        trees = {}
        for side, device in devices.items():
            trees[side] = mount_erofs(device, side)
            undo.callback(run, "umount", trees[side])
        big = {side: [str(tree / "big")] for side, tree in trees.items()}
        small = {side: sorted(str(p) for p in tree.glob("small/*/*")) for side, tree in trees.items()}
        # What is served is what the image holds, and all of it is in the page cache.
        for side in devices:
            if run("sha256sum", *big[side]).split()[0] != run("sha256sum", *big["loop"]).split()[0]:
                raise RuntimeError("the two devices do not hold the same file")
        default = {side: readahead(device) for side, device in devices.items()}
        rates = {case: {} for case in ("big", "small", "random_1", "random_32")}
        request_bytes = {}

        def note(case, side, rate, mean=None):
            rates[case].setdefault(side, []).append(rate)
            if mean is not None:
                request_bytes.setdefault(case, {}).setdefault(side, []).append(round(mean))

        os.sync()
        for side, device in devices.items():
            read_rate(device, big[side])
        for _ in range(rounds):
            for side, device in devices.items():
                note("big", side, *read_rate(device, big[side]))
            # The readahead of a mounted file system is that of its device, now.
            readahead(loop, default["ublk"])
            note("big", "loop_same_readahead", *read_rate(loop, big["loop"]))
            readahead(loop, default["loop"])
            for side, device in devices.items():
                note("small", side, *read_rate(device, small[side]))
            for depth in (1, 32):
                for side, device in devices.items():
                    note(f"random_{depth}", side, random_rate(device, depth, 2 if rounds > 3 else 1))
        result = {
            "kernel": platform.release(),
            "frontend": served["frontend"],
            "readahead_kib": default,
            "rates": rates,
            "mean_request_bytes": request_bytes,
        }
    pathlib.Path("/output/seqread.json").write_text(json.dumps(result))


main()
