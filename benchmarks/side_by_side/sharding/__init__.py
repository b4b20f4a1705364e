"""One model over devices and processes: step times, checkpoints, messages.

models   what is fitted
layouts  over which processes and devices
rank     one process of several: fits, an epoch each time it is told to
world    all processes of one layout, seen from the benchmark
speed    who goes when, and what they took
saves    how long checkpoints hold a fit up
wire     bytes that a step sends, in the compiled program and by formula
tables   Markdown
"""
