"The chain of stages, stopping and resuming, starting from weights: with a tiny network on drawn squares."
import dataclasses, importlib.util, json, math, subprocess, sys, types
import pytest
from ranges import ranges
from small import environment, unjudged
from yolokit.cleaning.prepare import prepare
from yolokit.network import checkpoints, weights
from yolokit.network.cfg import Cfg
from yolokit.network.model import Detector, state_hash
from yolokit.training import launcher, runs
from yolokit.training.runs import Run, RunError
from yolokit.apps.train import train, TrainConfig


TINY = dict(data='squares', network='tiny.cfg', steps=8, bs=4, workers=0, threads=1, device='cpu')


@pytest.fixture(autouse=True)
def quick(monkeypatch): unjudged(monkeypatch)


def go(**kw): return train(TrainConfig(**TINY | kw))


def judged(c, judge):
    "A training with a validator of the test's own."
    with pytest.MonkeyPatch.context() as m:
        unjudged(m, judge)
        return train(c)


def weights_of(run): return state_hash(checkpoints.load_checkpoint(run.folder/'weights/last.pt'))


def test_chain_runs_the_baseline_first_and_only_once(root, capfd):
    first = go(stage='finetune', name='first')
    heard = capfd.readouterr()
    said = heard.out
    assert 'baseline: no finished run for this data and this network, so it comes first' in said
    assert 'baseline-001, from random weights: 8 steps of 4 images, about ' in said
    assert 'first, from the best weights of baseline-001: 8 steps' in said and 'in all about' in said
    for name in ('first', 'baseline-001'): assert 'in all about' in (root/'runs'/name/'log.txt').read_text()
    log = (root/'runs/baseline-001/log.txt').read_text()
    assert 'step/s' in heard.err and log.index('in all about') < log.index('step/s')
    assert (first.info['parent'] == 'baseline-001'
            and first.info['state'] == Run.open('baseline-001').info['state'] == 'finished')
    again = go(stage='finetune', name='second')
    assert 'comes first' not in capfd.readouterr().out and again.info['parent'] == 'baseline-001'
    assert weights_of(first) == weights_of(again)
    assert not (root/'runs/baseline-002').exists()
    other = go(stage='finetune', name='third', width=64, height=64)       # another network: its own baseline
    assert other.info['parent'] == 'baseline-002'
    nb = json.loads((first.folder/'report.ipynb').read_text())
    assert any(o['data'].get('image/png') for c in nb['cells'] for o in c.get('outputs', []))
    assert {p.name for p in (first.folder/'plots').iterdir()} >= {'curves.png', 'batch.png', 'batch2.png', 'batch3.png'}
    assert ({'images_s', 'waiting', 'memory_mb'} == first.info['cost'].keys()
            and 'waiting=' in heard.err and 'MB=' in heard.err)


def test_same_seed_same_bits_whatever_the_workers(root):
    a, b, c = (go(stage='baseline', weights='none', workers=w, seed=s) for w, s in ((0, 3), (2, 3), (0, 4)))
    assert weights_of(a) == weights_of(b) != weights_of(c)
    assert (a.folder/'steps.csv').read_text() == (b.folder/'steps.csv').read_text()


class Killer:
    "A validator that stops the run when it is asked for the n-th time."
    def __init__(self, n): self.n = n
    def __call__(self, table, **kw):
        def judge(detector):
            self.n -= 1
            if not self.n: raise launcher.TrainingInterrupted('stopped: test')
            return dict(AP=.1, AP50=.2)
        return judge


@pytest.mark.parametrize('when', [1, 2])
def test_stopped_while_judging_and_resumed(root, when):
    c = TrainConfig(**TINY | dict(steps=22, stage='baseline', weights='none', recipe='transfer'))
    whole = judged(c, Killer(99))
    with pytest.raises(launcher.TrainingInterrupted): judged(dataclasses.replace(c, name=f'cut{when}'), Killer(when))
    cut = Run.open(f'cut{when}')
    assert cut.info['state'] == 'interrupted'
    done = judged(TrainConfig(resume=cut.name, workers=0), Killer(99))
    assert done.info['state'] == 'finished' and weights_of(done) == weights_of(whole)
    for f in ('steps.csv', 'metrics.csv'): assert (done.folder/f).read_text() == (whole.folder/f).read_text()
    with pytest.raises(RunError, match='is finished'): train(TrainConfig(resume=cut.name))


