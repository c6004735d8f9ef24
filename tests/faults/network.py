"""A web server that misbehaves on purpose."""

import functools
import http.server
import os
import socket
import struct
import threading
import time
from contextlib import contextmanager


class Server(http.server.ThreadingHTTPServer):
    """Serves a folder; every ``every``-th request goes wrong, each time in another way."""

    daemon_threads = True
    every = 0
    harms = ("error", "stall", "cut", "slow", "reset", "refuse")
    stalled = 30.0

    def __init__(self, folder, ranges=True):
        super().__init__(("127.0.0.1", 0), functools.partial(Handler, folder))
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
        path = os.path.join(self.folder, self.path.partition("?")[0].lstrip("/"))
        if harm == "error":
            return self.send(503, b"busy", close)
        if harm == "refuse":
            return self.send(429, b"slowly", close)
        if harm == "stall":
            server.stop.wait(server.stalled)
            self.close_connection = True
            return None
        if harm == "reset":
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.close_connection = True
            self.connection.close()
            return None
        if not os.path.isfile(path):
            return self.send(404, b"none", close)
        with open(path, "rb") as file:
            data = file.read()
        mark = f'"{os.stat(path).st_mtime_ns}"'
        begin, status, headers = 0, 200, {"ETag": mark, **close}
        asked = self.headers.get("Range")
        if asked and server.ranges and self.headers.get("If-Range", mark) == mark:
            begin, status = int(asked[6:].split("-")[0]), 206
            headers["Content-Range"] = f"bytes {begin}-{len(data) - 1}/{len(data)}"
        return self.send(status, data[begin:], headers, body, harm)

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
