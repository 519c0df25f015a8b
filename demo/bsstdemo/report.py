# SPDX-License-Identifier: GPL-2.0-or-later
"""The figures of a run, the table of them all, the goals, the JSON file"""
import json
import os
import platform
import statistics
import subprocess
from pathlib import Path

from .contest import MIB, PAGE, WAYS

STRICT_LIMIT = 0.01         # of the limit may be exceeded
MAX_WRITE_FAULTS = 0.02     # of the intercepted pages
MAX_TO_KERNEL = 0.95        # of the time of (a)
BUSY = 0.2                  # of the processors are taken by others


def passes_ns(result):
    return sum(p['wall_ns'] for name, p in result['phases'].items()
               if name.startswith('unpinned-pass'))


def guest_pages(result, name):
    done, ready = result.get('guest_done', {}), result.get('guest_ready', {})
    return done[name] - ready[name] if name in done else None


def figures_stall(load):
    """When no warehouse got on; jbb only"""
    return {f'stall_{name}_ms': load[key] / 1e6
            for name, key in (('max', 'stall_max_ns'), ('sum', 'stall_ns'))
            if key in load}


def figures(result):
    """What the table shows of one run, by name; what is missing is None"""
    host = result.get('host', {})
    total = result['phases'].get('total', {})
    f = {
        'time_s': total.get('wall_ns', 0) / 1e9 or None,
        'passes_s': passes_ns(result) / 1e9 or None,
        'pause_max_ms': total['max_ns'] / 1e6 if total else None,
        'pause_sum_ms': total['pause_ns'] / 1e6 if total else None,
        'touch_p99_us': total['p99_ns'] / 1e3 if total else None,
        'touch_p999_us': total['p999_ns'] / 1e3 if total else None,
        **figures_stall(result.get('load', {})),
        'guest_pages_in': guest_pages(result, 'pswpin'),
        'guest_pages_out': guest_pages(result, 'pswpout'),
        'data_errors': result['data_errors'],
        'cpu_s': host.get('cpu_s'),
        'boot_s': result.get('boot_s'),
        'shutdown_s': result.get('shutdown_s'),
    }
    if not result['held_by']:
        result = dict(result, excess_bytes=None)
    for name in ('ram_mean', 'held_mean', 'held_max', 'excess',
                 'overhead'):
        value = result.get(f'{name}_bytes')
        f[f'{name}_mib'] = None if value is None else value / MIB
    if host:
        f.update(figures_host(result, host))
    return f


def figures_host(result, host):
    """Figures of the host's side: kernel swap's or the swapper's"""
    read = host['process_read_bytes']
    written = host['process_written_bytes']
    f = {'host_pages_in': 0, 'host_pages_out': 0}
    if result['held_by'] == 'cgroup':
        f['host_pages_in'] = host['host_pswpin']
        f['host_pages_out'] = host['host_pswpout']
        # The kernel counts what it reads for a fault as the process's own,
        # but nobody's is what it writes
        written += host['host_pswpout'] * PAGE
    elif result['held_by'] == 'swapper':
        f.update(figures_swapper(result))
    if 'place_read_bytes' in host:
        read, written = host['place_read_bytes'], host['place_written_bytes']
    f['read_mib'] = read / MIB
    f['written_mib'] = written / MIB
    f['device_mib'] = (read + written) / MIB
    f['others_cpu_s'] = max(0, host['machine_cpu_s'] - host['cpu_s'])
    f['others_disk_mib'] = max(0, (host['disk_read_bytes'] - read +
                                   host['disk_written_bytes'] -
                                   written) / MIB)
    f['others_cpu_share'] = f['others_cpu_s'] / (host['time_s'] *
                                                 os.cpu_count())
    return f


def figures_swapper(result):
    answers = result.get('qmp', {})
    swapper = (answers.get('query-host-swapper') or [{}])[0]
    nodes = (answers.get('query-bsst') or {}).get('nodes', [])

    def of_nodes(name):
        known = [n[name] for n in nodes if name in n]
        return sum(known) if known else None

    f = {
        'host_pages_in': swapper.get('swap-ins'),
        'host_pages_out': swapper.get('swap-outs'),
        'avoided_pages': of_nodes('double-paged-pages'),
        'avoided_mib': (of_nodes('avoided-bytes') or 0) / MIB,
        'moved_mib': (of_nodes('moved-bytes') or 0) / MIB,
        'loaded_pages': of_nodes('loaded-pages'),
        'intercepted': swapper.get('intercepted'),
        'intercepted_restored': swapper.get('intercepted-restored'),
        'restore_mib': swapper.get('intercepted-restore-bytes', 0) / MIB,
        'write_faults': swapper.get('intercepted-faults'),
    }
    for kind in ('victim', 'store'):
        latency = swapper.get(f'fault-{kind}', {})
        f[f'fault_{kind}_p99_us'] = latency.get('p99-ns', 0) / 1e3
        f[f'faults_{kind}'] = swapper.get(f'faults-{kind}')
    if f['intercepted']:
        f['write_faults_percent'] = (100 * (f['write_faults'] or 0) /
                                     f['intercepted'])
    return f


