"""Plants one-line faults in the sources, one at a time, and asks the tests of that part whether they see it.

`make planted`, or `python -m planted` from this folder's parent; table.md is what it found.
"""
