"""Makes the table and the charts of a results directory from the JSON in it."""

import json
import pathlib
import shutil
import subprocess
import sys

import charts

ORDER = ["cold-start", "containerd", "inflate", "index", "create", "verify", "metadata", "micro", "mount", "memory", "scale", "readpath", "readpath-link", "registry-link", "readpath-vm"]


def number(value):
    """Three digits that count."""
    if value == 0 or abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.1f}" if abs(value) >= 10 else f"{value:.2f}"


def table_lines(rows):
    yield "| what | goal | reached | quartiles (range), runs | met | peer | notes |"
    yield "|---|---|---|---|---|---|---|"
    for row in rows:
        value, other = row["value"], row["peer"]
        sign = {"high": "≥ ", "low": "≤ "}.get(row["better"], "")
        goal = f"{sign}{row['goal']} {row['unit']}" if row["goal"] is not None else ""
        met = {True: "yes", False: "**no**", None: ""}[row["met"]]
        low, high = value["quartiles"]
        spread = f"{number(low)} to {number(high)} ({number(value['min'])} to {number(value['max'])}), {value['runs']}"
        against = f"{other['name']}: {number(other['value']['median'])} {other['unit']}" if other else ""
        yield f"| {row['what']} | {goal} | {number(value['median'])} {row['unit']} | {spread} | {met} | {against} | {row['note']} |"


def page(documents):
    first = documents[0]["machine"]
    yield "# Results"
    yield ""
    yield f"{first['cpu']}, {first['cpus']} CPUs, {first['memory_bytes'] / 2**30:.0f} GiB; {first['system']}, Linux {first['kernel']}" + (
        "; a virtual machine." if first["virtualized"] else "."
    )
    yield "Medians, with quartiles and range of all runs. `bench/README.md` says what each figure means and how it was made."
    for document in documents:
        yield ""
        yield f"## {document['suite']}"
        yield ""
        yield (
            f"Commit {document['commit']}, {document['began']} to {document['ended']}, load average "
            f"{document['load_before'][0]} before and {document['load_after'][0]} after"
            + (". **A quick run: no result.**" if document["quick"] else ".")
        )
        # Written into the JSON by whoever ran it, where something about the run must be known.
        if "note" in document:
            yield ""
            yield document["note"]
        yield ""
        yield from table_lines(document["rows"])
        if document["suite"] in charts.CHARTS:
            yield ""
            yield f"![{document['suite']}]({document['suite']}.svg)"


def write(directory):
    directory = pathlib.Path(directory)
    # Older results have suites that are gone by now.
    files = sorted(directory.glob("*.json"), key=lambda file: (ORDER.index(file.stem) if file.stem in ORDER else len(ORDER), file.stem))
    documents = [json.loads(file.read_text(encoding="utf-8")) for file in files]
    if not documents:
        sys.exit(f"{directory}: no results there")
    drawings = {d["suite"]: charts.CHARTS[d["suite"]](d) for d in documents if d["suite"] in charts.CHARTS}
    drawings["goals"] = charts.goals(documents)
    for name, svg in drawings.items():
        (directory / f"{name}.svg").write_text(svg, encoding="utf-8")
        if shutil.which("rsvg-convert"):
            subprocess.run(["rsvg-convert", "--zoom=2", "-o", directory / f"{name}.png", directory / f"{name}.svg"], check=True)
    lines = list(page(documents))
    lines[4:4] = ["", "![goals](goals.svg)"]
    (directory / "README.md").write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    write(sys.argv[1])