# The table

ROWS = [
    ('Time', None, None),
    ('whole workload, s', 'time_s', '.1f'),
    ('of it, the passes in which both page, s', 'passes_s', '.1f'),
    ('longest pause, ms', 'pause_max_ms', '.0f'),
    ('pauses of 100 ms and more, sum, ms', 'pause_sum_ms', '.0f'),
    ('no warehouse got on, longest, ms', 'stall_max_ms', '.0f'),
    ('the same, 100 ms and more, sum, ms', 'stall_sum_ms', '.0f'),
    ('one touch or transaction, 99 %, us', 'touch_p99_us', '.0f'),
    ('one touch or transaction, 99.9 %, us', 'touch_p999_us', '.0f'),
    ('Guest (its own swap disk)', None, None),
    ('pages in', 'guest_pages_in', ',.0f'),
    ('pages out', 'guest_pages_out', ',.0f'),
    ('Host', None, None),
    ('pages swapped in', 'host_pages_in', ',.0f'),
    ('pages swapped out', 'host_pages_out', ',.0f'),
    ('bytes read, guest disk and swap, MiB', 'read_mib', ',.0f'),
    ('bytes written, guest disk and swap, MiB', 'written_mib', ',.0f'),
    ('faults that waited for the store', 'faults_store', ',.0f'),
    ('processor time of QEMU, s', 'cpu_s', '.1f'),
    ('power-off, indirections copied back, s', 'shutdown_s', '.1f'),
    ('Double paging', None, None),
    ('double-paged pages avoided', 'avoided_pages', ',.0f'),
    ('bytes not moved for these, MiB', 'avoided_mib', ',.0f'),
    ('bytes moved by writes of swapped-out pages, MiB', 'moved_mib', ',.0f'),
    ('swapped-out pages that a write waited for', 'loaded_pages', ',.0f'),
    ('pages restored before a touch', 'intercepted_restored', ',.0f'),
    ('bytes read to restore these, MiB', 'restore_mib', ',.0f'),
    ('blocking write faults on intercepted pages, %',
     'write_faults_percent', '.2f'),
    ('Memory', None, None),
    ('guest RAM resident, mean, MiB', 'ram_mean_mib', '.1f'),
    ('the same with victim or swap cache, mean, MiB', 'held_mean_mib', '.1f'),
    ('the same, most, MiB', 'held_max_mib', '.1f'),
    ('of it above the limit for 1 s or longer, MiB', 'excess_mib', '.1f'),
    ("added to the cgroup's limit for QEMU itself, MiB", 'overhead_mib',
     '.1f'),
    ('Others on this machine meanwhile', None, None),
    ('processor time, s', 'others_cpu_s', '.1f'),
    ('bytes read and written on the same disk, MiB', 'others_disk_mib',
     ',.0f'),
    ('Data errors', 'data_errors', '.0f'),
]


def values_of(results, way, name):
    values = [r['figures'].get(name) for r in results if r['way'] == way]
    return [v for v in values if v is not None]


def cell(values, form):
    if not values:
        return '-'
    text = format(statistics.median(values), form)
    low, high = format(min(values), form), format(max(values), form)
    return text if low == high else f'{text} ({low}-{high})'


def data_errors(results, way):
    """The sum, for a median hides errors; None where a run has no figure"""
    of_way = [r['data_errors'] for r in results if r['way'] == way]
    return None if None in of_way or not of_way else sum(of_way)


def table(results, ways, settings):
    rows = [['', *(f'({w}) {WAYS[w].text}' for w in ways)]]
    for title, name, form in ROWS:
        if name is None:
            rows.append([title] + [''] * len(ways))
        elif name == 'data_errors':
            sums = [data_errors(results, w) for w in ways]
            rows.append([title, *('run failed' if s is None else str(s)
                                  for s in sums)])
        else:
            shown = [cell(values_of(results, w, name), form) for w in ways]
            if any(s != '-' for s in shown):
                rows.append(['  ' + title, *shown])
    rows = [r for r, after in zip(rows, rows[1:] + [['']])
            if r[0].startswith(' ') or after[0].startswith(' ') or
            any(r[1:])]
    width = [max(len(r[i]) for r in rows) for i in range(len(rows[0]))]
    lines = ['  '.join([r[0].ljust(width[0])] +
                       [t.rjust(w) for t, w in zip(r[1:], width[1:])]).rstrip()
             for r in rows]
    lines.insert(1, '-' * len(lines[0]))
    many = max(sum(r['way'] == w for r in results) for w in ways) > 1
    head = [f'Guest of {settings.guest_mib} MiB of which the host allows '
            f'{settings.limit_mib} MiB of RAM' +
            ('; medians (least-most) of the runs' if many else '')]
    return '\n'.join(head + [''] + lines)


