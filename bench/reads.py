"""What readers do, in so many processes, and how long it takes: the workloads of the read path."""

import json
import mmap
import os
import random
import subprocess
import sys
import time

KIB, MIB = 1 << 10, 1 << 20


def drop_pages(paths):
    """Of the file system under test only; what its server reads from stays in the page cache."""
    for path in paths:
        fd = os.open(path, os.O_RDONLY)
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(fd)


def sequential(path, _source):
    fd, buffer, total = os.open(path, os.O_RDONLY), bytearray(MIB), 0
    while count := os.preadv(fd, [buffer], total):
        total += count
    os.close(fd)
    return total


def at_random(path, source, size, count):
    fd, buffer = os.open(path, os.O_RDONLY), bytearray(size)
    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_RANDOM)
    slots = os.fstat(fd).st_size // size
    for slot in source.sample(range(slots), min(count, slots)):
        if os.preadv(fd, [buffer], slot * size) != size:
            raise RuntimeError(f"a short read of {path}")
    os.close(fd)
    return min(count, slots)


def mapped(path, _source):
    with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as view:
        return sum(1 for at in range(0, len(view), 4096) if view[at] is not None)


READS = {
    "sequential": (sequential, "bytes"),
    "random 4 KiB": (lambda path, source: at_random(path, source, 4 * KIB, 2000), "reads"),
    "random 128 KiB": (lambda path, source: at_random(path, source, 128 * KIB, 200), "reads"),
    "mmap": (mapped, "pages"),
}


def reads(kind, paths, seed, drop=True):
    """A rate: one process for each of `paths`, started together."""
    if drop:
        drop_pages(paths)
    function, _ = READS[kind]
    ready, go = os.pipe(), os.pipe()
    children = []
    for number, path in enumerate(paths):
        done = os.pipe()
        pid = os.fork()
        if pid == 0:
            status = 1
            try:
                os.close(go[1])
                os.write(ready[1], b".")
                os.read(go[0], 1)
                count = function(path, random.Random(seed + number))
                os.write(done[1], json.dumps(count).encode())
                status = 0
            finally:
                os._exit(status)
        os.close(done[1])
        children.append((pid, done[0]))
    for _ in paths:
        os.read(ready[0], 1)
    began = time.monotonic()
    os.close(go[1])
    total = 0
    for pid, answer in children:
        _, status = os.waitpid(pid, 0)
        if status != 0:
            raise RuntimeError(f"{kind}: a reader failed")
        total += json.loads(os.read(answer, 100))
        os.close(answer)
    took = time.monotonic() - began
    for fd in (*ready, go[0]):
        os.close(fd)
    return total / took


def walk(root):
    """Seconds of a walk that looks at every file, by find(1): none is as large as asked for."""
    began = time.monotonic()
    found = subprocess.run(["find", root, "-size", "+1000000G"], capture_output=True, check=True).stdout
    if found:
        raise RuntimeError(f"what is this: {found}")
    return time.monotonic() - began


def operations(kind, paths):
    """Calls a second over all of `paths`."""
    began = time.monotonic()
    if kind == "stat":
        for path in paths:
            os.lstat(path)
    elif kind == "readdir":
        for path in paths:
            os.listdir(path)
    elif kind == "getxattr":
        for path in paths:
            os.getxattr(path, "user.bench", follow_symlinks=False)
    elif kind == "open and close":
        for path in paths:
            os.close(os.open(path, os.O_RDONLY))
    else:
        sys.exit(f"no operation {kind}")
    return len(paths) / (time.monotonic() - began)
