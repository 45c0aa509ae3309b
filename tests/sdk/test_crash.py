"""What was acknowledged outlives everything: processes that are killed, disks that are full, rows that are damaged.

ORTOLAN_KILL_ROUNDS=100 kills more often.
"""

import contextlib
import http.client
import json
import os
import random
import sqlite3
import subprocess
import threading
import time
import uuid
from functools import partial

import pytest

from server import ENDED, Server, call, long_reply, wait_until

KILL_ROUNDS = int(os.environ.get("ORTOLAN_KILL_ROUNDS", "10"))
NUM_CLIENTS = 4
# Of a conversation and of a chain, so that the model can take them in.
MAX_TURNS = 10
OPTIONS = {"model": "starter", "temperature": 0, "reasoning": {"effort": "none"}, "max_output_tokens": 8}
# What a client sees of a server that is killed.
BROKEN = (OSError, http.client.HTTPException, EOFError)
MIB = 1 << 20


def text_of(item):
    return "".join(part["text"] for part in item["content"])


def said(response):
    return "".join(text_of(item) for item in response["output"] if item["type"] == "message")


class Refused(Exception):
    """The store takes nothing at the moment."""


class Client:
    """Does one thing after the other, and knows what was acknowledged, and what may have been done all the same."""

    def __init__(self, seed):
        self.random = random.Random(seed)
        self.base_url = None
        self.kept = {}
        self.parents = {}
        self.deleted = set()
        self.jobs = set()
        self.unknown = set()
        # By their ids, the texts of each turn in its order, and whether it was acknowledged.
        self.conversations = {}
        self.num_broken = 0
        self.num_refused = 0

    def step(self):
        deeds = {self.ask: 4, self.stream: 4, self.chain: 3, self.work: 1, self.speak: 4, self.add: 2, self.delete: 2}
        deed = self.random.choices(list(deeds), deeds.values())[0]
        try:
            deed()
        except Refused:
            self.num_refused += 1
        except BROKEN:
            self.num_broken += 1
            raise

    def call(self, method, path, body=None):
        status, answer = call(method, self.base_url + path, body)
        if status == 503 and json.loads(answer)["error"]["code"] == "store_unavailable":
            raise Refused
        assert status == 200, (status, answer)
        return answer

    def keep(self, answer):
        """Unless the store failed when the reply had been written, which the answer tells."""
        response = json.loads(answer)
        if response["store"]:
            self.kept[response["id"]] = answer
            self.parents[response["id"]] = response["previous_response_id"]
        return response["store"]

    def ask(self, **more):
        self.keep(self.call("POST", "/responses", {"input": f"Hello! {uuid.uuid4()}"} | OPTIONS | more))

    def can_go_on_from(self, response_id):
        """Whether it and all that it goes on from are there, and not too many."""
        length = 0
        while response_id in self.kept:
            response_id = self.parents.get(response_id)
            length += 1
        return response_id is None and length < MAX_TURNS

    def stream(self):
        body = {"input": f"Hello! {uuid.uuid4()}", "stream": True} | OPTIONS
        frames = self.call("POST", "/responses", body).split(b"\n\n")
        # The last events are the terminal one and [DONE].
        if len(frames) < 3 or frames[-2] != b"data: [DONE]":
            raise EOFError
        event = frames[-3].partition(b"\ndata: ")[2]
        response = event[event.index(b'"response":') + len(b'"response":') : -1]
        self.keep(response)

    def chain(self):
        if parents := list(filter(self.can_go_on_from, self.kept)):
            self.ask(previous_response_id=self.random.choice(parents))

    def work(self):
        queued = self.call("POST", "/responses", {"input": "Hello!", "background": True} | OPTIONS)
        self.jobs.add(json.loads(queued)["id"])

    def speak(self):
        """A turn of a conversation."""
        conversation, turns = self.open_conversation()
        question = f"Hello! {uuid.uuid4()}"
        turn = {"texts": [question], "is_acknowledged": False, "has_reply": True}
        turns.append(turn)
        answer = self.call("POST", "/responses", {"input": question, "conversation": conversation} | OPTIONS)
        if self.keep(answer):
            turn.update(texts=[question, said(json.loads(answer))], is_acknowledged=True)

    def add(self):
        conversation, turns = self.open_conversation()
        texts = [f"Hello! {uuid.uuid4()}" for _ in range(self.random.randint(1, 3))]
        turn = {"texts": texts, "is_acknowledged": False, "has_reply": False}
        turns.append(turn)
        items = [{"role": "user", "content": text} for text in texts]
        self.call("POST", f"/conversations/{conversation}/items", {"items": items})
        turn["is_acknowledged"] = True

    def open_conversation(self):
        """The last one, until it has so many turns."""
        if not self.conversations or MAX_TURNS <= len(list(self.conversations.values())[-1]):
            self.conversations[json.loads(self.call("POST", "/conversations", {}))["id"]] = []
        return list(self.conversations.items())[-1]

    def delete(self):
        if not self.kept:
            return
        response_id = self.random.choice(list(self.kept))
        del self.kept[response_id]
        self.unknown.add(response_id)
        self.call("DELETE", f"/responses/{response_id}")
        self.unknown.remove(response_id)
        self.deleted.add(response_id)

    def check(self):
        """Everything, against what the server has."""
        for response_id, answer in self.kept.items():
            assert call("GET", f"{self.base_url}/responses/{response_id}") == (200, answer)
        for response_id in self.deleted:
            assert call("GET", f"{self.base_url}/responses/{response_id}")[0] == 404
        for response_id in self.unknown:
            assert call("GET", f"{self.base_url}/responses/{response_id}")[0] in (200, 404)
        for response_id in self.jobs:
            wait_until(partial(self.has_ended, response_id), f"the end of {response_id}")
        for conversation, turns in self.conversations.items():
            check_turns(turns, self.texts_of(conversation))

    def has_ended(self, response_id):
        status, answer = call("GET", f"{self.base_url}/responses/{response_id}")
        assert status == 200
        return json.loads(answer)["status"] in ENDED

    def texts_of(self, conversation):
        texts, after = [], ""
        while True:
            path = f"/conversations/{conversation}/items?order=asc&limit=20{after}"
            status, answer = call("GET", self.base_url + path)
            assert status == 200
            page = json.loads(answer)
            texts += [text_of(item) for item in page["data"]]
            if not page["has_more"]:
                return texts
            after = "&after=" + page["last_id"]


