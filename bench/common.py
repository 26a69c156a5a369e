"""What the suites share: running programs, statistics, and what is written down about the machine."""

import contextlib
import datetime
import json
import os
import pathlib
import platform
import shutil
import statistics
import subprocess
import sys
import time

REPO = pathlib.Path(__file__).resolve().parent.parent
SCRIPTS = REPO / "scripts"
MIB = 1 << 20


def say(text):
    print(text, file=sys.stderr, flush=True)


def run(*command, **options):
    """Runs a program; its standard output as text. An error ends the suite with what the program said."""
    command = [str(c) for c in command]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, stdin=subprocess.DEVNULL, text=True, **options)
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(command)}: status {done.returncode}\n{done.stdout[-2000:]}{done.stderr[-2000:]}")
    return done.stdout


def timed(function, *args):
    """Milliseconds of wall time and the result."""
    began = time.monotonic_ns()
    result = function(*args)
    return (time.monotonic_ns() - began) / 1e6, result


def spread(values):
    """What a row of the results table is made of: the median, and what lay around it."""
    values = sorted(values)
    quartiles = statistics.quantiles(values, n=4, method="inclusive") if len(values) > 1 else [values[0]] * 3
    return {
        "median": statistics.median(values),
        "quartiles": [quartiles[0], quartiles[2]],
        "min": values[0],
        "max": values[-1],
        "runs": len(values),
    }


def ratio_spread(ours, peers):
    """Spread of the ratios of runs that were made one after the other."""
    return spread([a / b for a, b in zip(ours, peers, strict=True)])


def row(what, value, unit, goal=None, better=None, peer=None, note=""):
    """A line of the results: `value` and `peer` are spreads; `goal` is in the same unit, `better` says `high` or `low`."""
    met = None
    if goal is not None:
        met = value["median"] >= goal if better == "high" else value["median"] <= goal
    return {"what": what, "value": value, "unit": unit, "goal": goal, "better": better, "met": met, "peer": peer, "note": note}


def peer(name, value, unit):
    return {"name": name, "value": value, "unit": unit}


def sociblk():
    return os.environ["SOCIBLK"]


def process_memory(pid):
    """Resident memory in bytes, by kind, and counts of threads and descriptors."""
    lines = (line.split(":", 1) for line in pathlib.Path(f"/proc/{pid}/status").read_text().splitlines())
    status = {name: value.split() for name, value in lines}
    kib = {name: int(status[name][0]) * 1024 for name in ("VmRSS", "VmHWM", "RssAnon", "RssFile", "RssShmem")}
    return {**kib, "threads": int(status["Threads"][0]), "descriptors": len(os.listdir(f"/proc/{pid}/fd"))}


@contextlib.contextmanager
def registry(directory):
    """A registry on loopback whose data lie in `directory`; gives its address."""
    address = run(SCRIPTS / "registry", "start", directory).strip()
    try:
        yield address
    finally:
        run(SCRIPTS / "registry", "stop", directory)


def make_image():
    """The project's own five-layer image, as an OCI layout directory with the tag `demo`."""
    return run(SCRIPTS / "make-image").strip().removeprefix("oci:").removesuffix(":demo")


def bench_program(name):
    """Builds one of `bench/micro`; its path."""
    out = run("cargo", "bench", "--no-run", "--message-format=json", "--bench", name, cwd=REPO)
    for line in out.splitlines():
        message = json.loads(line)
        if message.get("executable") and message.get("target", {}).get("name") == name:
            return message["executable"]
    raise RuntimeError(f"cargo built no benchmark {name}")


def machine():
    """Where and on what the figures were made."""
    with open("/proc/cpuinfo", encoding="utf-8") as cpuinfo:
        models = [line.split(":", 1)[1].strip() for line in cpuinfo if line.startswith("model name")]
    memory_kib = int(pathlib.Path("/proc/meminfo").read_text().split()[1])
    return {
        "cpu": models[0] if models else platform.machine(),
        "cpus": os.cpu_count(),
        "memory_bytes": memory_kib * 1024,
        "kernel": platform.release(),
        "system": platform.freedesktop_os_release().get("PRETTY_NAME", ""),
        "virtualized": virtualized(),
    }


def virtualized():
    with contextlib.suppress(OSError):
        return " hypervisor" in pathlib.Path("/proc/cpuinfo").read_text()
    return None


def commit():
    """The commit that was measured, with a mark when the tree had changes outside the results."""
    if shutil.which("git") is None or not (REPO / ".git").exists():
        return None
    head = run("git", "-C", REPO, "rev-parse", "--short=12", "HEAD").strip()
    changed = run("git", "-C", REPO, "status", "--porcelain", "--", "src", "Cargo.toml", "Cargo.lock").strip()
    return head + (" with changes" if changed else "")


def now():
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


def load():
    return [round(value, 2) for value in os.getloadavg()]
