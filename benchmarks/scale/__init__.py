"""How far it scales: what a task costs on one node, and what follows for many of them.

    python -m benchmarks.scale [--quick] [--json FILE] [--from FILE]

Measured here, with the scheduler, its workers and the client as processes of this machine: the CPU
time that one limited task takes of each process concerned, its time, Dask's round trip, and the CPU
time that a task takes of the scheduler and the client, of which there is one each, however many
nodes there are. A simulation draws from these samples and says what is left for the tasks.
"""
