"""Bar charts as plain SVG."""

import statistics
from xml.sax.saxutils import escape

OURS, PEER, GOAL, TEXT, FAINT = "#2b6cb0", "#b8bec8", "#c05621", "#1f2933", "#7b8794"
LABELS, WIDTH, RIGHT, BAR, GAP = 430, 960, 120, 18, 14


def bars(title, subtitle, groups, unit, marks=()):
    """Horizontal bars. `groups`: (label, [(value, low, high, colour, text)]); `marks`: vertical lines (value, text)."""
    values = [high for _, members in groups for _, _, high, _, _ in members] + [value for value, _ in marks]
    top = max(values) * 1.02
    scale = (WIDTH - LABELS - RIGHT) / top
    body, y = [], 78
    bottom = y + sum(BAR * len(members) + GAP for _, members in groups) - GAP + 4
    for value, words in marks:
        x = LABELS + value * scale
        body.append(f'<line x1="{x:.1f}" x2="{x:.1f}" y1="66" y2="{bottom}" stroke="{GOAL}" stroke-width="1.5" stroke-dasharray="4 3"/>')
        body.append(text(x, 60, words, "middle", 11, GOAL))
    for label, members in groups:
        height = BAR * len(members)
        body.append(text(LABELS - 10, y + height / 2 + 4, label, "end"))
        for value, low, high, colour, words in members:
            body.append(f'<rect x="{LABELS}" y="{y + 1}" width="{max(value * scale, 1):.1f}" height="{BAR - 3}" rx="2" fill="{colour}"/>')
            if high > low:
                middle = y + BAR / 2 - 0.5
                body.append(
                    f'<line x1="{LABELS + low * scale:.1f}" x2="{LABELS + high * scale:.1f}" y1="{middle}" y2="{middle}" stroke="{TEXT}" stroke-width="1.2"/>'
                )
            body.append(text(LABELS + max(value, high) * scale + 6, y + BAR / 2 + 3.5, words, size=11, colour=FAINT))
            y += BAR
        y += GAP
    body.append(text(LABELS, y + 6, unit, size=11, colour=FAINT))
    return page(title, subtitle, body, y + 18)


def stages(title, subtitle, groups, unit, legend):
    """Bars made of stages, one after the other. `groups`: (label, [(name, [stage values], words)]); `legend`: (stage, colour)."""
    top = max(sum(values) for _, members in groups for _, values, _ in members) * 1.02
    scale = (WIDTH - LABELS - RIGHT) / top
    body, y, x = [], 78, 20
    for name, colour in legend:
        body.append(f'<rect x="{x}" y="52" width="12" height="12" rx="2" fill="{colour}"/>')
        body.append(text(x + 17, 62, name, size=11))
        x += 30 + 7 * len(name)
    for label, members in groups:
        body.append(text(LABELS - 150, y + BAR * len(members) / 2 + 4, label, "end"))
        for name, values, words in members:
            body.append(text(LABELS - 10, y + BAR / 2 + 3.5, name, "end", 11, FAINT))
            at = LABELS
            for value, (_, colour) in zip(values, legend, strict=True):
                body.append(f'<rect x="{at:.1f}" y="{y + 1}" width="{max(value * scale, 0.5):.1f}" height="{BAR - 3}" fill="{colour}"/>')
                at += value * scale
            body.append(text(at + 6, y + BAR / 2 + 3.5, words, size=11, colour=FAINT))
            y += BAR
        y += GAP
    body.append(text(LABELS, y + 6, unit, size=11, colour=FAINT))
    return page(title, subtitle, body, y + 18)


def page(title, subtitle, body, height):
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{height}" viewBox="0 0 {WIDTH} {height}" '
        f'font-family="DejaVu Sans, Helvetica, Arial, sans-serif">\n<rect width="{WIDTH}" height="{height}" fill="white"/>\n'
        + text(20, 26, title, size=16, weight="bold")
        + "\n"
        + text(20, 44, subtitle, size=11, colour=FAINT)
        + "\n"
        + "\n".join(body)
        + "\n</svg>\n"
    )


def text(x, y, words, anchor="start", size=12, colour=TEXT, weight="normal"):
    # A white seam, for where a line passes behind.
    seam = 'paint-order="stroke" stroke="white" stroke-width="4"'
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" font-size="{size}" font-weight="{weight}" fill="{colour}" {seam}>{escape(words)}</text>'


def bar(spread, colour, words):
    return (spread["median"], spread["quartiles"][0], spread["quartiles"][1], colour, words)


def source(document):
    return f"commit {document['commit']}, load average {document['load_before'][0]}; lines: quartiles"


def inflate(document):
    rows = [row for row in document["rows"] if row["goal"] is not None]
    groups = [(row["what"], [bar(row["value"], OURS, f"{row['value']['median']:.2f} (goal {row['goal']})")]) for row in rows]
    return bars("Speed on one core, C zlib merely inflating = 1", source(document), groups, "times C zlib", [(1, "C zlib")])


def mount(document):
    rows = [row for row in document["rows"] if row["peer"] is not None]
    groups = [(row["what"], [bar(row["value"], OURS, f"{row['value']['median']:.0f} ms")]) for row in rows]
    full = rows[0]["peer"]
    groups.append((full["name"], [bar(full["value"], PEER, f"{full['value']['median']:,.0f} ms")]))
    return bars("Five-layer image in a registry on loopback: until `ls` answers", source(document), groups, "ms; shorter is better")


