"""What travels between the processes: control messages, frames on a stream, pickled payloads."""
