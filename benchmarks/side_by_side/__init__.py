"""Several frameworks do the same work on the same cores, each in a process of its own, in turns.

What every comparison shares:

contestant      who takes part: the table's entry
process         a contestant's process, seen from the arena: started, asked, frozen, ended
worker, channel the same process from within: it answers requests, and stands still otherwise
turns           who goes when, alone on the machine
machine         what it ran on, and who else did
values          how far a result is from what is wanted
report          ratios, cells, the head of a report

steps/          training steps and inference of whole models (benchmarks/steps.py)
models/         models of the shelf against the originals (benchmarks/models.py)
kernels/        single operations over the kernels' own lists of shapes (benchmarks/kernels.py)
"""
