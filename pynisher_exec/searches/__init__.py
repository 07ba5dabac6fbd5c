"""What a search leaves and shows: its record, its progress.

Nothing here runs a task or knows how one is run: it is told of futures that are done.
"""
