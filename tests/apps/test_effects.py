"""The parameters of compress, amp, inspect and sweep, one by one: another value, another call of what does the work.
Those of the apps that detect, export and train stand in test_parameters.py."""
import json
from dataclasses import fields
from types import SimpleNamespace
import pytest, torch
from small import checkout
from test_parameters import parameters
from yolokit.apps import compress, precision_study, prepare, sweep
from yolokit.cleaning import gallery, inspector
from yolokit.compression import pareto
from yolokit.core.files import project_root, save_json
from yolokit.data import viewer

ROOT = project_root()                                   # of the library; the tests below have checkouts of their own


@pytest.fixture(scope='module')
def folder(tmp_path_factory): return checkout(tmp_path_factory.mktemp('effects'), 6)


# compress: what is pruned, how it is trained, what counts as the same request
PRUNE = dict(of='macs', by='bn', how='uniform', multiple=4, least=16, distill=False)
TRAIN = dict(recipe='scratch', change='momentum=.5', steps=3, epochs=2, bs=5, lr0=.5, every=.5, seed=7, device='cpu',
             amp='off', compile=True, workers=0, threads=3)
APART = dict(parent='a', budget=.1, budgets='.1 .2', sparsity='l1 .01', rounds=2, int8=False, score='AP')

def test_every_parameter_of_compress_stands_here():
    assert {*PRUNE, *TRAIN, *APART} == set(parameters('compress')) == {f.name for f in fields(compress.CompressConfig)}

@pytest.mark.parametrize('name', PRUNE)
def test_compress_prunes_as_asked(name, monkeypatch):
    calls = []
    for module, f in ((compress.prune, 'prune'), (compress.distill, 'reconstruct_layers'),
                      (compress.prune, 'recalibrate')):
        monkeypatch.setattr(module, f, lambda *a, f=f, **kw: calls.append((f, a, kw)) or torch.nn.Identity())
    monkeypatch.setattr(compress.prune, 'channel_means', lambda *a: None)
    took = []
    for c in (compress.CompressConfig(), compress.CompressConfig(**{name: PRUNE[name]})):
        compress.prune_detector(None, .5, 1000, c, [])
        took.append(str([(f, a[1:]) for f, a, _ in calls])); calls.clear()
    assert took[0] != took[1]

@pytest.mark.parametrize('name', TRAIN)
def test_compress_trains_as_asked(name):
    c = compress.CompressConfig(**{name: TRAIN[name]})
    assert getattr(compress._train_config(c), name) == TRAIN[name] != getattr(compress.CompressConfig(), name)

@pytest.mark.parametrize('name', sorted(({*PRUNE, *TRAIN} - {'device', 'amp', 'compile', 'workers', 'threads'})
                                        | {'rounds'}))
def test_compress_makes_another_run_for_another_request(name):
    "What says only how a network is reached may differ; what changes the network is another request."
    source = SimpleNamespace(name='a', info={})
    a, b = (compress._request_key(compress.CompressConfig(**kw), source, .5, 1)
            for kw in ({}, {name: (PRUNE | TRAIN | APART)[name]}))
    assert a != b

def test_compress_s_other_parameters(monkeypatch, tmp_path):
    assert compress._budgets_of(compress.CompressConfig(budget=.1)) == [.1]
    assert compress._budgets_of(compress.CompressConfig(budgets='.1 .2')) == [.2, .1]
    assert 'sparsity=l1 .01' in compress._sparse_train_config(compress.CompressConfig(sparsity='l1 .01')).change
    opened = []
    finished = SimpleNamespace(info=dict(state='finished'))
    monkeypatch.setattr(compress.Run, 'open', lambda n: opened.append(n) or finished)
    compress._parent_of(compress.CompressConfig(parent='a'))
    assert opened == ['a']
    made = []
    run = SimpleNamespace(info={}, folder=tmp_path, update=lambda **kw: made.append(kw), log=None, say=print)
    monkeypatch.setattr(compress, 'load_checkpoint', lambda p: torch.nn.Identity())
    monkeypatch.setattr(compress.bundles, 'to_darknet', lambda *a, **kw: None)
    monkeypatch.setattr(compress.bundles, 'to_onnx', lambda *a, **kw: made.append('float32'))
    monkeypatch.setattr(compress, '_export_int8', lambda *a: made.append('int8') or {})
    for int8 in (True, False): compress._export_run(run, compress.CompressConfig(int8=int8), None)
    assert [m for m in made if isinstance(m, str)] == ['int8', 'float32']

def test_compress_ranks_by_the_score_asked():
    rows = [dict(name=n, AP=ap, AP50=ap50, AP75=ap75, params=1, macs=1, mb=1, ms=1, parent='')
            for n, ap, ap50, ap75 in (('a', .1, .9, .2), ('b', .2, .8, .9))]
    assert [pareto.score_rows([dict(r) for r in rows], s)[0]['name'] for s in ('AP50', 'AP')] == ['a', 'b']


