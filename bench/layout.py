"""OCI image layouts made for a measurement: layers of this machine's own programs, the same every time."""

import hashlib
import json
import math
import os
import pathlib
import random
import tarfile
import zlib

from common import MIB

LAYER = "application/vnd.oci.image.layer.v1.tar+gzip"


class Layout:
    """A layout under construction. `layer` writes one layer, `tag` an image of layers that were written."""

    def __init__(self, path):
        self.path, self.blobs, self.entries = path, path / "blobs" / "sha256", []
        self.blobs.mkdir(parents=True)

    def layer(self, fill):
        """Makes a layer of what `fill(tar, out)` puts in: `tar` is a TarFile, `out.written` and `out.size` what
        has gone in and come out so far."""
        path = self.path / "layer"
        out = Compressed(path)
        with tarfile.open(fileobj=out, mode="w|", format=tarfile.PAX_FORMAT) as tar:
            fill(tar, out)
        out.close()
        digest = out.digest.hexdigest()
        path.rename(self.blobs / digest)
        return {"digest": f"sha256:{digest}", "size": out.size, "diff_id": f"sha256:{out.diff_id.hexdigest()}"}

    def blob(self, layer):
        return self.blobs / layer["digest"].split(":")[1]

    def tag(self, name, layers):
        machine = {"x86_64": "amd64", "aarch64": "arm64"}.get(os.uname().machine, os.uname().machine)
        config = self.put({"architecture": machine, "os": "linux", "config": {}, "rootfs": {"type": "layers", "diff_ids": [layer["diff_id"] for layer in layers]}})
        manifest = {
            "schemaVersion": 2,
            "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "config": {"mediaType": "application/vnd.oci.image.config.v1+json", **config},
            "layers": [{"mediaType": LAYER, "digest": layer["digest"], "size": layer["size"]} for layer in layers],
        }
        self.entries.append({"mediaType": manifest["mediaType"], **self.put(manifest), "annotations": {"org.opencontainers.image.ref.name": name}})
        (self.path / "index.json").write_text(json.dumps({"schemaVersion": 2, "manifests": self.entries}), encoding="utf-8")
        (self.path / "oci-layout").write_text('{"imageLayoutVersion":"1.0.0"}', encoding="utf-8")

    def put(self, document):
        content = json.dumps(document).encode()
        digest = hashlib.sha256(content).hexdigest()
        (self.blobs / digest).write_bytes(content)
        return {"digest": f"sha256:{digest}", "size": len(content)}


def programs(block, seed, enough, typical=36_000):
    """Puts files into a layer until `enough(count, out)`: sizes skewed as real ones are around `typical` bytes, 200 directories, about 40 % when compressed."""
    chance = random.Random(seed)

    def fill(tar, out):
        count = 0
        while not enough(count, out):
            length = min(int(chance.lognormvariate(math.log(typical), 1.8)), 8 * MIB)
            at = chance.randrange(max(1, len(block) - length))
            info = tarfile.TarInfo(f"usr/share/{seed}/{count % 200}/{count}")
            info.size, info.mode = min(length, len(block) - at), 0o644
            tar.addfile(info, Piece(block, at))
            count += 1

    return fill


def material():
    """64 MiB of this machine's own programs and libraries, in an order that does not change."""
    parts, have = [], 0
    for folder in ("/usr/bin", "/usr/lib"):
        for path in sorted(pathlib.Path(folder).rglob("*")):
            if path.is_file() and not path.is_symlink() and 20_000 < path.stat().st_size < 4_000_000:
                parts.append(path.read_bytes())
                have += len(parts[-1])
            if have > 64 * MIB:
                return b"".join(parts)
    return b"".join(parts)


class Compressed:
    """A file that compresses what is written to it, with the digests of both sides."""

    def __init__(self, path):
        self.file = open(path, "wb")
        self.zlib = zlib.compressobj(6, zlib.DEFLATED, 31)
        self.digest, self.diff_id = hashlib.sha256(), hashlib.sha256()
        self.size, self.written = 0, 0

    def put(self, piece):
        self.file.write(piece)
        self.digest.update(piece)
        self.size += len(piece)

    def write(self, piece):
        self.diff_id.update(piece)
        self.written += len(piece)
        self.put(self.zlib.compress(piece))
        return len(piece)

    def close(self):
        self.put(self.zlib.flush())
        self.file.close()


class Piece:
    """Bytes of a block as a file."""

    def __init__(self, block, at):
        self.block, self.at = block, at

    def read(self, length):
        part = self.block[self.at : self.at + length]
        self.at += len(part)
        return part
