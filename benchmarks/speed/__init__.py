"""What isolation costs: `python -m benchmarks.speed [--quick] [--json FILE] [ROW...]`.

Each row runs in a process of its own and measures two ways of doing the same work turn by turn, so
that what else the machine does falls on both. What is compared is the median of the rounds' ratios;
a row whose rounds spread wider than what it promises says so.
"""
