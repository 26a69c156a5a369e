"""What a mount asks a registry for behind a shaped link, over HTTP/1.1 and HTTP/2. No mount, no root.

The registry is Debian's docker-registry, whose Go speaks HTTP/2 by itself.
"""

import contextlib
import hashlib
import http.client
import json
import os
import ssl
import subprocess
import urllib.parse

from common import MIB, bench_program, registry, row, run, say, spread

from .readpath_link import LINKS, behind

WAYS = {"off": "HTTP/1.1", "documents": "documents over HTTP/2", "all": "all over HTTP/2"}
# As zTOCs go: many small ones, some of middling size, in one of the two images a large one.
SIZES = [40 << 10] * 12 + [150 << 10] * 6 + [600 << 10] * 2
LARGE = 16 * MIB


def suite(work, quick):
    return measure(work, bench_program("registry_link"), ["wan"] if quick else list(LINKS), 1 if quick else 7)


def measure(work, program, links, rounds):
    directory = work / "registry"
    directory.mkdir()
    certificate = certify(directory)
    raw = []
    with registry(directory) as server, contextlib.ExitStack() as stack:
        client = subprocess.Popen([program, certificate], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        stack.enter_context(client)
        for image, sizes in {"20 zTOCs": SIZES, "a zTOC of 16 MiB": [LARGE]}.items():
            push(server, certificate, sizes)
            for number in range(rounds):
                for link in links:
                    for way in WAYS:
                        # A link of its own for each: what one left under way is not in the next one's road.
                        with behind(server, *LINKS[link]) as address:
                            print(address, way, file=client.stdin, flush=True)
                            figures = json.loads(client.stdout.readline())
                        raw.append({"image": image, "link": link, "way": way, **figures})
                        say(f"round {number + 1} of {rounds}: {json.dumps(raw[-1])}")
        client.stdin.close()
    rows = []
    for image, link, way in dict.fromkeys((one["image"], one["link"], one["way"]) for one in raw):
        of = [one for one in raw if (one["image"], one["link"], one["way"]) == (image, link, way)]
        name = f"{link}, {image}, {WAYS[way]}"
        rows.append(row(f"{name}: documents", spread([o["documents_ms"] for o in of]), "ms"))
        rows.append(row(f"{name}: first MiB of a layer after them", spread([o["first_span_ms"] for o in of]), "ms"))
        waits = [wait for o in of for wait in o["waits_ms"]]
        rows.append(row(f"{name}: a MiB beside background filling", spread(waits), "ms", note=f"the longest {max(waits):.0f} ms"))
    return {"rows": rows, "raw": raw}


def certify(directory):
    """Makes the registry's certificate, which is its own authority."""
    certificate = directory / "tls.crt"
    run("openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2", "-subj", "/CN=registry", "-addext", "subjectAltName=IP:127.0.0.1", "-keyout", directory / "tls.key", "-out", certificate)
    return certificate


def push(server, certificate, sizes):
    """Pushes `bench/http2:1`: random blobs of these sizes, and a layer of 64 MiB."""
    connection = http.client.HTTPSConnection(server, context=ssl.create_default_context(cafile=certificate))

    def ask(method, url, body=None, headers=()):
        connection.request(method, url, body, dict(headers))
        answer = connection.getresponse()
        said = answer.read()
        if answer.status >= 300:
            raise RuntimeError(f"{method} {url}: {answer.status} {said[:200]}")
        return answer

    def blob(content, media_type):
        digest = "sha256:" + hashlib.sha256(content).hexdigest()
        place = urllib.parse.urlsplit(ask("POST", "/v2/bench/http2/blobs/uploads/").headers["Location"])
        ask("PUT", f"{place.path}?{place.query}&digest={digest}", content, {"Content-Type": "application/octet-stream"})
        return {"mediaType": media_type, "digest": digest, "size": len(content)}

    layers = [blob(os.urandom(size), "application/vnd.oci.image.layer.v1.tar") for size in [*sizes, 64 * MIB]]
    rootfs = {"type": "layers", "diff_ids": [layer["digest"] for layer in layers]}
    config = json.dumps({"os": "linux", "architecture": "amd64", "rootfs": rootfs}).encode()
    media_type = "application/vnd.oci.image.manifest.v1+json"
    manifest = {"schemaVersion": 2, "mediaType": media_type, "config": blob(config, "application/vnd.oci.image.config.v1+json"), "layers": layers}
    ask("PUT", "/v2/bench/http2/manifests/1", json.dumps(manifest), {"Content-Type": media_type})
    connection.close()
