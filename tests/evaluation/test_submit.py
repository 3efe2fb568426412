"Submissions: exact bytes, the longest beginning, what a run delivers, the infer app."
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace
import numpy as np
import pytest
import torch
from yolokit.core import files, rng
from yolokit.core.images import write_image
from yolokit.network.model import Detector
from yolokit.network.zoo import build
from yolokit.network.checkpoints import to_checkpoint
from yolokit.data.table import Table
from yolokit.evaluation import metrics, results, submission
from yolokit.apps import train


def many(n, seed=0, images=50, ids=None, ties=False):
    "Detections anywhere; scores of two decimals where they are to tie."
    r = rng.rng(seed)
    xy = r.uniform(0, 1800, (n, 2))
    xyxy = np.hstack([xy, xy + r.exponential(40, (n, 2))])
    score = r.beta(.5, 3, n)
    return Table.make(dict(id=ids or list(range(1, images + 1)), file=[f'{i}.png' for i in range(images)]),
                      dict(image=r.integers(0, images, n), category=r.integers(0, 3, n),
                           score=np.round(score, 2) if ties else score, **dict(zip(('x0', 'y0', 'x1', 'y1'), xyxy.T))),
                      ['세단', '버스', '성인'], [1, 2, 3])


def test_exact_bytes_and_longest(tmp_path):
    for seed in range(12):
        d = many(200, seed, ties=bool(seed % 2), ids=[f'사진-"{i}"' for i in range(50)] if seed % 3 == 0 else None)
        order = submission._rank_order(results.encode_detections(d).table)
        one = lambda k: len(submission.fit_submission(d.keep(order[:k]), None).text.encode())
        for limit in rng.rng(seed).integers(300, 20_000, 12):
            s = submission.fit_submission(d, int(limit))
            k = len(s.kept)
            assert s.bytes == 1 + results.encode_detections(d).cost[s.kept].sum()
            assert os.path.getsize(s.write(tmp_path/'s.json')) == s.bytes <= limit
            assert np.array_equal(s.kept, order[:k]) and sum(s.dropped.values()) == 200 - k
            assert k == 200 or one(k + 1) > limit
            assert [r['score'] for r in s.rows] == sorted((r['score'] for r in s.rows), reverse=True)


def test_rows_are_the_boxes():
    d = many(500)
    rows = submission.fit_submission(d, None).rows
    back = np.array([r['bbox'] for r in rows])
    back[:, 2:] += back[:, :2]
    want = d.xyxy[submission.fit_submission(d, None).kept]
    off, side = np.abs(back - want), want[:, 2:] - want[:, :2]
    # no side becomes nothing
    assert off[:, :2].max() <= .05 + 1e-9 and off[(side > .2).all(1)].max() <= .1 + 1e-9 and off.max() <= .15
    assert np.abs(np.array([r['score'] for r in rows]) - np.sort(d.boxes['score'])[::-1]).max() <= 5e-5
    assert {tuple(r) for r in rows} == {('image_id', 'category_id', 'bbox',
                                         'score')} and {r['category_id'] for r in rows} == {1, 2, 3}
    assert min(min(r['bbox'][2:]) for r in rows) > 0


def test_limits_that_cannot_be(tmp_path):
    d = many(3)
    with pytest.raises(results.SubmitError, match='too small'): submission.fit_submission(d, 50)
    with pytest.raises(results.SubmitError, match='have no score'):
        submission.fit_submission(d.with_columns(score=np.full(3, np.nan)))
    with pytest.raises(results.SubmitError, match='clip'): submission.fit_submission(d.with_xyxy(d.xyxy - 2000))
    assert submission.fit_submission(d.keep([])).text == '[]'


def test_a_full_disk_leaves_the_old_file(tmp_path, monkeypatch):
    s = submission.fit_submission(many(10), None)
    s.write(tmp_path/'s.json')
    def full(self, data): raise OSError(28, 'No space left on device')
    monkeypatch.setattr(Path, 'write_bytes', full)
    with pytest.raises(OSError): submission.fit_submission(many(20), None).write(tmp_path/'s.json')
    assert (tmp_path/'s.json').read_text() == s.text and [p.name for p in tmp_path.iterdir()] == ['s.json']


