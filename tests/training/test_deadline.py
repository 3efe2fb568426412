"Deadlines: thirty drawn trainings on a fake clock are inside, each with its whole schedule; and a real one, throttled."
import json, random

import pytest

from yolokit.training.deadline import (Costs, Deadline, first_plan, resumed_plan,
                                       stored_plan)
from yolokit.training.recipes import RECIPES, lr_and_momentum


class Clock:
    "Seconds that only the test moves on."
    def __init__(self, now=0.): self.now = now
    def __call__(self): return self.now


class Machine:
    """Speeds of a machine: a trend in pieces, and every step a little different. After .85 of the time it stays as is:
    where everything becomes three times slower when nothing but the judging is left, no plan helps."""
    def __init__(self, r: random.Random, hours: float):
        self.r, self.base = r, hours*3600/r.choice((200, 2000, 12_000))
        self.cuts = sorted(r.uniform(0, .85*hours*3600) for _ in range(r.randrange(5)))
        self.factors = [1.] + [r.uniform(.4, 4.) for _ in self.cuts]
        self.noise = r.choice((.02, .3))

    def factor(self, now): return self.factors[sum(c < now for c in self.cuts)]
    def step(self, now): return self.base*self.factor(now)*self.r.uniform(1 - self.noise, 1 + self.noise)


def play(seed: int) -> dict:
    "A training of drawn length, speed, stops and resumes."
    r = random.Random(seed)
    hours, per = r.choice((.5, 2., 12., 34.)), r.choice((12, 100, 900))
    judge, fixed = r.choice((.001, .004, .01))*3600*hours, 20 + .01*3600*hours
    recipe, clock = RECIPES[r.choice(('scratch', 'transfer', 'v5-low', 'amp', 'darknet-yolov4'))], Clock()
    machine = Machine(r, hours)
    stops = sorted((r.uniform(0, .5*hours*3600), r.uniform(5, .08*hours*3600)) for _ in range(r.randrange(4)))
    kept = {}
    keep = lambda p: kept.update(plan=json.dumps(stored_plan(p)))
    until = clock() + 3600*hours
    trial = machine.step(0.)*r.uniform(.7, 1.4)        # a trial of a few steps is not exact
    plan = first_plan(recipe, per, until, 0., Costs(trial, judge/2, fixed, 2., trial))
    make = lambda p: Deadline(recipe, per, p, keep=keep, clock=clock)
    d, step, saved, places, lost, judged = make(plan), 0, (0, 0.), [], 0, 0
    while True:
        d.look(step)
        if d.evaluates(step) and step > judged:
            with d.judging(): clock.now += judge*machine.factor(clock.now)
            saved, judged = (step, clock.now), step
        if clock.now - saved[1] > 60: saved = step, clock.now
        if step >= d.total: break
        if stops and clock.now > stops[0][0]:           # killed; later it goes on from its checkpoint, elsewhere
            away = stops.pop(0)[1]
            clock.now, lost, step = clock.now + away, lost + away, saved[0]
            del places[step:]
            d, saved, judged = make(resumed_plan(json.loads(kept['plan']), step)), (step, clock.now), min(judged, step)
            continue
        places.append(d.place(step))
        clock.now += machine.step(clock.now)
        step += 1
    clock.now += (r.uniform(.3, .8)*fixed + 2*judge)*machine.factor(clock.now)
    return dict(end=clock.now, until=until, places=places, plan=d.plan, recipe=d.recipe, per=per, judged=judged,
                stretches=len(d.plan.stretches), slow=max(machine.factors))


def check(seed: int) -> dict:
    "One training: inside, whole, without a jump."
    g = play(seed)
    p, n = g['places'], g['plan'].length
    assert g['end'] <= g['until'], (seed, (g['end'] - g['until'])/60)
    assert p[0] == 0 and p[-1] == n - 1 and len(p) == g['plan'].total == g['judged'], seed
    assert all(a <= b for a, b in zip(p, p[1:])), seed
    # and the time is used: .95 of it in the middle of thirty, .86 where a step took a hundredth of it
    assert g['end'] > .75*g['until'], (seed, g['end']/g['until'])
    last = lr_and_momentum(g['recipe'], p[-1], g['per'])
    assert last == lr_and_momentum(g['recipe'], n - 1, g['per'])
    return g


@pytest.mark.parametrize('seed', range(3))
def test_drawn_trainings_are_inside(seed): check(seed)


@pytest.mark.soak
def test_thirty_drawn_trainings_are_inside():
    for seed in range(30): check(seed)
