"""Leaderboard: a real run's row comes again from its files, weights from elsewhere get theirs, faults are named; the
page in a browser."""
import csv, json, re, shutil, subprocess, sys, threading
from pathlib import Path

import pytest

import browser
from small import checkout, environment
from yolokit.core.files import FormatError
from yolokit.evaluation import leaderboard as evaluation_leaderboard, metrics
from yolokit.apps import leaderboard as apps_leaderboard
from yolokit.apps.train import train, TrainConfig

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope='module')
def trained(tmp_path_factory):
    "A checkout with two short runs, judged as every run is."
    folder = checkout(tmp_path_factory.mktemp('board'))
    with pytest.MonkeyPatch.context() as m:
        m.setenv('YOLOKIT_ROOT', str(folder))
        m.chdir(folder)
        for seed in (0, 1):
            c = TrainConfig(stage='baseline', data='squares', network='tiny.cfg', weights='none', recipe='scratch',
                            bs=8, steps=60, lr0=.02, change='init=he', seed=seed, workers=0, threads=1, device='cpu')
            train(c)
        yield folder


@pytest.fixture
def here(trained, monkeypatch):
    monkeypatch.setenv('YOLOKIT_ROOT', str(trained))
    return trained


def test_a_run_s_row_says_everything_and_comes_again(here):
    board = [r for r in evaluation_leaderboard.read_rows() if r['stage'] == 'baseline']
    assert [r['name'] for r in board] and {r['way'] for r in board} == {'A'} and [r['rank'] for r in board] == [1, 2]
    for r in board:
        assert r['AP'] > .02
        for k in ('AP', 'low', 'high', 'conf', 'iou', 'max_det', 'width', 'height', 'mode', 'dtype', 'evaluator',
                  'truth', 'predictions', 'weights', 'params', 'macs', 'ms', 'device', 'threads', 'train_seconds',
                  'steps'):
            assert r[k] not in (None, ''), k
        assert r['low'] <= r['AP'] <= r['high'] and r['evaluator'].split()[1]
        pairs = evaluation_leaderboard.recompute(r['name'])
        said = json.loads((here/'runs'/r['name']/'evaluation.json').read_text())
        assert (all(a == b for a, b in pairs.values()) and pairs['AP'][1] == r['AP']
                and all(pairs[k][1] == said[k] for k in metrics.COCO_METRICS))


def test_equal_aps_have_one_rank(here):
    one = {k: v for k, v in evaluation_leaderboard.read_rows()[0].items() if k not in ('way', 'rank')}
    rows = [one | dict(name=n, AP=ap) for n, ap in (('a', .3), ('b', .5), ('c', .5), ('d', .2))]
    ranked = evaluation_leaderboard._rank_rows(rows)
    assert [(r['name'], r['rank']) for r in ranked] == [('b', 1), ('c', 1), ('a', 3), ('d', 4)]


def test_each_class_has_a_column_and_each_row_leads_to_its_report(here, tmp_path):
    r = {r['name']: r for r in evaluation_leaderboard.read_rows()}['baseline-001']
    said = json.loads((here/'runs/baseline-001/evaluation.json').read_text())['per_class']
    classes = {n: c['AP'] for n, c in said.items() if c['truth']}
    assert classes and {k[3:]: v for k, v in r.items() if k.startswith('AP:')} == classes
    again = evaluation_leaderboard.recompute('baseline-001')
    assert {k for k in again if k.startswith('AP:')} == {f'AP:{n}' for n in classes}
    name, ap = next(iter(classes.items()))
    assert [r['name'] for r in evaluation_leaderboard.filter_rows([r], f'AP:{name}>={ap}')] == ['baseline-001']
    report = here/'runs/baseline-001/report.html'
    report.write_text('a report')
    _, paths = apps_leaderboard.update_leaderboard(apps_leaderboard.LeaderboardConfig(out=str(tmp_path/'elsewhere')))
    link = re.search(r'href="([^"]*baseline-001/report.html)"', paths['html'].read_text(encoding='utf-8'))[1]
    assert (paths['html'].parent/link).read_text() == 'a report'
    report.unlink()
    head = evaluation_leaderboard.to_html([r])
    assert '<th data-k>threads</th>' in head and f'<th data-k class=all>AP:{name}</th>' in head