def scene(seed, images=40, classes=4, crowd=True):
    "Truth with crowds and answers near and far, scores that tie, more than a hundred of a class in an image."
    r = rng.rng(seed)
    n, m = images*5, images*25
    image, kind, xy = (r.integers(0, images, n), r.choice(classes, n, p={2: [.8, .2], 4: [.7, .2, .08, .02]}[classes]),
                       r.uniform(0, 600, (n, 2)))
    box = np.hstack([xy, xy + r.uniform(8, 150, (n, 2))])
    T = lambda i, c, b, s, **k: Table.make(dict(id=list(range(7, 7 + images)),
                                                file=[f'{k}.png' for k in range(images)]),
                                           dict(image=i, category=c, score=s,
                                                **dict(zip(('x0', 'y0', 'x1', 'y1'), b.T)), **k),
                                           [f'종류{k}' for k in range(classes)], list(range(1, classes + 1)))
    truth = T(image, kind, box, np.full(n, np.nan), **(dict(crowd=r.random(n) < .05) if crowd else {}))
    at = r.uniform(0, 600, (m, 2))
    near = np.maximum(box + r.normal(0, .08, (n, 4))*np.tile(box[:, 2:] - box[:, :2], 2), 0)
    near[:, 2:] = np.maximum(near[:, 2:], near[:, :2] + 1)
    where = r.integers(0, images, m)
    where[:150] = 0                                                   # one image with more than a hundred of a class
    kinds = r.choice(classes, m)
    kinds[:150] = 0
    score = np.round(1/(1 + np.exp(-np.concatenate([r.normal(.5, 1.5, n) - kind, r.normal(-2.5, 1.5, m)]))), 2
                     if seed % 2 else 4)
    return truth, T(np.concatenate([image, where]), np.concatenate([kind, kinds]),
                    np.concatenate([near, np.hstack([at, at + r.uniform(8, 150, (m, 2))])]), score)


@pytest.mark.parametrize('seed', range(4))
def test_worths_add_up_to_what_coco_says_of_any_beginnings(seed):
    truth, found = scene(seed)
    v, r, order = submission._ap_contribution(truth, found), rng.rng(seed), submission._rank_order(found)
    for k in range(6):                                                # k = 0: all
        keep = np.zeros(len(found), bool)
        for c in range(4):
            rows = order[found.boxes['category'][order] == c]
            keep[rows[:len(rows) if k == 0 else r.integers(0, len(rows))]] = True
        if keep.any(): assert abs(v[keep].sum() - metrics.coco(truth, found.keep(keep), 'pycocotools')['AP']) < 1e-12
    assert (v >= 0).all()


def test_bound_is_above_every_choice_of_thresholds_and_reached_at_corners():
    truth, found = scene(2, images=3, classes=2)
    found = results.encode_detections(found).table
    v, cost, order = (submission._ap_contribution(truth, found), results.encode_detections(found).cost,
                      submission._rank_order(found))
    rows = [order[found.boxes['category'][order] == c] for c in range(2)]
    gain, size = ([np.append(0, np.cumsum(x[r])) for r in rows] for x in (v, cost))
    for limit in (300, 1000, 3000, 9000):
        fits = (size[0][:, None] + size[1][None]) + 1 <= limit
        best = (gain[0][:, None] + gain[1][None])[fits].max()         # every pair of thresholds
        b = submission._upper_bound(found, v, cost, limit)
        piece = max(np.diff(submission._concave_hull(s[1:], g[1:]),
                            axis=0)[:, 1].max(initial=0) for s, g in zip(size, gain))
        assert best <= b + 1e-12 and b - best <= piece + 1e-12


@pytest.mark.parametrize('seed', range(3))
def test_never_below_the_conf_cut_on_the_validation_set(seed):
    truth, found = scene(seed + 10)
    plan, w = submission.learn_cut(truth, found), results.encode_detections(found)
    fat, full = results.challenge_row_bytes(found), int(results.challenge_row_bytes(found).sum())
    for share in (1, .7, .4, .2, .1, .05, .02, .005):
        limit = int(share*full)
        s = submission.fit_submission(found, limit, plan=plan)
        conf = results.challenge_conf_cut(found.boxes['score'], fat, limit)
        ap = lambda t: metrics.coco(truth, t)['AP']
        mine = read_back(s, truth)
        assert s.bytes <= limit and ap(mine) >= ap(w.table.keep(conf)) - 1e-12, share
        if s.fitted:
            assert abs(s.fitted['chosen'] - ap(mine)) < 1e-12 and s.fitted['chosen'] <= s.fitted['bound'] + 1e-12


def read_back(s, truth):
    "The file as a reader finds it."
    with tempfile.TemporaryDirectory() as t: return results.read_results(s.write(Path(t)/'s.json'), truth)