def check_turns(turns, found):
    """Turns that were acknowledged, and of each of the others all or nothing, in order."""
    for turn in turns:
        texts = turn["texts"]
        if turn["is_acknowledged"]:
            assert found[: len(texts)] == texts
        elif found[: len(texts)] != texts:
            continue
        has_unknown_reply = turn["has_reply"] and not turn["is_acknowledged"]
        del found[: len(texts) + has_unknown_reply]
    assert found == []


class Load:
    """Clients at work, each on a thread of its own, until the server is gone or they are told to stop."""

    def __init__(self, clients, base_url):
        self.is_over = threading.Event()
        self.errors = []
        for client in clients:
            client.base_url = base_url
        self.threads = [threading.Thread(target=self.run, args=(client,)) for client in clients]
        for thread in self.threads:
            thread.start()

    def run(self, client):
        try:
            while not self.is_over.is_set():
                client.step()
        except BROKEN:
            pass
        except Exception as error:
            self.errors.append(error)

    def end(self):
        self.is_over.set()
        for thread in self.threads:
            thread.join()
        assert not self.errors, self.errors


def test_what_was_acknowledged_outlives_every_kill(tmp_path):
    chance = random.Random(KILL_ROUNDS)
    clients = [Client(seed) for seed in range(NUM_CLIENTS)]
    for _ in range(KILL_ROUNDS):
        with Server(tmp_path) as server:
            load = Load(clients, server.base_url)
            # Nobody sets it meanwhile: this is how long they work.
            load.is_over.wait(chance.uniform(0.1, 1.5))
            server.kill()
            load.end()
    with Server(tmp_path) as server:
        for client in clients:
            client.base_url = server.base_url
            client.check()
        server.stop()
    with contextlib.closing(sqlite3.connect(tmp_path / "ortolan.db")) as database:
        assert database.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        assert database.execute("SELECT count(*) FROM responses WHERE lease_until IS NOT NULL").fetchone() == (0,)
    assert all(client.kept and client.num_broken and not client.num_refused for client in clients)
    names = ("kept", "deleted", "jobs", "conversations")
    counts = {name: sum(len(getattr(client, name)) for client in clients) for name in names}
    print(f"{KILL_ROUNDS} kills, {sum(client.num_broken for client in clients)} broken requests, {counts}")


