# SPDX-License-Identifier: Apache-2.0
"""A program in a network namespace, as some user: it listens, connects and says what it met, by JSON lines."""

import contextlib
import json
import socket
import struct
import sys
import threading

SO_ORIGINAL_DST = 80


class Listeners:
    def __init__(self):
        self.open = {}
        self.met = {}

    def listen(self, host, port, udp=False):
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        sock = socket.socket(family, socket.SOCK_DGRAM if udp else socket.SOCK_STREAM)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        sock.bind((host, port))
        key = f"{host} {port}"
        self.open[key], self.met[key] = sock, []
        if not udp:
            sock.listen()
        threading.Thread(target=self.answer if udp else self.accept, args=(sock, key), daemon=True).start()

    def accept(self, sock, key):
        while True:
            try:
                peer, _ = sock.accept()
            except OSError:
                return
            self.met[key].append(original(peer))
            with peer:
                peer.sendall(f"tcp {original(peer)}".encode())

    def answer(self, sock, key):
        while True:
            try:
                data, peer = sock.recvfrom(2048)
            except OSError:
                return
            self.met[key].append(data.decode())
            try:
                sock.sendto(b"udp " + data, peer)
            except OSError as error:
                self.met[key].append(type(error).__name__)

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


def ask(host, port, udp=False, seconds=1.0, source=0):
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
            return sock.recv(2048).decode()
        except OSError as error:
            return type(error).__name__


def ping(host, seconds=0.5):
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
        self.sock = None

    def hold(self, host, port):
        self.sock = socket.create_connection((host, port), 2)
        return "connected"

    def speak(self, text):
        self.sock.sendall(text.encode())

    def hear(self, seconds=0.5):
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
            self.sock, _ = sock.accept()
            sock.close()

        threading.Thread(target=take, daemon=True).start()


def main():
    listeners, held = Listeners(), Held()
    calls = {
        "listen": listeners.listen,
        "close": listeners.close,
        "met": lambda host, port: listeners.met[f"{host} {port}"],
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
