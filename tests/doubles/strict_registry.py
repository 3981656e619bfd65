"""A registry with the habits of the great ones: tokens that expire, blobs that live elsewhere."""

from __future__ import annotations

import hashlib
import json
import re
import socket
import threading
from collections import Counter

from scar_local.http import Exchange, Server


def digest_of(data: bytes) -> str:
    return "sha256:" + hashlib.sha256(data).hexdigest()


class StrictRegistry:
    """Repositories held in a dict; `refuses` and `breaks` say what goes wrong.

    Wants a bearer token for everything, each good for `uses` requests. Blobs are given by a second
    host, which takes no credentials of the first.
    """

    def __init__(self, uses: int = 1000) -> None:
        self.blobs: dict[str, bytes] = {}
        self.manifests: dict[str, tuple[bytes, str]] = {}
        self.uses, self.tokens = uses, 0
        self._left: Counter[str] = Counter()
        self.seen: Counter[str] = Counter()
        self.elsewhere_got: list[str] = []
        self.breaks: set[str] = set()
        self.mountable: set[str] = set()
        self.cuts: dict[str, list[int]] = {}
        """By blob: after how many bytes its next downloads break off."""
        self.knows_ranges = True
        self.ranges: list[str] = []
        self.refuses_mounts = False
        self.expires_in_uploads = 0
        """So many uploads are refused with 401 once their body has arrived."""
        self._server, self._store = Server(0, self._answer), Server(0, self._elsewhere)
        for server in (self._server, self._store):
            threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        self.host = f"127.0.0.1:{self._server.server_address[1]}"
        self._elsewhere_url = f"http://127.0.0.1:{self._store.server_address[1]}"

    @property
    def _challenge(self) -> str:
        return f'Bearer realm="http://{self.host}/token",service="here"'

    def close(self) -> None:
        for server in (self._server, self._store):
            server.shutdown()
            server.server_close()

    def hold_image(self, layers: list[bytes], tag: str = "1", **config) -> str:
        """Store an OCI image; the digest of its manifest."""
        body = json.dumps(
            {"architecture": "amd64", "os": "linux", "config": config,
             "rootfs": {"type": "layers", "diff_ids": [digest_of(one) for one in layers]}}
        ).encode()  # fmt: skip
        start = "application/vnd.oci.image."
        described = [
            {"mediaType": f"{start}layer.v1.tar+gzip", "digest": digest_of(one), "size": len(one)}
            for one in layers
        ]
        manifest = json.dumps(
            {"schemaVersion": 2, "mediaType": f"{start}manifest.v1+json",
             "config": {"mediaType": f"{start}config.v1+json", "digest": digest_of(body),
                        "size": len(body)},
             "layers": described}
        ).encode()  # fmt: skip
        for blob in (body, *layers):
            self.blobs[digest_of(blob)] = blob
        for name in (tag, digest_of(manifest)):
            self.manifests[name] = (manifest, f"{start}manifest.v1+json")
        return digest_of(manifest)

    def _answer(self, exchange: Exchange) -> None:
        if exchange.path == "/token":
            self.tokens += 1
            token = f"t{self.tokens}"
            self._left[f"Bearer {token}"] = self.uses
            exchange.reply(200, json.dumps({"token": token}).encode())
            return
        said = exchange.headers.get("Authorization", "")
        if self._left[said] <= 0:
            exchange.reply(401, headers={"WWW-Authenticate": self._challenge})
            return
        self._left[said] -= 1
        kind, name = re.fullmatch(r"/v2/.+?/(blobs|manifests)/(.*)", exchange.path).groups()
        self.seen[f"{exchange.method} {kind}"] += 1
        getattr(self, f"_{kind}")(exchange, name)

    def _manifests(self, exchange: Exchange, name: str) -> None:
        if exchange.method == "PUT":
            body = exchange.body.read()
            self.manifests[name] = (body, exchange.headers["Content-Type"])
            exchange.reply(201)
        elif name in self.manifests:
            body, media_type = self.manifests[name]
            exchange.reply(200, body, content_type=media_type)
        else:
            errors = {"errors": [{"code": "MANIFEST_UNKNOWN", "message": "no such thing"}]}
            exchange.reply(404, json.dumps(errors).encode())

    def _blobs(self, exchange: Exchange, name: str) -> None:
        if name.startswith("uploads/"):
            self._uploads(exchange)
        elif exchange.method == "HEAD":
            exchange.reply(200 if name in self.blobs else 404)
        else:
            exchange.reply(307, headers={"Location": f"{self._elsewhere_url}/{name}"})

    def _uploads(self, exchange: Exchange) -> None:
        if exchange.method == "POST":
            if self.refuses_mounts and "mount" in exchange.query:
                exchange.reply(403)
            elif exchange.query.get("mount") in self.mountable:
                self.blobs[exchange.query["mount"]] = b"mounted"
                exchange.reply(201)
            else:
                exchange.reply(202, headers={"Location": exchange.path + "session?state=x"})
            return
        data = exchange.body.read()
        if self.expires_in_uploads:
            self.expires_in_uploads -= 1
            exchange.reply(401, headers={"WWW-Authenticate": self._challenge})
            return
        good = digest_of(data) == exchange.query["digest"] and exchange.query["state"] == "x"
        if good:
            self.blobs[digest_of(data)] = data
        exchange.reply(201 if good else 400)

    def _elsewhere(self, exchange: Exchange) -> None:
        self.elsewhere_got.append(exchange.headers.get("Authorization") or "")
        digest = exchange.path.lstrip("/")
        data = self.blobs[digest]
        if digest in self.breaks:
            self.breaks.discard(digest)
            data = b"\0" * len(data)
        wanted = exchange.headers.get("Range")
        start = 0
        if wanted:
            self.ranges.append(wanted)
            start = int(wanted.removeprefix("bytes=").rstrip("-")) if self.knows_ranges else 0
        status, left = (206 if start else 200), data[start:]
        if cuts := self.cuts.get(digest):
            told = {"Content-Length": str(len(left))}
            exchange.reply(status, left[: cuts.pop(0)], headers=told)
            exchange.socket.shutdown(socket.SHUT_RDWR)
            return
        exchange.reply(status, left)
