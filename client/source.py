# SPDX-License-Identifier: Apache-2.0
"""X.509-SVIDs that stay fresh, for threads: one stream in the background, opened again whenever it ends."""

import threading
import time
from collections.abc import Callable
from typing import Any

import grpc

from firedoor.answers import Bundles, X509Context, X509Svid, x509_context
from firedoor.endpoint import HEADER
from firedoor.errors import AnswerUnusable, ClientClosed, FiredoorError, SidecarUnavailable, translated
from firedoor.freshness import Backoff, Freshest
from firedoor.wire import workload_grpc, workload_pb2

CLOSE_SECONDS = 5.0


class X509Source:
    """Holds the newest X.509-SVIDs and bundles. Made by `Client.x509_source`."""

    def __init__(self, channel: grpc.Channel, timeout: float, now: Callable[[], float] = time.time) -> None:
        self._stub = workload_grpc.SpiffeWorkloadAPIStub(channel)
        self._timeout, self._now = timeout, now
        self._freshest = Freshest()
        self._changed = threading.Condition()
        self._closed = threading.Event()
        self._call: Any = None
        self._thread = threading.Thread(target=self._run, name="firedoor-x509-source", daemon=True)
        self._thread.start()

    @property
    def version(self) -> int:
        """How many answers have come; grows with each rotation."""
        return self._freshest.version

    @property
    def context(self) -> X509Context:
        """The newest answer; the first one is waited for. Raise FiredoorError."""
        with self._changed:
            self._changed.wait_for(lambda: self._closed.is_set() or self._present() is not None, self._timeout)
            if self._closed.is_set():
                raise ClientClosed("the client is closed")
            found = self._present()
        if found is None:
            raise self._freshest.missing(self._timeout)
        return found

    @property
    def latest(self) -> X509Context:
        """The same as `context`."""
        return self.context

    @property
    def svid(self) -> X509Svid:
        """The first of this program's X.509-SVIDs, as it is now."""
        return self.context.svids[0]

    @property
    def bundles(self) -> Bundles:
        """The bundles of the own and of federated trust domains."""
        return self.context.bundles

    def wait_for_change(self, version: int, timeout: float | None = None) -> int:
        """Wait for an answer newer than `version` and return its version; the same one when time is up."""
        with self._changed:
            self._changed.wait_for(lambda: self._closed.is_set() or self.version > version, timeout)
            return self.version

    def close(self) -> None:
        """End the stream and the thread."""
        with self._changed:
            self._closed.set()
            self._changed.notify_all()
            if self._call is not None:
                self._call.cancel()
        if self._thread is not threading.current_thread():
            self._thread.join(CLOSE_SECONDS)

    def _present(self) -> X509Context | None:
        return self._freshest.current(self._now())

    def _run(self) -> None:
        backoff, again = Backoff(), True
        while again and not self._closed.is_set():
            failure = self._follow(backoff)
            with self._changed:
                again = self._freshest.failed(failure)
                self._changed.notify_all()
            if again:
                self._closed.wait(backoff.failed())

    def _follow(self, backoff: Backoff) -> FiredoorError:
        """Read one stream to its end; return why it ended."""
        try:
            call = self._stub.FetchX509SVID(workload_pb2.X509SVIDRequest(), metadata=HEADER)
            with self._changed:
                self._call = call
                if self._closed.is_set():
                    call.cancel()
            for response in call:
                context = x509_context(response)
                backoff.reset()
                with self._changed:
                    self._freshest.answered(context)
                    self._changed.notify_all()
        except grpc.RpcError as error:
            return translated(error)
        except AnswerUnusable as error:
            call.cancel()
            return error
        except ValueError:
            # grpcio says so when a channel was closed before the call.
            return ClientClosed("the client is closed")
        return SidecarUnavailable("the sidecar has ended the stream")
