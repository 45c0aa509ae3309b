"""A proxy that passes bytes on unchanged, and tells afterwards what went through it."""

import asyncio
import http.client
import io
import threading
from dataclasses import dataclass
from urllib.parse import urlsplit

SETTLE_SECONDS = 10
BUFFER_BYTES = 1 << 16


@dataclass
class Message:
    """A request or an answer as far as it has come. A body that is not sent in chunks is one chunk.

    One that is left was not read to its end by the client.
    """

    line: str
    headers: http.client.HTTPMessage
    chunks: list[bytes]
    num_bytes: int
    is_whole: bool
    is_left: bool = False

    @property
    def body(self):
        return b"".join(self.chunks)


def read_message(data, has_body=True):
    """The first message in `data`, None before its head is there."""
    head, separator, _ = bytes(data).partition(b"\r\n\r\n")
    if not separator:
        return None
    line, _, fields = head.partition(b"\r\n")
    headers = http.client.parse_headers(io.BytesIO(fields + b"\r\n\r\n"))
    start, chunks = len(head) + len(separator), []
    if headers["transfer-encoding"] != "chunked":
        length = int(headers.get("content-length", 0)) if has_body else 0
        body = bytes(data[start : start + length])
        return Message(line.decode(), headers, [body], start + length, len(body) == length)
    while (end := data.find(b"\r\n", start)) >= 0:
        size = int(data[start:end], 16)
        start = end + 2 + size + 2
        if len(data) < start:
            break
        if size == 0:
            return Message(line.decode(), headers, chunks, start, True)
        chunks.append(bytes(data[end + 2 : start - 2]))
    return Message(line.decode(), headers, chunks, len(data), False)


class Connection:
    """What came from each side and was not yet told."""

    def __init__(self):
        self.sent = bytearray()
        self.received = bytearray()
        self.is_closed = False
        self.is_left = False
        self.exchanges = []

    def is_settled(self):
        """Moves what is whole to `exchanges`; whether nothing more comes without a new request."""
        while (request := read_message(self.sent)) and (request.is_whole or self.is_closed):
            answer = read_message(self.received, has_body=not request.line.startswith("HEAD "))
            if answer is None or not (answer.is_whole or self.is_closed):
                break
            answer.is_left = self.is_left and not answer.is_whole
            self.exchanges.append((request, answer))
            del self.sent[: request.num_bytes], self.received[: answer.num_bytes]
        return self.is_closed or not self.sent


class RecordingProxy:
    """Listens on a port of its own, on a thread of its own, and never stops: it is as small as the process is short."""

    def __init__(self, upstream):
        self.upstream = urlsplit(upstream)
        self.connections = []
        self.loop = asyncio.new_event_loop()
        threading.Thread(target=self.loop.run_forever, daemon=True).start()
        self.url = self.call(self.listen())

    def call(self, coroutine):
        return asyncio.run_coroutine_threadsafe(coroutine, self.loop).result()

    async def listen(self):
        self.server = await asyncio.start_server(self.connect, "127.0.0.1", 0)
        return f"http://127.0.0.1:{self.server.sockets[0].getsockname()[1]}"

    async def connect(self, reader, writer):
        upstream_reader, upstream_writer = await asyncio.open_connection(self.upstream.hostname, self.upstream.port)
        connection = Connection()
        self.connections.append(connection)
        pumps = [
            asyncio.create_task(pump(reader, upstream_writer, connection.sent)),
            asyncio.create_task(pump(upstream_reader, writer, connection.received)),
        ]
        ended, _ = await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
        for task in pumps:
            task.cancel()
        writer.close()
        upstream_writer.close()
        connection.is_left, connection.is_closed = pumps[0] in ended, True

    def take_exchanges(self):
        """Requests and answers since the last call, once no answer is under way."""
        return self.call(self.settle())

    async def settle(self):
        deadline = self.loop.time() + SETTLE_SECONDS
        while not all([connection.is_settled() for connection in self.connections]):
            assert self.loop.time() < deadline, "a test has ended and its stream has not: close it"
            await asyncio.sleep(0.01)
        taken = [exchange for connection in self.connections for exchange in connection.exchanges]
        for connection in self.connections:
            connection.exchanges = []
        self.connections = [connection for connection in self.connections if not connection.is_closed]
        return taken


async def pump(reader, writer, record):
    """What the other side can have seen is already in the record."""
    try:
        while data := await reader.read(BUFFER_BYTES):
            record += data
            writer.write(data)
            await writer.drain()
    except ConnectionError:
        pass  # Who left early is told by what is missing.
