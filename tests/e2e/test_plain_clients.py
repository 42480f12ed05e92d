"""Clients without an SDK: httpx and curl."""

from __future__ import annotations

import json
import shutil
import subprocess
from typing import Any

import httpx
import pytest

from tests.e2e.conftest import Target


def _body(target: Target, *, stream: bool) -> dict[str, Any]:
    messages = [{"role": "user", "content": "Name a river."}]
    return {"model": target.chat_model, "messages": messages, "stream": stream, "max_tokens": 12, "ignore_eos": True}


def test_httpx_reads_a_stream_line_by_line(target: Target) -> None:
    headers = {"authorization": f"Bearer {target.key}"}
    url = f"{target.base_url}/chat/completions"
    with httpx.stream("POST", url, json=_body(target, stream=True), headers=headers, timeout=60) as answer:
        lines = [line for line in answer.iter_lines() if line]
    assert answer.status_code == 200
    assert answer.headers["content-type"].startswith("text/event-stream")
    assert lines[-1] == "data: [DONE]"
    assert json.loads(lines[-2].removeprefix("data: "))["choices"][0]["finish_reason"] == "length"


def test_httpx_gets_a_whole_answer_as_json(target: Target) -> None:
    headers = {"authorization": f"Bearer {target.key}"}
    url = f"{target.base_url}/chat/completions"
    answer = httpx.post(url, json=_body(target, stream=False), headers=headers, timeout=60)
    assert answer.headers["content-type"] == "application/json"
    assert answer.json()["usage"]["completion_tokens"] == 12


@pytest.mark.parametrize("http", ["--http1.1", "--http1.0"])
def test_curl_gets_a_stream_that_ends_with_done(target: Target, http: str) -> None:
    curl = shutil.which("curl")
    if curl is None:
        pytest.skip("no curl on this machine")
    command = [curl, "-sS", "-N", http, "--max-time", "60", f"{target.base_url}/chat/completions"]
    command += ["-H", f"Authorization: Bearer {target.key}", "-H", "Content-Type: application/json"]
    command += ["-d", json.dumps(_body(target, stream=True))]
    done = subprocess.run(command, capture_output=True, timeout=90, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith(b"data: [DONE]\n\n")


def test_curl_gets_what_is_not_json_back_as_an_error_of_openais_shape(target: Target) -> None:
    curl = shutil.which("curl")
    if curl is None:
        pytest.skip("no curl on this machine")
    command = [curl, "-sS", "--max-time", "60", "-w", "\n%{http_code}", f"{target.base_url}/chat/completions"]
    command += ["-H", f"Authorization: Bearer {target.key}", "-H", "Content-Type: application/json", "-d", "{oops"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=90, check=False)
    text, _, status = done.stdout.rpartition("\n")
    assert status == "400"
    assert json.loads(text)["error"]["message"]
