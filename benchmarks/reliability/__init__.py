"""Each promise of reliability, tried many times, with what failed and the worst that was seen.

`python -m benchmarks.reliability` runs all and prints a table; `--quick` tries each less often;
numbers run those rows alone. Processes are counted over /proc by a mark in their environment, not
by what the library says. Whatever is hostile is bounded from outside before it starts.
"""
