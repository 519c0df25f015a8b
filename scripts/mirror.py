#!/usr/bin/python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""Print an apt source (deb822) for another suite of this machine's own mirror.

usage: mirror.py deb|deb-src SUITE

Reads the configured sources in both formats and takes the first that is a
Debian archive with component main: the machine's own release first, never
a security archive, never a third party's. BSST_MIRROR=URL overrides it.
"""
import glob
import os
import sys

RELEASES = ('bookworm', 'trixie', 'forky', 'duke', 'sid', 'unstable',
            'testing', 'stable', 'oldstable', 'bullseye')


def read_one_line(path):
    """Entries of the format 'deb [options] uri suite components...'"""
    with open(path, encoding='utf-8', errors='replace') as lines:
        for line in lines:
            line = line.split('#')[0].strip()
            options = {}
            if '[' in line and ']' in line:
                head, rest = line.split('[', 1)
                inner, tail = rest.split(']', 1)
                options = dict(word.split('=', 1) for word in inner.split()
                               if '=' in word)
                line = head + tail
            words = line.split()
            if len(words) < 4 or words[0] not in ('deb', 'deb-src'):
                continue
            signed = options.get('signed-by', '').replace(',', ' ')
            yield {'uris': words[1:2], 'suites': words[2:3],
                   'components': words[3:], 'signed-by': signed}


def read_deb822(path):
    """Entries of the format of debian.sources"""
    with open(path, encoding='utf-8', errors='replace') as lines:
        text = ''.join(line for line in lines if not line.startswith('#'))
    for stanza in text.replace('\n\n', '\0').split('\0'):
        fields, name = {}, None
        for line in stanza.splitlines():
            if line[:1] in ' \t' and name:
                fields[name] += '\n' + line
            elif ':' in line:
                name, value = line.split(':', 1)
                name = name.strip().lower()
                fields[name] = value.strip()
        if fields.get('enabled', 'yes').lower() in ('no', 'false', '0'):
            continue
        if 'uris' in fields and 'suites' in fields:
            yield {'uris': fields['uris'].split(),
                   'suites': fields['suites'].split(),
                   'components': fields.get('components', '').split(),
                   'signed-by': fields.get('signed-by', '')}


def own_release():
    try:
        with open('/etc/os-release', encoding='utf-8') as lines:
            for line in lines:
                if line.startswith('VERSION_CODENAME='):
                    return line.split('=', 1)[1].strip().strip('"')
    except OSError:
        pass
    return None


def find_archive():
    etc = os.environ.get('BSST_APT_ETC', '/etc/apt')
    entries = []
    paths = [etc + '/sources.list'] + sorted(glob.glob(etc + '/sources.list.d/*'))
    for path in paths:
        if not os.path.isfile(path):
            continue
        if path.endswith('.sources'):
            entries += read_deb822(path)
        elif path.endswith('.list'):
            entries += read_one_line(path)
    own = own_release()
    for releases in ((own,), RELEASES):
        for entry in entries:
            uris = [uri for uri in entry['uris']
                    if not uri.startswith('cdrom:')
                    and 'security' not in uri]
            if uris and 'main' in entry['components'] and \
               any(s in releases and s in RELEASES for s in entry['suites']):
                return uris[0], entry['signed-by']
    return None


def main():
    kind, suite = sys.argv[1:]
    if os.environ.get('BSST_MIRROR'):
        found = os.environ['BSST_MIRROR'], ''
    else:
        found = find_archive()
    if not found:
        sys.exit('no Debian archive (component main) among the sources in '
                 '/etc/apt; name one with BSST_MIRROR=URL')
    uri, signed = found
    keyring = '/usr/share/keyrings/debian-archive-keyring.gpg'
    if not signed and os.path.exists(keyring):
        signed = keyring
    print(f'Types: {kind}\nURIs: {uri}\nSuites: {suite}\nComponents: main')
    if signed:
        print(f'Signed-By: {signed}')


if __name__ == '__main__':
    main()
