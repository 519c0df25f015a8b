# SPDX-License-Identifier: GPL-2.0-or-later
"""Pictures of the samples, by gnuplot

Each function takes the results and the cells that are compared, writes one PNG,
and returns its caption, or None where there is nothing to show.
"""
import statistics
import subprocess

from .cells import CONTESTANTS

PATHS = ('write-prepare', 'write-completion', 'read-prepare',
         'read-completion', 'fault-store', 'fault-victim')
PAUSE_MS = 100
BIN_S = 0.1                 # of jbb's scores
COLOURS = {'a': '#d62728', 'b': '#ff9896', 'c': '#9467bd', 'd': '#ff7f0e',
           'e': '#2ca02c', 'f': '#1f77b4', 'g': '#17becf', 'h': '#7f7f7f'}


class Failure(Exception):
    """gnuplot did not want to; says why"""


def gnuplot(script, path, width, height):
    head = (f"set terminal pngcairo size {width},{height} font 'sans,10'\n"
            f"set output '{path}'\nset border 3\nset tics nomirror\n")
    try:
        done = subprocess.run(['gnuplot'], input=head + script, text=True,
                              check=False, stdout=subprocess.PIPE,
                              stderr=subprocess.STDOUT)
    except OSError as e:
        raise Failure(f'gnuplot: {e.strerror}') from None
    if done.returncode or not path.exists():
        raise Failure(f'{path.name}: {done.stdout}')


def block(name, rows):
    lines = '\n'.join(' '.join(map(str, row)) for row in rows)
    return f'${name} << EOD\n{lines}\nEOD\n'


# Score over time


def score_rows(result):
    """[(second, score a second)] of the measured phases"""
    rows = []
    for score in result['scores']:
        if 'touches' in score:
            rows.append((score['second'], score['touches']))
        elif score.get('phase') == 'run':
            bins = str(score.get('tx', '')).split(',')
            rows += [(round(score['second'] + i * BIN_S, 1), int(n) / BIN_S)
                     for i, n in enumerate(bins) if n]
    while rows and not rows[-1][1]:
        rows.pop()              # the last second has ended early
    return rows


def pause_rows(result):
    """[(begin, end)] of the times in which the guest got nowhere

    memhog tells the longest touch of each second, jbb how many transactions
    ended in each tenth of a second.
    """
    rows = []
    if any('touches' in score for score in result['scores']):
        for score in result['scores']:
            if score['max_ns'] / 1e6 >= PAUSE_MS:
                end = score['second'] + 1
                rows.append((max(end - score['max_ns'] / 1e9, 0), end))
        return rows
    for second, score in score_rows(result):
        if score:
            continue
        if rows and abs(rows[-1][1] - second) < BIN_S / 2:
            rows[-1] = (rows[-1][0], round(second + BIN_S, 1))
        else:
            rows.append((second, round(second + BIN_S, 1)))
    return rows


