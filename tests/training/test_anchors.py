"Anchors: the measure against YOLOv5's formula written in loops, the search never makes it worse, the cfg stays a cfg."
import numpy as np, pytest
from small import CFG, unjudged
from yolokit.apps.train import train, TrainConfig
from yolokit.core.rng import rng
from yolokit.network import zoo
from yolokit.training import anchors
from yolokit.training.recipes import TrainError


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


PICTURE, WAYS_OUT = 'plots/anchors.png', ('change="autoanchor=True"', 'another width and height')


@pytest.mark.parametrize('caught, n, warned', [(50, 50, False), (49, 50, False), (979, 1000, True), (1, 2, True)])
def test_below_98_percent_a_warning_with_the_picture_and_the_way_out(caught, n, warned):
    wh, heard = np.full((n, 2), 2.), []
    wh[:caught] = 60
    assert anchors.check_anchors(zoo.build('yolov3-tiny', 3), wh, tell=heard.append) == caught/n
    (said,) = heard
    assert f'{caught/n:.1%} of {n} boxes' in said
    assert all((x in said) == warned for x in ('WARNING', PICTURE, 'median 2×2 px', *WAYS_OUT))


def test_below_a_half_a_refusal_unless_told():
    wh, heard = np.full((100, 2), 2.), []
    wh[:49] = 60
    with pytest.raises(TrainError, match='49.0% of 100 boxes') as e:
        anchors.check_anchors(zoo.build('yolov3-tiny', 3), wh)
    assert all(x in str(e.value) for x in ('change="bpr_floor=0"', 'median 2×2 px', *WAYS_OUT))
    assert anchors.check_anchors(zoo.build('yolov3-tiny', 3), wh, floor=0, tell=heard.append) == .49
    assert heard[0].startswith('WARNING')


def job(root, anchor, **kw) -> TrainConfig:
    "A training with anchors of so many px; where one goes on, its cfg is gone."
    name = f'square{anchor}.cfg'
    if 'resume' in kw: (root/name).unlink(missing_ok=True)
    else: (root/name).write_text(CFG.replace('10,10, 16,16, 26,26', ', '.join([f'{anchor},{anchor}']*3)))
    return TrainConfig(data='squares', network=name, weights='none', recipe='scratch', stage='baseline', bs=4,
                       workers=0, threads=1, device='cpu', amp='off', **dict(steps=1) | kw)


@pytest.mark.parametrize('anchor, change, said', [(16, '', 'anchors: 100.0%'), (6, '', 'WARNING anchors: '),
                                                  (2, 'bpr_floor=0', 'WARNING anchors: 0.0%')])
def test_said_before_every_training(root, monkeypatch, anchor, change, said):
    unjudged(monkeypatch)
    run = train(job(root, anchor, change=change))
    for steps in (1, 2):                               # and again where it goes on
        lines = (run.folder/'log.txt').read_text().split('\n')
        told = [k for k, line in enumerate(lines) if line.startswith(said)]
        first = [k for k, line in enumerate(lines) if run.name in line and f'/{steps} [' in line]
        assert len(told) == steps and told[-1] < first[-1]
        assert (PICTURE in lines[told[-1]]) == said.startswith('WARNING') and (run.folder/PICTURE).is_file()
        if steps == 1: run = train(job(root, anchor, resume=run.name, steps=2, extend='stretch'))


def test_refused_before_there_is_a_folder(root):
    def runs(): return sorted((root/'runs').iterdir()) if (root/'runs').exists() else []
    before = runs()
    with pytest.raises(TrainError, match='bpr_floor=0'): train(job(root, 2))
    assert runs() == before
