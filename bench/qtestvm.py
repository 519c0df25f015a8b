# SPDX-License-Identifier: GPL-2.0-or-later
"""QEMU under qtest with one virtio-blk disk, and no guest: we are the driver.

Speaks QEMU's qtest and QMP protocols.  The disk is a legacy virtio-pci
device, whose registers are I/O ports.
"""
import base64
import json
import os
import socket
import struct
import subprocess
import time

PAGE = 4096
QUEUE_PAGES = 16             # enough for 1024 descriptors
RAM_BASE = 16 << 20         # what we use of guest RAM begins here
BAR = 0xc000
DEVFN = 4 << 3
# Legacy virtio-pci registers
GUEST_FEATURES, QUEUE_PFN, QUEUE_NUM, QUEUE_SELECT = 4, 8, 12, 14
QUEUE_NOTIFY, STATUS = 16, 18
DESC_NEXT, DESC_WRITE = 1, 2
HEADER_BYTES = 32           # a request's header and its status, in one page
READ, WRITE, FLUSH = 0, 1, 4
TIMEOUT_S = 60


class Failure(Exception):
    pass


class QtestVm:
    """Started by the constructor, ended by close()"""

    def __init__(self, qemu, folder, args):
        self.events = []
        self.used = 0
        self.avail = 0
        self.sockets = []
        listeners = []
        for name in 'qtest', 'qmp':
            listener = socket.socket(socket.AF_UNIX)
            listener.bind(os.path.join(folder, name))
            listener.listen(1)
            listener.settimeout(TIMEOUT_S)
            listeners.append(listener)
        self.log_path = os.path.join(folder, 'qemu.log')
        with open(self.log_path, 'wb') as log:
            self.process = subprocess.Popen(
                [qemu, '-accel', 'qtest', '-qtest', f'unix:{folder}/qtest',
                 '-qtest-log', '/dev/null', '-qmp', f'unix:{folder}/qmp',
                 '-display', 'none', '-nodefaults', '-M', 'pc', *args],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        try:
            self.qtest_file, self.qmp_file = map(self.accept, listeners)
            self.qmp_file.readline()
            self.qmp('qmp_capabilities')
            self.start_disk()
        except (OSError, ValueError, Failure) as why:
            self.close()
            with open(self.log_path, encoding='utf-8') as log:
                raise Failure(log.read() or str(why)) from None

    def accept(self, listener):
        listener.settimeout(0.2)
        for _ in range(TIMEOUT_S * 5):
            try:
                connection, _ = listener.accept()
            except TimeoutError:
                if self.process.poll() is not None:
                    raise Failure('QEMU ended') from None
                continue
            connection.settimeout(TIMEOUT_S)
            self.sockets.append(connection)
            listener.close()
            return connection.makefile('rwb')
        raise Failure('QEMU does not connect')

    def close(self):
        """A clean end of QEMU, else a kill; returns true if it was clean"""
        self.process.terminate()
        try:
            self.process.wait(TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        for connection in self.sockets:
            connection.close()
        return self.process.returncode == 0

    # Protocols

    def qmp(self, command, **arguments):
        arguments = {k.replace('_', '-'): v for k, v in arguments.items()}
        request = {'execute': command, 'arguments': arguments}
        self.qmp_file.write(json.dumps(request).encode() + b'\n')
        self.qmp_file.flush()
        while True:
            line = self.qmp_file.readline()
            if not line:
                raise Failure(f'QEMU ended in {command}')
            answer = json.loads(line)
            if 'error' in answer:
                raise Failure(f"{command}: {answer['error']['desc']}")
            if 'return' in answer:
                return answer['return']

    def qtest(self, *words):
        self.qtest_file.write(' '.join(map(str, words)).encode() + b'\n')
        self.qtest_file.flush()
        while True:
            answer = self.qtest_file.readline().split()
            if not answer:
                raise Failure('QEMU ended')
            if answer[0] == b'OK':
                return answer[1] if len(answer) > 1 else b''
            if answer[0] != b'IRQ':
                raise Failure(f'qtest: {words[0]}: {answer}')

    def write(self, address, data):
        self.qtest('b64write', hex(address), hex(len(data)),
                   base64.b64encode(data).decode())

    def read(self, address, size):
        return base64.b64decode(self.qtest('b64read', hex(address), hex(size)))

    # The disk

    def config(self, register, value, width='l'):
        self.qtest('outl', '0xcf8', hex(1 << 31 | DEVFN << 8 | register))
        self.qtest('out' + width, '0xcfc', hex(value))

    def port(self, register, value, width='l'):
        self.qtest('out' + width, hex(BAR + register), hex(value))

    def start_disk(self):
        self.config(0x10, BAR)
        self.config(0x04, 5, 'w')               # I/O ports and bus master
        self.port(STATUS, 0, 'b')
        self.port(STATUS, 3, 'b')               # ACKNOWLEDGE, DRIVER
        self.port(GUEST_FEATURES, 0)
        self.port(QUEUE_SELECT, 0, 'w')
        self.size = int(self.qtest('inw', hex(BAR + QUEUE_NUM)), 16)
        self.desc = RAM_BASE
        self.ring = self.desc + 16 * self.size
        used = self.ring + 2 * (3 + self.size)
        self.used_ring = (used + PAGE - 1) // PAGE * PAGE
        if self.used_ring + 6 + 8 * self.size > self.desc + QUEUE_PAGES * PAGE:
            raise Failure(f'queue size {self.size}')
        self.header = RAM_BASE + QUEUE_PAGES * PAGE
        self.ram = RAM_BASE + (1 << 20)
        self.qtest('memset', hex(RAM_BASE), hex(QUEUE_PAGES * PAGE), '0')
        self.port(QUEUE_PFN, self.desc // PAGE)
        self.port(STATUS, 7, 'b')               # DRIVER_OK

    def request(self, kind, offset, pieces=()):
        """One request over @pieces of (address, bytes); waits for its end"""
        self.requests(kind, [(offset, pieces)])

    def requests(self, kind, batch):
        """All of @batch of (offset, pieces) at once; waits until all have ended

        The host hears of them when the last is in the queue.
        """
        table, heads = b'', []
        flags = DESC_WRITE if kind == READ else 0
        for i, (offset, pieces) in enumerate(batch):
            header = self.header + HEADER_BYTES * i
            self.write(header, struct.pack('<IIQB', kind, 0, offset // 512,
                                           0xff))
            chain = [(header, 16, 0),
                     *((address, size, flags) for address, size in pieces),
                     (header + 16, 1, DESC_WRITE)]
            heads.append(len(table) // 16)
            table += b''.join(
                struct.pack('<QIHH', address, size,
                            flag | (DESC_NEXT if k + 1 < len(chain) else 0),
                            heads[-1] + k + 1)
                for k, (address, size, flag) in enumerate(chain))
        if len(table) > 16 * self.size:
            raise Failure(f'{len(batch)} requests do not fit into the queue')
        self.write(self.desc, table)
        for head in heads:
            self.write(self.ring + 4 + 2 * (self.avail % self.size),
                       struct.pack('<H', head))
            self.avail = (self.avail + 1) & 0xffff
        self.write(self.ring + 2, struct.pack('<H', self.avail))
        self.port(QUEUE_NOTIFY, 0, 'w')
        end = time.monotonic() + TIMEOUT_S
        while int(self.qtest('readw', hex(self.used_ring + 2)),
                  16) != self.avail:
            if time.monotonic() > end:
                raise Failure('a request hangs')
            time.sleep(0.001)
        for i in range(len(batch)):
            status = self.read(self.header + HEADER_BYTES * i + 16, 1)[0]
            if status:
                raise Failure(f'request failed with status {status}')
