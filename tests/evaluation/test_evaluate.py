"Judging: the printed COCO numbers, the two evaluators against each other, bad input, the app."
import json
import os
import subprocess
import sys
import time
from pathlib import Path
import numpy as np
import pytest
import torch
from torch import nn
from yolokit.core import rng
from yolokit.core.images import write_image
from yolokit.data import formats
from yolokit.data.table import Table
from yolokit.evaluation import curves, matching, metrics, results

GOLD = Path(__file__).parents[3]/'shared/data/coco_val2014_100'
gold = pytest.mark.skipif(not GOLD.exists(), reason='../shared/data/coco_val2014_100 is not there')


def table(rows, n=3, names=('car', 'bus'), **kw):
    "Rows of image, category, x0 y0 x1 y1, score."
    c = np.array(rows, float).reshape(-1, 7).T
    return Table.make(dict(id=[f'p{i}' for i in range(n)], file=[f'p{i}.png' for i in range(n)]),
                      dict(zip(('image', 'category', 'x0', 'y0', 'x1', 'y1', 'score'), c)) | kw, list(names))


def random_case(seed):
    "Crowds, ties, empty sides, classes without truth, more than 100 answers, IoUs on the thresholds."
    r = rng.rng(seed)
    def some(n, score):
        x, y, w, h = r.integers(0, 60, n), r.integers(0, 60, n), r.integers(0, 50, n), r.integers(0, 50, n)
        rows = np.stack([r.integers(0, 3, n), r.integers(0, 2, n), x, y, x + w, y + h, r.integers(0, 11, n)/10
                         if score else np.full(n, np.nan)], 1)
        return table(rows, **({} if score else dict(crowd=r.random(n) < .15,
                                                    area=np.where(r.random(n) < .5, np.nan, r.integers(0, 12_000, n)))))
    return some(int(r.integers(0, 30)), False), some(int(r.choice([0, 5, 60, 900])), True)


@gold
def test_golden_numbers():
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval
    truth = formats.read(GOLD/'instances_val2014_100.json', 'coco')
    found = results.read_results(GOLD/'instances_val2014_fakebbox100_results.json', truth)
    printed = [float(l.rsplit('=', 1)[1]) for l in (GOLD/'expected_bbox.txt').read_text().splitlines() if ' = ' in l]
    g = COCO(GOLD/'instances_val2014_100.json')     # the reference on the files themselves
    e = COCOeval(g, g.loadRes(str(GOLD/'instances_val2014_fakebbox100_results.json')), 'bbox')
    e.evaluate(); e.accumulate(); e.summarize()
    for b in metrics.BACKENDS:
        r = metrics.coco(truth, found, b)
        assert (list(r)[:12] == list(metrics.COCO_METRICS)
                and np.array_equal(np.round(list(r.numbers.values()), 3), printed))
        assert np.abs(np.array(list(r.numbers.values())) - e.stats).max() <= 1e-12
        assert np.abs(r.precision[:, :, np.argsort(matching.coco_tie_ranks(truth.category_ids))]
                      - e.eval['precision'][..., 0, -1]).max() <= 1e-12
    shuffled = truth.keep_images(rng.rng(1).permutation(truth.n_images))
    assert metrics.coco(shuffled, found).numbers == metrics.coco(truth, found).numbers


def agree(seeds): return max(metrics.compare_backends(*random_case(s))['difference'] for s in seeds)
def test_backends_agree(): assert agree(range(40)) <= 1e-12

@pytest.mark.soak
def test_backends_agree_long(): assert agree(range(1000, 2500)) <= 1e-12


def test_hits_are_the_reference_matches():
    for seed in range(40):
        t, d = random_case(seed)
        if not len(t) or len(d) > 100: continue
        ids, cats = matching.coco_tie_ranks(t.images['id']), np.array([1, 2])
        e = metrics._run_backend('pycocotools', t, d, ids, cats)
        want = np.full(len(d), matching.UNMATCHED)
        for m in e.evalImgs:
            if m and m['aRng'] == [0, 1e10]:
                for det, g, ig in zip(m['dtIds'], m['dtMatches'][0], m['dtIgnore'][0]):
                    want[int(det) - 1] = matching.IGNORED if ig else int(g) - 1 if g else matching.UNMATCHED
        assert np.array_equal(matching.matched_truth(t, d), want), seed


