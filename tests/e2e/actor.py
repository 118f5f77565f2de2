# SPDX-License-Identifier: Apache-2.0
"""A program in a network namespace, as some user: it listens, connects and says what it met, by JSON lines."""

import contextlib
import json
import select
import socket
import struct
import sys
import threading
import time

SO_ORIGINAL_DST = 80
# Whoever is asked may be held for a while; what is awaited then is on its way.
PATIENCE = 60.0


class Listeners:
    def __init__(self):
        self.open = {}
        self._met = {}
        self._taking = threading.Lock()

    def listen(self, host, port, udp=False):
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        sock = socket.socket(family, socket.SOCK_DGRAM if udp else socket.SOCK_STREAM)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        sock.bind((host, port))
        key = f"{host} {port}"
        self.open[key], self._met[key] = sock, []
        if not udp:
            sock.listen()
        threading.Thread(target=self.answer if udp else self.accept, args=(sock, key), daemon=True).start()

    def accept(self, sock, key):
        while True:
            try:
                select.select([sock], [], [])
                with self._taking:
                    peer, _ = sock.accept()
                    self._met[key].append(original(peer))
            except (OSError, ValueError):
                return
            with peer:
                peer.sendall(f"tcp {original(peer)}".encode())

    def answer(self, sock, key):
        while True:
            try:
                select.select([sock], [], [])
                with self._taking:
                    data, peer = sock.recvfrom(2048)
                    self._met[key].append(data.decode())
            except (OSError, ValueError):
                return
            try:
                sock.sendto(b"udp " + data, peer)
            except OSError as error:
                self._met[key].append(type(error).__name__)

    def met(self, host, port):
        """Who came so far: also who has just come, and whom no thread has seen yet."""
        key = f"{host} {port}"
        while True:
            with self._taking:
                if not select.select([self.open[key]], [], [], 0)[0]:
                    return self._met[key]
            time.sleep(0.01)

    def close(self, host, port):
        sock = self.open.pop(f"{host} {port}")
        with contextlib.suppress(OSError):
            sock.shutdown(socket.SHUT_RDWR)
        sock.close()


def original(peer):
    """Where the connection was made to, before a redirection."""
    try:
        if peer.family == socket.AF_INET:
            port, host = struct.unpack_from("!2xH4s", peer.getsockopt(socket.SOL_IP, SO_ORIGINAL_DST, 16))
        else:
            port, host = struct.unpack_from("!2xH4x16s", peer.getsockopt(socket.IPPROTO_IPV6, SO_ORIGINAL_DST, 28))
    except OSError:
        return "not redirected"
    found = (socket.inet_ntop(peer.family, host), port)
    # Where connections are followed at all, one that came as it is has an original destination too: itself.
    return "not redirected" if found == peer.getsockname()[:2] else f"{found[0]} {port}"


def ask(host, port, udp=False, seconds=PATIENCE, source=0):
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM if udp else socket.SOCK_STREAM) as sock:
        sock.settimeout(seconds)
        try:
            if source:
                # It may be in use towards another destination.
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                sock.bind(("", source))
            sock.connect((host, port))
            if udp:
                sock.send(b"question")
            else:
                # The kernel connects; who answers then is a program.
                sock.settimeout(PATIENCE)
            return sock.recv(2048).decode()
        except OSError as error:
            return type(error).__name__


def ping(host, seconds=PATIENCE):
    six = ":" in host
    protocol = socket.IPPROTO_ICMPV6 if six else socket.IPPROTO_ICMP
    with socket.socket(socket.AF_INET6 if six else socket.AF_INET, socket.SOCK_DGRAM, protocol) as sock:
        sock.settimeout(seconds)
        try:
            sock.sendto(bytes([128 if six else 8, 0, 0, 0, 0, 0, 0, 1]), (host, 0))
            return "answered" if sock.recv(2048) else "nothing"
        except OSError as error:
            return type(error).__name__


class Held:
    """One connection that stays open."""

    def __init__(self):
        self._sock = None
        self._there = threading.Event()

    @property
    def sock(self):
        assert self._there.wait(PATIENCE), "nobody has come"
        return self._sock

    def hold(self, host, port):
        self._sock = socket.create_connection((host, port), PATIENCE)
        self._there.set()
        return "connected"

    def speak(self, text):
        self.sock.sendall(text.encode())

    def hear(self, seconds=PATIENCE):
        self.sock.settimeout(seconds)
        try:
            return self.sock.recv(2048).decode()
        except OSError as error:
            return type(error).__name__

    def hold_next(self, host, port):
        """Accept one connection and keep it."""
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        sock = socket.socket(family)
        sock.bind((host, port))
        sock.listen()

        def take():
            self._sock, _ = sock.accept()
            sock.close()
            self._there.set()

        threading.Thread(target=take, daemon=True).start()


def main():
    listeners, held = Listeners(), Held()
    calls = {
        "listen": listeners.listen,
        "close": listeners.close,
        "met": listeners.met,
        "ask": ask,
        "ping": ping,
        "hold": held.hold,
        "hold_next": held.hold_next,
        "speak": held.speak,
        "hear": held.hear,
    }
    print("ready", flush=True)
    for line in sys.stdin:
        name, words, options = json.loads(line)
        try:
            answer = {"answer": calls[name](*words, **options)}
        except OSError as error:
            answer = {"error": f"{type(error).__name__}: {error}"}
        print(json.dumps(answer), flush=True)


main()
