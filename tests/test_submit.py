"Submissions: exact bytes, the longest beginning, what a run delivers, the infer app."
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
import numpy as np
import pytest
import torch
from yolokit import evaluate as E, formats, ground, submit as S
from yolokit.images import write
from yolokit.model import Detector
from yolokit.table import Table
from yolokit.weights import checkpoint
from yolokit.zoo import build


def many(n, seed=0, images=50, ids=None, ties=False):
    "Detections anywhere; scores of two decimals where they are to tie."
    r = ground.rng(seed)
    xy = r.uniform(0, 1800, (n, 2))
    xyxy = np.hstack([xy, xy + r.exponential(40, (n, 2))])
    score = r.beta(.5, 3, n)
    return Table.make(dict(id=ids or list(range(1, images + 1)), file=[f'{i}.png' for i in range(images)]),
                      dict(image=r.integers(0, images, n), category=r.integers(0, 3, n), score=np.round(score, 2) if ties else score, **dict(zip(('x0', 'y0', 'x1', 'y1'), xyxy.T))),
                      ['세단', '버스', '성인'], [1, 2, 3])


def test_exact_bytes_and_longest(tmp_path):
    for seed in range(12):
        d = many(200, seed, ties=bool(seed % 2), ids=[f'사진-"{i}"' for i in range(50)] if seed % 3 == 0 else None)
        order, one = S.order(d), lambda k: len(S.fit(d.keep(S.order(d)[:k]), None).text.encode())
        for limit in ground.rng(seed).integers(300, 20_000, 12):
            s = S.fit(d, int(limit))
            k = len(s.kept)
            assert os.path.getsize(s.write(tmp_path/'s.json')) == s.bytes <= limit
            assert np.array_equal(s.kept, order[:k]) and sum(s.dropped.values()) == 200 - k
            assert k == 200 or one(k + 1) > limit
            assert [r['score'] for r in s.rows] == sorted((r['score'] for r in s.rows), reverse=True)


def test_rows_are_the_boxes():
    d = many(500)
    rows = S.fit(d, None).rows
    back = np.array([r['bbox'] for r in rows])
    back[:, 2:] += back[:, :2]
    want = d.xyxy[S.order(d)]
    off, side = np.abs(back - want), want[:, 2:] - want[:, :2]
    assert off[(side > .2).all(1)].max() <= .05 + 1e-9 and off.max() <= .15   # no side becomes nothing
    assert np.abs(np.array([r['score'] for r in rows]) - np.sort(d.boxes['score'])[::-1]).max() <= 5e-5
    assert {tuple(r) for r in rows} == {('image_id', 'category_id', 'bbox', 'score')} and {r['category_id'] for r in rows} == {1, 2, 3}
    assert min(min(r['bbox'][2:]) for r in rows) > 0


def test_limits_that_cannot_be(tmp_path):
    d = many(3)
    with pytest.raises(S.SubmitError, match='too small'): S.fit(d, 50)
    with pytest.raises(S.SubmitError, match='no score'): S.fit(d.with_columns(score=np.full(3, np.nan)))
    with pytest.raises(S.SubmitError, match='clip'): S.fit(d.with_xyxy(d.xyxy - 2000))
    assert S.fit(d.keep([])).text == '[]'


def test_a_full_disk_leaves_the_old_file(tmp_path, monkeypatch):
    s = S.fit(many(10), None)
    s.write(tmp_path/'s.json')
    def full(self, data): raise OSError(28, 'No space left on device')
    monkeypatch.setattr(Path, 'write_bytes', full)
    with pytest.raises(OSError): S.fit(many(20), None).write(tmp_path/'s.json')
    assert (tmp_path/'s.json').read_text() == s.text and [p.name for p in tmp_path.iterdir()] == ['s.json']


@pytest.mark.soak
def test_a_million_in_five_seconds():
    d = many(1_000_000, images=19_521)
    for limit in (20_000_000, None):
        began = time.process_time()
        s = S.fit(d, limit)
        assert time.process_time() - began <= 5
    assert len(s.kept) == 1_000_000


@pytest.fixture(scope='module')
def lot(tmp_path_factory):
    "Twelve pictures: eight to judge by, four to submit; a checkout around them."
    folder, r = tmp_path_factory.mktemp('lot'), np.random.default_rng(0)
    (folder/'settings.ini').write_text('[DEFAULT]\n')
    paths = [folder/f'그림/{i}.png' for i in range(12)]
    for p in paths: write(p, r.integers(0, 255, (64, 96, 3)).astype(np.uint8))
    xy = r.uniform(0, 40, (8, 2))
    t = Table.make(dict(id=list(range(100, 112)), file=[p.name for p in paths], path=list(map(str, paths)), split=['val']*8 + ['test']*4),
                   dict(image=range(8), category=[0, 1]*4, **dict(zip(('x0', 'y0', 'x1', 'y1'), np.hstack([xy, xy + 20]).T))), ['세단', '성인'], [1, 2])
    net = Detector(build('yolokit-nano', classes=2).with_size(96, 64), names=t.names)
    torch.save(checkpoint(net), folder/'net.pt')
    return folder, t, net


def test_deliver(lot, tmp_path):
    folder, t, net = lot
    said = []
    run = SimpleNamespace(folder=tmp_path, config=dict(width=96, height=64, bs=4, workers=0, device='cpu', limit_mb=.002), say=said.append)
    paths = S.deliver(run, net, t)
    for f in ('predictions.json', 'evaluation.json', 'submission.json', 'plots/pr.png', 'plots/predictions.png', 'plots/confusion.png'): assert (tmp_path/f).exists(), f
    assert os.path.getsize(paths['submission']) <= 2000 and all(p.exists() for p in paths.values())
    assert {r['image_id'] for r in json.loads((tmp_path/'submission.json').read_text())} <= {108, 109, 110, 111}
    val, e = t.split('val'), json.loads((tmp_path/'evaluation.json').read_text())
    again = E.coco(val, formats.detections(tmp_path/'predictions.json', val))
    assert [e[k] for k in E.NUMBERS] == list(again.numbers.values())   # recomputed from the file to the last digit
    assert len(said) == 2 and 'AP' in said[0] and 'left out' in said[1]


def test_deliver_without_test_images(lot, tmp_path):
    _, t, net = lot
    run = SimpleNamespace(folder=tmp_path, config={}, say=lambda s: None)
    assert 'submission' not in S.deliver(run, net, t.split('val').keep_images(np.arange(2)))


def test_infer_app(lot, tmp_path):
    folder, t, _ = lot
    app = Path(__file__).parents[1]/'nbs/infer.ipynb'
    cmd = [sys.executable, '-m', 'papermill', '--no-progress-bar', str(app), str(tmp_path/'out.ipynb'), '-p', 'weights', 'net.pt', '-p', 'images', '그림',
           '-p', 'out', 'results', '-p', 'limit_mb', '0.003', '-p', 'workers', '0', '-p', 'pictures', '2']
    p = subprocess.run(cmd, capture_output=True, text=True, cwd=tmp_path, env=os.environ | dict(YOLOKIT_ROOT=str(folder), OMP_NUM_THREADS='1'), timeout=300)
    assert p.returncode == 0, p.stderr[-2000:]
    out = folder/'results'
    assert os.path.getsize(out/'submission.json') <= 3000 and len(json.loads((out/'predictions.json').read_text()))
    assert len(list((out/'pictures').glob('*.jpg'))) == 2
    assert 'submission' in p.stderr + p.stdout and 'submission' in (out/'log.txt').read_text()