def test_bad_input_is_named():
    truth, one = table([[0, 0, 0, 0, 10, 10, np.nan]]), [0, 0, 0, 0, 10, 10, .5]
    for rows, word in (([one[:6] + [np.nan]], 'score is not a number'), ([[0, 0, 10, 0, 0, 10, .5]], 'negative'),
                       ([[0, 1, np.inf, 0, 5, 5, .5]], 'corner')):
        with pytest.raises(matching.EvaluateError, match=word): metrics.coco(truth, table(rows))
    with pytest.raises(matching.EvaluateError, match='negative'):
        metrics.coco(table([[0, 0, 10, 0, 0, 10, np.nan]]), table([one]))
    with pytest.raises(matching.EvaluateError, match='truck'):
        metrics.coco(truth, table([[0, 1, 0, 0, 9, 9, .5]], names=('car', 'truck')))
    with pytest.raises(matching.EvaluateError, match='p7'): metrics.coco(truth, table([[7, 0, 0, 0, 9, 9, .5]], n=8))
    with pytest.raises(matching.EvaluateError, match='pycocotools'): metrics.coco(truth, table([one]), 'coco')


def test_empty_and_absent():
    truth, none = table([[0, 0, 0, 0, 10, 10, np.nan]]), table([])
    for b in metrics.BACKENDS:
        r = metrics.coco(truth, none, b)
        assert r['AP'] == 0 and r['AR100'] == 0 and r['APl'] == -1 and r['per_class']['bus']['AP'] == -1
        assert metrics.coco(none, none, b)['AP'] == -1
    o = curves.confidence_curves(truth, none)
    assert metrics._epoch_summary(metrics.coco(truth, none), o)['precision'] == 0
    assert curves.confusion_matrix(truth, none).tolist() == [[0, 0, 1], [0, 0, 0], [0, 0, 0]]
    for f in (metrics.plot_pr(metrics.coco(truth, none)), curves.plot_confidence(o),
              curves.plot_confusion(curves.confusion_matrix(truth, none), truth.names),
              metrics.plot_pr(metrics.coco(none, none)), curves.plot_confidence(curves.confidence_curves(none, none))):
        f.canvas.draw()


def test_per_class_is_the_mean():
    for seed in range(10):
        t, d = random_case(seed)
        r = metrics.coco(t, d)
        known = [c['AP'] for c in r['per_class'].values() if c['AP'] > -1]
        assert abs(np.mean(known or [-1]) - r['AP']) < 1e-12


class Seer(nn.Module):
    "Knows the truth: the red rectangle is where it is."
    def __init__(self):
        super().__init__()
        self.p, self.names, self.size = nn.Parameter(torch.zeros(1)), ['red'], (96, 64)
    def forward(self, x): assert not self.training; return [(x[:, 0] > .8) & (x[:, 1] < .3)]
    def decode(self, maps):
        out = torch.zeros(len(maps[0]), 1, 6)
        for k, m in enumerate(maps[0].bool()):
            y, x = m.nonzero().unbind(1)
            out[k, 0] = torch.tensor([(x.min() + x.max() + 1)/2, (y.min() + y.max() + 1)/2, x.max() + 1 - x.min(),
                                      y.max() + 1 - y.min(), .9, 1.])
        return out


