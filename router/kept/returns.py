"""A request with `Last-Event-ID`: a client that comes back to a stream of its own. It is no new walk and no new record.

Its body is read and not looked at: the id says all, so a client may send its request again as it was.
"""

from __future__ import annotations

from collections.abc import Callable

from router.answer import refused_answer
from router.call import Call
from router.core.backlog import read_id
from router.core.errors import Code, Refused
from router.downstream.auth import authenticate
from router.downstream.stream import ClientStream
from router.fleet.view import View
from router.kept.siblings import Siblings
from router.kept.table import KeptStreams


class Returns:
    def __init__(
        self, streams: KeptStreams, siblings: Siblings, *, view: Callable[[], View], body_limit_bytes: int
    ) -> None:
        self._streams = streams
        self._siblings = siblings
        self._view = view
        self._body_limit_bytes = body_limit_bytes

    async def run(self, call: Call, client: ClientStream) -> None:
        try:
            await self._run(call, client)
        except Refused as refused:
            self._streams.refused += 1
            refused_answer(refused, client).finish(call, client)

    async def _run(self, call: Call, client: ClientStream) -> None:
        tenant, _ = authenticate(call.headers, self._view(), now_unix_ns=call.arrived_unix_ns)
        call.tenant = tenant.tenant
        await client.read_body(self._body_limit_bytes)
        try:
            handle, number = read_id(call.last_event_id)
        except ValueError as error:
            raise Refused(Code.INVALID_REQUEST, f"{error}.", param="last-event-id") from error
        process = handle.partition(".")[0]
        if process == self._streams.process:
            await self._streams.follow(call, client, handle, number)
        else:
            await self._siblings.pass_on(call, client, process)
