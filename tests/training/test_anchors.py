"Anchors: the measure against YOLOv5's formula written in loops, the search never makes it worse, the cfg stays a cfg."
import numpy as np, pytest
from yolokit.core.rng import rng
from yolokit.network import zoo
from yolokit.training import anchors


def loops(wh, a, t):
    "utils/autoanchor.py of YOLOv5 in plain Python."
    caught = above = 0
    for w, h in wh:
        x = [min(min(w/aw, aw/w), min(h/ah, ah/h)) for aw, ah in a]
        caught += max(x) > 1/t
        above += sum(v > 1/t for v in x)
    return caught/len(wh), above/len(wh)


@pytest.mark.parametrize('seed', range(5))
def test_measure_equals_the_formula(seed):
    g = rng(seed)
    wh, a, t = g.lognormal(3, 1, (200, 2)), g.lognormal(3.5, 1, (9, 2)), float(g.uniform(1.5, 5))
    assert np.allclose(anchors.best_possible_recall(wh, a, t), loops(wh.tolist(), a.tolist(), t))


def test_evolution_never_lowers_the_fitness_and_is_a_prefix_of_itself():
    wh, a = rng(1).lognormal(3, .8, (300, 2)), rng(2).lognormal(3, .8, (6, 2))
    f = [anchors._anchor_fitness(wh, anchors._evolve(wh, a, generations=n)) for n in (0, 10, 100, 300)]
    assert f == sorted(f) and f[-1] > f[0]
    assert np.array_equal(anchors._evolve(wh, a, generations=50), anchors._evolve(wh, a, generations=50))


@pytest.mark.parametrize('name', ['yolov4', 'yolov3-tiny', 'yolov5n6', 'yolokit-nano'])
def test_only_the_anchors_change(name):
    cfg = zoo.build(name, 3)
    _, used, old = anchors.anchor_heads(cfg)
    new = anchors.with_anchors(cfg, old[used]*1.5)
    assert np.allclose(anchors.anchor_heads(new)[2][used], old[used]*1.5)
    assert [(l.type, l.shape, l.params) for l in new.plan()] == [(l.type, l.shape, l.params) for l in cfg.plan()]
    changed = [a for a, b in zip(str(new).split('\n'), str(cfg).split('\n')) if a != b]
    assert all(l.startswith('anchors') for l in changed) and len(changed) == len(anchors.anchor_heads(cfg)[0])


def test_adopted_only_where_more_boxes_are_caught():
    cfg = zoo.build('yolov4-tiny', 3)
    heard = []
    same, facts = anchors.autoanchor(cfg, np.full((9, 2), 80.), tell=heard.append)
    assert same is cfg and not facts['adopted'] and 'they stay' in heard[0]
    other, facts = anchors.autoanchor(cfg, np.full((9, 2), 3.), tell=heard.append)
    assert facts['bpr_before'] == 0 and facts['bpr_after'] == 1 and other != cfg
    assert anchors.autoanchor(cfg, np.zeros((0, 2)), tell=heard.append)[0] is cfg
