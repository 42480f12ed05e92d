#!/usr/bin/env python3
"""Generate the protobuf stubs, or check that the committed ones are what the .proto files say.

    python proto/generate.py            write the stubs
    python proto/generate.py --check    exit 1 and name the files that differ

grpcio-tools is pinned to 1.80: its generated code loads on protobuf 6.33 and 7, newer tools refuse protobuf 6.
"""

import argparse
import difflib
import sys
import tempfile
from pathlib import Path

from grpc_tools import protoc

ROOT = Path(__file__).resolve().parent
# Only services we serve or call through stubs need grpc code; etcd's methods are called by their paths.
SOURCES = {"wire/v1/node.proto": True, "wire/etcd_v3/etcd.proto": False}


def generate(out: Path) -> None:
    for source, services in SOURCES.items():
        plugins = [f"--python_out={out}", f"--pyi_out={out}"] + ([f"--grpc_python_out={out}"] if services else [])
        code = protoc.main(["protoc", f"-I{ROOT}", *plugins, str(ROOT / source)])
        if code:
            raise SystemExit(f"protoc failed on {source} (exit {code})")


def stale(fresh: Path) -> list[str]:
    """Paths under wire/ whose committed text is not the generated one."""
    paths = sorted(p.relative_to(fresh) for p in fresh.rglob("*_pb2*.py*"))
    return [str(p) for p in paths if not (ROOT / p).exists() or (ROOT / p).read_text() != (fresh / p).read_text()]


def main() -> int:
    args = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    args.add_argument("--check", action="store_true", help="compare only; change nothing")
    if not args.parse_args().check:
        generate(ROOT)
        return 0
    with tempfile.TemporaryDirectory() as tmp:
        fresh = Path(tmp)
        generate(fresh)
        for path in (differing := stale(fresh)):
            old = (ROOT / path).read_text().splitlines() if (ROOT / path).exists() else []
            new = (fresh / path).read_text().splitlines()
            print("\n".join(difflib.unified_diff(old, new, f"committed/{path}", f"generated/{path}", lineterm="")))
        if differing:
            print(f"stale stubs: {', '.join(differing)}; run: python proto/generate.py", file=sys.stderr)
        return 1 if differing else 0


if __name__ == "__main__":
    sys.exit(main())
