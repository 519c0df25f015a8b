# SPDX-License-Identifier: GPL-2.0-or-later
"""A signal that ends a program becomes an exception, once"""
import signal

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def interrupted(number, _):
    for other in SIGNALS:
        signal.signal(other, signal.SIG_IGN)    # cleaning up has begun
    raise KeyboardInterrupt(signal.Signals(number).name)


def catch_signals():
    for number in SIGNALS:
        signal.signal(number, interrupted)
