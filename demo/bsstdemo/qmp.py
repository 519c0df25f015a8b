# SPDX-License-Identifier: GPL-2.0-or-later
"""A small QMP client on one end of a socket pair

Thread-safe.  An answer that comes after its caller has given up is dropped.
"""
import itertools
import json
import socket
import threading
import time


class QmpError(Exception):
    """The command failed, or QEMU is gone"""


class Qmp:
    def __init__(self, sock):
        self.sock = sock
        self.mutex = threading.Lock()
        # under the mutex
        self.buffer = b''
        self.ids = itertools.count(1)

    def greet(self, timeout=20):
        with self.mutex:
            self._message(time.monotonic() + timeout)
        self.command('qmp_capabilities', timeout=timeout)

    def _message(self, deadline):
        while b'\n' not in self.buffer:
            left = deadline - time.monotonic()
            if left <= 0:
                raise QmpError('no answer in time')
            self.sock.settimeout(left)
            try:
                data = self.sock.recv(1 << 16)
            except socket.timeout:
                continue
            except OSError as e:
                raise QmpError(str(e)) from None
            if not data:
                raise QmpError('QEMU has closed the monitor')
            self.buffer += data
        line, self.buffer = self.buffer.split(b'\n', 1)
        return json.loads(line)

    def command(self, name, timeout=5, **arguments):
        with self.mutex:
            ident = next(self.ids)
            text = json.dumps({'execute': name, 'id': ident,
                               'arguments': arguments})
            try:
                self.sock.sendall(text.encode())
            except OSError as e:
                raise QmpError(str(e)) from None
            deadline = time.monotonic() + timeout
            while True:
                message = self._message(deadline)
                if message.get('id') != ident:
                    continue
                if 'error' in message:
                    raise QmpError(message['error'].get('desc', 'error'))
                return message.get('return')

    def query(self, name):
        """The answer, or None where QEMU has none"""
        try:
            return self.command(name)
        except QmpError:
            return None

    def close(self):
        self.sock.close()
