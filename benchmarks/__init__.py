"""What is promised, in numbers; see `__main__`."""
