"""Published weights: which formats there are, what arrays are called in them, and how they are read.

names       how one array is called here and there, and how it lies
"""
