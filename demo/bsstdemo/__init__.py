# SPDX-License-Identifier: GPL-2.0-or-later
"""The parts of demo/run-demo and demo/run-soak, one noun a file

leftovers   what must be undone whatever happens, and who undoes it
kernelswap  a memory cgroup, swap, zswap: an ordinary host
qmp         a small QMP client
machine     one QEMU process with its console, its monitor and its figures
contest     the contestants, and one run of one of them
progress    how far it is, on the screen
signals     a signal that ends it becomes an exception
report      the table, the goals and the JSON file
"""
