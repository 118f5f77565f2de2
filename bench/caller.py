# SPDX-License-Identifier: Apache-2.0
"""A process that calls a broker again and again and writes down how long each call took; run by `bench.streams`.

It prints "ready", calls until its stdin is closed, and prints a JSON list of [begin, end], in seconds of the clock that
all processes of a machine share.
"""

import json
import sys
import threading
import time

import grpc

from firedoor.wire import entry_grpc, entry_pb2


def main() -> None:
    """Call `CountEntries`, which asks the state and no disk, with 2 ms between calls."""
    done = threading.Event()

    def watch() -> None:
        sys.stdin.read()
        done.set()

    threading.Thread(target=watch, daemon=True).start()
    calls = []
    with grpc.insecure_channel(f"unix:{sys.argv[1]}") as channel:
        stub = entry_grpc.EntryStub(channel)
        stub.CountEntries(entry_pb2.CountEntriesRequest(), timeout=30)
        print("ready", flush=True)
        while not done.wait(0.002):
            begin = time.monotonic()
            stub.CountEntries(entry_pb2.CountEntriesRequest(), timeout=30)
            calls.append((begin, time.monotonic()))
    print(json.dumps(calls), flush=True)


if __name__ == "__main__":
    main()
