"""A hub of two servers, as Hugging Face's: one knows the repositories, one on another port has their large files.

A test says beforehand what goes wrong.
"""

import hashlib
import json
import os
import re
import signal
import socket
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, quote, unquote, urlsplit

PAGE_FILES = 3
PIECE_BYTES = 1 << 14
# Larger ones are on the other server.
MAX_SMALL_BYTES = 1 << 16


def git_blob(contents):
    return hashlib.sha1(b"blob %d\0" % len(contents) + contents).hexdigest()


def sha256(contents):
    return hashlib.sha256(contents).hexdigest()


@dataclass
class Repo:
    files: dict[str, bytes]
    commit: str = "c0ffee" + "0" * 34
    revisions: tuple[str, ...] = ("main", "v1")
    # Whoever asks for a file has to know it.
    token: str | None = None
    # Replaces entries of the listing.
    entries: dict[str, dict] = field(default_factory=dict)

    def is_large(self, path):
        return MAX_SMALL_BYTES < len(self.files[path])

    def etag(self, path):
        contents = self.files[path]
        return sha256(contents) if self.is_large(path) else git_blob(contents)

    def entry(self, path):
        contents = self.files[path]
        entry = {"type": "file", "oid": git_blob(contents), "size": len(contents), "path": path}
        if self.is_large(path):
            entry["lfs"] = {"oid": sha256(contents), "size": len(contents), "pointerSize": 134}
        return entry | self.entries.get(path, {})


@dataclass
class Fault:
    """What happens to one request for something whose path ends as it is said."""

    path: str
    status: int | None = None
    headers: dict[str, str] = field(default_factory=dict)
    # The body ends, or goes on only when the test is over, or is wrong, from here on.
    cut_at: int | None = None
    stall_at: int | None = None
    wrong_at: int | None = None
    ignores_range: bool = False
    # Sent once the test allows it.
    gate: threading.Event | None = None


@dataclass
class Request:
    host: str
    path: str
    headers: dict[str, str]


class Hub:
    """Both servers, what they were asked, and what is to go wrong."""

    def __init__(self):
        self.repos, self.faults, self.requests = {}, [], []
        self.lock, self.over = threading.Lock(), threading.Event()
        # Bytes of files until this process is killed.
        self.victim, self.bytes_to_live = None, None
        self.bytes_served = 0
        self.servers = {name: Server(self, name) for name in ("hub", "cdn")}
        for server in self.servers.values():
            threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()

    @property
    def url(self):
        return self.servers["hub"].url

    def close(self):
        self.over.set()
        for server in self.servers.values():
            server.shutdown()
            server.server_close()

    def take_fault(self, path):
        with self.lock:
            for fault in self.faults:
                if path.endswith(fault.path):
                    self.faults.remove(fault)
                    return fault
        return Fault("")

    def is_large(self, repo_id, path):
        repo = self.repos.get(repo_id)
        return repo is not None and path in repo.files and repo.is_large(path)

    def start_to_die(self, start, bytes_served):
        """Starts a process that is killed once so many bytes of files have been served in all."""
        # Not one is served before it is known whom to kill.
        with self.lock:
            self.victim, self.bytes_to_live = start(), bytes_served - self.bytes_served
            return self.victim

    def serve_piece(self, piece):
        """The piece, or as much of it as the victim lives to see."""
        with self.lock:
            if self.victim is None or len(piece) < self.bytes_to_live:
                self.bytes_served += len(piece)
                self.bytes_to_live = self.bytes_to_live and self.bytes_to_live - len(piece)
                return piece
            os.kill(self.victim.pid, signal.SIGKILL)
            self.victim = None
            return b""

    def asked(self, path, host=None):
        return [request for request in self.requests if request.path.endswith(path) and host in (None, request.host)]


class Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, hub, name):
        super().__init__(("127.0.0.1", 0), Handler)
        self.hub, self.name = hub, name
        self.url = f"http://127.0.0.1:{self.server_port}"

    def handle_error(self, request, client_address):
        """Clients that are killed leave broken connections."""


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def setup(self):
        super().setup()
        # So that little is on its way when a client is killed.
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, PIECE_BYTES)

    def log_message(self, *_):
        pass

    def do_HEAD(self):
        self.answer()

    def do_GET(self):
        self.answer()

    def answer(self):
        hub, url = self.server.hub, urlsplit(self.path)
        path = unquote(url.path)
        found = re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path) if self.server.name == "hub" else None
        headers = {name.lower(): value for name, value in self.headers.items()}
        hub.requests.append(Request(self.server.name, path, headers))
        is_redirect = found and hub.is_large(found[1], found[3])
        fault = Fault("") if is_redirect or self.command == "HEAD" else hub.take_fault(path)
        if fault.gate:
            fault.gate.wait()
        if fault.status:
            return self.reply(fault.status, fault.headers, b"{}")
        if self.server.name == "cdn":
            _, org, name, file = path.split("/", 3)
            return self.send_file(hub.repos[f"{org}/{name}"].files[file], {}, fault)
        if api := re.fullmatch(r"/api/models/([^/]+/[^/]+)/(revision|tree)/(.+)", path):
            return self.answer_api(*api.groups(), parse_qs(url.query))
        if found:
            return self.answer_file(found[1], found[3], fault)
        self.refuse(404, "")

    def answer_api(self, repo_id, kind, revision, query):
        repo = self.server.hub.repos.get(repo_id)
        if repo is None:
            return self.refuse(401, "RepoNotFound")
        if revision not in (repo.commit, *repo.revisions):
            return self.refuse(404, "RevisionNotFound")
        if kind == "revision":
            siblings = [{"rfilename": path} for path in repo.files]
            return self.send_json({"id": repo_id, "sha": repo.commit, "siblings": siblings})
        start = int(query.get("cursor", ["0"])[0])
        paths, headers = sorted(repo.files), {}
        entries = [{"type": "directory", "oid": "0" * 40, "size": 0, "path": "onnx"}]
        entries += map(repo.entry, paths[start : start + PAGE_FILES])
        if start + PAGE_FILES < len(paths):
            address = f"{self.server.url}{urlsplit(self.path).path}?recursive=true&cursor={start + PAGE_FILES}"
            headers["Link"] = f'<{address}>; rel="next"'
        self.send_json(entries, headers)

    def answer_file(self, repo_id, path, fault):
        repo = self.server.hub.repos.get(repo_id)
        if repo is None or path not in repo.files:
            return self.refuse(404, "EntryNotFound")
        if repo.token and self.headers.get("authorization") != f"Bearer {repo.token}":
            return self.refuse(401, "GatedRepo")
        contents, etag = repo.files[path], f'"{repo.etag(path)}"'
        headers = {"X-Repo-Commit": repo.commit, "ETag": etag}
        if not repo.is_large(path):
            return self.send_file(contents, headers, fault)
        location = f"{self.server.hub.servers['cdn'].url}/{repo_id}/{quote(path)}"
        headers |= {"Location": location, "X-Linked-ETag": etag, "X-Linked-Size": str(len(contents))}
        self.reply(302, headers, b"")

    def send_file(self, contents, headers, fault):
        status, first, length = 200, 0, len(contents)
        if (found := re.fullmatch(r"bytes=(\d+)-", self.headers.get("range", ""))) and not fault.ignores_range:
            status, first = 206, int(found[1])
            if length <= first:
                return self.reply(416, {"Content-Range": f"bytes */{length}"}, b"")
            headers = headers | {"Content-Range": f"bytes {first}-{length - 1}/{length}"}
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(length - first))
        self.end_headers()
        if self.command == "GET":
            self.send_body(contents, first, fault)

    def send_body(self, contents, first, fault):
        if fault.wrong_at is not None:
            contents = contents[: fault.wrong_at] + b"?" + contents[fault.wrong_at + 1 :]
        end = min(at for at in (fault.cut_at, fault.stall_at, len(contents)) if at is not None)
        for start in range(first, end, PIECE_BYTES):
            piece = contents[start : min(end, start + PIECE_BYTES)]
            served = self.server.hub.serve_piece(piece)
            self.wfile.write(served)
            if len(served) < len(piece):
                break
        if end < len(contents):
            if fault.stall_at is not None:
                self.server.hub.over.wait()
            self.close_connection = True

    def send_json(self, value, headers=None):
        self.reply(200, {"Content-Type": "application/json"} | (headers or {}), json.dumps(value).encode())

    def refuse(self, status, code):
        self.reply(status, {"X-Error-Code": code}, b'{"error": "refused"}')

    def reply(self, status, headers, body):
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)
