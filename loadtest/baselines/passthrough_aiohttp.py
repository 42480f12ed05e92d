"""A pass-through proxy as vLLM's production-stack builds its router: FastAPI in front, aiohttp behind.

A baseline for compare.py, run by its own environment: `python passthrough_aiohttp.py PORT ENGINE...`.
"""

import itertools
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import aiohttp  # type: ignore[import-not-found,unused-ignore]
import fastapi  # type: ignore[import-not-found,unused-ignore]
import uvicorn
from starlette.requests import Request
from starlette.responses import StreamingResponse

PORT, ENGINES = int(sys.argv[1]), itertools.cycle(sys.argv[2:])


@asynccontextmanager
async def lifespan(app: Any) -> AsyncIterator[None]:
    async with aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=0), timeout=aiohttp.ClientTimeout(total=600)
    ) as session:
        app.state.session = session
        yield


async def proxy(request: Request, path: str) -> StreamingResponse:
    body = await request.body()
    headers = {"content-type": request.headers.get("content-type", "application/json")}
    url = f"http://{next(ENGINES)}/{path}"
    answer = await request.app.state.session.request(request.method, url, data=body or None, headers=headers)

    async def chunks() -> AsyncIterator[bytes]:
        async with answer:
            async for chunk in answer.content.iter_any():
                yield chunk

    return StreamingResponse(chunks(), status_code=answer.status, media_type=answer.headers.get("content-type"))


app = fastapi.FastAPI(lifespan=lifespan)
app.add_api_route("/{path:path}", proxy, methods=["GET", "POST"], response_model=None)
uvicorn.run(app, port=PORT, log_level="error", loop="uvloop", http="httptools", access_log=False)
