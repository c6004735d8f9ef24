"""Web servers that misbehave on purpose."""

import functools
import http.client
import http.server
import json
import os
import re
import socket
import struct
import threading
import time
import urllib.parse
from contextlib import contextmanager


class Server(http.server.ThreadingHTTPServer):
    """Serves a folder; every ``every``-th request goes wrong, each time in another way."""

    daemon_threads = True
    every = 0
    harms = ("error", "stall", "cut", "slow", "reset", "refuse")
    stalled = 30.0

    def __init__(self, folder, ranges=True, handler=None):
        super().__init__(("127.0.0.1", 0), functools.partial(handler or Handler, folder))
        self.ranges, self.count, self.asked = ranges, 0, []
        self.harmed, self.lock = [], threading.Lock()
        self.stop = threading.Event()

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_address[1]}"

    def harm(self, what):
        """Which harm comes to this request, if any."""
        with self.lock:
            self.asked.append(what)
            self.count += 1
            if not self.every or self.count % self.every:
                return ""
            harm = self.harms[len(self.harmed) % len(self.harms)]
            self.harmed.append(harm)
            return harm


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def __init__(self, folder, *rest):
        self.folder = folder
        super().__init__(*rest)

    def log_message(self, *_):
        pass

    def do_HEAD(self):
        self.answer(False)

    def do_GET(self):
        self.answer(True)

    def answer(self, body):
        server, close = self.server, {"Connection": "close"}
        harm = server.harm((self.command, self.path))
        sent = self.rfile.read(int(self.headers.get("Content-Length", "0")))
        if harm == "error":
            return self.send(503, b"busy", close)
        if harm == "refuse":
            return self.send(429, b"slowly", close)
        if harm == "unable":
            return self.send(501, b"never", close)
        if harm == "stall":
            server.stop.wait(server.stalled)
            self.close_connection = True
            return None
        if harm == "reset":
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.close_connection = True
            self.connection.close()
            return None
        status, data, headers = self.content(sent)
        return self.send(status, data, {**headers, **close}, body, harm)

    def content(self, sent):
        """Status, body and headers of the honest answer to a request that sent so many bytes."""
        return self.file(self.path.partition("?")[0].lstrip("/"))

    def file(self, name):
        """A file of the folder, or the part of it that is asked for."""
        path = os.path.join(self.folder, name)
        if not os.path.isfile(path):
            return 404, b"none", {}
        with open(path, "rb") as file:
            data = file.read()
        mark = f'"{os.stat(path).st_mtime_ns}"'
        asked = self.headers.get("Range")
        if not (asked and self.server.ranges and self.headers.get("If-Range", mark) == mark):
            return 200, data, {"ETag": mark}
        begin, _, last = asked[6:].partition("-")
        part = data[int(begin) : int(last) + 1 if last else None]
        told = f"bytes {begin}-{int(begin) + len(part) - 1}/{len(data)}"
        return 206, part, {"ETag": mark, "Content-Range": told}

    def names(self):
        return sorted(n for n in os.listdir(self.folder) if n.endswith((".tar", ".json")))

    def send(self, status, data, headers, body=True, harm=""):
        self.close_connection = True
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if not body:
            return
        try:
            if harm == "cut":
                self.wfile.write(data[: len(data) // 2])
            elif harm == "slow":
                for at in range(0, len(data), max(1, len(data) // 20)):
                    self.wfile.write(data[at : at + max(1, len(data) // 20)])
                    time.sleep(0.02)
            else:
                self.wfile.write(data)
        except OSError:
            pass


class Relay(Handler):
    """Passes requests on to another server, given as ``host:port`` in place of a folder."""

    def do_POST(self):
        self.answer(True)

    def do_PUT(self):
        self.answer(True)

    def content(self, sent):
        other = http.client.HTTPConnection(self.folder)
        other.request(self.command, self.path, sent, dict(self.headers))
        answer = other.getresponse()
        data = answer.read()
        if self.command == "HEAD":  # says how long the body would be
            data = bytes(int(answer.getheader("Content-Length", "0")))
        kept = {k: v for k, v in answer.getheaders() if k.lower() not in _OF_THE_WIRE}
        other.close()
        return answer.status, data, kept


class Store(Handler):
    """What gcsfs asks of Google Cloud Storage: the folder is the bucket ``data``."""

    def content(self, sent):
        path, _, query = self.path.partition("?")
        asked = dict(urllib.parse.parse_qsl(query))
        path, told = urllib.parse.unquote(path), self.told
        if path == "/storage/v1/b/data/o":
            names = [n for n in self.names() if n.startswith(asked.get("prefix", ""))]
            return told({"kind": "storage#objects", "items": list(map(self.object, names))})
        if found := re.fullmatch("/(download/)?storage/v1/b/data/o/(.+)", path):
            if found[1] or asked.get("alt") == "media":
                return self.file(found[2])
            return told(self.object(found[2])) if found[2] in self.names() else self.file("none")
        return self.file("none")

    def told(self, value):
        return 200, json.dumps(value).encode(), {"Content-Type": "application/json"}

    def object(self, name):
        status = os.stat(os.path.join(self.folder, name))
        return {"kind": "storage#object", "name": name, "bucket": "data", "generation": "1",
                "size": str(status.st_size), "etag": str(status.st_mtime_ns)}  # fmt: skip


class Hub(Handler):
    """What huggingface_hub asks of its server: the folder is the data set ``our/set``."""

    def content(self, sent):
        path = urllib.parse.unquote(self.path.partition("?")[0])
        json_ = {"Content-Type": "application/json"}
        if path in ("/api/datasets/our/set", "/api/datasets/our/set/revision/main"):
            about = {"id": "our/set", "sha": "0" * 40, "siblings": []}
            return 200, json.dumps(about).encode(), json_
        if path == "/api/datasets/our/set/tree/main":
            return 200, json.dumps(list(map(self.entry, self.names()))).encode(), json_
        if found := re.fullmatch("/datasets/our/set/resolve/main/(.+)", path):
            return self.file(found[1])
        return 404, b"{}", {"X-Error-Code": "EntryNotFound"}

    def entry(self, name):
        status = os.stat(os.path.join(self.folder, name))
        return {"type": "file", "path": name, "size": status.st_size,
                "oid": f"{status.st_mtime_ns:040x}"}  # fmt: skip


_OF_THE_WIRE = ("content-length", "transfer-encoding", "connection", "server", "date")


@contextmanager
def serving(folder, **options):
    server = Server(folder, **options)
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.stop.set()
        server.shutdown()
        server.server_close()
        thread.join()
