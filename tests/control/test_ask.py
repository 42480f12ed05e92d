import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from control.ask import Router, wait_until_answers
from control.errors import Failed

HELLO = b'data: {"choices": [{"delta": {"content": "Hello"}}]}\n\n'
END = b'data: {"choices": [{"delta": {}, "finish_reason": "stop"}]}\n\ndata: [DONE]\n\n'
QUESTION = [{"role": "user", "content": "hi"}]


class Server:
    """Answers every request with the same bytes and keeps what it was asked."""

    def __init__(self, status: str, body: bytes) -> None:
        self.head = f"HTTP/1.1 {status}\r\ncontent-length: {len(body)}\r\nconnection: close\r\n\r\n".encode()
        self.body = body
        self.asked = b""

    async def __call__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.asked = await reader.readuntil(b"\r\n\r\n")
        writer.write(self.head + self.body)
        await writer.drain()
        writer.close()
        await writer.wait_closed()


@asynccontextmanager
async def serving(server: Server) -> AsyncIterator[str]:
    listener = await asyncio.start_server(server, "127.0.0.1", 0)
    async with listener:
        host, port = listener.sockets[0].getsockname()
        yield f"http://{host}:{port}/v1"


async def asked(server: Server) -> str:
    pieces: list[str] = []
    async with serving(server) as base_url, Router(base_url, "sk-sy-x") as router:
        await router.chat(model="m", messages=QUESTION, on_text=pieces.append)
    return "".join(pieces)


async def test_an_answer_is_shown_as_it_comes_and_the_key_goes_with_the_question() -> None:
    server = Server("200 OK", HELLO + END)
    assert "Hello" == await asked(server)
    assert server.asked.startswith(b"POST /v1/chat/completions ")
    assert b"authorization: bearer sk-sy-x" in server.asked.lower()


@pytest.mark.parametrize(
    ("status", "body", "sentence"),
    [
        ("401 Unauthorized", b'{"error": {"message": "Unknown key."}}', "answered 401: Unknown key. Make a key with"),
        ("404 Not Found", b'{"error": {"message": "no model m"}}', "answered 404: no model m. `switchyard models`"),
        ("503 Service Unavailable", b"{}", "answered 503: {}. `switchyard nodes`"),
        ("500 Internal Server Error", b"", "answered 500: no reason given."),
        ("200 OK", HELLO, "the answer broke off before its end"),
        ("200 OK", HELLO + b'data: {"error": {"message": "gone"}}\n\n', "gone; ask again"),
    ],
)
async def test_what_went_wrong_is_one_sentence_with_the_routers_own_reason(
    status: str, body: bytes, sentence: str
) -> None:
    with pytest.raises(Failed) as failure:
        await asked(Server(status, body))
    assert sentence in str(failure.value)


async def test_a_router_that_is_not_there_is_named_with_the_remedy() -> None:
    async with Router("http://127.0.0.1:1/v1", "") as router:
        with pytest.raises(Failed, match=r"no router answers at http://127\.0\.0\.1:1/v1; start one"):
            await router.models()


async def test_models_are_those_the_router_lists() -> None:
    async with serving(Server("200 OK", b'{"data": [{"id": "a"}, {"id": "b"}]}')) as url, Router(url, "") as router:
        assert ["a", "b"] == await router.models()


async def test_a_request_the_router_does_not_know_has_no_why() -> None:
    server = Server("404 Not Found", b"{}")
    async with serving(server) as url, Router(url, "") as router:
        with pytest.raises(Failed, match="no record of request r1"):
            await router.why("r1")
    assert server.asked.startswith(b"GET /admin/why/r1 ")


async def test_a_probe_waits_for_a_server_that_is_ready() -> None:
    server = Server("503 Service Unavailable", b"")
    async with serving(server) as url, asyncio.TaskGroup() as group:
        waiting = group.create_task(wait_until_answers(f"{url}/ready"))
        while not server.asked:
            await asyncio.sleep(0.01)
        assert not waiting.done()
        server.head = b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"
        async with asyncio.timeout(20):
            await waiting


async def test_whatif_asks_for_a_policy_constants_and_a_model_and_gives_the_answer_as_it_came() -> None:
    server = Server("200 OK", b'{"decisions": 1}')
    async with serving(server) as base_url, Router(base_url, "sk-sy-x") as router:
        answer = await router.whatif(policy="lmetric", model="a/b", constants=["tie_ms=0", "kv_full=0.9"])
    assert b'{"decisions": 1}' == answer
    asked = server.asked.split(b" ", 2)[1]
    assert b"/admin/whatif?policy=lmetric&model=a%2Fb&set=tie_ms%3D0&set=kv_full%3D0.9" == asked
