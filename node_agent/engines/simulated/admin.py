"""The calls that exist only in the simulation: faults on and off, and exact counts for tests."""

from __future__ import annotations

import os

import msgspec

from node_agent.engines.simulated import wire
from node_agent.engines.simulated.faults import Fault, Kind
from node_agent.engines.simulated.http import Connection, Request
from node_agent.engines.simulated.replica import Replica
from node_agent.engines.simulated.requests import Refused, bad_request


class Admin:
    def __init__(self, replica: Replica) -> None:
        self.replica = replica

    def list_faults(self, request: Request, connection: Connection) -> None:
        connection.respond(200, wire.json({"faults": self.replica.faults.active(self.replica.now())}))

    def add_fault(self, request: Request, connection: Connection) -> None:
        try:
            fault = msgspec.json.decode(request.body, type=Fault)
            self.replica.faults.add(fault, self.replica.now())
        except (ValueError, msgspec.DecodeError) as error:
            raise bad_request(str(error)) from error
        connection.respond(200, wire.json(fault))
        if fault.kind is Kind.REFUSE:
            self.replica.down(fault.duration_s)
        elif fault.kind is Kind.CRASH:
            self.replica.crash(fault.duration_s or 0.0)
        elif fault.kind is Kind.EXIT:
            self.replica.loop.call_later(0.01, os._exit, fault.status & 255)

    def clear_faults(self, request: Request, connection: Connection) -> None:
        self.replica.faults.clear()
        connection.respond(200, b'{"faults":[]}')

    def remove_fault(self, request: Request, connection: Connection) -> None:
        if not self.replica.faults.remove(request.path.rsplit("/", 1)[1]):
            raise Refused(404, "no such fault", "NotFoundError")
        self.list_faults(request, connection)

    def stats(self, request: Request, connection: Connection) -> None:
        r = self.replica
        running = sum(call.usage.completion for call in r.calls.values())
        stats = msgspec.to_builtins(r.stats) | {"tokens_sent": r.stats.tokens_sent + running}
        connection.respond(200, wire.json(stats | {"engine": r.batch.counters()}))
