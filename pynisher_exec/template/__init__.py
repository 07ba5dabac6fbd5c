"""The template: a clean process with one thread, from which slot supervisors are forked.

`loop` is its life, `preload` its imports. It never runs a task, nor anything else of the user's.
"""
