# SPDX-License-Identifier: GPL-2.0-or-later
"""Requests to an NBD export of qemu-storage-daemon, and how long reads take.

As much of NBD as one request at a time needs (its doc/proto.md has the rest):
the handshake by NBD_OPT_EXPORT_NAME, then simple replies.
"""
import random
import socket
import struct
import time

GREETING = b'NBDMAGICIHAVEOPT'
FIXED_NO_ZEROES = 3
EXPORT_NAME = 1
REQUEST, REPLY = 0x25609513, 0x67446698
READ, WRITE = 0, 1
TIMEOUT_S = 60


class Failure(Exception):
    pass


class NbdClient:
    """Until close(), or the end of a with"""

    def __init__(self, path, name):
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.settimeout(TIMEOUT_S)
        self.socket.connect(str(path))
        self.cookie = 0
        if self.receive(len(GREETING)) != GREETING:
            raise Failure(f'{path} is no NBD server')
        self.receive(2)
        self.socket.sendall(struct.pack('>I', FIXED_NO_ZEROES) + b'IHAVEOPT' +
                            struct.pack('>II', EXPORT_NAME, len(name)) +
                            name.encode())
        self.size, _ = struct.unpack('>QH', self.receive(10))

    def receive(self, size):
        data = bytearray()
        while len(data) < size:
            part = self.socket.recv(size - len(data))
            if not part:
                raise Failure('the NBD server has ended')
            data += part
        return bytes(data)

    def request(self, command, offset, size, payload=b''):
        self.cookie += 1
        self.socket.sendall(struct.pack('>IHHQQI', REQUEST, 0, command,
                                        self.cookie, offset, size) + payload)
        magic, error, cookie = struct.unpack('>IIQ', self.receive(16))
        if magic != REPLY or cookie != self.cookie or error:
            raise Failure(f'a request at {offset} failed: error {error}')

    def read(self, offset, size):
        self.request(READ, offset, size)
        return self.receive(size)

    def write(self, offset, data):
        self.request(WRITE, offset, len(data), data)

    def latencies(self, seconds, size, seed):
        """Nanoseconds of reads at random, one after the other"""
        rand = random.Random(seed)
        samples = []
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            offset = rand.randrange(self.size // size) * size
            begin = time.perf_counter_ns()
            self.read(offset, size)
            samples.append(time.perf_counter_ns() - begin)
        return samples

    def close(self):
        self.socket.close()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()