def test_validator(tmp_path):
    for i in range(120):
        rgb = np.full((64, 96, 3), 90, np.uint8)
        rgb[10:40, 20+i % 30:60+i % 30] = (255, 0, 0)
        write_image(tmp_path/f'{i}.png', rgb)
    t = Table.make(dict(file=[f'{i}.png' for i in range(120)], path=[str(tmp_path/f'{i}.png') for i in range(120)]),
                   dict(image=range(120), category=[0]*120, x0=[20 + i % 30 for i in range(120)], y0=[10]*120,
                        x1=[60 + i % 30 for i in range(120)], y1=[40]*120), ['red'])
    net = Seer().train()
    judge = metrics.make_validator(t, (96, 64), bs=16, workers=0)
    (tmp_path/'0.png').unlink()                      # kept in memory: files are not read again... but for their size
    write_image(tmp_path/'0.png', np.zeros((64, 96, 3), np.uint8))
    began = time.process_time()
    r = judge(net)
    assert time.process_time() - began < 5 and net.training
    assert r['AP'] == 1 and r['AP50'] == 1 and r['recall'] == 1 and r['precision'] == 1 and r['per_class'] == {'red': 1}
    assert judge(net) == r


@gold
def test_app_on_the_golden_files(tmp_path):
    app = Path(__file__).parents[2]/'nbs/evaluate.ipynb'
    cmd = [sys.executable, '-m', 'papermill', '--no-progress-bar', str(app), str(tmp_path/'out.ipynb'), '-p', 'data',
           str(GOLD/'instances_val2014_100.json'),
           '-p', 'split', '', '-p', 'predictions', str(GOLD/'instances_val2014_fakebbox100_results.json'), '-p', 'out',
           str(tmp_path/'here')]
    p = subprocess.run(cmd, capture_output=True, text=True, cwd=tmp_path,
                       env=os.environ | dict(YOLOKIT_ROOT=str(tmp_path), OMP_NUM_THREADS='1'), timeout=300)
    assert p.returncode == 0, p.stderr[-2000:]
    r = json.loads((tmp_path/'here/evaluation.json').read_text())
    assert round(r['AP'], 3) == .505 and list(r)[:12] == list(metrics.COCO_METRICS)
    assert '0.5046' in p.stderr + p.stdout           # said on the terminal too
    for f in ('pr', 'confidence', 'confusion'): assert (tmp_path/f'here/plots/{f}.png').stat().st_size > 5000
    assert '95 % of' in p.stderr + p.stdout and 2e6 > (tmp_path/'here/errors-in-use.html').stat().st_size > 1000


def test_results_read_quickly_are_the_same(tmp_path):
    t = Table.make(dict(id=[3, 1, 2], file=['a', 'b', 'c']), {}, ['car', 'bus'], [1, 2])
    r = rng.rng(0)
    rows = [dict(image_id=int(r.integers(1, 4)), category_id=int(r.integers(1, 3)),
                 bbox=[float(v) for v in r.uniform(0, 1e-3 if k % 7 == 0 else 99, 4)],
                 score=float(r.random())) for k in range(300)]
    for form in (dict(), dict(indent=1), dict(separators=(',', ':'))):
        (tmp_path/'r.json').write_text(json.dumps(rows, **form))
        a, b = results.read_results(tmp_path/'r.json', t), results._read_rows(tmp_path/'r.json', t)
        assert results.parse_uniform_json((tmp_path/'r.json').read_bytes()) is not None
        assert (np.array_equal(a.xyxy, b.xyxy)
                and all(np.array_equal(a.boxes[k], b.boxes[k]) for k in ('image', 'category', 'score')))
    (tmp_path/'r.json').write_text(json.dumps([{**rows[0], 'segmentation': [], 'note': 'x'}, rows[1]]))
    assert len(results.read_results(tmp_path/'r.json', t)) == 2           # not alike: the ordinary way


def test_confusion_and_old_integration():
    for seed in range(5):
        t, d = random_case(seed)
        m = curves.confusion_matrix(t, d)
        sure = d.keep(d.boxes['score'] >= .25)
        on_crowds = (matching.matched_truth(t, sure) == matching.IGNORED).sum()  # no false alarms
        assert m[:-1].sum() == (~t.boxes['crowd']).sum()
        assert len(sure) - on_crowds <= m[:, :-1].sum() <= len(sure)
        no = t.keep(~t.boxes['crowd'])
        assert curves.confusion_matrix(no, d)[:, :-1].sum() == len(sure)
        old = matching.yolov5_ap(t, d)
        if metrics.coco(t, d)['AP50'] >= 0: assert 0 <= old['mAP50'] <= 1