def containerd(document):
    raw = document["raw"]
    # Older results have rounds of contenders in place of contenders' rounds.
    runs = raw if isinstance(raw, dict) else {name: [each[name] for each in raw] for name in raw[0]}
    groups = []
    for name, of in runs.items():
        low, median, high = quartiles([run["s"] for run in of])
        groups.append((name, [(median, low, high, PEER if name == "overlayfs" else OURS, f"{median:.2f} s")]))
    return bars("Through containerd: pull and run until the first output", source(document), groups, "s; shorter is better")


def cold_start(document):
    """Where the time goes until a program is ready: one picture for each link."""
    legend = [("pull", "#90a4c4"), ("until the first output", "#5a86c0"), ("until ready", OURS)]
    groups = []
    for key, runs in document["raw"].items():
        members = []
        for contender, of in runs.items():
            median = {name: statistics.median(r[name] for r in of) for name in ("pull_s", "first_output_s", "ready_s")}
            values = [median["pull_s"], median["first_output_s"] - median["pull_s"], median["ready_s"] - median["first_output_s"]]
            members.append((contender, [max(v, 0) for v in values], f"{median['ready_s']:.2f} s"))
        groups.append((key, members))
    subtitle = f"commit {document['commit']}, load average {document['load_before'][0]}; medians"
    return stages("From nothing until a program in a container is ready", subtitle, groups, "s; shorter is better", legend)


def against(title, document, figures, limit, contenders):
    """Speeds as multiples of the limit's, run by run. `figures`: {what: {contender: [speed of each run]}}."""
    groups = []
    for what, of in figures.items():
        members = []
        for name, colour in contenders.items():
            ratios = [speed / most for speed, most in zip(of.get(name, []), of[limit])]
            if ratios:
                low, median, high = quartiles(ratios)
                members.append((median, low, high, colour, f"{median:.2f} {name}"))
        groups.append((what.replace(" 1 jobs", " 1 job"), members))
    return bars(title, source(document), groups, f"times {limit}; longer is better", [(1, limit)])


def quartiles(values):
    return statistics.quantiles(values, n=4, method="inclusive") if len(values) > 1 else values * 3


def readpath(document):
    """Natively, with the kernel's own EROFS on a loop device as the limit."""
    # Walks are times, all else is speeds.
    figures = {
        what: {name: [1 / value if what.startswith("walk") else value for value in values] for name, values in of.items()}
        for what, of in document["raw"]["warm"].items()
    }
    contenders = {"fuse-image": OURS, "fuse-fs": PEER, "host": "#dde3ea"}
    return against("A layer that is all here: walks, look-ups, reads", document, figures, "kernel EROFS", contenders)


def readpath_vm(document):
    """In the VM, with the kernel's EROFS on a loop device as the limit."""
    runs = document["raw"]["runs"]
    figures = {what: {name: [run["bytes_per_s"] for run in of] for name, of in by.items()} for what, by in runs.items()}
    contenders = {"ublk": OURS, "fuse-image": "#90a4c4", "fuse-fs": PEER}
    return against("A layer that is all here, in the VM: reads", document, figures, "loop", contenders)


def readpath_link(document):
    """How long reads wait that find their bytes missing: the medians of all rounds of each percentile."""
    legend = [("half of the waits", "#cfe0f3"), ("90 of 100", "#90b4dc"), ("99 of 100", OURS), ("the longest", GOAL)]
    links = {}
    for run in document["raw"]:
        links.setdefault(run["link"], {}).setdefault(run["scenario"], []).append(run["wait_ms"])
    groups = []
    for link, scenarios in links.items():
        members = []
        for scenario, waits in scenarios.items():
            at = [statistics.median(wait[key] for wait in waits) for key in ("p50", "p90", "p99", "max")]
            members.append((scenario, [at[0], *(max(b - a, 0) for a, b in zip(at, at[1:]))], f"{at[0]:.0f} ms, {at[2]:.0f} ms"))
        groups.append((link, members))
    subtitle = f"commit {document['commit']}, load average {document['load_before'][0]}; beside the bars: half and 99 of 100"
    return stages("How long a read waits whose bytes are not here", subtitle, groups, "ms; shorter is better", legend)


def goals(documents):
    """Every figure with a goal, as a multiple of it, so that right of the line is good."""
    groups = []
    for document in documents:
        for row in document["rows"]:
            if row["goal"] is None:
                continue
            share = (lambda v, r=row: v / r["goal"]) if row["better"] == "high" else (lambda v, r=row: r["goal"] / max(v, 1e-9))
            value = row["value"]
            low, high = sorted(share(v) for v in value["quartiles"])
            words = f"{value['median']:.3g} {row['unit'].replace('times the loop device', 'x').replace('times C zlib', 'x')}"
            groups.append((row["what"], [(share(value["median"]), low, high, OURS, words)]))
    return bars("Reached, goal = 1", "longer is better; lines: quartiles", groups, "multiple of the goal", [(1, "goal")])


CHARTS = {
    "cold-start": cold_start,
    "containerd": containerd,
    "inflate": inflate,
    "mount": mount,
    "readpath": readpath,
    "readpath-link": readpath_link,
    "readpath-vm": readpath_vm,
}
