"""The slot supervisor: one small process that starts, watches, ends and accounts for one task.

It has one thread and serves one task at a time. `loop` is its I/O, `state` its decisions.
"""