def median_sample(rounds):
    """That with the median time"""
    found = sorted(rounds.values(),
                   key=lambda s: s['result']['figures']['time_s'])
    return found[(len(found) - 1) // 2]


def scores(results, cells, path):
    """One panel a contestant, with the same axes"""
    panels, data = [], ''
    longest, highest = 1, 1
    for cell in cells:
        sample = median_sample(results.by_cell[cell])
        rows = score_rows(sample['result'])
        if not rows:
            continue
        pauses = pause_rows(sample['result'])
        longest = max(longest, rows[-1][0])
        highest = max(highest, *(n for _, n in rows))
        letter = cell.contestant
        data += block(f'score_{letter}', rows)
        data += block(f'pause_{letter}', pauses or [(-2, -1)])
        figures = sample['result']['figures']
        panels.append((letter, figures.get('stall_sum_ms',
                                           figures['pause_sum_ms']) / 1000))
    if not panels:
        return None
    script = data + (f'set multiplot layout {len(panels)},1\n'
                     f'set xrange [0:{longest + 1}]\n'
                     f'set yrange [0:{highest * 1.05}]\nset ytics 0,'
                     f'{highest / 2:.0f}\nset style fill solid 0.35 noborder\n')
    for letter, paused in panels:
        script += (
            f"set title '({letter}) {CONTESTANTS[letter].text}, "
            f"{paused:.1f} s in pauses' offset 0,-0.5\n"
            f"plot $pause_{letter} using (($1+$2)/2):({highest}):($2-$1) "
            "with boxes lc rgb '#ff0000' notitle, "
            f"$score_{letter} using 1:2 with lines lw 1.5 lc rgb "
            f"'{COLOURS[letter]}' notitle\n")
    gnuplot(script, path, 900, 130 * len(panels) + 20)
    unit = 'pages' if cells[0].workload == 'memhog' else 'transactions'
    return (f'Score over time, in {unit} a second, of the run with the median '
            'time; red: pauses of 100 ms and more (memhog: the longest of '
            'each second; jbb: tenths of a second without a transaction).')


# Latencies


def distribution(bins):
    """[(us, share of operations that took at most that)]"""
    total, seen, rows = sum(bins.values()), 0, []
    for upto, count in bins.items():
        seen += count
        rows.append((upto / 1000, seen / total))
    return rows


def latencies(results, cells, path):
    """One panel an I/O path, one line a contestant"""
    data, panels = '', []
    for number, name in enumerate(PATHS):
        lines = []
        for cell in cells:
            bins = results.histogram(cell, name)
            if not bins:
                continue
            letter = cell.contestant
            data += block(f'd{number}{letter}', distribution(bins))
            lines.append(f"$d{number}{letter} using 1:2 with steps lw 2 lc "
                         f"rgb '{COLOURS[letter]}' title '({letter})'")
        if lines:
            panels.append(f"set title '{name}'\nplot {', '.join(lines)}\n")
    if not panels:
        return None
    rows = (len(panels) + 1) // 2
    gnuplot(data + 'set logscale x\nset key bottom right\nset yrange [0:1]\n'
            f"set xlabel 'us'\nset multiplot layout {rows},2\n" +
            ''.join(panels), path, 900, 260 * rows)
    return ('Latency by I/O path, all runs together: share of the operations '
            'that took at most so long.  Requests with swapped-out pages or '
            'indirected blocks only; fault-*: page faults.')


# Traffic


TRAFFIC = [('host_pages_in', 'pages that the host swapped in'),
           ('host_pages_out', 'pages that the host swapped out'),
           ('guest_pages_in', 'pages that the guest swapped in'),
           ('guest_pages_out', 'pages that the guest swapped out'),
           ('read_mib', 'MiB read from the device'),
           ('written_mib', 'MiB written to the device')]


def bars(results, cells, panels, path, height=260):
    """A panel for each (figure, title): median, with least and most"""
    data, plots = '', []
    for number, (name, title) in enumerate(panels):
        rows = []
        for cell in cells:
            found = results.summary(cell, name)
            if found:
                rows.append((len(rows), found.median, min(found.values),
                             max(found.values), f'({cell.contestant})',
                             COLOURS[cell.contestant].replace('#', '0x')))
        if not rows:
            continue
        data += block(f'b{number}', rows)
        plots.append(f"set title '{title}'\n"
                     f'set xrange [-0.7:{len(rows) - 0.3}]\n'
                     f'plot $b{number} using 1:2:(0.7):(int(strcol(6))):'
                     'xtic(5) with boxes lc rgb variable notitle, '
                     f"$b{number} using 1:2:3:4 with yerrorbars lc rgb 'black'"
                     ' pt 0 notitle\n')
    if not plots:
        return None
    columns = min(len(plots), 2)
    lines = (len(plots) + columns - 1) // columns
    gnuplot(data + 'set style fill solid 0.8\nset yrange [0:*]\n'
            f'set multiplot layout {lines},{columns}\n' + ''.join(plots),
            path, 450 * columns, height * lines)
    return True


def traffic(results, cells, path):
    return bars(results, cells, TRAFFIC, path) and (
        'Swap traffic and device bytes: medians, with least and most.')


def times(results, cells, path):
    panels = [('time_s', 'time, s'), ('stall_sum_ms' if cells[0].workload ==
                                      'jbb' else 'pause_sum_ms',
                                      'in pauses of 100 ms and more, ms'),
              ('touch_p99_us', 'one operation, 99 %, us'),
              ('touch_p999_us', 'one operation, 99.9 %, us')]
    return bars(results, cells, panels, path, 220) and (
        'Times: medians, with least and most.')


def throughput(result):
    """Operations a second of the whole run"""
    total = result['phases']['total']
    count = total.get('transactions', total.get('touches'))
    return count / total['wall_ns'] * 1e9


def median_throughput(results, cell):
    found = [throughput(s['result'])
             for s in results.by_cell.get(cell, {}).values()]
    return statistics.median(found) if found else None