def test_by_score_holds_the_conf_cut_on_any_images():
    "Without a validation set too: the same rows, digit for digit, and more."
    for seed in range(6):
        d = many(400, seed, ties=bool(seed % 2))
        fat = results.challenge_row_bytes(d)
        challenge = lambda i: (d.images['id'][d.boxes['image'][i]], d.category_ids[d.boxes['category'][i]],
                               *np.round([d.boxes['x0'][i], d.boxes['y0'][i], d.boxes['x1'][i] - d.boxes['x0'][i],
                                          d.boxes['y1'][i] - d.boxes['y0'][i]], 1).tolist(),
                               float(np.round(d.boxes['score'][i], 4)))
        for limit in (30_000, 9_000, 2_000, 700):
            ours = {(r['image_id'], r['category_id'], *r['bbox'], r['score'])
                    for r in submission.fit_submission(d, limit).rows}
            theirs = [challenge(i) for i in np.flatnonzero(results.challenge_conf_cut(d.boxes['score'], fat, limit))]
            assert {t for t in theirs if min(t[4:6]) > 0} <= ours


def test_a_plan_for_other_classes_is_refused():
    truth, found = scene(1)
    plan, d = submission.learn_cut(truth, found), many(2000)
    with pytest.raises(results.SubmitError, match='the plan is for the classes 종류0'):
        submission.fit_submission(d, 5000, plan=plan)
    with pytest.raises(results.SubmitError, match='nothing to learn from'): submission.learn_cut(truth, found.keep([]))
    with pytest.raises(results.SubmitError, match='nothing to learn from'): submission.learn_cut(truth.keep([]), found)


def test_thresholds_and_sizes_are_told():
    truth, found = scene(3)
    s = submission.fit_submission(found, 15_000, plan=submission.learn_cut(truth, found))
    b = results.encode_detections(found).table.boxes
    for k, name in enumerate(found.names):
        mine = s.kept[b['category'][s.kept] == k]
        assert np.isnan(s.thresholds[name]) if not len(mine) else s.thresholds[name] == b['score'][mine].min()
        assert s.dropped[name] == (b['category'] == k).sum() - len(mine)
    assert (sum(a for a, _ in s.by_size.values()) == len(s.kept)
            and sum(l for _, l in s.by_size.values()) == len(found) - len(s.kept))
    assert 'MB = 10^6, MiB = 2^20' in str(s) and 'by size: small' in str(s) and 'the conf cut would keep' in str(s)


@pytest.mark.soak
def test_a_million_in_five_seconds():
    truth, found = scene(4, images=200)
    plan, d = submission.learn_cut(truth, found), many(1_000_000, images=19_521)
    d = Table.make(d.images, d.boxes, found.names, found.category_ids)
    for limit, p in ((20_000_000, plan), (20_000_000, None), (None, None)):
        began = time.process_time()
        s = submission.fit_submission(d, limit, plan=p)
        assert time.process_time() - began <= 5
    assert len(s.kept) == 1_000_000


@pytest.mark.soak
def test_real_detections_are_cut_better_than_by_the_conf_cut(tmp_path, monkeypatch):
    "A short training on BCCD; the full figures are those of bench/cuts.py."
    if files.shared_data_dir() is None: pytest.skip('../shared is not here')
    import cuts
    (tmp_path/'a').mkdir()
    for link, to in (('nbs', files.project_root()/'nbs'), ('settings.ini', files.project_root()/'settings.ini'),
                     ('../shared', files.shared_data_dir())):
        (tmp_path/'a'/link).symlink_to(to)
    monkeypatch.setenv('YOLOKIT_ROOT', str(tmp_path/'a'))
    monkeypatch.setitem(cuts.RUNS, 'bccd', cuts.RUNS['bccd'].replace('-p steps 250', '-p steps 100'))
    for row in cuts.measure(*cuts.sides('bccd'), draws=100):
        assert row['judge plan'] > row['judge conf'] and row['fit plan'] >= row['fit conf'] and row['low'] >= 0, row
        assert row['judge score'] >= row['judge conf']


