"""How an answer ends: the bytes that are sent last, after the request has been journalled."""

from __future__ import annotations

from math import ceil

import msgspec

from router.call import Call
from router.core.errors import Code, Refused, error_json, row
from router.core.events import error_event
from router.course import explanation
from router.downstream.stream import Outlet


class Answer(msgspec.Struct, kw_only=True, gc=False):
    code: Code
    status: int
    data: bytes = b""
    message: str = ""
    """Of an error, for records."""
    retry_after_s: float = 0.0

    def finish(self, call: Call, client: Outlet) -> None:
        """Send what is left. To a client that has nothing yet, that is the whole answer."""
        if client.gone:
            return
        if not client.started:
            headers = [
                (b"content-type", b"application/json"),
                (b"x-request-id", call.request_id.encode()),
                *explanation(call),
            ]
            if self.retry_after_s:
                headers.append((b"retry-after", b"%d" % max(1, ceil(self.retry_after_s - 0.01))))
            client.start(self.status, headers, length=len(self.data))
        client.end(self.data)


def refused_answer(refused: Refused, client: Outlet) -> Answer:
    """An error as JSON, or as the last event of a stream that has begun."""
    if client.started:
        return broken_answer(refused.code, refused.message)
    data = refused.body or error_json(refused.code, refused.message, param=refused.param)
    return Answer(
        code=refused.code,
        status=refused.status,
        data=data,
        message=refused.message,
        retry_after_s=refused.retry_after_s,
    )


def broken_answer(code: Code, detail: str) -> Answer:
    """One error event of OpenAI's shape and no `[DONE]`."""
    message = f"The stream broke and could not be continued: {detail or code}."
    return Answer(
        code=code, status=200, data=error_event(message, kind=row(code).type, code=code.value), message=message
    )
