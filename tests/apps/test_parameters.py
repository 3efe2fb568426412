"Every parameter of every app changes what it should: one table, and a test for each line of it."
import json, re
from dataclasses import fields, replace
from pathlib import Path
import numpy as np, pytest, torch
from yolokit.apps import capsule, compress, config, convert, crossval, evaluate, export, infer, leaderboard
from yolokit.apps import precision_study, prepare, relabel, sweep, train
from yolokit.core.files import project_root
from yolokit.core.images import write_image
from yolokit.data.table import Table
from yolokit.inference.detect import to_image_table
from yolokit.network import zoo
from yolokit.network.model import Detector

CONFIGS = dict(amp=precision_study.PrecisionConfig, capsule=capsule.CapsuleConfig, compress=compress.CompressConfig,
               convert=convert.ConvertConfig,
               crossval=crossval.CrossvalConfig, evaluate=evaluate.EvaluateConfig, export=export.ExportConfig,
               infer=infer.InferConfig, inspect=prepare.InspectConfig, leaderboard=leaderboard.LeaderboardConfig,
               prepare=prepare.PrepareConfig, relabel=relabel.RelabelConfig,
               sweep=sweep.SweepConfig, train=train.TrainConfig)
MODULES = {k: Path(v.__module__.replace('.', '/') + '.py') for k, v in CONFIGS.items()}


def parameters(app):
    "Names in the parameters cell of an app's notebook."
    cells = json.loads((project_root()/f'nbs/{app}.ipynb').read_text(encoding='utf-8'))['cells']
    cell = next(c for c in cells if 'parameters' in c['metadata'].get('tags', ()))
    return re.findall(r'^(\w+)\s*:', ''.join(cell['source']), re.M)

ALL = [(a, p) for a in CONFIGS for p in parameters(a)]
assert len(ALL) > 200


# What detects: infer, evaluate, leaderboard, and sweep through leaderboard. Another table, or another call.
DETECT = dict(conf=.1, iou=.1, max_det=3, width=64, height=160, mode='stretch', tta=True, tile=64, multi_label=False,
              agnostic=True, dtype='bfloat16', rectangles=True,
              **{k: v for k, v in dict(bs=1, workers=1, compiled=True, runtime='onnx', gpus=2).items()})
SAME_TABLE = {'bs', 'workers', 'compiled', 'runtime', 'gpus'} # they only say how it is reached
DETECTING = 'infer', 'evaluate', 'leaderboard'

@pytest.fixture(scope='module')
def scene(tmp_path_factory):
    at, r = tmp_path_factory.mktemp('scene'), np.random.default_rng(0)
    for k in range(3): write_image(at/f'{k}.png', r.integers(0, 255, (100, 170 - 40*k, 3), np.uint8))
    d = Detector(zoo.build('yolokit-nano', 2).with_size(128, 96), ['a', 'b'], 0).eval()
    with torch.no_grad():
        for h in d.heads: # boxes as large as their anchors, scores of .02 to .3
            d.layers[h.conv].conv.bias.view(len(h.anchors), -1)[:] = torch.tensor([0, 0, 0, 0, -1., -.5, -1])
    return d, to_image_table(at), at

BASE = dict(conf=.02, max_det=5000, workers=0, bs=4, device='cpu')
FOUND = {}

def found_with(scene, cls, **kw):
    key = tuple(sorted(kw.items()))
    if key not in FOUND: FOUND[key] = config.run_detect(cls(**BASE | dict(out=str(scene[2])) | kw), *scene[:2])
    return FOUND[key]

@pytest.mark.parametrize('app', DETECTING)
@pytest.mark.parametrize('name', sorted(set(DETECT) - SAME_TABLE))
def test_another_table_of_detections(scene, app, name):
    a, b = found_with(scene, CONFIGS[app]), found_with(scene, CONFIGS[app], **{name: DETECT[name]})
    assert name in parameters(app) and len(a) > 20
    same = [len(a) == len(b) and np.array_equal(x, y) for x, y in ((a.xyxy, b.xyxy),
                                                                   (a.boxes['score'], b.boxes['score']))]
    assert not all(same)

@pytest.mark.parametrize('app', DETECTING)
@pytest.mark.parametrize('name', sorted(SAME_TABLE))
def test_another_way_to_the_same_table(scene, app, name, monkeypatch):
    calls = []
    for f in ('detect', 'detect_in_parts', 'make_runtime'):
        monkeypatch.setattr(config, f, lambda *a, f=f, **kw: calls.append((f, a[3:] if f != 'make_runtime' else a[1:],
                                                                        sorted(kw.items(), key=str))))
    took = []
    for more in ({}, {name: DETECT[name]}):
        config.run_detect(CONFIGS[app](**BASE | more), *scene[:2])
        took.append(str(calls)); calls.clear()
    assert name in parameters(app) and took[0] != took[1]

@pytest.mark.parametrize('module,call', [(infer, lambda c, d, t: infer.detect_and_record(c, d, t, Path('.'))),
                                         (evaluate, lambda c, d, t: evaluate.load_truth_and_detections(c)),
                                         (leaderboard, lambda c, d, t: leaderboard.evaluate_row(c))])
def test_the_config_itself_is_what_detects(module, call, monkeypatch):
    "No app picks some of its parameters for the detector: they go to `run_detect` as they are."
    truth = Table.make(dict(file=['a.png']), dict(image=[0], category=[0], x0=[0], y0=[0], x1=[9], y1=[9]), ['a'])
    class Went(Exception): pass
    def stop(c, *a): raise Went(c)
    monkeypatch.setattr(module, 'run_detect', stop)
    for k, v in dict(load_detector=lambda c: (None, torch.nn.Identity()), load_data=lambda *a: truth,
                     resolve_data=lambda d: d).items():
        if hasattr(module, k): monkeypatch.setattr(module, k, v)
    c = CONFIGS[module.__name__.rpartition('.')[2]](split='', data=str(project_root())) if module is not infer else (
        infer.InferConfig())
    with pytest.raises(Went) as e: call(c, torch.nn.Identity(), truth)
    assert e.value.args[0] is c


