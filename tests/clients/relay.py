"""Bytes between clients and the daemon, passed on as they are, to learn how each request was answered."""

import socket
import struct
import threading

PIECE = 1 << 16


class Relay:
    """Listens on loopback; `answers` holds the status of every answer since `forget`."""

    def __init__(self, target):
        self.target = target
        self.answers = []
        self.changed = threading.Condition()
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.url = "http://127.0.0.1:%d" % self.listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def forget(self):
        with self.changed:
            self.answers = []

    def wait_for(self, status, seconds):
        """Waits until a request was answered so; tells whether one was."""
        with self.changed:
            return self.changed.wait_for(lambda: status in self.answers, seconds)

    def _accept(self):
        while True:
            client, _ = self.listener.accept()
            daemon = socket.create_connection(self.target)
            for end in (client, daemon):
                end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            for way in ((client, daemon, None), (daemon, client, self._note)):
                threading.Thread(target=pass_on, args=way, daemon=True).start()

    def _note(self, piece):
        # The daemon begins each answer with a write of its own.
        if piece.startswith(b"HTTP/1.1 "):
            with self.changed:
                self.answers.append(int(piece[9:12]))
                self.changed.notify_all()


def pass_on(source, sink, note):
    """Passes bytes on until an end; an end passes on too, a reset as a reset."""
    try:
        while piece := source.recv(PIECE):
            if note:
                note(piece)
            sink.sendall(piece)
    except OSError:
        quietly(sink.setsockopt, socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    # This wakes the other way, too.
    for end in (sink, source):
        quietly(end.shutdown, socket.SHUT_RDWR)
    sink.close()


def quietly(call, *arguments):
    """Does something to a socket that may have ended already."""
    try:
        call(*arguments)
    except OSError:
        pass
