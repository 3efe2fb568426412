"The app with a deadline: it ends inside, its schedule is whole, and a resumed run keeps its moment."
import time
import pytest
from small import unjudged
from yolokit.training.deadline import deadline_at, resumed_plan
from yolokit.training.recipes import TrainError
from yolokit.training.runs import read_csv
from yolokit.apps.train import train, TrainConfig

TINY = dict(data='squares', network='tiny.cfg', bs=4, workers=0, threads=1, device='cpu', stage='baseline',
            weights='none')


def test_a_run_is_over_in_time_and_goes_on_until_the_same_moment(root, monkeypatch):
    unjudged(monkeypatch)
    began = time.time()
    run = train(TrainConfig(**TINY, hours=32/3600, name='short'))
    i = run.info
    p, until = resumed_plan(i['deadline'], 10**9), deadline_at(0., i['config']['until'], 0.)
    assert time.time() < until <= began + 40 and i['state'] == 'finished' and i['config']['hours'] == 0
    assert i['steps'] == p.total == i['recipe']['steps'] and p.place(p.total - 1) == p.length - 1
    rates = read_csv(run.folder/'steps.csv')['lr']
    assert rates[-1] == rates.min() or len(rates) < 3

    with pytest.raises(TrainError, match='say one of them'): train(TrainConfig(**TINY, hours=1, until='2099-01-01'))
    with pytest.raises(TrainError, match='minutes ago'): train(TrainConfig(**TINY, until='2020-01-01'))


def test_the_most_steps_are_those_that_are_asked_for(root, monkeypatch):
    unjudged(monkeypatch)
    run = train(TrainConfig(**TINY, hours=1., steps=6, name='six'))
    assert run.info['steps'] == 6 and 'deadline: ' in (run.folder/'log.txt').read_text()
