# SPDX-License-Identifier: GPL-2.0-or-later
"""One HTML page with all of it: no other file is needed to read it"""
import base64
from html import escape

from . import plots
from .cells import CONTESTANTS, PROFILES, WORKLOADS
from .compare import percentile

STYLE = '''
body { font: 15px/1.4 sans-serif; max-width: 1000px; margin: 2em auto;
       padding: 0 1em; color: #222; }
table { border-collapse: collapse; margin: 1em 0; font-size: 13px; }
th, td { border: 1px solid #ccc; padding: 3px 8px; text-align: left;
         vertical-align: top; }
td.n { text-align: right; white-space: nowrap; }
.reached { background: #dff0d8; } .missed { background: #f2dede; }
.noise { background: #fcf8e3; } .warning { background: #fcf8e3;
         padding: .5em 1em; }
figure { margin: 1em 0; } img { max-width: 100%; }
figcaption { font-size: 13px; color: #555; }
'''
BUSY = 0.2
# Averages in us, from the paper's evaluation: Arya, Baskakov, Garthwaite,
# "Tesseract", VEE 2014
PAPER = {'write-prepare': (24262, 220, 265),
         'write-completion': (0, 49, 101),
         'read-prepare': (0, 37, 109),
         'read-completion': (0, 232, 55)}
PAPER_CONTESTANTS = 'def'
ROWS = [('time, s', 'time_s', ',.1f'),
        ('largest pause, ms', 'pause_max_ms', ',.0f'),
        ('operations of 100 ms and more, sum, ms', 'pause_sum_ms', ',.0f'),
        ('no warehouse got on: longest, ms', 'stall_max_ms', ',.0f'),
        ('no warehouse got on: 100 ms and more, sum, ms', 'stall_sum_ms',
         ',.0f'),
        ('one operation, 99 %, us', 'touch_p99_us', ',.0f'),
        ('one operation, 99.9 %, us', 'touch_p999_us', ',.0f'),
        ('host: pages in', 'host_pages_in', ',.0f'),
        ('host: pages out', 'host_pages_out', ',.0f'),
        ('guest: pages in', 'guest_pages_in', ',.0f'),
        ('guest: pages out', 'guest_pages_out', ',.0f'),
        ('double-paged pages avoided', 'avoided_pages', ',.0f'),
        ('device: MiB read', 'read_mib', ',.0f'),
        ('device: MiB written', 'written_mib', ',.0f'),
        ('guest RAM held, mean, MiB', 'held_mean_mib', ',.0f'),
        ('processor time of QEMU, s', 'cpu_s', ',.1f')]


def table(rows, numbers=True):
    """The first of @rows is the head"""
    out = ['<table><tr>', *(f'<th>{escape(t)}</th>' for t in rows[0]), '</tr>']
    for row in rows[1:]:
        out.append('<tr>')
        for i, text in enumerate(row):
            css = ' class="n"' if numbers and i else ''
            out.append(f'<td{css}>{escape(text)}</td>')
        out.append('</tr>')
    return ''.join(out) + '</table>'


def goals_table(verdicts):
    out = ['<table><tr><th>goal</th><th>against</th><th>wanted</th>'
           '<th>found</th><th></th></tr>']
    for v in verdicts:
        css = {None: '', True: 'reached', False: 'missed'}[v.reached]
        css = 'noise' if 'noise' in v.word else css
        remarks = '; '.join(v.remarks)
        out.append(f'<tr class="{css}"><td>{escape(v.text)}</td>'
                   f'<td>{escape(v.against)}</td><td>{escape(v.goal)}</td>'
                   f'<td>{escape(v.value)}</td><td><b>{escape(v.word)}</b>'
                   f'{"<br>" if remarks else ""}{escape(remarks)}</td></tr>')
    return ''.join(out) + '</table>'


def machine_text(machine):
    return (f"{machine['cpus']} processors ({machine['cpu']}), "
            f"{machine['memory_bytes'] / (1 << 30):.0f} GiB, Linux "
            f"{machine['kernel']}, {machine['file_system']}; "
            f"ours: {machine['qemu'].get('f', '?')}; stock: "
            f"{machine['qemu'].get('a', '?')}")


def path_rows(results, cells):
    """The paper's table: ours, and what the paper says"""
    by_letter = {cell.contestant: cell for cell in cells}
    rows = [['', *(f'({c}) {CONTESTANTS[c].text}: average, p50, p99, us '
                   '(requests)' for c in PAPER_CONTESTANTS),
             'paper, averages: baseline, no defragmentation, guest '
             'defragmentation']]
    for path, paper in PAPER.items():
        row = [path.replace('-', ' ')]
        for letter in PAPER_CONTESTANTS:
            cell = by_letter.get(letter)
            bins = results.histogram(cell, path) if cell else {}
            row.append('-' if not bins else
                       f'{results.average_ns(cell, path) / 1000:,.1f}, '
                       f'{percentile(bins, 0.5) / 1000:,.1f}, '
                       f'{percentile(bins, 0.99) / 1000:,.1f} '
                       f'({sum(bins.values()):,})')
        rows.append(row + [', '.join(f'{us:,}' for us in paper)])
    return rows if any(c != '-' for r in rows[1:] for c in r[1:-1]) else None


