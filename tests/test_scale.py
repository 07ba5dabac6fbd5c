"""The simulation of `python -m benchmarks.scale`: pure, and without Dask."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

# Behind all else: what is tested is the package that is installed.
sys.path.append(str(Path(__file__).parents[1]))

from benchmarks.scale.figures import Figures, Way, from_json, heartbeats
from benchmarks.scale.simulate import (
    FREE,
    Cluster,
    Costs,
    Lengths,
    Outcome,
    Simulation,
    Work,
    drawn,
)
from benchmarks.scale.table import (
    MOST,
    Place,
    Setting,
    batched,
    cells,
    demand,
    foretold,
    show,
    smallest,
)

ITEMS = 2000


def equal(length: float, call: float = 0.0) -> Work:
    """Items that all take as long."""
    return Work([length] * ITEMS, [call] * ITEMS)


def ended(cluster: Cluster, work: Work, costs: Costs, chunks: int, size: int = 1) -> Outcome:
    """Run one of a fixed seed."""
    return Simulation(cluster, work, costs, chunks, size, "seed").run()


# -- what can be told on paper --------------------------------------------------------------------


@pytest.mark.parametrize(("cores", "ahead", "size"), [(1, 0, 1), (4, 0, 1), (4, 4, 1), (4, 1, 5)])
def test_nothing_is_lost_where_nothing_costs(cores: int, ahead: int, size: int) -> None:
    """Equal tasks, a multiple of the cores: each core works all the time."""
    found = ended(Cluster(1, cores, ahead), equal(2.0), FREE, cores * 10, size)
    assert found.efficiency == pytest.approx(1)
    assert found.makespan == pytest.approx(2.0 * 10 * size)


@pytest.mark.parametrize("call", [0.01, 0.1, 1.0])
def test_what_a_call_costs_is_a_share_of_a_core(call: float) -> None:
    """On one node: the function's time by that and the call's."""
    found = ended(Cluster(1, 4), equal(1.0, call), FREE, 400)
    assert found.efficiency == pytest.approx(1 / (1 + call))


@pytest.mark.parametrize("size", [1, 20])
def test_a_chunk_costs_the_worker_once(size: int) -> None:
    """So its share gets smaller with the size of the chunk."""
    costs = Costs([0.0], [0.0], [0.5], [0.0])
    found = ended(Cluster(1, 4), equal(1.0), costs, 400, size)
    assert found.efficiency == pytest.approx(size / (size + 0.5))


@pytest.mark.parametrize("bound", ["scheduler", "client"])
@pytest.mark.parametrize("size", [1, 10])
def test_what_there_is_one_of_bounds_the_rate(bound: str, size: int) -> None:
    """Two thousand cores ask for more than it can do: so long it takes, and the last one."""
    service, chunks = 0.01, 20_000
    costs = FREE._replace(**{bound: [service / 2, service * 1.5]})
    found = ended(Cluster(100, 20, ahead=2), equal(1.0), costs, chunks, size)
    assert found.makespan == pytest.approx(chunks * service + size, rel=0.02)
    assert found.efficiency == pytest.approx(chunks * size / 2000 / found.makespan)
    assert getattr(found, bound) > 0.9


def test_a_place_ahead_hides_the_way() -> None:
    """The next task is there when a core gets free; without, the core waits there and back."""
    costs = FREE._replace(hop=[0.25])
    without = ended(Cluster(1, 4, ahead=0), equal(1.0), costs, 400)
    assert without.efficiency == pytest.approx(1 / 1.5, rel=0.01)
    assert ended(Cluster(1, 4, ahead=4), equal(1.0), costs, 400).efficiency > 0.99


def test_a_lost_node_costs_what_it_ran() -> None:
    """One node that is lost now and then runs its tasks again, and is away for a while."""
    cluster = Cluster(1, 1, 0, lost_every=50.0, noticed=1.0, back=1.0)
    found = ended(cluster, equal(1.0), FREE, 1000)
    assert found.losses > 5
    assert found.again == found.losses
    assert found.useful == pytest.approx(1000)
    # Each costs the second that it is away, and the part of a task that had been run.
    assert 1000 + found.losses <= found.makespan <= 1000 + 2 * found.losses


# -- what holds always ----------------------------------------------------------------------------

clusters = st.builds(
    Cluster,
    nodes=st.integers(1, 6),
    cores=st.integers(1, 4),
    ahead=st.integers(0, 3),
    lost_every=st.none() | st.floats(50, 500),
    noticed=st.floats(0, 20),
    back=st.floats(0, 20),
)
# The scheduler's are short: it has sent a node all that it may hold long before that is lost.
short = st.lists(st.floats(0, 0.1), min_size=1, max_size=5)
samples = st.lists(st.floats(0, 2), min_size=1, max_size=5)
costs = st.builds(Costs, client=samples, scheduler=short, worker=samples, hop=samples)
works = st.builds(
    Work,
    st.lists(st.floats(0.01, 5), min_size=20, max_size=20),
    st.lists(st.floats(0, 1), min_size=20, max_size=20),
)


@settings(deadline=None)
@given(clusters, works, costs, st.integers(1, 120), st.integers(1, 5), st.integers())
def test_each_chunk_is_counted_once(
    cluster: Cluster, work: Work, costs: Costs, chunks: int, size: int, seed: int
) -> None:
    """However many nodes are lost; nobody works more than all of the time."""
    simulation = Simulation(cluster, work, costs, chunks, size, seed)
    found = simulation.run()
    assert simulation.counted == [1] * chunks
    assert 0 < found.efficiency <= 1 + 1e-9
    assert 0 <= found.scheduler <= 1 + 1e-9
    assert 0 <= found.client <= 1 + 1e-9


@settings(deadline=None)
@given(clusters, works, costs, st.integers(1, 60), st.integers())
def test_a_seed_has_one_result(
    cluster: Cluster, work: Work, costs: Costs, chunks: int, seed: int
) -> None:
    """To the last digit."""
    one, other = (Simulation(cluster, work, costs, chunks, 1, seed).run() for _ in range(2))
    assert one == other


@settings(deadline=None)
@given(clusters, works, costs, st.integers(1, 120), st.floats(1, 3), st.integers())
def test_more_cost_never_helps(
    cluster: Cluster, work: Work, costs: Costs, chunks: int, more: float, seed: int
) -> None:
    """Of all costs, for the same items, where no node is lost and each task goes to a free core.

    With tasks held ahead, or nodes lost, a delay may send a task to a luckier node.
    """
    plain = cluster._replace(lost_every=None, ahead=0)
    dearer = Costs(*([each * more for each in part] for part in costs))
    one = Simulation(plain, work, costs, chunks, 1, seed).run()
    other = Simulation(plain, work, dearer, chunks, 1, seed).run()
    assert other.makespan >= one.makespan - 1e-9


@given(st.floats(0.1, 100), st.integers())
def test_lengths_keep_their_mean_and_their_limit(mean: float, seed: int) -> None:
    """None is longer than the wall limit; the mean is about what was asked for."""
    lengths = Lengths(mean)
    found = drawn(lengths, ITEMS, seed)
    assert 0 <= min(found) <= max(found) <= lengths.limit * mean * (1 + 1e-9)
    assert sum(found) / ITEMS == pytest.approx(mean, rel=0.15)


# -- from figures to tables -----------------------------------------------------------------------


def figures() -> Figures:
    """Such as they are measured."""
    way = Way(1, [0.001], [0.0008], [0.003], [100.0])
    return Figures(
        cores=2,
        parts={"caller": [0.001], "supervisor": [0.001], "template": [0.0], "task": [0.003]},
        alone=[0.003],
        loaded=[0.005],
        trips={"dask": [0.008], "executor": [0.01]},
        ways={
            "submit": way,
            "map": Way(1, [0.0004], [0.0002], [0.001], [200.0]),
            "executor": way,
            "chunk": Way(1, [0.0005], [0.0003], [0.002], [200.0]),
            "reports": Way(51, [0.0010], [0.0013], [0.004], [100.0]),
        },
        background=0.02,
        heartbeat=0.0004,
        crowd=(100, [0.0005]),
        real=[0.9],
    )


def test_figures_survive_json() -> None:
    """What `--json` writes is what `--from` reads."""
    assert from_json(json.loads(json.dumps(figures().to_json()))) == figures()


def test_costs_of_a_chunk() -> None:
    """One item more costs what one report more does; the scheduler has less than all its time."""
    costs = figures().costs("chunk", 11, workers=400)
    assert costs.client == pytest.approx([0.0003 + 10 * 0.00002])
    rest = 1 - 0.02 - 0.0004 * heartbeats(400)
    assert costs.scheduler == pytest.approx([(0.0005 + 10 * 0.00001) / rest])
    assert costs.worker == pytest.approx([0.001])  # without the call's own part in that process
    assert costs.hop == pytest.approx([0.002])
    assert figures().costs("brief", 11, 400) == figures().costs("chunk", 1, 400)


def test_heartbeats_have_a_bound() -> None:
    """More workers tell less often each."""
    rates = [heartbeats(workers) for workers in (1, 10, 49, 199, 1000, 4000, 100_000)]
    assert rates[0] == 2
    assert max(rates) <= 200


def test_the_smallest_chunk_is_the_smallest() -> None:
    """One item less would ask more than the share; where no size does, the most is taken."""
    size = smallest(figures(), Setting(), "chunk", 100, 1.0)
    assert 1 < size < MOST
    for items, fits in ((size, True), (size - 1, False)):
        asked = demand(figures(), Setting(), Place("chunk", 100, 1.0, items))
        assert (max(asked.values()) <= Setting().share) is fits
    assert smallest(figures(), Setting(), "chunk", 1000, 0.01) == MOST
    assert smallest(figures(), Setting(), "chunk", 1, 60.0) == 1


def test_what_is_foretold_of_this_machine() -> None:
    """A tenth of a second, by that with the call and the worker's part; ends count little."""
    assert foretold(figures()) == pytest.approx(0.1 / (0.1 + 0.005 + 0.002), rel=0.02)


def test_cells_say_what_bounds_them() -> None:
    """The scheduler, where a thousand cores ask it for tasks of a tenth of a second."""
    setting = Setting(cores=4, per_core=8, seeds=2)
    places = [Place("executor", 50, 0.1, 1), Place("executor", 2, 10.0, 1)]
    long, short = cells(figures(), setting, places)
    assert (short.nodes, short.bound, short.kept < 0.7) == (50, "scheduler", True)
    assert (long.nodes, long.bound, long.kept > 0.95) == (2, "", True)
    better = cells(figures(), setting, batched(figures(), setting, "chunk", [short]))[0]
    assert (better.size > 1, better.bound, better.kept > 0.8) == (True, "", True)
    assert len(show([long, short, better]).splitlines()) == 4
