"""Several frameworks train the same model on the same cores, each in a process of its own, in turns.

rows            the workloads: model kind, batch size, synthetic data
contestants/    one file a family of front ends: how each trains a row
worker, gate    the contestant's process: it trains an epoch when asked, and stands still otherwise
arena           the other end: starts the processes, asks them in turns, stops those that wait
machine         what it ran on, and who else did
tables          ratios, Markdown, JSON
"""