def figure_rows(results, cells):
    rows = [['median (least to most, runs)',
             *(f'({c.contestant}) {CONTESTANTS[c.contestant].text}'
               for c in cells)]]
    for title, name, form in ROWS:
        found = [results.summary(cell, name) for cell in cells]
        if any(found):
            rows.append([title, *(s.text(form) if s else '-' for s in found)])
    return rows


def speed_rows(results, cells):
    """The paper's other claims, where both sides have been measured"""
    by_letter = {cell.contestant: cell for cell in cells}
    if not {'d', 'f'} <= by_letter.keys():
        return None
    ours, base = (plots.median_throughput(results, by_letter[c]) for c in 'fd')
    name = ('stall_max_ms' if cells[0].workload == 'jbb' else 'pause_max_ms')
    pauses = [results.summary(by_letter[c], name) for c in 'fd']
    return [['against the same swapper without interception (d)', 'ours (f)',
             'paper'],
            ['throughput', f'{100 * (ours / base - 1):+.0f} %',
             'up to +200 % on disks, +30 % on SSD'],
            ['largest pause', f'{pauses[0].median:,.0f} ms, not '
             f'{pauses[1].median:,.0f} ms', 'up to 5 times shorter']]


def image(path, caption):
    data = base64.b64encode(path.read_bytes()).decode()
    return (f'<figure><img src="data:image/png;base64,{data}" '
            f'alt="{escape(caption)}"><figcaption>{escape(caption)} '
            f'({path.name})</figcaption></figure>')


def group_section(results, group, overcommit, cells, folder):
    workload, profile, ram_mib, cpus = group
    out = [f'<h3>{workload}, {profile}, {ram_mib} MiB, {cpus} CPU, '
           f'{overcommit} % overcommit</h3>']
    name = f'{workload}-{profile}-{ram_mib}M-{cpus}cpu-{overcommit}'
    for draw in plots.times, plots.scores, plots.latencies, plots.traffic:
        path = folder / f'{name}-{draw.__name__}.png'
        caption = draw(results, cells, path)
        if caption:
            out.append(image(path, caption))
    out.append(table(figure_rows(results, cells)))
    for rows in path_rows(results, cells), speed_rows(results, cells):
        if rows:
            out.append(table(rows))
    return out


def groups(results):
    """[(group, overcommit, cells in the order of their letters)]"""
    found = {}
    for cell in results.by_cell:
        if cell.contestant != 'h':
            found.setdefault((cell.group, cell.overcommit), []).append(cell)
    for (_, overcommit), cells in found.items():
        ceiling = cells[0].sibling('h')
        if ceiling in results.by_cell:
            cells.append(ceiling)
    return [(group, overcommit, sorted(cells, key=lambda c: c.contestant))
            for (group, overcommit), cells in sorted(found.items())]


def busy_share(results):
    shares = [s['result']['figures'].get('others_cpu_share') or 0
              for rounds in results.by_cell.values() for s in rounds.values()]
    return max(shares, default=0)


def trouble(results, refused, skipped):
    """What a reader has to know first"""
    out = []
    if busy_share(results) > BUSY:
        out.append('The machine was busy: others took up to '
                   f'{100 * busy_share(results):.0f} % of its processors '
                   'during a run. Ratios of the same round may hold, times '
                   'do not.')
    out += [f'FAILED: {cell.key}, round {number}: data errors: '
            f"{result['data_errors']}; {'; '.join(result['errors'])}"
            for cell, number, result in results.failed]
    out += [f'Refused: {name}: {reason}' for name, reason in refused]
    out += [f'Skipped: {key}: {reason}' for key, reason in skipped.items()]
    return ''.join(f'<p class="warning">{escape(text)}</p>' for text in out)


def page(results, verdicts, state, refused, folder):
    runs = sum(len(rounds) for rounds in results.by_cell.values())
    out = ['<!DOCTYPE html><html lang="en"><head><meta charset="utf-8">'
           f'<title>bsst: evaluation</title><style>{STYLE}</style></head>'
           '<body><h1>bsst: evaluation</h1>',
           f"<p>{runs} runs, {len(results.failed)} failed. "
           f"{escape(machine_text(state['machine']))}. Guests run under TCG; "
           'all contestants are the same QEMU source on the same disk, and '
           'hold the same amount of guest RAM.</p>',
           trouble(results, refused, state.get('skipped', {})),
           '<h2>Goals</h2><p>Ratios of medians of (f), our default, to the '
           'other. <i>Penalty</i>: time with the limit minus time without. '
           'Where the ratios of single rounds spread more widely than the '
           'ratio is away from 1, the result is noise.</p>',
           goals_table(verdicts), '<h2>Runs</h2><ul>',
           *(f'<li>{name}: {escape(w.text)}</li>'
             for name, w in WORKLOADS.items()),
           *(f'<li>{name}: {escape(text)}</li>'
             for name, text in PROFILES.items()), '</ul>']
    for group, overcommit, cells in groups(results):
        out += group_section(results, group, overcommit, cells, folder)
    return '\n'.join(out + ['</body></html>']) + '\n'
