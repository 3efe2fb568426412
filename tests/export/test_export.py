"""Lowering and export against others: real Darknet, OpenCV, ONNX Runtime, random networks, the whole zoo, a missing
package, the app."""
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from yolokit.network import zoo
from yolokit.network.cfg import Cfg
from yolokit.network.model import Detector
from yolokit.network.weights import read_weights
from yolokit.network.checkpoints import to_checkpoint
from yolokit.export import bundles, compatibility
from yolokit.export.onnx_graph import build_onnx, require
from yolokit.export.lowering import lower_to_darknet
from roundtrip import roundtrip

SHARED = Path(__file__).parents[3]/'shared'
FAST = SHARED/'data/yolo_fastest'
real = pytest.mark.skipif(not FAST.exists(), reason='../shared/data/yolo_fastest is not there')


@torch.no_grad()
def calibrated(cfg, seed=0, names=None):
    "Random weights whose BatchNorms have seen pictures: maps keep a sensible scale through the whole net."
    d, g = Detector(cfg, names, seed=seed), torch.Generator().manual_seed(seed)
    bns = [m for m in d.modules() if isinstance(m, torch.nn.BatchNorm2d)]
    for m in bns: m.momentum = 1; m.weight.uniform_(.7, 1.3, generator=g); m.bias.normal_(.7, .3, generator=g)
    d.train()(bundles.smooth_noise(4, 3, *d.size[::-1], seed))
    for h in d.heads: d.layers[h.conv].conv.bias.normal_(0, 1, generator=g)
    return d.eval()


def crossings(name, classes, w, h):
    t = roundtrip(calibrated(zoo.build(name, classes).with_size(w, h)))
    print(name, t)
    assert t['float64'] <= 1e-9 and t['folded'] <= 1e-10
    assert t['files'] <= 1e-4 and t['opencv'] <= 1e-4 and t['onnx'] <= 1e-4 and not t['notes']
    assert t['deepstream'] == 'reads it'


@pytest.mark.parametrize('name', ['yolor-p6', 'yolov7-tiny'])
def test_crossings(name): crossings(name, 3, 128, 128)


@pytest.mark.soak
@pytest.mark.parametrize('name', zoo.names())
def test_crossings_of_the_zoo(name): crossings(name, 80, 256, 128)


@real
def test_yolo_fastest_lowered_equals_darknet(tmp_path):
    "Dropout and absolute shortcuts: DeepStream-Yolo miswires the cfg as published, and reads the lowered one."
    d = Detector(Cfg.read(FAST/'yolo-fastest-1.1.cfg'), (FAST/'coco.names').read_text().split('\n')[:80]).eval()
    read_weights(d, FAST/'yolo-fastest-1.1.weights')
    plain, done = lower_to_darknet(d)
    assert sum('dropout' in t for t in done) == sum(s.type == 'dropout' for s in d.cfg.sections) > 0
    for name in ('dog', 'person'):
        z = np.load(FAST/f'darknet_reference_{name}.npz')
        with torch.no_grad(): maps = plain(torch.from_numpy(z['input']))
        # Darknet's were not folded
        for m, h in zip(maps, d.heads): assert np.abs(m.numpy() - z[f'layer{h.conv}_convolutional']).max() <= 2e-4
    wired = lambda c: (p := compatibility.deepstream(c)).problems == [] and p.inputs == [l.inputs for l in c.plan()]
    assert not wired(d.cfg) and wired(plain.cfg)
    e = bundles.to_darknet(d, tmp_path, images=[FAST/'dog.jpg', FAST/'person.jpg'])
    assert (e.worst()[0] <= 1e-4 and {r.on for r in e.rows} >= {'dog.jpg', 'person.jpg'}
            and 'opencv' in {r.target for r in e.rows})


