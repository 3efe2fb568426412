"Thresholds, calibration and slices by their definitions, and on their way into infer, evaluate and export."
import json
import numpy as np, pytest, torch
from yolokit.apps import evaluate, export, infer
from yolokit.data.table import Table
from yolokit.evaluation import thresholds
from yolokit.evaluation.matching import EvaluateError, match
from yolokit.evaluation.thresholds import calibration, choose_thresholds, keep_above, read_thresholds, slices


def scene(seed=0, n=60, night=.0):
    "Two classes; of the night's pictures a share of the cars is missed; scores of false alarms are lower."
    r = np.random.default_rng(seed)
    dark = np.arange(n) % 3 == 0
    images = dict(file=[f'길_{"야간" if k else "주간"}_{i:03d}.png' for i, k in enumerate(dark)],
                  weather=['비', '맑음']*(n//2))
    image, cls = np.repeat(np.arange(n), 4), np.tile([0, 0, 1, 1], n)
    box = dict(image=image, category=cls, x0=np.tile([0., 50, 100, 150], n), y0=np.zeros(4*n),
               x1=np.tile([30., 80, 130, 180], n), y1=np.full(4*n, 30.))
    truth = Table.make(images, box, ['차', 'bus'])
    keep = ~(dark[image] & (cls == 0) & (r.random(4*n) < night)) & (r.random(4*n) < .9)
    wrong = box | dict(y0=np.full(4*n, 200.), y1=np.full(4*n, 230.))
    score = np.r_[np.clip(r.normal(.6, .15, 4*n), .01, .99)[keep], np.clip(r.normal(.3, .15, 4*n), .01, .99)]
    found = {k: np.r_[box[k][keep], wrong[k]] for k in box}
    return truth, Table.make(images, found | dict(score=score), truth.names)


def plain(truth, found, c, at):
    "Hits, false alarms and truths of a class at a threshold, one by one."
    f = found.keep((found.boxes['category'] == c) & (found.boxes['score'] >= at))
    m = match(truth, f, .5, max_det=10**6)
    return (m.found[0] >= 0).sum(), (m.found[0] == -1).sum(), (truth.boxes['category'] == c).sum()

@pytest.mark.parametrize('goal,value', [('f1', 1.), ('cost', .2), ('cost', 5.), ('recall', .5), ('recall', .8)])
def test_the_threshold_is_the_best_of_all(goal, value):
    truth, found = scene()
    def worth(tp, fp, n):
        return dict(f1=2*tp/(tp + fp + n), cost=value*tp - fp, recall=min(tp/n, value) - 1e-9*fp)[goal]
    for c, (name, t) in enumerate(choose_thresholds(truth, found, goal, value, draws=20).items()):
        every = np.unique(found.boxes['score'][found.boxes['category'] == c])
        best = max(worth(*plain(truth, found, c, s)) for s in every)
        assert worth(*plain(truth, found, c, t['threshold'])) == pytest.approx(best), name
        assert t['interval'][0] <= t['threshold'] <= t['interval'][1] or goal != 'f1'
        for k in ('precision', 'recall', 'f1'): assert t[k][1] <= t[k][0] <= t[k][2] and 0 <= t[k][0] <= 1
    if goal == 'recall': assert t['recall'][0] > value - .15

def test_out_of_fold_is_never_better_by_its_own_choice():
    "On noise the chosen threshold looks good where it was chosen; out of fold it does not."
    r = np.random.default_rng(1)
    truth, found = scene(1, 12)
    found = found.with_columns(score=r.random(len(found)))
    t = choose_thresholds(truth, found, folds=6, draws=50)['차']
    tp, fp, n = plain(truth, found, 0, t['threshold'])
    assert t['f1'][0] <= 2*tp/(tp + fp + n) + 1e-12

def test_calibration_on_scores_that_lie():
    r, n = np.random.default_rng(2), 400
    images = dict(file=[f'{i}.png' for i in range(n)])
    image = np.repeat(np.arange(n), 10)
    p = r.uniform(.05, .95, 10*n)
    right = r.random(10*n) < p
    x = np.tile(np.arange(10)*50., n)
    box = dict(image=image, category=np.zeros(10*n, int), x0=x, y0=np.zeros(10*n), x1=x + 30, y1=np.full(10*n, 30.))
    truth = Table.make(images, {k: v[right] for k, v in box.items()}, ['a'])
    honest = calibration(truth, Table.make(images, box | dict(score=p), ['a']))
    assert honest['ece'] < .03 and abs(honest['temperature'] - 1) < .15
    logit = np.log(p/(1 - p))
    sure = Table.make(images, box | dict(score=1/(1 + np.exp(-3*logit))), ['a'])
    c = calibration(truth, sure)
    assert abs(c['temperature'] - 3) < .4 and c['ece'] > .1 > .06 > max(c['ece_temperature'], c['ece_isotonic'])
    rows = c['curve'][c['curve'][:, 2] > 0]
    assert rows[:, 2].sum() == 10*n and thresholds.plot_calibration(c)

def test_slices_are_marked_where_chance_does_not_explain_them():
    truth, found = scene(3, night=.6)
    rows = slices(truth, found, '주간|야간', draws=200)
    assert [d['slice'] for d in rows] == ['야간', '주간'] and [d['worse'] for d in rows] == [True, False]
    for d in rows: assert d['AP'][1] <= d['AP'][0] <= d['AP'][2] and 0 < d['threshold'] < 1
    assert not any(d['worse'] for d in slices(truth, found, 'weather', draws=200))
    fair = sum(d['worse'] for s in range(6) for d in slices(*scene(10 + s), '주간|야간', draws=100))
    assert fair <= 1                                                     # 12 slices at .025 each
    with pytest.raises(EvaluateError, match='in no file name'): slices(truth, found, 'rain')
    with pytest.raises(EvaluateError, match='no pattern'): slices(truth, found, '(')

def test_thresholds_travel(tmp_path, monkeypatch):
    truth, found = scene()
    c = evaluate.EvaluateConfig(goal='cost', value=2., slices='weather', errors_at=.3, draws=20)
    said = evaluate.shipping_report(c, truth, found, tmp_path)
    least = read_thresholds(str(tmp_path/'thresholds.json'))
    assert list(least) == ['차', 'bus'] and 'thresholds for cost: 차=' in said[0] and sum('slice' in s for s in said) == 2
    files = {'thresholds.json', 'thresholds.csv', 'slices.csv', 'calibration.png'}
    assert {p.name for p in tmp_path.iterdir()} == files
    monkeypatch.setattr(infer, 'run_detect', lambda c, d, what, log: found)
    how = infer.InferConfig(per_class=str(tmp_path/'thresholds.json'))
    kept = infer.detect_and_record(how, torch.nn.Identity(), truth, tmp_path)
    assert len(kept) == len(keep_above(found, least)) < len(found)
    assert (kept.boxes['score'] >= np.array([least['차'], least['bus']])[kept.boxes['category']]).all()
    calls = []
    monkeypatch.setattr(export, 'to_deepstream', lambda *a, **kw: calls.append(kw['per_class']))
    class Net(torch.nn.Module): size = (32, 32)
    monkeypatch.setattr(export, 'certify', lambda *a, **kw: None)
    monkeypatch.setattr(export, 'load_detector', lambda c: (None, Net()))
    monkeypatch.setattr(export, '_resized', lambda d, w, h: d)
    export.export_all(export.ExportConfig(to='deepstream', out=str(tmp_path/'o'), per_class=how.per_class))
    assert calls == [least]
    for text in ('car .4', str(tmp_path/'none.json')):
        with pytest.raises(EvaluateError, match='per_class'): read_thresholds(text)
    with pytest.raises(EvaluateError, match='the classes are 차, bus'): keep_above(found, dict(car=.5))
    assert json.loads((tmp_path/'thresholds.json').read_text(encoding='utf-8'))['bus']['recall']
