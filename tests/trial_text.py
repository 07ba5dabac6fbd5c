"""The head of a program for another engine's workers: a trial that ends as it is told, limited."""

__all__ = ["TRIAL"]

TRIAL = """
import os, time
from pynisher_exec import limited

def behave(how):
    if how == "hang":
        time.sleep(600)
    if how == "eat":
        bytearray(1 << 30)
    return how

safe = limited(behave, memory="200MiB", wall_time=1)
"""
