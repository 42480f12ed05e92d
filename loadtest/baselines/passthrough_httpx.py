"""A pass-through proxy with FastAPI in front and httpx behind: the first thing most people would write.

A baseline for compare.py, run by its own environment: `python passthrough_httpx.py PORT ENGINE...`.
"""

import itertools
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import fastapi  # type: ignore[import-not-found,unused-ignore]
import httpx
import uvicorn
from starlette.requests import Request
from starlette.responses import StreamingResponse

PORT, ENGINES = int(sys.argv[1]), itertools.cycle(sys.argv[2:])
LIMITS = httpx.Limits(max_connections=None, max_keepalive_connections=None)


@asynccontextmanager
async def lifespan(app: Any) -> AsyncIterator[None]:
    async with httpx.AsyncClient(limits=LIMITS, timeout=600) as client:
        app.state.client = client
        yield


async def proxy(request: Request, path: str) -> StreamingResponse:
    client: httpx.AsyncClient = request.app.state.client
    body = await request.body()
    headers = {"content-type": request.headers.get("content-type", "application/json")}
    outgoing = client.build_request(request.method, f"http://{next(ENGINES)}/{path}", content=body, headers=headers)
    answer = await client.send(outgoing, stream=True)

    async def chunks() -> AsyncIterator[bytes]:
        try:
            async for chunk in answer.aiter_raw():
                yield chunk
        finally:
            await answer.aclose()

    return StreamingResponse(chunks(), status_code=answer.status_code, media_type=answer.headers.get("content-type"))


app = fastapi.FastAPI(lifespan=lifespan)
app.add_api_route("/{path:path}", proxy, methods=["GET", "POST"], response_model=None)
uvicorn.run(app, port=PORT, log_level="error", loop="uvloop", http="httptools", access_log=False)
