"""A node that has nothing yet: containerd, and beside it our snapshotter or none, behind a link like that of a far registry."""

import contextlib
import json
import os
import pathlib
import subprocess
import sys
import time

from common import REPO, SCRIPTS, registry, run, sociblk

# Rate in Mbit/s and round trip in ms.
LINKS = {"lan": (1000, 0.5), "wan": (200, 10), "far": (50, 50)}


def link_words(name):
    mbit, round_trip_ms = LINKS[name]
    return f"{mbit} Mbit/s, {round_trip_ms} ms round trip"


@contextlib.contextmanager
def link(address, name):
    """An address that stands for `address` at the far end of the link."""
    mbit, round_trip_ms = LINKS[name]
    arguments = [sys.executable, REPO / "bench" / "link.py", address, str(mbit), str(round_trip_ms / 2)]
    with subprocess.Popen(arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield process.stdout.readline().strip()
        finally:
            process.stdin.close()


@contextlib.contextmanager
def shaped_registry(work, name):
    """A registry on loopback: its own address and that behind the link."""
    with registry(work / "registry") as near, link(near, name) as far:
        yield near, far


class Node:
    """A containerd with empty stores. `frontend`: of our snapshotter; None for containerd's own overlayfs."""

    def __init__(self, work, frontend=None, settings=""):
        work.mkdir()
        self.work, self.frontend, self.settings = work, frontend, settings
        self.containerd, self.state, self.socket = work / "containerd", work / "state", work / "sock"
        self.process = None

    def __enter__(self):
        try:
            if self.frontend:
                (self.work / "config.toml").write_text(self.settings, encoding="utf-8")
                command = [sociblk(), "--root", self.state, "--config", self.work / "config.toml", "serve"]
                with open(self.work / "serve.log", "w", encoding="utf-8") as log:
                    self.process = subprocess.Popen(
                        [*command, "--address", self.socket, "--frontend", self.frontend], stdout=log, stderr=log, stdin=subprocess.DEVNULL
                    )
                until(self.socket.exists)
            run(SCRIPTS / "containerd", "start", self.containerd, *([self.socket] if self.frontend else []))
        except BaseException:
            self.__exit__(None, None, None)
            raise
        drop_caches()
        return self

    def __exit__(self, *_):
        for image in self.images():
            subprocess.run([SCRIPTS / "containerd", "ctr", self.containerd, "images", "rm", "--sync", image], check=False, stdout=subprocess.DEVNULL)
        subprocess.run([SCRIPTS / "containerd", "stop", self.containerd], check=False)
        if self.process:
            subprocess.run([sociblk(), "--root", self.state, "daemon", "stop"], check=False, stderr=subprocess.DEVNULL)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(30)
            self.process.kill()
            self.process.wait()

    def ctr(self, *command):
        return run(SCRIPTS / "containerd", "ctr", self.containerd, *command)

    def images(self):
        with contextlib.suppress(RuntimeError):
            return self.ctr("images", "ls", "-q").split()
        return []

    def pull(self, image):
        if self.frontend:
            run(sociblk(), "rpull", image, "--containerd-address", self.containerd / "sock")
        else:
            self.ctr("images", "pull", "--plain-http", image)

    def run(self, image, command, ready="ready"):
        """Runs a container; when each line of its output came, in ms after `run` was called. Ends when it has said `ready`."""
        snapshotter = ["--snapshotter", "sociblk"] if self.frontend else []
        arguments = [SCRIPTS / "containerd", "ctr", self.containerd, "run", "--rm", *snapshotter, image, "bench", *command]
        began, lines = time.monotonic(), {}
        with subprocess.Popen(arguments, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
            for line in process.stdout:
                lines.setdefault(line.split()[0] if line.strip() else "", (time.monotonic() - began) * 1e3)
            errors = process.stderr.read()
        if ready not in lines:
            raise RuntimeError(f"{image} did not say {ready!r} but {list(lines)}: {errors[-1000:]}")
        return lines

    def stats(self):
        """The daemon's own totals; None for a node without it."""
        return json.loads(run(sociblk(), "--root", self.state, "stats", "--json"))["totals"] if self.frontend else None

    def cpu_s(self):
        """CPU time of containerd, and of our daemon, with the children that have ended."""
        return sum(cpu_s(pid) for pid in self.pids())

    def peak_bytes(self):
        """Peak memory of our daemon, else of containerd."""
        pid = self.process.pid if self.process else self.pids()[0]
        lines = pathlib.Path(f"/proc/{pid}/status").read_text(encoding="utf-8").splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))

    def pids(self):
        return [int((self.containerd / "pid").read_text()), *([self.process.pid] if self.process else [])]

    def log(self):
        return (self.work / "serve.log").read_text(encoding="utf-8")


def cpu_s(pid):
    fields = pathlib.Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rsplit(")", 1)[1].split()
    return sum(int(fields[n]) for n in (11, 12, 13, 14)) / os.sysconf("SC_CLK_TCK")


def until(condition):
    for _ in range(600):
        if condition():
            return
        time.sleep(0.05)
    raise RuntimeError("the service did not start")


def drop_caches():
    os.sync()
    pathlib.Path("/proc/sys/vm/drop_caches").write_text("3\n", encoding="utf-8")
