"""What holds of every plan, whatever the jobs, the nodes and the rules."""

import collections
import dataclasses
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmasos_xla.runtime.claims import Claim, Node, Rules
from llmasos_xla.runtime.planner import ordered, plan

GB = 2**30
law = settings(max_examples=150, deadline=None, derandomize=True)


@st.composite
def clusters(draw, memory=True):
    """One to four nodes: GPUs of two sizes, or CPU slots."""
    found = []
    for i in range(draw(st.integers(1, 4))):
        budget = draw(st.sampled_from([0, 16 * GB, 40 * GB])) if memory else 0
        count = draw(st.integers(0 if i else 1, 5))
        host = draw(st.integers(4, 64)) * GB if memory else 0
        found.append((f"n{i}", (budget,) * count, host))
    return found


@st.composite
def newcomers(draw, prefix, memory=True, users=("ann", "bob", ""), together=False):
    found = []
    for i in range(draw(st.integers(0, 6))):
        sizes = tuple(draw(st.sets(st.sampled_from([1, 2, 3, 4, 8]), min_size=1, max_size=4)))
        told = draw(st.booleans()) and memory
        device = draw(st.integers(1, 40)) * GB
        found.append(
            {
                "name": f"{prefix}{i}",
                "priority": draw(st.integers(-1, 3)),
                "sizes": sizes,
                "device_bytes": {k: device // k for k in sizes} if told else {},
                "host_bytes": {k: draw(st.integers(0, 16)) * GB for k in sizes} if told else {},
                "speed": {k: float(k) ** draw(st.sampled_from([0.0, 0.5, 0.9, 1.0])) for k in sizes},
                "together": together,
                "user": draw(st.sampled_from(users)),
                "waiting": draw(st.sampled_from([0.0, 10.0, 600.0, 4000.0])),
            }
        )
    return found


rules = st.fixed_dictionaries(
    {
        "aging": st.sampled_from([600.0, 3600.0]),
        "least_run": st.sampled_from([0.0, 120.0]),
        "hysteresis": st.sampled_from([0.0, 0.2]),
        "fairness": st.sampled_from([0.0, 1.0]),
        "sharing": st.booleans(),
    }
)


def after(claims, found, seconds=0.0):
    """The claims as they are when a plan has been followed, and some seconds have gone by."""
    later = []
    for claim in claims:
        places = found.places.get(claim.name, ())
        same = claim.size and places == claim.places
        running = (claim.running if same else 0.0) + seconds if places else 0.0
        waiting = claim.waiting + (0.0 if places else seconds)
        later.append(dataclasses.replace(claim, size=len(places), places=places, running=running, waiting=waiting))
    return later


@st.composite
def stories(draw, rules=rules, **options):
    """Rules, nodes, and jobs that come one batch after the other; some end in between, and seconds go by."""
    batches = [
        (
            draw(newcomers(prefix, **options)),
            draw(st.sets(st.integers(0, 5))),
            draw(st.sampled_from([1.0, 60.0, 5000.0])),
        )
        for prefix in "ab"
    ]
    return draw(rules), draw(clusters(memory=options.get("memory", True))), batches, draw(newcomers("c", **options))


def lived(story):
    """The jobs as they are when earlier plans have been followed, the nodes and the rules."""
    # Made here, not drawn: what checks their types draws random numbers, which Hypothesis wants to know of.
    rules, nodes, batches, newest = story
    rules, nodes = Rules(**rules), [Node(*node) for node in nodes]
    claims = []
    for new, ended, seconds in batches:
        claims = [claim for i, claim in enumerate(claims) if i not in ended]
        claims += [Claim(**one) for one in new]
        claims = after(claims, plan(claims, nodes, rules), seconds)
    return claims + [Claim(**one) for one in newest], nodes, rules


def assert_within(claims, nodes, found, sharing):
    """No device has two gangs, or more bytes than it has; no node has more than its memory; gangs are whole."""
    by_name = {claim.name: claim for claim in claims}
    device, host, tenants = (collections.Counter() for _ in range(3))
    budget = {(node.name, i): count for node in nodes for i, count in enumerate(node.devices)}
    for name, places in found.places.items():
        claim, size = by_name[name], found.sizes[name]
        assert size in claim.sizes
        assert len(set(places)) == len(places) == size
        for place in places:
            tenants[place] += 1
            known = claim.device_bytes.get(size, 0)
            device[place] += (claim.device_bytes.get(size, budget[place])) if budget[place] else 0
            host[place[0]] += claim.host_bytes.get(size, 0) / size + (0 if budget[place] else known)
    assert set(found.sizes) == set(by_name)
    assert all((size > 0) == (name in found.places) for name, size in found.sizes.items())
    assert set(tenants) <= set(budget)
    assert all(device[place] <= budget[place] for place in device)
    assert all(host[node.name] <= node.memory for node in nodes)
    if not sharing:
        assert all(count == 1 for count in tenants.values())
    assert all(count == 1 for place, count in tenants.items() if not budget[place])


@law
@given(stories())
def test_never_over_devices_or_bytes_and_gangs_are_whole(story):
    claims, nodes, rules = lived(story)
    assert_within(claims, nodes, plan(claims, nodes, rules), rules.sharing)


# Without hysteresis, and without a least run, jobs may trade devices for gains of nothing.
steady = st.one_of(st.tuples(rules, st.just({"least_run": 120.0})), st.tuples(rules, st.just({"hysteresis": 0.2}))).map(
    lambda both: both[0] | both[1]
)


@law
@given(stories(steady))
def test_planning_the_planned_state_changes_nothing(story):
    claims, nodes, rules = lived(story)
    found = plan(claims, nodes, rules)
    again = plan(after(claims, found), nodes, rules)
    assert again.places == found.places
    # Those that wait have a reason to, and nobody else has one.
    assert set(again.reasons) == {name for name, size in found.sizes.items() if not size}


@pytest.mark.thorough
@law
@given(stories(), st.randoms(use_true_random=False))
def test_order_of_arguments_does_not_matter(story, random):
    claims, nodes, rules = lived(story)
    found = plan(claims, nodes, rules)
    assert plan(random.sample(claims, len(claims)), random.sample(nodes, len(nodes)), rules) == found


@law
@given(stories())
def test_nobody_is_touched_before_it_has_run(story):
    claims, nodes, rules = lived(story)
    found = plan(claims, nodes, rules)
    for claim in claims:
        if claim.size and claim.running < rules.least_run:
            assert found.places[claim.name] == claim.places


@pytest.mark.thorough
@law
@given(stories())
def test_what_is_not_resized_stays_where_it_is(story):
    claims, nodes, rules = lived(story)
    found = plan(claims, nodes, rules)
    for claim in claims:
        places = found.places.get(claim.name, ())
        if claim.size and len(places) == claim.size and places != claim.places:
            lost = set(claim.places) - set(places)
            assert any(lost & set(theirs) for name, theirs in found.places.items() if name != claim.name)


@pytest.mark.thorough
@law
@given(stories(memory=False))
def test_who_is_ahead_never_waits_for_who_is_behind(story):
    claims, nodes, rules = lived(story)
    found = plan(claims, nodes, rules)
    total = sum(len(node.devices) for node in nodes)
    taken = sum(c.size for c in claims if c.size and c.running < rules.least_run)
    for claim in ordered(claims, total, rules):
        if claim.size and claim.running < rules.least_run:
            continue
        # All but those that may not be touched yet could make room: so those ahead leave too little.
        if not found.sizes[claim.name]:
            assert taken + claim.minimum > total
            break
        taken += claim.minimum


@law
@given(stories(memory=False))
def test_resizing_a_running_job_gains_or_gives_way(story):
    claims, nodes, rules = lived(story)
    found = plan(claims, nodes, rules)
    for claim in claims:
        size = found.sizes[claim.name]
        if claim.size and size > claim.size:
            assert claim.pace(size) >= (1 + rules.hysteresis) * claim.pace(claim.size)
        if claim.size and 0 < size < claim.size:
            lost = set(claim.places) - set(found.places[claim.name])
            assert any(lost & set(places) for name, places in found.places.items() if name != claim.name)


@pytest.mark.thorough
@law
@given(stories(st.fixed_dictionaries({"fairness": st.just(0.0), "sharing": st.booleans()})), clusters())
def test_more_machines_never_stop_the_first(story, more):
    claims, nodes, rules = lived(story)
    if not claims:
        return
    first = ordered(claims, 1, rules)[0].name
    more = [Node(f"{name} more", *rest) for name, *rest in more]
    if plan(claims, nodes, rules).sizes[first]:
        assert plan(claims, nodes + more, rules).sizes[first]


@law
@given(stories(memory=False))
def test_no_device_is_idle_while_somebody_could_grow_onto_it(story):
    claims, nodes, rules = lived(story)
    found = plan(claims, nodes, rules)
    idle = sum(len(node.devices) for node in nodes) - sum(found.sizes.values())
    if any("waits" in why and " s at most" in why for why in found.reasons.values()):
        return
    for claim in claims:
        size = found.sizes[claim.name]
        if claim.size and claim.running < rules.least_run:
            continue
        if not size:
            assert idle < claim.minimum
        for bigger in claim.sizes:
            if size < bigger <= size + idle and size:
                base = claim.size if claim.size and bigger > claim.size else 0
                gain = claim.pace(bigger) - claim.pace(size)
                assert (
                    gain <= 0
                    or (base and claim.pace(bigger) < (1 + rules.hysteresis) * claim.pace(base))
                    or (bigger == claim.size)
                )


@law
@given(stories(together=True))
def test_who_has_to_be_together_is_on_one_node(story):
    claims, nodes, rules = lived(story)
    found = plan(claims, nodes, rules)
    assert all(len({node for node, _ in places}) == 1 for places in found.places.values())
    assert plan(after(claims, found), nodes, rules).sizes == found.sizes


def test_who_has_to_be_together_waits_for_one_node():
    nodes = [Node("a", (0,) * 2, GB), Node("b", (0,) * 4, GB)]
    one = running("one", [0, 1, 2], node="b", sizes=(3,))
    found = plan([one, Claim("two", sizes=(3,), together=True), Claim("wide", sizes=(5,), together=True)], nodes)
    assert dict(found.sizes) == {"one": 3, "two": 0, "wide": 0}
    assert found.reasons["two"].startswith("waits for 3 devices on one node, and its memory; 3 are free on all; ahead")
    assert found.reasons["wide"] == (
        "can never run here: it wants 5 devices on one node, and none has more than 4; submit it for fewer "
        "(--devices), or add machines"
    )
    assert len({node for node, _ in plan([one, Claim("two", sizes=(3,))], nodes).places["two"]}) == 2


CPU = [Node("here", (0,) * 4, 16 * GB)]


def running(name, places, node="here", **options):
    places = tuple((node, i) for i in places)
    return Claim(name, size=len(places), places=places, **{"running": 600.0, **options})


def test_a_newcomer_takes_surplus_before_it_preempts():
    low = running("low", [0], priority=0)
    high = running("high", [1, 2, 3], priority=5, sizes=(1, 2, 3))
    found = plan([low, high, Claim("new", priority=2)], CPU)
    assert dict(found.sizes) == {"low": 1, "high": 2, "new": 1}
    assert found.places["low"] == low.places
    assert found.reasons["high"] == "shrinks from 3 to 2 devices: new (priority 2) wants its minimum"


def test_surplus_is_surplus_though_fewer_devices_hold_more_bytes_each():
    gpus = [Node("here", (16 * GB,) * 4, 64 * GB)]
    high = running("high", range(4), priority=5, sizes=(1, 2, 4), device_bytes={1: 15 * GB, 2: 8 * GB, 4: 4 * GB})
    found = plan([high, Claim("new", sizes=(2,), device_bytes={2: 9 * GB})], gpus)
    assert dict(found.sizes) == {"high": 2, "new": 2}
    assert found.places["high"] == high.places[:2]


def test_the_last_in_the_queue_is_preempted_and_is_told():
    jobs = [running(f"job{i}", [i], priority=i) for i in range(4)]
    found = plan([*jobs, Claim("new", priority=9, sizes=(2,))], CPU)
    assert dict(found.sizes) == {"job0": 0, "job1": 0, "job2": 1, "job3": 1, "new": 2}
    assert found.reasons["job0"] == (
        "is preempted: new (priority 9) wants its minimum; waits for 1 device; none is free; ahead of it run new "
        "(priority 9), job3 (priority 3), job2 (priority 2)"
    )


def test_who_must_go_gives_all_it_has_before_another_goes():
    jobs = [running("small", [0], priority=0), running("big", [1, 2, 3], priority=1, sizes=(3,))]
    assert dict(plan([*jobs, Claim("new", priority=9, sizes=(3,))], CPU).sizes) == {"big": 0, "new": 3, "small": 1}


def test_devices_are_kept_for_who_waits_for_a_young_job():
    young = running("young", [0], running=20.0)
    gang, late = Claim("gang", priority=5, sizes=(4,)), Claim("late", priority=1)
    found = plan([young, gang, late], CPU)
    assert dict(found.sizes) == {"young": 1, "gang": 0, "late": 0}
    assert found.reasons["gang"] == (
        "waits 100 s at most for young (priority 0): nobody is touched within 120 s of its start or its last resize"
    )
    found = plan([dataclasses.replace(young, running=120.0), gang, late], CPU)
    assert dict(found.sizes) == {"young": 0, "gang": 4, "late": 0}


def test_what_can_never_run_says_what_is_there():
    found = plan([Claim("wide", sizes=(8, 16))], CPU)
    assert found.reasons["wide"] == (
        "can never run here: it wants 8 devices, and there are 4; submit it for fewer (--devices), or add machines"
    )
    gpus = [Node("box", (16 * GB,) * 2, 64 * GB)]
    found = plan([Claim("fat", device_bytes={1: 20 * GB}, host_bytes={1: GB})], gpus)
    assert found.reasons["fat"] == (
        "can never run here: on 1 device it needs 20.0 GiB of each and 1.0 GiB of host memory; here the largest device "
        "has 16.0 GiB, and the largest node 64.0 GiB for its devices together; make its batch smaller, divide it over "
        "more devices, or add machines"
    )


def test_memory_admits_as_many_as_fit():
    jobs = [Claim(f"job{i}", device_bytes={1: 6 * GB}) for i in range(4)]
    found = plan(jobs, CPU)
    assert sorted(found.sizes.values()) == [0, 0, 1, 1]
    assert found.reasons["job3"].startswith(
        "waits for memory: 2 devices could be had, but not their nodes' bytes; ahead"
    )


def test_too_few_devices_of_a_kind_take_a_larger_size():
    gpus = [Node("box", (16 * GB,) * 4, 64 * GB)]
    job = Claim("job", sizes=(1, 2, 4), device_bytes={1: 40 * GB, 2: 20 * GB, 4: 10 * GB})
    assert plan([job], gpus).sizes["job"] == 4


def test_jobs_share_a_device_by_bytes_before_they_wait():
    gpus = [Node("box", (16 * GB,), 64 * GB)]
    jobs = [Claim(f"job{i}", device_bytes={1: 6 * GB}) for i in range(3)]
    alone = Claim("unknown", priority=-1)
    assert sum(plan([*jobs, alone], gpus).sizes.values()) == 1
    found = plan([*jobs, alone], gpus, Rules(sharing=True))
    assert dict(found.sizes) == {"job0": 1, "job1": 1, "job2": 0, "unknown": 0}


def test_a_gang_lies_on_one_node_if_one_has_room():
    nodes = [Node("a", (0,) * 3, GB), Node("b", (0,) * 4, GB)]
    found = plan([running("one", [0], "b"), Claim("gang", sizes=(3,))], nodes)
    assert {node for node, _ in found.places["gang"]} == {"a"}
    found = plan([running("one", [0], "a"), Claim("gang", sizes=(5,))], nodes)
    assert collections.Counter(node for node, _ in found.places["gang"]) == {"b": 4, "a": 1}


def test_who_goes_anyway_gives_its_devices_before_a_neighbor_has_to_move():
    nodes = [Node("a", (0,) * 2, 0), Node("b", (0,) * 3, 0)]
    big = Claim("big", sizes=(4,), size=4, places=(("a", 0), ("b", 0), ("b", 1), ("b", 2)), running=600.0)
    found = plan([big, running("one", [1], "a"), Claim("new", priority=2, sizes=(2,))], nodes)
    assert found.places["one"] == (("a", 1),)
    assert {node for node, _ in found.places["new"]} == {"b"}


def test_who_was_sent_elsewhere_stays_if_it_need_not_go():
    nodes = [Node(name, (16,) * count, memory) for name, count, memory in (("a", 3, 37), ("b", 3, 28), ("c", 4, 7))]
    places = (("b", 0), ("b", 1), ("b", 2), ("c", 0))
    there = Claim("there", 2, (1, 3, 4), host_bytes={1: 7, 3: 3, 4: 5}, size=4, places=places, running=600.0)
    new = Claim("new", 2, (2, 3, 4), {2: 6, 3: 4, 4: 3}, {2: 5, 3: 4, 4: 4})
    assert plan([there, new], nodes, Rules(least_run=0.0, fairness=0.0)).places["there"] == places


def test_a_lost_node_is_told():
    found = plan([running("job", [0, 1], "gone", sizes=(2,))], CPU)
    assert found.reasons["job"] == "lost its devices on gone; starts on 2 devices"


def test_leftovers_go_where_they_add_most():
    scales = Claim("scales", sizes=(1, 2, 3), speed={1: 10.0, 2: 19.0, 3: 27.0})
    stalls = Claim("stalls", priority=3, sizes=(1, 2, 3), speed={1: 1.0, 2: 1.2, 3: 1.3})
    assert dict(plan([scales, stalls], CPU).sizes) == {"scales": 3, "stalls": 1}


def test_who_has_devices_yields_them_only_for_a_real_gain():
    has = running("has", range(3), sizes=(1, 2, 3), speed={1: 1.0, 2: 1.9, 3: 2.8})
    better = Claim("better", priority=1, sizes=(1, 2, 3), speed={1: 1.0, 2: 1.95, 3: 2.9})
    assert dict(plan([has, better], CPU).sizes) == {"has": 3, "better": 1}
    assert dict(plan([has, better], CPU, Rules(hysteresis=0.0)).sizes) == {"has": 1, "better": 3}
    # Of equal gains too, and whoever is first in the queue.
    equal = dataclasses.replace(better, speed=has.speed)
    assert dict(plan([has, equal], CPU, Rules(hysteresis=0.0)).sizes) == {"has": 3, "better": 1}


def test_a_little_more_speed_is_worth_no_restart():
    job = running("job", range(3), sizes=(3, 4), speed={3: 10.0, 4: 10.9})
    assert plan([job], CPU).sizes["job"] == 3
    found = plan([job], CPU, Rules(hysteresis=0.05))
    assert found.reasons["job"] == "grows from 3 to 4 devices: nobody waits for them; 1.1 times as fast"


def test_a_newcomer_goes_where_memory_is_free():
    nodes = [Node("a", (0,) * 2, 16 * GB), Node("b", (0,) * 3, 16 * GB)]
    low = running("low", [0], "a", device_bytes={1: 10 * GB})
    found = plan([low, Claim("new", priority=5, device_bytes={1: 8 * GB})], nodes)
    assert dict(found.places) == {"low": low.places, "new": (("b", 0),)}


def test_a_newcomer_shares_where_nobody_has_to_go():
    gpus = [Node("box", (16 * GB,) * 2, 64 * GB)]
    low = running("low", [1], "box", device_bytes={1: 10 * GB})
    small = running("small", [0], "box", device_bytes={1: 4 * GB})
    found = plan([low, small, Claim("new", priority=5, device_bytes={1: 9 * GB})], gpus, Rules(sharing=True))
    assert dict(found.places) == {"low": low.places, "small": small.places, "new": small.places}


def test_moves_that_make_room_are_looked_at_again():
    # scales starts on a and grows on b: then there is room for wide, whose parts need memory of both, and who is ahead.
    nodes = [Node("a", (0,), 4 * GB), Node("b", (0,) * 4, 4 * GB)]
    wide = {1: 5 * GB, 2: 2 * GB + 1}
    jobs = [
        Claim("scales", sizes=(1, 2), waiting=10.0),
        Claim("small", device_bytes={1: GB}),
        Claim("tiny", priority=-1, device_bytes={1: GB}),
        Claim("wide", sizes=(1, 2), device_bytes=wide),
    ]
    rules = Rules(least_run=0.0, fairness=0.0)
    found = plan(jobs, nodes, rules)
    assert found.sizes["wide"] == 2
    assert plan(after(jobs, found), nodes, rules).places == found.places


def test_two_users_divide_the_machine():
    mine = [running(f"mine{i}", [i], user="ann") for i in range(4)]
    found = plan([*mine, *(Claim(f"yours{i}", user="bob") for i in range(4))], CPU, Rules(margin=0.2))
    assert sum(found.sizes[f"yours{i}"] for i in range(4)) == 2


@pytest.mark.parametrize(
    ("wrong", "text"),
    [
        (lambda: Claim("a", sizes=()), "sizes are whole numbers >= 1"),
        (lambda: Claim("a", sizes=(1, 2), device_bytes={1: 5}), "device_bytes says nothing of 2 devices"),
        (lambda: Claim("a", speed={1: 0.0}), "speed {1: 0.0} wants a number > 0"),
        (lambda: Claim("a", size=2), "runs on 2 devices, which is none of its sizes"),
        (lambda: Claim("a", size=1), "has places ()"),
        (lambda: Node("n", (0, 5), 1), "some of its devices have memory of their own"),
        (lambda: Rules(aging=0.0), "math.inf switches it off"),
        (lambda: Rules(least_run=-1.0), "least_run wants a number >= 0"),
        (lambda: plan([Claim("a"), Claim("a")], CPU), "two claims have the name 'a'"),
    ],
)
def test_what_cannot_be_meant_is_refused(wrong, text):
    with pytest.raises(ValueError) as error:
        wrong()
    assert text in str(error.value)


def test_no_jobs_and_no_nodes():
    assert plan([], CPU) == plan([], [])
    assert plan([Claim("a")], []).reasons["a"].startswith("can never run here: it wants 1 device, and there are 0")


def test_a_large_cluster_is_planned_in_a_moment():
    nodes = [Node(f"n{i:03}", (80 * GB,) * 8, 512 * GB) for i in range(512)]
    sizes = [(1, 2, 4), (8, 16, 32), (64, 128), (256,)]
    jobs = [
        Claim(
            f"job{i}",
            i % 7,
            sizes[i % 4],
            dict.fromkeys(sizes[i % 4], 30 * GB),
            {k: k * 4 * GB for k in sizes[i % 4]},
            {k: float(k) ** 0.9 for k in sizes[i % 4]},
            user=f"user{i % 5}",
        )
        for i in range(200)
    ]
    half = after(jobs[:100], plan(jobs[:100], nodes), 600.0)
    began = time.process_time()
    found = plan(half + jobs[100:], nodes)
    assert time.process_time() - began < 5.0  # a tenth of a second; with checked types and a busy machine, more
    assert sum(found.sizes.values()) == 4096
