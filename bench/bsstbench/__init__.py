# SPDX-License-Identifier: GPL-2.0-or-later
"""The evaluation suite: the parts of bench/matrix and bench/report

cells     what is measured: contestants, workloads, profiles, and the order
storage   the disks that the profiles stand for
samples   the folder of results: a file a run, checked when it is read
compare   medians, ratios and their spread; no claim without both
goals     the goals of the project, judged by samples
plots     pictures, by gnuplot
page      one HTML page with all of it

What runs a guest is the demo's: demo/bsstdemo.
"""