# amp: the setting that all arms share
FEW = dict(device='cpu', pictures=4, bs=2)
AMP = dict(network='yolov4-tiny', pictures=6, width=96, height=160, steps=24, bs=1, lr0=.5, amps='off', seed=3)

def shown(s) -> str:
    batch = s.batch.images
    made = s.loader.n, len(s.loader), tuple(batch.shape), float(batch.float().mean())
    return str((str(s.cfg), made, s.recipe, s.amps))

@pytest.fixture(scope='module')
def usual(): return shown(precision_study.study_setup(precision_study.PrecisionConfig(**FEW)))

@pytest.mark.parametrize('name', AMP)
def test_amp_studies_what_is_asked(name, usual):
    c = precision_study.PrecisionConfig(**FEW | {name: AMP[name]})
    assert shown(precision_study.study_setup(c)) != usual

def test_amp_s_device_and_threads(monkeypatch):
    asked = []
    monkeypatch.setattr(precision_study.environment, 'device', lambda d: asked.append(d) or torch.device('cpu'))
    precision_study.study_setup(precision_study.PrecisionConfig(**FEW | dict(device='cuda:1')))
    assert asked == ['cuda:1'] and set(AMP) | {'device', 'threads'} == set(parameters('amp'))
    cells = json.loads((ROOT/'nbs/amp.ipynb').read_text(encoding='utf-8'))['cells']
    code = ''.join(''.join(c['source']) for c in cells if c['cell_type'] == 'code')
    assert code.count('deterministic(config.threads)') == 4 and 's.dev, config.threads' in code


# inspect: its cells, with what draws and shows replaced by what notes its call
INSPECT = dict(reason='outside', split='val', name='dark', n=3, network='tiny.cfg', detections='found.json',
               decisions='said.json', out='copy', data='other')

def inspect(folder, monkeypatch, **given) -> list:
    "The calls that the notebook makes."
    calls = []
    note = lambda what, keep: lambda *a, **kw: calls.append((what, *keep(a, kw)))
    def settle(out): calls.append(('settle', str(out or ''))); return None, []
    box = lambda t, f, file, *a, **kw: (calls.append(('inspector', file.name, a, kw['found'] is not None))
                                        or SimpleNamespace(settle=settle, decisions={}))
    monkeypatch.setattr(gallery, 'gallery', note('gallery', lambda a, kw: (sorted(kw.items()),)))
    monkeypatch.setattr(viewer, 'plot_distributions', note('sizes', lambda a, kw: (str(kw['anchors']), kw['size'])))
    monkeypatch.setattr(inspector, 'Inspector', box)
    if_needed = prepare.prepare_if_needed
    monkeypatch.setattr(prepare, 'prepare_if_needed',
                        lambda d, **kw: calls.append(('data', d)) or if_needed('squares', **kw))
    space = dict(data='squares')
    cells = json.loads((ROOT/'nbs/inspect.ipynb').read_text(encoding='utf-8'))['cells']
    for c in cells:
        if c['cell_type'] != 'code': continue
        exec(''.join(c['source']), space)
        if 'parameters' in c['metadata'].get('tags', ()): space.update(dict(data='squares') | given)
    return calls

def test_every_parameter_of_inspect_stands_here(): assert set(INSPECT) == set(parameters('inspect'))

@pytest.mark.parametrize('name', INSPECT)
def test_inspect_shows_what_is_asked(folder, name, monkeypatch):
    monkeypatch.setenv('YOLOKIT_ROOT', str(folder))
    monkeypatch.chdir(folder)
    p = prepare.prepare_if_needed('squares')
    i = next(k for k, f in enumerate(p.table.images['file']) if 'val' in f)
    found = dict(image_id=int(p.table.images['id'][i]), category_id=int(p.table.category_ids[0]))
    save_json([found | dict(bbox=[1, 1, 9, 9], score=.9)], folder/'found.json')
    with monkeypatch.context() as m: usual = inspect(folder, m)
    with monkeypatch.context() as m: asked = inspect(folder, m, **{name: INSPECT[name]})
    assert usual != asked


# sweep: what is drawn, and what is better
def test_sweep_s_seed_draws(monkeypatch, tmp_path):
    drawn = []
    for k, seed in enumerate((0, 0, 1)):
        monkeypatch.setattr(sweep, '_study_folder', lambda c, k=k: tmp_path/str(k))
        drawn.append(sweep.open_study(sweep.SweepConfig(seed=seed)).ask().suggest_float('x', 0, 1))
    assert drawn[0] == drawn[1] != drawn[2]

@pytest.mark.parametrize('metric', ['AP', 'AP50', 'recall'])
def test_sweep_s_metric_is_what_a_trial_is_worth(metric, monkeypatch):
    monkeypatch.setattr(sweep, '_run_trial', lambda *a: dict(AP=.1, AP50=.2, recall=.3))
    c = sweep.SweepConfig(metric=metric, space='lr0=.01..1')
    trial = SimpleNamespace(number=0, set_user_attr=lambda *a: None, suggest_float=lambda *a, **kw: .5)
    assert sweep._objective(c)(trial) == dict(AP=.1, AP50=.2, recall=.3)[metric]
