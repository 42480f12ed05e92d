"""Pack a published trace file into the form that is shipped: python -m loadtest.traces azure-conv FILE"""

from __future__ import annotations

import argparse
import csv
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path

import msgspec

from loadtest.traces import NAMES, Arrival, pack


class _Line(msgspec.Struct):
    timestamp: int
    input_length: int
    output_length: int
    hash_ids: tuple[int, ...]


def azure(path: Path) -> Iterator[Arrival]:
    """AzureLLMInferenceTrace_conv.csv: a wall-clock time with seven decimals, two lengths."""
    first = -1.0
    with path.open(newline="") as lines:
        for row in csv.DictReader(lines):
            second, _, fraction = row["TIMESTAMP"].partition(".")
            at = datetime.fromisoformat(second + "+00:00").timestamp() + float(f"0.{fraction or 0}")
            first = at if first < 0 else first
            yield Arrival(at - first, int(row["ContextTokens"]), int(row["GeneratedTokens"]))


def mooncake(path: Path) -> Iterator[Arrival]:
    """FAST25-release/traces/conversation_trace.jsonl: milliseconds, two lengths, block ids."""
    for text in path.read_text().splitlines():
        line = msgspec.json.decode(text, type=_Line)
        yield Arrival(line.timestamp / 1000, line.input_length, line.output_length, line.hash_ids)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m loadtest.traces", description=__doc__)
    parser.add_argument("name", choices=NAMES)
    parser.add_argument("file", type=Path)
    args = parser.parse_args()
    print(pack(args.name, (azure if args.name.startswith("azure") else mooncake)(args.file)))


if __name__ == "__main__":
    main()
