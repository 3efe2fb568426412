"""The compress app on a few drawn pictures: two budgets, asked twice; in rounds; sparse first; killed and gone on
with; the parent is never touched."""
import json, subprocess, sys
from pathlib import Path
import pytest
from small import checkout, environment
from yolokit.core.files import sha256
from yolokit.network.checkpoints import load_checkpoint
from yolokit.training import launcher, runs
from yolokit.training.recipes import TrainError
from yolokit.training.runs import Run
from yolokit.evaluation import leaderboard
from yolokit.compression import prune
from yolokit.apps import compress
from yolokit.apps.train import train, TrainConfig
from yolokit.apps.compress import CompressConfig, CompressError

ROOT = Path(__file__).resolve().parents[2]
C = dict(bs=4, steps=3, workers=0, threads=1, device='cpu')
files = lambda run: {p.relative_to(run.folder).as_posix(): sha256(p)
                     for p in sorted(run.folder.rglob('*')) if p.is_file()}


@pytest.fixture(scope='module')
def root(tmp_path_factory):
    folder = checkout(tmp_path_factory.mktemp('checkout'), 16)
    cfg = (folder/'tiny.cfg').read_text()
    (folder/'wide.cfg').write_text(cfg.replace('filters=8', 'filters=16').replace('filters=16', 'filters=32', 1))
    with pytest.MonkeyPatch.context() as m:
        m.setenv('YOLOKIT_ROOT', str(folder))
        yield folder


@pytest.fixture(scope='module')
def parent(root):
    return train(TrainConfig(**C, data='squares', network='wide.cfg', stage='baseline', weights='none', name='parent'))


@pytest.fixture
def plain(monkeypatch):
    "Runs without pictures, predictions and exports, which the other tests look at."
    monkeypatch.setattr('yolokit.apps.train.finish_run', lambda run, d, data: {})
    monkeypatch.setattr('yolokit.training.monitor.plot_curves', lambda run: None)
    monkeypatch.setattr('yolokit.apps.compress._export_run', lambda *a: None)


def test_int8_is_made_once_it_is_asked_for(parent, monkeypatch):
    "Exported without; asked again, with: made; asked again, either way: left as it is."
    run, made = Run.new('compress', 'eight'), []
    (run.folder/'weights/best.pt').write_bytes((parent.folder/'weights/best.pt').read_bytes())
    monkeypatch.setattr('yolokit.apps.compress._export_int8', lambda *a: made.append('int8') or dict(offer={}))
    for k in ('to_darknet', 'to_onnx'):
        monkeypatch.setattr(f'yolokit.export.bundles.{k}', lambda *a, **kw: made.append('float'))
    for asked in (False, False, True, True, False): compress._export_run(run, CompressConfig(int8=asked), None)
    assert made == ['float', 'float', 'float', 'int8'] and 'int8' in run.info


def test_networks_are_timed_together(parent):
    times = leaderboard.time_together([parent.folder, parent.folder.parent/'nobody'])
    assert set(times) == {'parent'} and times['parent'] > 0


def test_chapters_and_app_are_there():
    for n in ('compression/79_distill', 'compression/83_pareto', 'apps/94_compress', 'compress'):
        assert (ROOT/f'nbs/{n}.ipynb').is_file()


def app(**parameters):
    "The app's cells in this process, as papermill would run them."
    cells = [''.join(c['source']) for c in json.loads((ROOT/'nbs/compress.ipynb').read_text())['cells']
             if c['cell_type'] == 'code']
    space = {}
    exec(cells[0], space)
    assert set(parameters) <= set(space)
    space |= parameters
    for text in cells[1:]: exec(text, space)
    return space['made']


@pytest.mark.soak
def test_through_papermill(root, parent, tmp_path):
    args = [x for k, v in dict(C, parent='parent', budget=.3, int8=False).items() for x in ('-p', k, str(v))]
    done = subprocess.run([sys.executable, '-m', 'papermill', '--no-progress-bar', str(ROOT/'nbs/compress.ipynb'),
                           str(tmp_path/'out.ipynb'), *args], cwd='/', env=environment(root), capture_output=True,
                          text=True, timeout=400)
    assert done.returncode == 0, done.stderr[-3000:]