def some_cfg(seed):
    "A random network of a dozen layers that Darknet would refuse or others misread."
    g = np.random.default_rng(seed)
    shapes, text = [(3, 32, 32)], ['[net]\nwidth=32\nheight=32\nchannels=3']         # shapes[i + 1] of layer i
    def put(kind, shape, **o):
        text.append('\n'.join([f'[{kind}]', *(f'{k}={v}' for k, v in o.items())])); shapes.append(shape)
    def here(): return len(shapes) - 1
    put('convolutional', (8, 16, 16), filters=8,
        **[dict(size=6, stride=2, padding=2), dict(size=3, stride=2, pad=1)][g.integers(2)], activation='silu',
        batch_normalize=1, eps=.001)
    for _ in range(int(g.integers(5, 12))):
        c, h, w = shapes[-1]
        like = [i for i in range(1, here()) if shapes[i][1:] == (h, w)]
        same = [i for i in like if shapes[i] == shapes[-1]]
        kind = g.choice(['conv', 'dilated', 'even', 'dropout', 'shortcut', 'many', 'route', 'half', 'shift', 'control',
                         'batchnorm', 'upsample', 'lhalf', 'pool'])
        if kind == 'conv':
            put('convolutional', (12, h, w), filters=12, size=3, stride=1, pad=1,
                activation=g.choice(['silu', 'mish', 'linear', 'leaky']), batch_normalize=int(g.integers(2)))
        elif kind == 'dilated':
            put('convolutional', (8, h, w), filters=8, size=3, stride=1, pad=1, dilation=2, groups=int(c % 4 == 0)*3
                + 1, activation='relu')
        elif kind == 'even' and h % 2 == 0 and h > 4:
            put('convolutional', (8, h//2, w//2), filters=8, size=2, stride=2, activation='linear', batch_normalize=1)
        elif kind == 'dropout': put('dropout', shapes[-1], probability=.5)
        elif kind == 'shortcut' and same:
            put('shortcut', shapes[-1], **{'from': int(g.choice(same)) - 1}, activation='linear')
        elif kind == 'many' and len(same) > 1:
            put('shortcut', shapes[-1], **{'from': f'{same[0] - 1},{same[-1] - 1}'}, activation='leaky',
                weights_type=g.choice(['none', 'per_feature', 'per_channel']), weights_normalization='softmax')
        elif kind == 'route' and like: put('route', (c + shapes[like[0]][0], h, w), layers=f'-1,{like[0] - 1}')
        elif kind == 'half' and like and c % 2 == 0 and shapes[like[-1]][0] % 2 == 0:
            put('route', ((c + shapes[like[-1]][0])//2, h, w), layers=f'-1,{like[-1] - 1}', groups=2, group_id=1)
        elif kind == 'lhalf' and c % 2 == 0: put('route_lhalf', (c//2, h, w), layers=-1)
        elif kind in ('shift', 'control'):
            put(f'implicit_{"add" if kind == "shift" else "mul"}', (c, 1, 1), filters=c)
            put('route', (c, h, w), layers=-2)
            put(f'{kind}_channels', (c, h, w), **{'from': here() - 2})
        elif kind == 'batchnorm': put('batchnorm', shapes[-1])
        elif kind == 'upsample' and h < 16: put('upsample', (c, h*2, w*2), stride=2, scale=.5)
        elif kind == 'pool': put('maxpool', shapes[-1], size=int(g.choice([2, 5])), stride=1)
    put('convolutional', (14, *shapes[-1][1:]), filters=14, size=1, activation='linear')
    put('yolo', shapes[-1], mask='0,1', anchors='4,4, 9,7', classes=2, num=2,
        **(dict(new_coords=1, scale_x_y=2.) if g.integers(2) else {}))
    return Cfg('\n\n'.join(text) + '\n', f'random{seed}.cfg')


@torch.no_grad()
def random_network(seed):
    "Lowered in float64, read by the model of DeepStream's parser, run by OpenCV; unlowered by ONNX Runtime."
    d = calibrated(some_cfg(seed), seed)
    for n, p in d.named_parameters():
        if n.endswith('weight') and p.dim() == 2: p.uniform_(-1, 1)
    x = bundles.smooth_noise(2, 3, 32, 32, seed)
    y = bundles.onnx_session(build_onnx(d, 'raw').SerializeToString()).run(None, {'input': x.numpy()})
    for a, b in zip(y, d(x)): assert np.abs(a - b.numpy()).max() <= 1e-4*np.abs(b.numpy()).max()
    d.double()
    plain, _ = lower_to_darknet(d)
    assert bundles.relative(plain(x.double(), logits=True), d(x.double(), logits=True)) <= 1e-9
    seen, plan = compatibility.deepstream(plain.cfg), plain.cfg.plan()
    assert (not seen.problems and seen.inputs == [l.inputs for l in plan]
            and seen.shapes == [l.shape for l in plan]), seen.problems


@pytest.mark.parametrize('seed', range(24))
def test_random_networks(seed): random_network(seed)


@pytest.mark.soak
def test_a_thousand_random_networks():
    for seed in range(1000, 2000): random_network(seed)


@pytest.mark.parametrize('seed', range(6))
def test_random_networks_in_opencv(seed, tmp_path):
    e = bundles._write_darknet(calibrated(some_cfg(seed), seed), tmp_path)
    assert e.worst('opencv')[0] <= 1e-4, str(e)


def test_without_the_packages(tmp_path, monkeypatch):
    "A missing package is said: the file is written where onnxruntime alone is missing."
    d = calibrated(zoo.build('yolokit-nano', 2).with_size(64, 64))
    monkeypatch.setitem(sys.modules, 'onnxruntime', None)
    e = bundles.to_onnx(d, tmp_path)
    assert e.files[0].exists() and not e.rows and "pip install 'yolokit[export]'" in str(e)
    monkeypatch.setitem(sys.modules, 'onnx', None)
    with pytest.raises(ImportError, match='package onnx: pip install'): require()
    with pytest.raises(ImportError, match='package onnx: pip install'): bundles.to_onnx(d, tmp_path/'b')


def test_the_app(tmp_path):
    "papermill, as a user calls it."
    import json
    from small import environment
    from yolokit.apps.export import export_all, ExportConfig
    import subprocess
    (tmp_path/'settings.ini').write_text('[DEFAULT]\n')
    torch.save(to_checkpoint(calibrated(zoo.build('yolokit-nano', 2).with_size(64, 64), names=['승용차', '트럭'])),
               tmp_path/'w.pt')
    app = Path(__file__).resolve().parents[2]/'nbs/export.ipynb'
    p = dict(weights='w.pt', to='onnx deepstream', form='nms', via='darknet', out='shipped')
    done = subprocess.run([sys.executable, '-m', 'papermill', '--no-progress-bar', str(app), str(tmp_path/'out.ipynb'),
                           *(a for k, v in p.items() for a in ('-p', k, v))],
                          env=environment(tmp_path), cwd='/', capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    assert (tmp_path/'shipped/deepstream/labels.txt').read_text(encoding='utf-8') == '승용차\n트럭\n'
    model = require().load(tmp_path/'shipped/onnx/yolokit-nano.onnx')
    assert json.loads({p.key: p.value for p in model.metadata_props}['names']) == ['승용차', '트럭']
    # the differences are told on the terminal
    assert 'opencv' in done.stderr and 'onnxruntime' in done.stderr
    # a second export there is refused before it makes anything: the certificate speaks of one
    with pytest.raises(FileExistsError, match='an export is there already'):
        export_all(ExportConfig(weights=str(tmp_path/'w.pt'), to='darknet', out=str(tmp_path/'shipped')))
    names = ['certificate.json', 'certificate.md', 'deepstream', 'onnx']
    assert sorted(p.name for p in (tmp_path/'shipped').iterdir()) == names
