"""The task process: takes on what the caller had, takes its limits, runs the call, says what came.

It is forked from its supervisor while the slot is idle and runs one call. See `task.run`.
"""