def test_rows_are_read_while_runs_come_and_go(here):
    "A run that is half there or half gone does no harm, and the others' rows are whole."
    def busy():
        for k in range(30):
            shutil.copytree(here/'runs/baseline-001', here/f'runs/busy-{k % 3}')
            shutil.rmtree(here/f'runs/busy-{k % 3}')
    other = threading.Thread(target=busy)
    other.start()
    seen = []
    while other.is_alive():
        rows = evaluation_leaderboard.read_rows()
        assert {r['name'] for r in rows} >= {'baseline-001', 'baseline-002'}
        seen.append(len(rows))
    other.join()
    assert seen and sorted(p.name for p in (here/'runs').glob('busy-*')) == []


def test_darknet_weights_get_a_row_like_any_other(here):
    from yolokit.network import checkpoints, weights
    d = checkpoints.load_checkpoint(here/'runs/baseline-001/weights/best.pt')
    (here/'theirs.cfg').write_text(str(d.cfg))
    (here/'theirs.names').write_text('\n'.join(d.names) + '\n')
    weights.write_weights(d, here/'theirs.weights')
    data = json.loads((here/'runs/baseline-001/run.json').read_text())['data']['folder']
    run = apps_leaderboard.evaluate_row(apps_leaderboard.LeaderboardConfig(weights='theirs.weights', data=data,
                                                                           workers=0, device='cpu', width=d.size[0],
                                                                           height=d.size[1]))
    r = {r['name']: r for r in evaluation_leaderboard.read_rows()}
    mine, ours = r[run.name], r['baseline-001']
    assert (mine['stage'] == 'judged' and mine['network'] == 'theirs' and mine['way'] == ours['way']
            and mine['params'] == ours['params'] and mine['macs'] == ours['macs'])
    assert abs(mine['AP'] - ours['AP']) < .01                       # the same weights, BatchNorm's epsilon apart
    evaluation_leaderboard.recompute(run.name)
    again = apps_leaderboard.evaluate_row(apps_leaderboard.LeaderboardConfig(
        run='baseline-001', iou=.3, workers=0, device='cpu', name='other-nms'))
    r = {r['name']: r for r in evaluation_leaderboard.read_rows()}
    assert (r['other-nms']['parent'] == 'baseline-001' and r['other-nms']['way'] != ours['way'] and 'iou 0.3' in
            evaluation_leaderboard._protocol_differences(evaluation_leaderboard.read_rows())[r['other-nms']['way']])
    what, p = evaluation_leaderboard.compare('baseline-001', 'other-nms')
    assert ('iou', .6, .3) in what and 'AP' in p


@pytest.fixture
def copy(here, tmp_path, monkeypatch):
    "The checkout again, to be spoilt."
    shutil.copytree(here, tmp_path/'spoilt')
    monkeypatch.setenv('YOLOKIT_ROOT', str(tmp_path/'spoilt'))
    return tmp_path/'spoilt'


def test_what_is_not_what_it_was_is_named(copy):
    run = copy/'runs/baseline-001'
    record = json.loads((run/'judged.json').read_text())
    truth = copy/record['truth']['data']/'annotations.json'
    kept = truth.read_text()
    d = json.loads(kept)
    val = {i['id'] for i in d['images'] if i.get('split') == 'val' or 'val' in i['file_name']}
    next(a for a in d['annotations'] if a['image_id'] in val)['bbox'][0] += .5
    truth.write_text(json.dumps(d))
    with pytest.raises(FormatError, match='not the file that prepare wrote'):
        evaluation_leaderboard.recompute('baseline-001')
    with pytest.raises(FormatError, match='not the file that prepare wrote'):
        evaluation_leaderboard.compare('baseline-001', 'baseline-002')
    truth.write_text(kept)
    (run/'predictions.json').write_text('[]')
    with pytest.raises(evaluation_leaderboard.LeaderboardError, match='predictions.json is not what it was'):
        evaluation_leaderboard.recompute('baseline-001')
    (run/'predictions.json').unlink()
    with pytest.raises(evaluation_leaderboard.LeaderboardError, match='predictions.json is gone'):
        evaluation_leaderboard.recompute('baseline-001')
    shutil.move(truth.parent, copy/'elsewhere')
    with pytest.raises(evaluation_leaderboard.LeaderboardError, match='the data is gone'):
        evaluation_leaderboard.recompute('baseline-002')
    n = len(evaluation_leaderboard.read_rows())
    (run/'judged.json').write_text('{"version": 1}')
    assert len(evaluation_leaderboard.read_rows()) == n - 1                                    # passed over, not fatal
    with pytest.raises(evaluation_leaderboard.LeaderboardError, match='nothing was judged there; there are'):
        evaluation_leaderboard.recompute('nobody')


