"""Writes the layers that no packing tool makes on request: implied.tar (as Bazel packs) and special.tar (odd entries).

Usage: special-layers.py DIR
"""
import io
import os
import sys
import tarfile

TIME = 1_700_000_000


def add(tar, name, data=None, kind=tarfile.REGTYPE, mode=0o644, owner=(0, 0), link="", device=(0, 0), pax=None, mtime=TIME):
    entry = tarfile.TarInfo(name)
    entry.type, entry.mode, entry.mtime, entry.linkname = kind, mode, mtime, link
    entry.uid, entry.gid = owner
    entry.devmajor, entry.devminor = device
    entry.pax_headers = pax or {}
    if data is None:
        tar.addfile(entry)
    else:
        entry.size = len(data)
        tar.addfile(entry, io.BytesIO(data))


def implied(path):
    # No directory entries at all. usr/bin and tmp exist below with attributes of their own; opt/tool/lib does not.
    with tarfile.open(path, "w", format=tarfile.GNU_FORMAT) as tar:
        add(tar, "./opt/tool/bin/run", b"#!/bin/sh\necho tool\n", mode=0o755)
        add(tar, "./opt/tool/lib/data.bin", bytes(range(256)) * 4096)
        add(tar, "./tmp/from-bazel", b"the sticky bit of /tmp must survive\n")
        add(tar, "./usr/bin/tool", kind=tarfile.SYMTYPE, link="../../opt/tool/bin/run", mode=0o777)
        add(tar, "./app/data/extra", b"beside rows.json of the layer below\n")


def special(path):
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as tar:
        add(tar, "var/lib/dpkg/", kind=tarfile.DIRTYPE, mode=0o700, owner=(10, 20))
        add(tar, "var/lib/dpkg/.wh..wh..opq", b"")
        add(tar, "var/lib/dpkg/status", b"only this is left\n")
        add(tar, "etc/.wh.issue.net", b"")
        add(tar, "usr/share/common-licenses", kind=tarfile.SYMTYPE, link="/nowhere", mode=0o777)
        add(tar, "odd/", kind=tarfile.DIRTYPE, mode=0o1777)
        add(tar, "odd/original", b"one inode, three names\n" * 400, mode=0o4755, owner=(1000, 1001))
        add(tar, "odd/second", kind=tarfile.LNKTYPE, link="odd/original", mode=0o4755, owner=(1000, 1001))
        add(tar, "odd/deep/third", kind=tarfile.LNKTYPE, link="odd/original", mode=0o4755, owner=(1000, 1001))
        add(tar, "odd/char", kind=tarfile.CHRTYPE, device=(1, 3), mode=0o666)
        add(tar, "odd/block", kind=tarfile.BLKTYPE, device=(7, 300), mode=0o660, owner=(0, 6))
        add(tar, "odd/pipe", kind=tarfile.FIFOTYPE, mode=0o600)
        add(tar, "odd/xattrs", b"x", pax={
            "SCHILY.xattr.user.plain": "value",
            "SCHILY.xattr.user.empty": "",
        })
        add(tar, "odd/" + "n" * 255, b"the longest name\n")
        add(tar, "odd/sub/" + "/".join(["d" * 100] * 6) + "/leaf", b"a path of more than 600 bytes\n")
        add(tar, "odd/sp ace\ttab\nnewline", b"white space\n")
        add(tar, "odd/\u00fcml\u00e4ut", b"utf-8\n")
        add(tar, "odd/long-link", kind=tarfile.SYMTYPE, link="/" + "/".join(["t" * 200] * 5), mode=0o777)
        add(tar, "odd/empty", b"")
        add(tar, "odd/zeros", b"\0" * 3_000_000)
        add(tar, "odd/one-below-a-block", b"b" * 4095)
        add(tar, "odd/a-block", b"b" * 4096)
        add(tar, "odd/one-above-a-block", b"b" * 4097)
        add(tar, "odd/old", b"", mtime=1)
        for i in range(3000):
            add(tar, f"odd/many/entry-{i:05}", b"" if i % 7 else str(i).encode())


implied(os.path.join(sys.argv[1], "implied.tar"))
special(os.path.join(sys.argv[1], "special.tar"))
