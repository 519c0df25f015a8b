# SPDX-License-Identifier: GPL-2.0-or-later
"""Debian's fio for a guest that has next to no room

fio is linked with the libraries of every storage system there is, a hundred
megabytes in all, of which a guest with virtio disks calls none.  So the guest
gets fio itself and those few libraries that its own engines need, which are
this machine's; one library takes the place of all others and has their
symbols, to satisfy the dynamic linker.
"""
import re
import shutil
import subprocess
from pathlib import Path

# Those that are real; libaio's name has a suffix since Debian 13
REAL = re.compile(r'(libc|libm|libz|libaio|libdl|libpthread|librt|ld-linux.*)'
                  r'\.so\.')
LOADER = '/lib64/ld-linux-x86-64.so.2'


class Failed(Exception):
    """fio cannot be had"""


def run(*command, **kwargs):
    done = subprocess.run([str(c) for c in command], text=True, check=False,
                          capture_output=True, **kwargs)
    if done.returncode:
        raise Failed(f"{' '.join(map(str, command))}\n"
                     f'{done.stdout}{done.stderr}')
    return done.stdout


def fetch(folder, download):
    """Make @folder, with download(package, folder); returns fio's version"""
    part = folder.with_name(folder.name + '.part')
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    deb = download('fio', part)
    version = run('dpkg-deb', '-f', deb, 'Version').strip()
    run('dpkg-deb', '-x', deb, part / 'root')
    deb.unlink()
    program = part / 'root/usr/bin/fio'
    (part / 'lib').mkdir()
    others = []
    for name in needed(program):
        if REAL.match(name):
            shutil.copy(machine_library(name), part / 'lib' / name)
        else:
            others.append(name)
    if others:
        stand_in(program, part, others)
    shutil.rmtree(folder, ignore_errors=True)
    part.rename(folder)
    return version


def needed(program):
    return re.findall(r'\(NEEDED\).*\[(.*)\]', run('readelf', '-dW', program))


def machine_library(name):
    path = run('gcc', f'-print-file-name={name}').strip()
    if path == name:
        raise Failed(f'fio needs {name}, which this machine has not')
    return path


def provided(library):
    """{symbol} that @library has"""
    text = run('nm', '-D', '--defined-only', library)
    return {line.split()[-1].split('@')[0] for line in text.splitlines()}


def stand_in(program, folder, names):
    """One library with what @program wants of those in @names"""
    real = set()
    for library in (folder / 'lib').iterdir():
        real |= provided(library)
    versions = {}               # {version: [symbol]}
    symbols = []
    for line in run('nm', '-D', '--undefined-only', program).splitlines():
        kind, name = line.split()[-2:]
        symbol, _, version = name.partition('@')
        if symbol in real or kind in 'wv':
            continue
        symbols.append(symbol)
        if version:
            versions.setdefault(version.lstrip('@'), []).append(symbol)
    source, script = folder / 'stand-in.c', folder / 'stand-in.map'
    source.write_text(''.join(f'void {s}(void) {{ __builtin_trap(); }}\n'
                              for s in symbols))
    script.write_text(''.join(f"{v} {{ global: {'; '.join(s)}; }};\n"
                              for v, s in versions.items()))
    made = folder / 'stand-in.so'
    run('gcc', '-shared', '-fPIC', '-w', '-fno-builtin', '-nostdlib', source,
        *([f'-Wl,--version-script={script}'] if versions else []), '-o', made)
    for name in names:
        shutil.copy(made, folder / 'lib' / name)


def files(folder):
    """{path in the guest: content}"""
    found = {f'lib/{p.name}': p.read_bytes()
             for p in sorted((folder / 'lib').iterdir())}
    found[LOADER.lstrip('/')] = Path(LOADER).read_bytes()
    found['bin/fio'] = (folder / 'root/usr/bin/fio').read_bytes()
    return found