def test_different_truths_are_never_ranked_together(copy):
    data = json.loads((copy/'runs/baseline-001/run.json').read_text())['data']['folder']
    d = json.loads((copy/data/'annotations.json').read_text())
    d['annotations'] = (
        d['annotations'][:-1]
        if 'val' in {i['id']: i for i in d['images']}[d['annotations'][-1]['image_id']]['file_name']
        else d['annotations'][1:])
    val = {i['id'] for i in d['images'] if 'val' in i['file_name']}
    d['annotations'] = [a for k, a in enumerate(d['annotations'])
                        if not (a['image_id'] in val
                                and a['id'] == min(a['id'] for a in d['annotations'] if a['image_id'] in val))]
    d['images'] = [i | dict(path=str(copy/data/i['file_name'])) for i in d['images']]
    (copy/data/'other.json').write_text(json.dumps(dict(d, images=[i for i in d['images'] if i['id'] in val],
                                                   annotations=[a for a in d['annotations'] if a['image_id'] in val])))
    apps_leaderboard.evaluate_row(apps_leaderboard.LeaderboardConfig(predictions='runs/baseline-001/predictions.json',
                                                                     data=f'{data}/other.json', split='',
                                                                     name='elsewhere'))
    r = {r['name']: r for r in evaluation_leaderboard.read_rows()}
    assert r['elsewhere']['truth'] != r['baseline-001']['truth'] and r['elsewhere']['way'] != r['baseline-001']['way']
    assert ('Not judged alike' in evaluation_leaderboard.markdown(evaluation_leaderboard.read_rows())
            and 'class=warn' in evaluation_leaderboard.to_html(evaluation_leaderboard.read_rows()))
    with pytest.raises(evaluation_leaderboard.LeaderboardError, match='different ground truth'):
        evaluation_leaderboard.compare('baseline-001', 'elsewhere')


def test_the_app(here, tmp_path):
    cmd = [sys.executable, '-m', 'papermill', '--no-progress-bar', str(ROOT/'nbs/leaderboard.ipynb'),
           str(tmp_path/'out.ipynb')]
    go = lambda *p: subprocess.run([*cmd, *(x for kv in p for x in ('-p', *kv))], capture_output=True, text=True,
                                   cwd=tmp_path, env=environment(here), timeout=300)
    done = go(('recompute', 'baseline-001'), ('compare', 'baseline-001 baseline-002'), ('out', 'board'))
    assert done.returncode == 0, done.stderr[-2000:]
    assert 'come out again to the last digit' in done.stdout + done.stderr
    rows = list(csv.DictReader((here/'board/leaderboard.csv').open()))
    assert ({float(r['AP']) for r in rows if r['name'] == 'baseline-001'}
            == {json.loads((here/'runs/baseline-001/evaluation.json').read_text())['AP']})
    assert (here/'board/leaderboard.html').exists() and '| baseline-001 |' in (tmp_path/'out.ipynb').read_text()


@pytest.mark.skipif(not browser.find(), reason='no Chromium here (apt-get install chromium)')
def test_the_page_in_a_browser(here, tmp_path):
    path = tmp_path/'board.html'
    path.write_text(evaluation_leaderboard.to_html(evaluation_leaderboard.read_rows()), encoding='utf-8')
    names = '[...document.querySelectorAll("#board tbody tr")].filter(r => !r.hidden).map(r => r.cells[3].textContent)'
    head = '[...document.querySelectorAll("th")].find(t => t.textContent == "name")'
    with browser.chromium(tmp_path) as page:
        page.open(f'file://{path}')
        page.wait('!!document.querySelector("#pair")')
        assert set(page.js(names)) == {r['name'] for r in evaluation_leaderboard.read_rows()}
        page.click(head)
        first = page.js(names)
        page.click(head)
        assert page.js(names) != first and set(page.js(names)) == set(first)
        page.js('[...document.querySelectorAll("#board input")].slice(0, 2).forEach(i => i.click())')
        assert (page.js('document.querySelectorAll("#pair tr").length') > 20
                and page.js('document.querySelectorAll("#pair tr.diff").length') > 0)
        page.js('(() => {const q = document.querySelector("#q"); q.value = "baseline-002"; q.dispatchEvent(new '
                'Event("input"))})()')
        assert 'baseline-002' in page.js(names) and 'baseline-001' not in page.js(names)
        page.picture(tmp_path/'board.png')
