"""What the proxy tells of the bytes that it saw."""

from recording_proxy import Connection, read_message

STREAM = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\ndata:\r\n2\r\n\n\n\r\n0\r\n\r\n"
REPLY = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}"
REQUEST = b"POST /v1/responses HTTP/1.1\r\ncontent-length: 4\r\n\r\nbody"


def test_a_message_is_read_to_its_end():
    for data, chunks in ((STREAM, [b"data:", b"\n\n"]), (REPLY, [b"{}"]), (REQUEST, [b"body"])):
        message = read_message(bytearray(data + b"HTTP"))
        assert (message.chunks, message.num_bytes, message.is_whole) == (chunks, len(data), True)


def test_a_part_of_a_message_is_not_whole():
    for length in range(len(STREAM)):
        message = read_message(bytearray(STREAM[:length]))
        assert message is None or not message.is_whole
    assert read_message(bytearray(STREAM[:-9])).chunks == [b"data:"]


def test_answers_belong_to_their_requests():
    connection = Connection()
    assert connection.is_settled()
    connection.sent += REQUEST + REQUEST
    connection.received += REPLY + STREAM[:-1]
    assert not connection.is_settled()
    connection.is_closed = connection.is_left = True
    assert connection.is_settled()
    answers = [(answer.body, answer.is_left) for _, answer in connection.exchanges]
    assert answers == [(b"{}", False), (b"data:\n\n", True)]
