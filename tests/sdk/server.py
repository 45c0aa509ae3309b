"""The release binary as a service manager sees it: started with settings, stopped by a signal; and clients of it."""

import json
import os
import queue
import re
import signal
import subprocess
import threading
import time
import urllib.error
import urllib.request
from pathlib import Path

import openai

REPOSITORY = Path(__file__).resolve().parents[2]
BINARY = REPOSITORY / os.environ.get("CARGO_TARGET_DIR", "target") / "release" / "ortolan"
START_SECONDS = 60
STOP_SECONDS = 60
WAIT_SECONDS = 60
POLL_SECONDS = 0.02
ENDED = ("completed", "incomplete", "failed", "cancelled")


class Server:
    """One process. It listens when this is made; leaving the `with` block kills it if it still runs."""

    def __init__(self, store, *settings):
        """`store` is a folder or the address of a PostgreSQL database."""
        place = "store.url" if str(store).startswith("postgresql:") else "store.path"
        command = [BINARY, "serve"]
        for setting in ("server.port=0", f"{place}={store}", *settings):
            command += ["--set", setting]
        self.process = subprocess.Popen(
            command, cwd=REPOSITORY, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, encoding="utf-8"
        )
        self.log = []
        self.lines = queue.Queue()
        threading.Thread(target=self.read_lines, daemon=True).start()
        try:
            self.url = self.wait_for_line(r"listening on (http://127\.0\.0\.1:\d+)", START_SECONDS)[1]
        except BaseException:
            self.kill()
            raise
        self.base_url = self.url + "/v1"

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.kill()

    def read_lines(self):
        """Goes on after the server is up: a full pipe would stop it."""
        for line in self.process.stdout:
            self.lines.put(line)
        self.lines.put(None)

    def wait_for_line(self, pattern, seconds=WAIT_SECONDS):
        """The match in the first line of the log that has one and was not read before."""
        deadline = time.monotonic() + seconds
        while True:
            try:
                line = self.lines.get(timeout=max(0.0, deadline - time.monotonic()))
            except queue.Empty:
                raise AssertionError(f"no {pattern!r} within {seconds} seconds:\n{''.join(self.log)}") from None
            assert line is not None, f"the server ended before {pattern!r}:\n{''.join(self.log)}"
            self.log.append(line)
            if found := re.search(pattern, line):
                return found

    def client(self, **options):
        options = {"api_key": "none", "max_retries": 0, "timeout": 120} | options
        return openai.OpenAI(base_url=self.base_url, **options)

    @property
    def websocket_url(self):
        return self.base_url.replace("http:", "ws:") + "/responses"

    def call(self, method, path, body=None):
        return call(method, self.base_url + path, body)

    def terminate(self):
        self.process.send_signal(signal.SIGTERM)

    def stop(self):
        """As a service manager does, after which the process ends well."""
        self.terminate()
        assert self.process.wait(STOP_SECONDS) == 0

    def kill(self):
        """As `kill -9` does; nothing if it has ended."""
        self.process.kill()
        self.process.wait()


def call(method, url, body=None, timeout=120):
    """Status and bytes of the answer."""
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data, {"Content-Type": "application/json"}, method=method)
    try:
        with urllib.request.urlopen(request, timeout=timeout) as answer:
            return answer.status, answer.read()
    except urllib.error.HTTPError as answer:
        return answer.code, answer.read()


def wait_until(look, what, seconds=WAIT_SECONDS):
    """The first that `look` gives and that is true."""
    deadline = time.monotonic() + seconds
    while not (found := look()):
        assert time.monotonic() < deadline, f"{what}: not within {seconds} seconds"
        time.sleep(POLL_SECONDS)
    return found


def wait_for_end(client, response_id, seconds=WAIT_SECONDS):
    """The background response when it has ended."""

    def ended():
        response = client.responses.retrieve(response_id)
        return response if response.status in ENDED else None

    return wait_until(ended, f"the end of {response_id}", seconds)


def long_reply(num_letters):
    """Fields of a request that is answered with so many letters, some hundred in a second."""
    return {"text": {"format": {"type": "regex", "pattern": f"[a-z ]{{{num_letters}}}"}}}