def test_a_stopped_chain_is_resumed_where_it_stopped(root):
    c = TrainConfig(**TINY | dict(steps=9, stage='finetune', name='late', bs=5, seed=11))
    for r in runs.list_runs(): r.update(state='failed')                   # no baseline is left to start from
    with pytest.raises(launcher.TrainingInterrupted): judged(c, Killer(1))
    late = Run.open('late')
    assert late.info['state'] == 'interrupted' and Run.open(late.info['parent']).info['state'] == 'interrupted'
    done = train(TrainConfig(resume='late', workers=0))
    assert done.info['state'] == Run.open(late.info['parent']).info['state'] == 'finished'


def test_resume_refuses_other_data_and_says_what_changed(root):
    with pytest.raises(launcher.TrainingInterrupted):
        judged(TrainConfig(**TINY | dict(stage='baseline', weights='none', name='cut', steps=12)), Killer(1))
    run = Run.open('cut')
    run.update(data={**run.info['data'], 'fingerprint': '0'*64})
    with pytest.raises(RunError, match='cannot go on: the data is not what it was'): train(TrainConfig(resume='cut'))
    with pytest.raises(RunError, match='no run no-such'): train(TrainConfig(resume='no-such'))


def test_weights_of_darknet_start_it_without_a_chain(root):
    d = Detector(Cfg.read(root/'tiny.cfg'), seed=5)
    weights.write_weights(d, root/'tiny.weights')
    before = sorted(p.name for p in (root/'runs').glob('baseline-*'))
    run = go(stage='finetune', weights='tiny.weights', name='warm')
    assert sorted(p.name for p in (root/'runs').glob('baseline-*')) == before
    assert 'weights from tiny.weights' in (run.folder/'log.txt').read_text() and not run.info['parent']
    with open(root/'cut.weights', 'wb') as f: f.write((root/'tiny.weights').read_bytes()[:-40])
    with pytest.raises(weights.WeightsError, match='cut.weights'):
        go(stage='finetune', weights='cut.weights', name='short')
    assert not (root/'runs/short').exists()                              # refused before there is a folder


def test_tensorboard_events(root, monkeypatch):
    "The numbers of a run's tables as events; with a stand-in where the package is not installed."
    said, name = [], 'torch.utils.tensorboard'
    stand_in = types.SimpleNamespace(SummaryWriter=lambda folder,
                                     purge_step: types.SimpleNamespace(add_scalar=lambda *a: said.append(a),
                                                                       flush=lambda: None))
    if importlib.util.find_spec('tensorboard') is None: monkeypatch.setitem(sys.modules, name, stand_in)
    run = go(stage='baseline', weights='none', tensorboard=True, name='told')
    tags = {a[0] for a in said}
    if not said:
        from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
        tags = set(EventAccumulator(str(run.folder/'events')).Reload().Tags()['scalars'])
    assert tags >= {'steps/lr', 'steps/box', 'steps/grad_norm', 'speed/images_s', 'speed/waiting', 'speed/memory_mb',
                    'metrics/fitness'}
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ImportError, match='yolokit.board'):
        go(stage='baseline', weights='none', tensorboard=True, name='told2')
    assert not (root/'runs/told2').exists()


def test_a_recipe_with_everything_odd_is_resumed(root):
    "compat=challenge and several sizes, through the stages: stopped, resumed, and equal."
    c = TrainConfig(**TINY | dict(steps=14, bs=4, stage='baseline', weights='none', recipe='agc2021-scratch',
                                  change='compat=challenge; scales=.67 1 1.33; nominal=8; warmup_floor=9; warmup=0'))
    whole = judged(c, Killer(99))
    with pytest.raises(launcher.TrainingInterrupted): judged(dataclasses.replace(c, name='odd'), Killer(1))
    done = judged(TrainConfig(resume='odd', workers=2), Killer(99))
    assert (weights_of(done) == weights_of(whole)
            == state_hash(checkpoints.load_checkpoint(done.folder/'weights/agc2021.pt')))
    assert (done.folder/'steps.csv').read_text() == (whole.folder/'steps.csv').read_text()
    with pytest.raises(ValueError, match='not a quirk'): go(stage='baseline', weights='none', change='compat=ramps')