@pytest.fixture(scope='module')
def lot(tmp_path_factory):
    "Twelve pictures: eight to judge by, four to submit; a checkout around them."
    folder, r = tmp_path_factory.mktemp('lot'), np.random.default_rng(0)
    (folder/'settings.ini').write_text('[DEFAULT]\n')
    paths = [folder/f'그림/{i}.png' for i in range(12)]
    for p in paths: write_image(p, r.integers(0, 255, (64, 96, 3)).astype(np.uint8))
    xy = r.uniform(0, 40, (8, 2))
    t = Table.make(dict(id=list(range(100, 112)), file=[p.name for p in paths], path=list(map(str, paths)),
                        split=['val']*8 + ['test']*4),
                   dict(image=range(8), category=[0, 1]*4, **dict(zip(('x0', 'y0', 'x1', 'y1'),
                                                                      np.hstack([xy, xy + 20]).T))), ['세단', '성인'],
                   [1, 2])
    net = Detector(build('yolokit-nano', classes=2).with_size(96, 64), names=t.names)
    torch.save(to_checkpoint(net), folder/'net.pt')
    return folder, t, net


def test_deliver(lot, tmp_path):
    folder, t, net = lot
    said = []
    run = SimpleNamespace(folder=tmp_path, config=dict(width=96, height=64, bs=4, workers=0, device='cpu',
                                                       limit_mb=.002), say=said.append)
    paths = train.finish_run(run, net, t)
    for f in ('predictions.json', 'evaluation.json', 'submission.json', 'plots/pr.png', 'plots/predictions.png',
              'plots/confusion.png'):
        assert (tmp_path/f).exists(), f
    assert os.path.getsize(paths['submission']) <= 2000 and all(p.exists() for p in paths.values())
    assert {r['image_id'] for r in json.loads((tmp_path/'submission.json').read_text())} <= {108, 109, 110, 111}
    val, e = t.split('val'), json.loads((tmp_path/'evaluation.json').read_text())
    again = metrics.coco(val, results.read_results(tmp_path/'predictions.json', val))
    # recomputed from the file to the last digit
    assert [e[k] for k in metrics.COCO_METRICS] == list(again.numbers.values())
    assert len(said) == 2 and 'AP' in said[0] and 'left out' in said[1]


def test_deliver_without_test_images(lot, tmp_path):
    _, t, net = lot
    run = SimpleNamespace(folder=tmp_path, config={}, say=lambda s: None)
    assert 'submission' not in train.finish_run(run, net, t.split('val').keep_images(np.arange(2)))


def test_infer_app(lot, tmp_path):
    folder, t, _ = lot
    app = Path(__file__).parents[2]/'nbs/infer.ipynb'
    cmd = [sys.executable, '-m', 'papermill', '--no-progress-bar', str(app), str(tmp_path/'out.ipynb'), '-p', 'weights',
           'net.pt', '-p', 'images', '그림',
           '-p', 'out', 'results', '-p', 'limit_mb', '0.003', '-p', 'workers', '0', '-p', 'pictures', '2']
    p = subprocess.run(cmd, capture_output=True, text=True, cwd=tmp_path,
                       env=os.environ | dict(YOLOKIT_ROOT=str(folder), OMP_NUM_THREADS='1'), timeout=300)
    assert p.returncode == 0, p.stderr[-2000:]
    out = folder/'results'
    assert os.path.getsize(out/'submission.json') <= 3000 and len(json.loads((out/'predictions.json').read_text()))
    assert len(list((out/'pictures').glob('*.jpg'))) == 2
    assert 'submission' in p.stderr + p.stdout and 'submission' in (out/'log.txt').read_text()


@pytest.mark.parametrize('side', [1999., 2001., 30_000., 400_000.])
def test_pictures_of_any_size(side):
    "Coordinates beyond what a table of numbers holds, in the digits of a run and of a submission."
    t = Table.make(dict(file=['a.jpg', 'b.jpg'], width=[side + 10]*2, height=[side + 10]*2),
                   dict(image=[0, 1], category=[0, 0], x0=[0., 1.], y0=[0., 2.], x1=[side, side], y1=[3., side],
                        score=[.9, .123456789]), ['x'])
    for decimals, score in ((3, 9), (1, 4), (0, 2)):
        s = submission.fit_submission(t, None, decimals=decimals, score_decimals=score)
        assert [r['bbox'][2] for r in s.rows] == [side, side - 1] and len(s.text.encode()) == s.bytes
        assert len(submission.fit_submission(t, 80, decimals=decimals, score_decimals=score).kept) == 1
    rows = [dict(image_id=k, category_id=0, bbox=b, score=c, segmentation=[])
            for k, (b, c) in enumerate((([0., 0., side, 3.], .9), ([1., 2., side - 1, side - 2], .1235)))]
    assert results.challenge_row_bytes(t).tolist() == [len(json.dumps(r)) + 2 for r in rows]
