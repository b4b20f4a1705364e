"""Single operations of the kernels' own lists of shapes, in every framework.

problem         one operation on arrays of given shapes, as every contestant reads it; what is differentiated
cases           `llmasos_xla/kernels/*/cases.py` as problems
inputs          the arrays
contestants/    one file a framework: its programs for a problem; `reference` computes what they are held against
bench           the contestant's side: checks a program's values, then times it when asked
arena           the other end: asks the contestants in turns
tables          ratios, summaries, Markdown and JSON
"""