def test_clear_errors(root):
    for kw, says in ((dict(stage='fine-tune'),
                      "stage 'fine-tune' does not exist: the stages are baseline and finetune"),
                     (dict(data='nowhere'), 'no such folder'),
                     (dict(network='nothing'), "no network"), (dict(name='warm'), 'run warm exists already'),
                     (dict(width=100), 'multiple'), (dict(device='gpu'), 'auto, cpu')):
        with pytest.raises(ValueError, match=says): go(**kw)


def test_nothing_to_learn_is_an_error(root):
    for p in (root/'squares').rglob('*.txt'): p.rename(p.with_suffix('.kept'))
    try:
        for p in (root/'squares/labels').rglob('*.kept'): p.with_suffix('.txt').write_text('')
        with pytest.raises(ValueError, match='no boxes'): go(stage='baseline', split='given', weights='none')
    finally:
        for p in (root/'squares').rglob('*.kept'): p.replace(p.with_suffix('.txt'))


def test_learning_goes_down_in_all_arithmetics(root):
    for amp in ('off', 'bf16'):
        run = go(stage='baseline', weights='none', steps=100, amp=amp, lr0=.1)
        rows = runs.read_csv(run.folder/'steps.csv')
        assert rows['cls'][-1] < .6*rows['cls'][0] and math.isfinite(rows['box'][-1])


FAILS = '''
from yolokit.apps.prepare import prepare_if_needed
from yolokit.data.loader import Loader
loader = Loader(prepare_if_needed('squares').table.split('train'), (96, 96), 4, workers=2)
def training():
    epoch = loader.epoch(0)
    next(epoch)
    raise SystemExit(3)
training()
'''


def test_a_failure_with_loader_processes_ends_the_process(root):
    p = subprocess.run([sys.executable, '-c', FAILS], env=environment(root), timeout=120, capture_output=True,
                       text=True)
    assert p.returncode == 3, p.stderr


def test_the_same_bits_from_files_from_shards_and_from_a_server(root, monkeypatch, tmp_path):
    monkeypatch.setenv('YOLOKIT_CACHE', str(tmp_path))
    monkeypatch.setenv('no_proxy', '127.0.0.1')
    prepare(root/'squares', root/'data/in-tars', shards='1MB')
    want = weights_of(go(stage='baseline', weights='none', name='files', seed=3))
    assert weights_of(go(stage='baseline', weights='none', name='tars', seed=3, data='data/in-tars')) == want
    odd = lambda n, path: 'cut lie moved'.split()[n//3 % 3] if n % 3 == 1 and '?' not in path else ''
    with ranges(root/'data', odd) as s:
        far = go(stage='baseline', weights='none', name='far', seed=3, workers=2, data=f'{s.url}/in-tars')
        assert weights_of(far) == want and len(s.asked) > 24
        cut = TrainConfig(**TINY | dict(stage='baseline', weights='none', name='cut-far', seed=3,
                                        data=f'{s.url}/in-tars'))
        with pytest.raises(launcher.TrainingInterrupted): judged(cut, Killer(1))
        assert weights_of(train(TrainConfig(resume='cut-far', workers=0))) == want


@pytest.mark.parametrize('recipe, told', [('v5-high', 1), ('v5-med', 0)])
def test_a_share_that_does_nothing_is_told(root, recipe, told):
    "copy_paste needs outlines, which the loader does not give."
    run = go(stage='baseline', weights='none', recipe=recipe, steps=1, bs=2, name=f'share-{recipe}')
    assert run.log.read_text(encoding='utf-8').count('copy_paste=0.1 does nothing here: it needs outlines') == told
