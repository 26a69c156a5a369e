#!/usr/bin/env python3
"""Compares two file trees, or a tree with a listing of one made before: everything an image says about its files.

Usage: compare-trees.py [OPTIONS] LEFT RIGHT   LEFT and RIGHT: a directory, or a file that --dump made
       compare-trees.py --dump DIR             prints the listing (JSON lines)

Compared: names, types, modes, owners, modification times (nanoseconds), sizes, contents (SHA-256), symbolic link targets,
device numbers, extended attributes, which names are hard links of one another and their number.
Not compared, because the image does not say it: modification times of directories that the topmost layer which has something
in them does not list (an unpacker makes those, so they show when it ran), and of the root. --layout names the image's
OCI layout, to find them; --no-directory-times spares reading it and compares those of no directory. --below NAME: only what is
below these directories.
Exit status: 0 equal, 1 different (at most 40 differences are printed), 2 could not compare.
"""
import argparse
import base64
import hashlib
import json
import os
import stat
import sys
import tarfile

SHOWN = 40


def printable(name: bytes) -> str:
    """Reversible, also for names that are not UTF-8."""
    return name.decode("utf-8", "surrogateescape").encode("utf-8", "surrogateescape").decode("latin-1")


def content_digest(path: bytes) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def walk(root: bytes, tops: list):
    """Yields (path below root, full path) of everything below `tops`; without any, of everything, the root itself first."""
    if not tops:
        yield b".", root
    pending = [os.fsencode(top) for top in tops] or [b""]
    while pending:
        directory = pending.pop()
        for name in sorted(os.listdir(os.path.join(root, directory))):
            below = os.path.join(directory, name)
            full = os.path.join(root, below)
            yield below, full
            if os.path.isdir(full) and not os.path.islink(full):
                pending.append(below)


def listing(root: str, tops: list) -> dict:
    entries, inodes = {}, {}
    for below, full in walk(os.fsencode(root), tops):
        try:
            info = os.lstat(full)
        except OSError as error:
            # A name that a directory lists and that cannot be reached is a finding, not a reason to stop.
            entries[printable(below)] = {"error": error.strerror}
            continue
        kind = stat.S_IFMT(info.st_mode)
        entry = {
            "mode": oct(info.st_mode),
            "owner": f"{info.st_uid}:{info.st_gid}",
            "mtime": info.st_mtime_ns,
            "xattrs": {},
        }
        for name in sorted(os.listxattr(full, follow_symlinks=False)):
            value = os.getxattr(full, name, follow_symlinks=False)
            entry["xattrs"][name] = base64.b64encode(value).decode()
        if kind == stat.S_IFREG:
            entry["size"] = info.st_size
            entry["sha256"] = content_digest(full)
        elif kind == stat.S_IFLNK:
            entry["target"] = printable(os.readlink(full))
        elif kind in (stat.S_IFCHR, stat.S_IFBLK):
            entry["device"] = f"{os.major(info.st_rdev)}:{os.minor(info.st_rdev)}"
        if kind != stat.S_IFDIR:
            entry["links"] = info.st_nlink
            if info.st_nlink > 1:
                inodes.setdefault((info.st_dev, info.st_ino), []).append(printable(below))
        entries[printable(below)] = entry
    for names in inodes.values():
        for name in names:
            entries[name]["same_inode_as"] = sorted(names)
    return entries


def load(where: str, tops: list) -> dict:
    if os.path.isdir(where):
        return listing(where, tops)
    with open(where) as file:
        rows = {row.pop("path"): row for row in map(json.loads, file)}
    return {path: row for path, row in rows.items() if not tops or path.startswith(tuple(f"{top}/" for top in tops))}


def implied_directories(layout: str) -> set:
    """Directories that the topmost layer to have something in them implies, but does not list."""

    def blob(descriptor):
        return os.path.join(layout, "blobs", *descriptor["digest"].split(":"))

    with open(os.path.join(layout, "index.json")) as file:
        manifest = json.load(file)["manifests"][0]
    with open(blob(manifest)) as file:
        layers = json.load(file)["layers"]
    listed_on_top = {}
    for layer in layers:
        listed, touched = set(), set()
        with tarfile.open(blob(layer), "r:*", encoding="latin-1") as tar:
            for entry in tar:
                name = os.path.normpath(entry.name).lstrip("/")
                if entry.isdir():
                    listed.add(name)
                while name := os.path.dirname(name):
                    touched.add(name)
        for name in touched | listed:
            listed_on_top[name] = name in listed
    return {name for name, listed in listed_on_top.items() if not listed}


def differences(left: dict, right: dict, implied: set):
    for path in sorted(left.keys() | right.keys()):
        if path not in right:
            yield f"only left:  {path!r}"
        elif path not in left:
            yield f"only right: {path!r}"
        else:
            a, b = left[path], right[path]
            for field in sorted(a.keys() | b.keys()):
                if field == "mtime" and (path == "." or path in implied):
                    continue
                if a.get(field) != b.get(field):
                    yield f"{path!r}: {field}: {a.get(field)} against {b.get(field)}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dump", action="store_true")
    parser.add_argument("--layout")
    parser.add_argument("--no-directory-times", action="store_true")
    parser.add_argument("--below", action="append", default=[])
    parser.add_argument("trees", nargs="+")
    options = parser.parse_args()
    try:
        if options.dump:
            for path, entry in listing(options.trees[0], options.below).items():
                print(json.dumps({"path": path, **entry}))
            return 0
        left, right = (load(tree, options.below) for tree in options.trees)
        implied = implied_directories(options.layout) if options.layout else set()
        if options.no_directory_times:
            implied |= {path for path, entry in left.items() if stat.S_ISDIR(int(entry.get("mode", "0"), 0))}
    except (OSError, ValueError) as error:
        print(f"compare-trees: {error}", file=sys.stderr)
        return 2
    found = list(differences(left, right, implied))
    for line in found[:SHOWN]:
        print(line)
    if len(found) > SHOWN:
        print(f"... and {len(found) - SHOWN} more")
    files = sum("sha256" in entry for entry in left.values())
    print(f"{len(left)} against {len(right)} entries ({files} regular files), {len(found)} differences")
    return 1 if found or not left else 0


sys.exit(main())
