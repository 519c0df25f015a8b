# SPDX-License-Identifier: GPL-2.0-or-later
"""The disks that the profiles stand for

A slow device carries image and store, or image and kernel swap, one behind the
other.  Kernel swap reaches it through a loop device, as swap cannot lie on FUSE.
"""
from pathlib import Path

import slowdisk
from bsstdemo.contest import SWAP_DISK_BYTES, Disk, quoted
from bsstdemo.kernelswap import Unavailable, run_tool

STORE_OPTIONS = 'preallocation=metadata,cluster_size=2M'


def make_store(run, image, store):
    """A store that is one: through FUSE, nobody sees that a file is blank"""
    run_tool(run.s.image_tool, 'create', '-q', '-f', 'qcow2', '-o',
             STORE_OPTIONS, store, SWAP_DISK_BYTES)
    run_tool(run.s.build / 'qemu-io', '-c', 'flush', '--image-opts',
             'driver=bsst,file.driver=qcow2,file.file.driver=file,'
             f'file.file.filename={quoted(image)},store.driver=qcow2,'
             f'store.file.driver=file,store.file.filename={quoted(store)}')


class SlowPlace:
    """A place for the files of a @run on a device that @make makes"""

    def __init__(self, run, make):
        self.leftovers = run.leftovers
        self.loop = self.device = None
        folder = run.folder / 'device'
        folder.mkdir()
        files = [folder / 'swap.qcow2', folder / 'second']
        run.create_image(files[0])
        kernel = run.contestant.held_by == 'cgroup'
        if run.contestant.ours:
            make_store(run, *files)
        else:
            with open(files[1], 'wb') as f:
                f.truncate(SWAP_DISK_BYTES)
        try:
            self.device = make(run.folder, files, leftovers=run.leftovers)
        except slowdisk.Failure as e:
            raise Unavailable(f'no such device here: {e}') from None
        self.image, self.store = self.device.paths
        if kernel:
            self.attach(self.store)

    def attach(self, path):
        """A block device for kernel swap: self.kernel_swap"""
        self.loop = run_tool('losetup', '-f')
        self.leftovers.add('loop', self.loop)
        try:
            run_tool('losetup', '--direct-io=on', self.loop, path)
            rotational = Path(f'/sys/block/{Path(self.loop).name}/queue/'
                              'rotational')
            rotational.write_text('1')
        except (Unavailable, OSError) as e:
            self.close()
            raise Unavailable(f'no loop device on FUSE: {e}') from None
        self.kernel_swap = self.loop

    def io_bytes(self):
        return self.device.io_bytes()

    def close(self):
        if self.loop:
            self.leftovers.undo('loop', self.loop)
        self.device.close()


def spinning(run):
    return SlowPlace(run, slowdisk.SlowDisk)


def network(run):
    return SlowPlace(run, slowdisk.SlowNetwork)


PLACES = {'fast': Disk, 'spinning': spinning, 'network': network}
