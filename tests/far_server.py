"""A server on this machine alone that gives the files of a folder, and misbehaves as it is told to."""

import re
import threading
import time
from collections import Counter
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace


@dataclass
class Served:
    """What a server is to do, and has done.

    Attributes:
        folder: whose files it gives.
        ranges: whether it gives parts of files.
        failing: how many answers of each file are `status`; of a file none is named for, 0.
        status: of a failing answer; 0: it ends the connection in the middle of the file.
        wait: seconds before each answer.
        asked: times that each file was asked for.
        given: bytes of all answers.
    """

    folder: Path
    ranges: bool = True
    failing: Counter = field(default_factory=Counter)
    status: int = 500
    wait: float = 0.0
    asked: Counter = field(default_factory=Counter)
    given: int = 0
    address: str = ""
    stop: object = None


@contextmanager
def serving(folder):
    served = Served(Path(folder))

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            name = self.path.lstrip("/")
            file = served.folder / name
            served.asked[name] += 1
            time.sleep(served.wait)
            if not file.is_file():
                return self.answer(404, b"")
            data, status = file.read_bytes(), 200
            if served.failing[name] > 0:
                served.failing[name] -= 1
                if served.status:
                    return self.answer(served.status, b"")
                self.send_response(200)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data[: len(data) // 2])
                return None
            part = re.fullmatch(r"bytes=(\d*)-(\d*)", self.headers.get("Range", ""))
            if served.ranges and part:
                first, last = part[1], part[2]
                data = data[-int(last) :] if not first else data[int(first) : int(last) + 1 if last else None]
                status = 206
            return self.answer(status, data)

        def answer(self, status, data):
            served.given += len(data)
            self.send_response(status)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    served.address = f"http://127.0.0.1:{server.server_port}"
    done = SimpleNamespace(yes=False)

    def stop():
        if not done.yes:
            done.yes = True
            server.shutdown()
            server.server_close()
            thread.join()

    served.stop = stop
    try:
        yield served
    finally:
        stop()