# What exports: the call of its target is another one.
EXPORT = dict(darknet=dict(bn='keep', images='x'),
              onnx=dict(form='nms', half=True, conf=.1, iou=.3, max_det=7, images='x'),
              deepstream=dict(via='darknet', mode='stretch', precision='fp16', batch=4, conf=.1, iou=.3, max_det=7,
                              per_class='a=.4', images='x'))

@pytest.mark.parametrize('target,name', [(t, n) for t, v in EXPORT.items() for n in v])
def test_an_export_is_called_as_asked(scene, target, name, monkeypatch, tmp_path):
    calls = []
    for f in ('to_darknet', 'to_onnx', 'to_deepstream'):
        monkeypatch.setattr(export, f, lambda d, folder, *a, **kw: calls.append((a, kw)))
    monkeypatch.setattr(export, 'certify', lambda *a, **kw: None)
    monkeypatch.setattr(export, 'load_detector', lambda c: (None, scene[0]))
    value = str(scene[2]) if name == 'images' else EXPORT[target][name]
    for more in ({}, {name: value}): export.export_all(export.ExportConfig(to=target, out=str(tmp_path/'o'), **more))
    assert calls[0] != calls[1]

@pytest.mark.parametrize('name,value', [('width', 64), ('height', 64)])
def test_an_export_has_the_size_asked(scene, name, value, monkeypatch, tmp_path):
    sizes = []
    monkeypatch.setattr(export, 'to_onnx', lambda d, *a, **kw: sizes.append(d.size))
    monkeypatch.setattr(export, 'certify', lambda *a, **kw: None)
    monkeypatch.setattr(export, 'load_detector', lambda c: (None, scene[0]))
    export.export_all(export.ExportConfig(to='onnx', out=str(tmp_path/'o'), **{name: value}))
    assert sizes[0][name == 'height'] == value


# What trains: another recipe.
RECIPE = dict(epochs=3, steps=7, bs=5, lr0=.123, every=.5, change='momentum=.5', recipe='scratch')

@pytest.mark.parametrize('app', ['train', 'crossval'])
@pytest.mark.parametrize('name', RECIPE)
def test_another_recipe(app, name):
    c = CONFIGS[app](stage='baseline')
    assert train.recipe_for('baseline', c) != train.recipe_for('baseline', replace(c, **{name: RECIPE[name]}))

FOLD = [f.name for f in fields(train.TrainConfig) if f.name not in ('name', 'data', 'resume')]

@pytest.mark.parametrize('name', FOLD)
def test_a_fold_trains_with_every_parameter(name, monkeypatch, tmp_path):
    seen = []
    class Stop(Exception): pass
    def stop(c): seen.append(c); raise Stop
    monkeypatch.setattr(crossval, 'train', stop)
    run = type('Run', (), dict(name='c', folder=tmp_path))
    kinds = {f.name: f for f in fields(crossval.CrossvalConfig)}
    value = {str: 'x', int: 3, float: .5, bool: not kinds[name].default}[type(kinds[name].default)]
    with pytest.raises(Stop): crossval._train_fold(crossval.CrossvalConfig(**{name: value}), run, 0)
    assert getattr(seen[0], name) == value


# Everything else: read by its app, and used in a test or a chapter by name.
TESTED = ({('sweep', 'prune')} | {(a, p) for a in DETECTING for p in DETECT}
          | {('export', p) for v in EXPORT.values() for p in v}
          | {('export', p) for p in ('width', 'height')} | {(a, p) for a in ('train', 'crossval') for p in RECIPE}
          | {('crossval', f.name) for f in fields(train.TrainConfig)})

def _texts():
    for p in [*(project_root()/'tests').rglob('*.py'), *(project_root()/'nbs').glob('*/*.ipynb')]:
        if p.name == Path(__file__).name: continue
        yield p.read_text(encoding='utf-8')
TEXTS = None

@pytest.mark.parametrize('app,name', [x for x in ALL if x not in TESTED])
def test_a_parameter_is_read_and_tested(app, name):
    "No parameter is taken and never used."
    global TEXTS
    if TEXTS is None: TEXTS = list(_texts())
    assert name in {f.name for f in fields(CONFIGS[app])}
    source = (project_root()/MODULES[app]).read_text(encoding='utf-8')
    for more in ('yolokit/apps/config.py', f'nbs/{app}.ipynb'):
        source += (project_root()/more).read_text(encoding='utf-8')
    read = (rf'\b(c|o|config|options|self|s|job\.config|was)\.{name}\b|getattr\(\w+, .{name}.|'
            rf'[\'\s]{name}[\'\s].*split\(\)')
    whole = app == 'prepare' and 'asdict(o)' in source # it goes on as keywords of `prepare`
    assert whole or re.search(read, source), f'{app}: {name} is taken and never used'
    used = rf'\b{name}=|-p[\'", ]+{name}\b|[\'"]{name}[\'"]:'
    assert any(re.search(used, t) for t in TEXTS), f'{app}: no test gives {name}'


@pytest.mark.parametrize('prune,kind', [(True, 'MedianPruner'), (False, 'NopPruner')])
def test_prune_chooses_the_pruner(prune, kind, monkeypatch, tmp_path):
    monkeypatch.setattr(sweep, '_study_folder', lambda c: tmp_path)
    assert type(sweep.open_study(sweep.SweepConfig(prune=prune)).pruner).__name__ == kind