# The goals


def ratio(results, name, above, below):
    """Median of one way over that of another, None if one is missing"""
    over = values_of(results, above, name)
    under = values_of(results, below, name)
    if not over or not under:
        return None
    return statistics.median(over) / statistics.median(under)


def goals(results, settings):
    """[(text, reached or None)]"""
    found = []

    def add(text, reached):
        found.append((text, None if reached is None else bool(reached)))

    for other, name, most in (('b', 'not above', 1.0),
                              ('a', 'at most', MAX_TO_KERNEL)):
        r = ratio(results, 'time_s', 'c', other)
        p = ratio(results, 'passes_s', 'c', other)
        if r is not None:
            passes = f' (the passes alone: {p:.3f})' if p else ''
            add(f'time c/{other} = {r:.3f}, goal {name} {most:g}{passes}',
                r <= most)
    ours = [r for r in results
            if r['held_by'] == 'swapper' and 'samples' in r]
    excess = [r['excess_bytes'] for r in ours
              if r.get('excess_bytes') is not None]
    if excess:
        allowed = settings.limit_mib * STRICT_LIMIT
        add(f'limit exceeded for 1 s or longer by '
            f'{max(0, max(excess) / MIB):.1f} MiB, goal at most '
            f'{allowed:.1f} MiB (resident guest RAM plus victim cache)',
            max(excess) / MIB <= allowed)
    waited = values_of(results, 'c', 'loaded_pages')
    if waited:
        add(f'swapped-out pages that a write request waited for in (c): '
            f'{max(waited):.0f}, goal 0', max(waited) == 0)
    moved = values_of(results, 'c', 'moved_mib')
    if moved:
        add(f'bytes moved by a write request for its swapped-out pages in '
            f'(c): {max(moved):.1f} MiB, goal 0', max(moved) == 0)
    faults = values_of(results, 'c', 'write_faults_percent')
    if faults:
        add('blocking write faults on intercepted pages: '
            f'{statistics.median(faults):.2f} %, goal at most '
            f'{100 * MAX_WRITE_FAULTS:.0f} %',
            statistics.median(faults) <= 100 * MAX_WRITE_FAULTS)
    failed = [r for r in results if not r['ok']]
    errors = sum(r['data_errors'] or 0 for r in results)
    add(f'{len(results) - len(failed)} of {len(results)} runs ended without '
        f'an error, data errors: {errors}', not failed)
    return found


def warning(results):
    """Said when the times are not worth much, else None"""
    share = max(r['figures'].get('others_cpu_share', 0) for r in results)
    if share < BUSY:
        return None
    return (f'The machine was busy: others took up to {100 * share:.0f} % of '
            'its processors during a run. Times are not comparable.')


def goals_text(found):
    mark = {True: 'reached    ', False: 'NOT reached', None: '-          '}
    return '\n'.join(f'{mark[ok]}  {text}' for text, ok in found)


# The file


def machine_info(folder, contestants, settings):
    """What the figures depend on; @contestants by letter"""
    def output(*command):
        try:
            return subprocess.run(command, text=True, capture_output=True,
                                  check=False).stdout.strip()
        except OSError:
            return None

    model = [line.split(':', 1)[1].strip()
             for line in Path('/proc/cpuinfo').read_text().splitlines()
             if line.startswith('model name')]
    info = {
        'kernel': platform.release(),
        'cpus': os.cpu_count(),
        'cpu': model[0] if model else platform.machine(),
        'memory_bytes': os.sysconf('SC_PHYS_PAGES') * os.sysconf('SC_PAGE_SIZE'),
        'file_system': output('stat', '-f', '-c', '%T', str(folder)),
        'load': os.getloadavg(),
        'qemu': {},
    }
    for way, contestant in contestants.items():
        binary = str(settings.binary(contestant))
        info['qemu'][way] = output(binary, '--version').split('\n')[0]
    return info


def write_json(path, document):
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + '.part')
    part.write_text(json.dumps(document, indent=1, default=str) + '\n')
    os.replace(part, path)
