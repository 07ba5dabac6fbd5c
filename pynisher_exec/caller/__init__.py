"""The user's process: the executor and its futures in front, one monitor thread behind.

executor -> pool (queue, dispatch) -> slot (one supervisor) -> launch (starting processes)
future <- account (what the supervisor tells, as a Report)
"""
