# What the tests of the bsst driver share: an image, a store, and a node on them
#
# This work is licensed under the terms of the GNU GPL, version 2 or later.
# See the COPYING file in the top-level directory.

import json
import os
import signal
import subprocess

import iotests
from iotests import qemu_img, qemu_io, QemuStorageDaemon

IMAGE = os.path.join(iotests.test_dir, 'guest.qcow2')
STORE = os.path.join(iotests.test_dir, 'store.qcow2')
NBD_SOCK = os.path.join(iotests.sock_dir, 'nbd.sock')
NBD = f'nbd+unix:///d?socket={NBD_SOCK}'

# Incompatible feature bit of an image whose blocks may be in a store
GUARD = 1 << 30


def create_store(path=STORE, size='64M'):
    qemu_img('create', '-f', 'qcow2', '-o', 'preallocation=metadata',
             path, size)


def image_opts(image=IMAGE, store=STORE, fmt='qcow2', seed=7, drain='on',
               **extra):
    """A bsst node; unless @drain is off the image is complete at the end."""
    opts = {'driver': 'bsst', 'drain-on-close': drain, 'defrag': 'off',
            'file.driver': fmt, 'file.file.filename': image,
            'store.driver': 'qcow2', 'store.file.filename': store}
    if seed:
        opts['x-test-indirect'] = seed
    opts.update(extra)
    return ','.join(f'{k.replace("_", "-")}={v}' for k, v in opts.items())


def chosen(block, pattern, seed=7):
    """Whether x-test-indirect=@seed puts @block into the store."""
    return not (block * 257 + pattern + seed) * 0x9e3779b97f4a7c15 >> 63 & 1


def features(image=IMAGE):
    """The incompatible feature bits in the header of a qcow2 image."""
    with open(image, 'rb') as f:
        f.seek(72)
        return int.from_bytes(f.read(8), 'big')


class BsstTestCase(iotests.QMPTestCase):
    """A new image and a new store for every test."""
    size = '16M'
    cluster_size = '64k'

    def setUp(self):
        qemu_img('create', '-f', 'qcow2', '-o',
                 f'cluster_size={self.cluster_size}', IMAGE, self.size)
        create_store()
        self.files = [IMAGE, STORE]
        self.qsd = None

    def tearDown(self):
        if self.qsd:
            self.qsd.stop()
        for path in self.files + [NBD_SOCK]:
            if os.path.lexists(path):
                os.remove(path)

    def path(self, name):
        """A file that goes away with the test."""
        self.files.append(os.path.join(iotests.test_dir, name))
        return self.files[-1]

    def io(self, *cmds, cache='writeback', check=True, **opts):
        """Let qemu-io do @cmds on the bsst node; patterns must be right."""
        return self.plain_io('-t', cache, '--image-opts', image_opts(**opts),
                             cmds=cmds, check=check)

    def plain_io(self, *args, cmds, check=True):
        for cmd in cmds:
            args += ('-c', cmd)
        result = qemu_io(*args, check=False)
        if check:
            self.assertEqual(result.returncode, 0, result.stdout)
            self.assertNotIn('failed', result.stdout)
        return result.stdout

    def fails(self, message, *args, prog=qemu_io):
        result = prog(*args, check=False)
        self.assertNotEqual(result.returncode, 0)
        self.assertIn(message, result.stdout)
        return result.stdout

    def launch(self, seed=7, discard='unmap', drain='on', defrag='off',
               protocol='driver=file,filename={}', store=STORE):
        """Export the node, writable; returns after NBD is reachable."""
        file = ','.join(f'file.{o}' for o in
                        protocol.format(IMAGE).split(','))
        self.qsd = QemuStorageDaemon(
            '--blockdev', f'qcow2,node-name=g,{file},discard={discard}',
            '--blockdev', f'qcow2,node-name=s,file.driver=file,'
            f'file.filename={store}',
            '--blockdev', f'bsst,node-name=d,file=g,store=s,discard=unmap,'
            f'x-test-indirect={seed},drain-on-close={drain},defrag={defrag}',
            '--nbd-server', f'addr.type=unix,addr.path={NBD_SOCK}',
            '--export', 'nbd,id=e,node-name=d,name=d,writable=on', qmp=True)

    def killed_io(self, *args, cmds):
        """Kill qemu-io after @cmds: no flush, no close."""
        for cmd in cmds + (f'sigraise {signal.SIGKILL.value}',):
            args += ('-c', cmd)
        with self.assertRaises(subprocess.CalledProcessError) as caught:
            qemu_io(*args)
        self.assertEqual(caught.exception.returncode, -signal.SIGKILL)
        self.assertNotIn('failed', caught.exception.stdout)

    def nbd_io(self, *cmds):
        """Without a flush, also at exit, so that indirections stay."""
        self.killed_io('-f', 'raw', '-t', 'writeback', NBD, cmds=cmds)

    def stats(self):
        return self.qsd.cmd('query-bsst')['nodes'][0]

    def map(self, *args):
        return json.loads(qemu_img('map', '--output=json', *args).stdout)