@pytest.fixture
def disk(tmp_path):
    """A small file system."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", folder]
    mounted = subprocess.run(mount, capture_output=True, text=True)
    if mounted.returncode != 0:
        pytest.skip(f"a small file system cannot be mounted here: {mounted.stderr.strip()}")
    yield folder
    subprocess.run(["umount", folder], check=True)


def fill(disk, free_bytes):
    """Until no more than that is free."""
    with open(disk / "ballast", "wb") as ballast, contextlib.suppress(OSError):
        while True:
            free = os.statvfs(disk).f_bavail * os.statvfs(disk).f_frsize - free_bytes
            if free <= 0:
                break
            ballast.write(bytes(min(free, MIB)))
            ballast.flush()


@pytest.mark.parametrize(("reserve", "left"), [(8 * MIB, 4 * MIB), (0, 0)], ids=["reserve", "full"])
def test_a_full_disk_stops_nothing_but_what_would_be_kept(disk, reserve, left):
    def ask(store, **options):
        status, answer = server.call("POST", "/responses", {"input": "Hello!", "store": store} | OPTIONS | options)
        return status, json.loads(answer)

    clients = [Client(seed) for seed in range(2)]
    with Server(disk, f"store.min_free_bytes={reserve}") as server:
        load = Load(clients, server.base_url)
        wait_until(lambda: all(len(client.kept) > 2 for client in clients), "some responses")
        fill(disk, left)
        wait_until(lambda: ask(True)[0] == 503, "a refusal")
        began = time.monotonic()
        status, refusal = ask(True, max_output_tokens=3000, **long_reply(2000))
        assert (status, refusal["error"]["code"]) == (503, "store_unavailable")
        assert time.monotonic() - began < 1, "it is refused before it is written, which takes seconds"
        for _ in range(3):
            assert ask(False)[0] == 200
        (disk / "ballast").unlink()
        wait_until(lambda: ask(True)[1].get("store"), "room again", seconds=5)
        num_kept = sum(len(client.kept) for client in clients)
        wait_until(lambda: sum(len(client.kept) for client in clients) > num_kept + 4, "more responses")
        load.end()
        for client in clients:
            client.check()
        assert any(client.num_refused for client in clients) and not any(client.num_broken for client in clients)
        server.stop()


def test_a_damaged_row_is_the_only_one_that_is_lost(tmp_path):
    with Server(tmp_path) as server:
        damaged, whole = (
            json.loads(server.call("POST", "/responses", {"input": "Hello!"} | OPTIONS)[1])["id"] for _ in range(2)
        )
        with contextlib.closing(sqlite3.connect(tmp_path / "ortolan.db")) as database, database:
            changed = "UPDATE responses SET body = replace(body, 'output_text', 'output_tExt') WHERE id = ?"
            assert database.execute(changed, [damaged]).rowcount == 1
        for path in ("", "/input_items", "?stream=true"):
            status, answer = server.call("GET", f"/responses/{damaged}{path}")
            assert (status, json.loads(answer)["error"]["code"]) == (500, "server_error"), path
            assert server.call("GET", f"/responses/{whole}{path}")[0] == 200
        body = {"input": "Thanks!"} | OPTIONS
        assert server.call("POST", "/responses", body | {"previous_response_id": damaged})[0] == 500
        assert server.call("POST", "/responses", body | {"previous_response_id": whole})[0] == 200
        assert server.call("DELETE", f"/responses/{damaged}")[0] == 200
        server.stop()
