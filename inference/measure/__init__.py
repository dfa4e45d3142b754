"""Measuring what weights can do: results by iterations and difficulty, with their intervals, written and drawn.

A result is one line of an evaluation; a row is a row of a batch, here as everywhere. What is public stands in
`mull.inference`, but for the function `evaluate`: it lives in the module of the same name, which it would hide.
"""