def test_two_budgets_then_nothing_left_to_do(root, parent):
    was = files(parent)
    made = app(**C, parent='parent', budgets='0.6 0.4', int8=False)
    assert made['figure'] and [r.name for r in made['runs']] == ['compress-001', 'compress-002']
    for name, budget in (('compress-001', .6), ('compress-002', .4)):
        i = Run.open(name).info
        assert ((i['state'], i['stage'], i['parent'], i['compress']['asked']['budget'])
                == ('finished', 'compress', 'parent', budget))
        assert {'predictions.json', 'judged.json', 'report.ipynb', 'weights/best.pt'} <= set(files(Run.open(name)))
        assert any(f.endswith('.cfg') for f in i['shipped']) and any(f.endswith('.onnx') for f in i['shipped'])
    assert (Run.open('compress-002').folder/'plots/front.png').is_file()
    assert {r['name'] for r in leaderboard.read_rows()} >= {'parent', 'compress-001', 'compress-002'}
    n = len(runs.list_runs())
    again = compress.compress(CompressConfig(parent='parent', budgets='0.6 0.4', int8=False, **C))
    assert [r.name for r in again['runs']] == ['compress-001', 'compress-002'] and len(runs.list_runs()) == n
    assert files(parent) == was


def test_killed_while_training_it_goes_on(parent, plain, monkeypatch):
    c = CompressConfig(parent='parent', budget=.5, int8=False, **C)
    with monkeypatch.context() as m:
        m.setattr('yolokit.training.train._validate', lambda *a,
                  **kw: (_ for _ in ()).throw(launcher.TrainingInterrupted('killed')))
        with pytest.raises(launcher.TrainingInterrupted): compress.compress(c)
    n = len(runs.list_runs())
    run, = compress.compress(c)['runs']
    assert len(runs.list_runs()) == n and run.info['state'] == 'finished'


def test_in_rounds(parent, plain):
    "Pruned, trained, pruned again: each round starts from the one before, and the cost falls by the same factor."
    was = files(parent)
    c = CompressConfig(parent='parent', budget=.36, rounds=2, int8=False, **C | dict(steps=2))
    run, = compress.compress(c)['runs']
    first = Run.open(run.info['parent'])
    whole = compress.cost(load_checkpoint(parent.folder/'weights/best.pt').cfg)['params']
    assert first.info['parent'] == 'parent' and [r.info['compress']['asked']['round'] for r in (first, run)] == [1, 2]
    assert .36*whole < first.info['compress']['params'] <= .6*whole and run.info['compress']['params'] <= .36*whole
    assert first.info['teacher']['file'] == run.info['teacher']['file'] == 'runs/parent/weights/best.pt'
    n = len(runs.list_runs())
    assert compress.compress(c)['runs'][0].name == run.name and len(runs.list_runs()) == n and files(parent) == was


def test_sparse_first(parent, plain):
    "The parent's scales are pushed to zero in a run of its own, which is what is pruned then."
    made = compress.compress(CompressConfig(parent='parent', budget=.5, sparsity='l1 10', by='bn', how='global',
                                            int8=False, **C | dict(steps=2)))
    pruned, = made['runs']
    sparse = Run.open(pruned.info['parent'])
    assert (sparse.info['parent'] == 'parent' and 'sparsity=l1 10' in sparse.config['change']
            and 'sparsity' not in pruned.config['change'])
    assert (runs.read_csv(sparse.folder/'steps.csv')['sparsity'][-1] > 0
            and 'sparsity' not in runs.read_csv(pruned.folder/'steps.csv'))


def test_what_cannot_be_done_is_said_and_leaves_the_parent_alone(root, parent):
    was, n = files(parent), len(runs.list_runs())
    def refused(error, says, **kw):
        with pytest.raises(error, match=says): compress.compress(CompressConfig(**C | dict(parent='parent') | kw))
    refused(prune.PruneError, 'cannot be reached', budget=.001)
    refused(CompressError, 'above 0 and below 1', budget=1.5)
    refused(CompressError, "by='luck': one of bn", by='luck')
    refused(TrainError, 'say l1 or polarised', sparsity='l3')
    refused(runs.RunError, 'no run nobody', parent='nobody')
    lost = next((root/'squares/images/train').glob('*.png'))
    bytes_ = lost.read_bytes()
    lost.unlink()
    try:
        with pytest.raises(Exception): compress.compress(CompressConfig(**C, parent='parent', budget=.7))
    finally: lost.write_bytes(bytes_)
    parent.update(state='interrupted')
    refused(CompressError, 'is interrupted, not finished')
    parent.info['state'] = 'finished'
    parent.update()
    assert files(parent) == was and len(runs.list_runs()) == n
