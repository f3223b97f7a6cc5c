"""A server that speaks as much of OpenAI's chat completions as a judge needs, and fails as told."""

import json
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))  # makes `opinions` importable to the tests beside it


class Server(ThreadingHTTPServer):
    """Answers request number n with ``script(n, body)``: text, bytes as they are, a status, or seconds to be slow."""

    daemon_threads = True

    def __init__(self, script):
        super().__init__(("127.0.0.1", 0), Handler)
        self.script, self.seen, self.at_once, self.most_at_once = script, [], 0, 0
        self.lock = threading.Lock()
        self.url = f"http://127.0.0.1:{self.server_port}/v1/chat/completions"


class Handler(BaseHTTPRequestHandler):
    """One request."""

    def do_POST(self):
        server, body = self.server, json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with server.lock:
            number = len(server.seen)
            server.seen.append({"body": body, "authorization": self.headers.get("Authorization"), "at": time.time()})
            server.at_once += 1
            server.most_at_once = max(server.most_at_once, server.at_once)
        try:
            self.reply(server.script(number, body))
        except (BrokenPipeError, ConnectionResetError):
            return  # the client has given up
        finally:
            with server.lock:
                server.at_once -= 1

    def reply(self, said):
        status, content = 200, said
        if isinstance(said, int):
            status, content = said, b"not now"
        elif isinstance(said, float):
            time.sleep(said)
            content = "late"
        if isinstance(content, str):
            content = json.dumps({"choices": [{"message": {"role": "assistant", "content": content}}]}).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_):
        """Says nothing on the terminal."""


@pytest.fixture
def serve(monkeypatch):
    """``serve(script)`` starts a server that ends with the test."""
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    running = []

    def start(script):
        server = Server(script)
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        running.append(server)
        return server

    yield start
    for server in running:
        server.shutdown()
        server.server_close()
