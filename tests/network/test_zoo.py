"""The zoo as a whole: counts, names of the originals, class surgery with weights, folding, OpenCV, and the authors' own
code beside ours."""
import copy, os, subprocess, sys, textwrap
from pathlib import Path

import numpy as np
import pytest
import torch

from yolokit.network import layers, zoo
from yolokit.network.cfg import HEADS, head_sections
from yolokit.network.model import Detector
from yolokit.network.weights import write_weights
from yolokit.network.checkpoints import _expected_layers, transfer_weights
from yolokit.training import optim

V5 = [n for n in zoo.names() if n.startswith('yolov5')]
# what OpenCV's importer reads without lowering
DIRECT = [n for n in zoo.names() if not n.startswith(('yolov5', 'yolor'))]
# holds yolov5 (v6.1) and yolor, as their authors publish them
ORIGINALS = Path(os.environ.get('YOLOKIT_ORIGINALS', '/nowhere'))
originals = pytest.mark.skipif(not ORIGINALS.exists(),
                               reason='YOLOKIT_ORIGINALS names no folder with yolov5/ and yolor/')


def v5_names(cfg): return {i: name for i, _, _, name in _expected_layers(cfg)}


def little_yolor(classes=3):
    "YOLOR's plan at a size for tests: focus, implicit vectors, two heads."
    return zoo.scaled_yolov4(classes, [(8, 8), (16, 12), (30, 20), (60, 50)], w=64, h=64, stem='focus', first=8,
                             channels=(16, 32), repeats=(1, 1), last=False,
                      levels=2, neck=1, act='silu', eps=.0001, kind='raw', implicit=True).cfg('little-yolor')


def blobs(n, w, h, seed):
    g = torch.Generator().manual_seed(seed)
    return sum(torch.nn.functional.interpolate(torch.rand(n, 3, k, k, generator=g), (h, w),
                                               mode='bilinear') for k in (2, 4, 8, 16, 32)) / 5


@torch.no_grad()
def calibrated(cfg, seed=0, names=None):
    d, g = Detector(cfg, names, seed), torch.Generator().manual_seed(seed)
    norms = [m for m in d.modules() if isinstance(m, torch.nn.BatchNorm2d)]
    for m in norms: m.momentum = 1; m.weight.uniform_(.7, 1.3, generator=g); m.bias.normal_(.7, .3, generator=g)
    d.train()(blobs(4, *d.size, seed))
    for h in d.heads: d.layers[h.conv].conv.bias.normal_(0, 1, generator=g)
    return d.eval()


def small(name, classes=20):
    c = zoo.build(name, classes)
    s = max(round(c.net.int('width') / l.shape[2]) for l in c.plan() if l.type == 'yolo')
    return c.with_size(s * max(2, 192 // s), s * max(2, 128 // s))


# norms, weights, biases; chapter 10 counts them
GROUPS = {'yolov5x6': (159, 163, 163), 'yolor-csp': (118, 115, 115), 'yolor-p6': (149, 145, 145),
          'yolov4': (107, 110, 110), 'yolov7-tiny': (55, 58, 58)}


@pytest.mark.parametrize('name', GROUPS)
def test_the_optimiser_gets_the_authors_groups(name):
    c = zoo.build(name, 14)
    with torch.device('meta'): net = torch.nn.ModuleList(layers.build_layer(l) for l in c.plan())
    g = optim.param_groups(net)
    assert tuple(len(g[r]) for r in ('norm', 'weight', 'bias')) == GROUPS[name]


@pytest.mark.parametrize('name', V5)
def test_names_of_yolov5_are_its_state_dict(name):
    "Every key once, and C3's parts by what they do: cv1 feeds the bottlenecks, cv2 goes around, cv3 joins."
    c = zoo.build(name)
    p, at = c.plan(), v5_names(c)
    where = {v: k for k, v in at.items()}
    assert len(where) == len(at) == sum(l.type == 'convolutional' for l in p)
    numbers = sorted({int(v.split('.')[1]) for v in where})
    last = 33 if name.endswith('6') else 24
    assert (numbers[-1] == last and [v for v in where if v.startswith(f'model.{last}.')]
            == [f'model.{last}.m.{i}' for i in range(4 if last == 33 else 3)])
    for cv3 in (v for v in where if v.endswith('cv3')):
        m, joint = cv3[:-4], p[where[cv3] - 1]
        # the way around comes second
        assert joint.type == 'route' and joint.inputs[1] == where[f'{m}.cv2']
        assert p[where[f'{m}.m.0.cv1']].inputs == [where[f'{m}.cv1']]
        deepest = max(int(v.split('.')[3]) for v in where if v.startswith(f'{m}.m.'))
        add = p[where[f'{m}.m.{deepest}.cv2'] + 1].type == 'shortcut'
        assert joint.inputs[0] == where[f'{m}.m.{deepest}.cv2'] + add
        # sums in the backbone only
        assert add == (int(m.split('.')[1]) < (11 if last == 33 else 9))
    assert at == v5_names(c.with_classes(3).with_size(128, 64))


@pytest.mark.parametrize('name', zoo.names())
def test_class_surgery_on_the_whole_zoo(name):
    """Only classes and filters of the heads and, with YOLOR, of the vectors behind them; anchors and everything else
    stay."""
    c = zoo.build(name)
    d = c.with_classes(7)
    a, b = str(c).split('\n'), str(d).split('\n')
    changed = [(x, y) for x, y in zip(a, b, strict=True) if x != y]
    k = sum(s.type in HEADS for s in c.sections)
    assert (len(changed) == k * (3 if 'yolor' in name else 2)
            and {x.split('=')[0] for x, _ in changed} == {'classes', 'filters'})
    anchors = len(c.plan()[-1].section.ints('mask'))
    for s in (s for s in d.sections if s.type in HEADS):
        touched = head_sections(d, s)
        assert ([t.int('filters') for t in touched] == [anchors * 12] * len(touched)
                and len(touched) == (2 if 'yolor' in name else 1))
    assert d.with_classes(80) == c and d == zoo.build(name, 7)


def rows(report): return {r.name: r.how for r in report.rows}


@pytest.mark.parametrize('make', [little_yolor, lambda n: zoo.build('yolov5n', n).with_size(64, 64),
                                  lambda n: zoo.build('yolov7-tiny', n).with_size(64, 64)],
                         ids=['yolor', 'yolov5n', 'yolov7-tiny'])
def test_weights_follow_class_names(make):
    "A network that keeps two classes of three and gets a new one: the old ones are found as before, number by number."
    old, new = calibrated(make(3), names=['car', 'bus', 'van']), Detector(make(4), ['truck', 'van', 'car', 'bike'],
                                                                          seed=9)
    fresh = copy.deepcopy(new)
    report = transfer_weights(new, old)
    how, x = rows(report), blobs(1, *old.size, 3)
    touched = {f'layers.{s.index - 1}.' for h in new.heads
               for s in head_sections(new.cfg, new.cfg.sections[h.index + 1])}
    for n, h in how.items(): assert h == ('sliced' if any(n.startswith(t) for t in touched) else 'transferred'), (n, h)
    assert len(touched) == (4 if make is little_yolor else 3)
    new.eval()
    with torch.no_grad(): a, b = [d.decode(d(x)) for d in (old, new)]
    # another number of channels, another kernel: the last bit
    close = lambda p, q: torch.allclose(p, q, rtol=1e-5, atol=1e-6)
    assert close(a[..., :5], b[..., :5]) and close(a[..., 5], b[..., 7]) and close(a[..., 7], b[..., 6])
    h = new.heads[0]
    bias, first = [d.layers[h.conv].conv.bias.view(len(h.anchors), 9) for d in (new, fresh)]
    # truck and bike: as newly drawn
    assert torch.equal(bias[:, [5, 8]], first[:, [5, 8]])


def test_weights_of_other_names_start_anew_unless_mapped():
    old, new = calibrated(little_yolor(2), names=['sedan', 'coach']), Detector(little_yolor(2), ['car', 'bus'], seed=9)
    transfer_weights(new, old, {'car': 'sedan', 'bus': 'coach'})
    new.eval(); x = blobs(1, *old.size, 3)
    with torch.no_grad(): assert torch.equal(old.decode(old(x)), new.decode(new(x)))


@torch.no_grad()
def folded(cfg):
    "Worst difference of folded and unfolded maps, float64, relative to the largest number."
    d = calibrated(cfg).double()
    x = blobs(1, *d.size, 7).double()
    a = d(x); b = d.fuse()(x)
    return max(((p - q).abs().max() / p.abs().max()).item() for p, q in zip(a, b))


def test_folding(): assert max(folded(little_yolor()), folded(small('yolov5n')), folded(small('yolov7-tiny'))) <= 1e-10


@pytest.mark.soak
@pytest.mark.parametrize('name', zoo.names())
def test_folding_whole_zoo(name): assert folded(small(name)) <= 1e-10


@torch.no_grad()
def opencv(cfg, folder):
    "Worst difference of raw head maps from OpenCV's, relative to the largest number; its ε is 1e-6."
    cv2 = pytest.importorskip('cv2')
    if not hasattr(cv2.dnn, 'readNetFromDarknet'): pytest.skip('this OpenCV has no Darknet importer')
    d = calibrated(cfg); x = blobs(1, *d.size, 7); maps = d(x)
    for m in d.modules():
        if isinstance(m, torch.nn.BatchNorm2d): m.running_var += 9e-6
    d.cfg.write(folder/'n.cfg'); write_weights(d, folder/'n.weights')
    net = cv2.dnn.readNetFromDarknet(str(folder/'n.cfg'), str(folder/'n.weights'))
    net.setPreferableBackend(cv2.dnn.DNN_BACKEND_OPENCV); net.enableWinograd(False); net.setInput(x.numpy())
    raw = net.forward([f'logistic_{h.conv + 1}' if h.logistic else f'conv_{h.conv}' for h in d.heads])
    return max(np.abs(r - m.numpy()).max() / np.abs(r).max() for r, m in zip(raw, maps, strict=True))


@pytest.mark.soak
@pytest.mark.parametrize('name', DIRECT)
def test_opencv_whole_zoo(name, tmp_path): assert opencv(small(name), tmp_path) <= 1e-4


BESIDE = textwrap.dedent("""
    import sys, types, importlib.machinery as M
    from unittest.mock import MagicMock
    kind, folder, file, classes, w, h, out = sys.argv[1:]
    import packaging.version, torch, torchvision
    for m in ('pandas', 'seaborn', 'thop', 'scipy', 'scipy.signal', 'scipy.cluster', 'scipy.cluster.vq', 'requests', \
'pkg_resources'):
        try: __import__(m)
        except ImportError: sys.modules[m] = MagicMock(__spec__=M.ModuleSpec(m, None), __path__=[])
    sys.modules['pkg_resources'].parse_version = packaging.version.parse
    sys.path.insert(0, folder); sys.argv = ['x']; torch.set_num_threads(1)
    g = torch.Generator().manual_seed(7)
    x = sum(torch.nn.functional.interpolate(torch.rand(4, 3, k, k, generator=g, dtype=torch.float64), \
(int(h), int(w)), mode='bilinear') for k in (2, 4, 8, 16, 32))/5
    if kind == 'yolov5':
        for k in ('utils.plots', 'utils.datasets'): sys.modules[k] = MagicMock()
        from models.yolo import Model
        m = Model(f'{folder}/{file}', nc=int(classes))
    else:
        if not torch.cuda.is_available(): torch.Tensor.cuda = torch.nn.Module.cuda = lambda s, *a, **k: s
        from models.models import Darknet
        m = Darknet(f'{folder}/{file}', (int(h), int(w)))
    modules, params = len(list(m.modules())), sum(p.numel() for p in m.parameters())
    with torch.no_grad():
        for n, p in sorted(m.named_parameters()):
            if p.ndim == 4 and p.shape[0] > 1: p.normal_(0, (2/p[0].numel())**.5, generator=g)
            elif n.endswith('weight'): p.uniform_(.7, 1.3, generator=g)
            else: p.add_(torch.empty_like(p).normal_(0, .3, generator=g))
        m = m.double().eval(); m(x)
        for k in m.modules():
            if isinstance(k, torch.nn.BatchNorm2d): k.momentum = 1.
        m.train()(x)
        boxes, maps = m.eval()(x)[:2]
    torch.save(dict(state=dict(m.state_dict()), boxes=boxes, maps=list(maps), x=x, modules=modules, params=params), out)
""")


# as the authors' logs count them; chapter 10 explains how
MODULES = {'yolov5n': 270, 'yolov5s': 270, 'yolov5m': 369, 'yolov5l': 468, 'yolov5x': 567, 'yolov5n6': 355,
           'yolov5s6': 355, 'yolov5m6': 481, 'yolov5l6': 607, 'yolov5x6': 733, 'yolor-csp': 529, 'yolor-csp-x': 623,
           'yolor-p6': 665, 'yolor-w6': 665, 'yolov4-csp-swish': 520, 'yolov4-csp-x-swish': 614, 'yolov4-p6': 918,
           'yolov4-p7': 1104}


@torch.no_grad()
def beside(name, theirs, file, classes, w, h, folder, **kw):
    """Their network with random weights, ours with the same: worst relative difference of maps, worst of boxes in
    pixels, counts."""
    out = folder/'out.pt'
    subprocess.run([sys.executable, '-c', BESIDE, theirs, ORIGINALS/theirs, file, str(classes), str(w), str(h), out],
                   check=True, capture_output=True)
    r = torch.load(out, weights_only=True); out.unlink()
    cfg = zoo.build(name, classes, **kw).with_size(w, h)
    d, names, s = Detector(cfg).double().eval(), v5_names(cfg) if theirs == 'yolov5' else {}, r['state']
    left = {k for k in s if 'num_batches' not in k and not k.endswith('anchors')}
    def put(t, key): t.copy_(s[key].view_as(t)); left.discard(key)
    for i, m in enumerate(d.layers):
        if isinstance(m, layers.Conv):
            conv = f'module_list.{i}.Conv2d' if not names else names[i] + '.conv' * bool(m.bn)
            put(m.conv.weight, f'{conv}.weight')
            if m.bn is None: put(m.conv.bias, f'{conv}.bias')
            for k in ('weight', 'bias', 'running_mean', 'running_var') if m.bn else ():
                put(getattr(m.bn, k), f'{names[i]}.bn.{k}' if names else f'module_list.{i}.BatchNorm2d.{k}')
        elif isinstance(m, layers.Implicit): put(m.weight, f'module_list.{i}.implicit')
    assert not left
    maps = d(r['x'])
    original = [m.permute(0, 1, 4, 2, 3).flatten(1, 2) for m in r['maps']]
    assert (r['modules'], r['params']) == (MODULES[name], sum(l.params for l in cfg.plan()))
    return (max(((a - b).abs().max() / b.abs().max()).item() for a, b in zip(maps, original, strict=True)),
            (d.decode(maps) - r['boxes']).abs().max().item())


@pytest.mark.soak
@originals
@pytest.mark.parametrize('name', V5)
def test_yolov5_equals_the_original(name, tmp_path):
    six = name.endswith('6')
    maps, boxes = beside(name, 'yolov5', f'models/{"hub/" if six else ""}{name}.yaml', 14, 192, 256, tmp_path)
    assert maps <= 1e-9 and boxes <= 1e-6


@pytest.mark.soak
@originals
@pytest.mark.parametrize('name, file', [('yolor-csp', 'yolor_csp'), ('yolor-csp-x', 'yolor_csp_x'),
                                        ('yolor-p6', 'yolor_p6'), ('yolor-w6', 'yolor_w6'),
                                        ('yolov4-csp-swish', 'yolov4_csp'), ('yolov4-csp-x-swish', 'yolov4_csp_x'),
                                        ('yolov4-p6', 'yolov4_p6'), ('yolov4-p7', 'yolov4_p7')])
def test_yolor_equals_the_original(name, file, tmp_path):
    maps, boxes = beside(name, 'yolor', f'cfg/{file}.cfg', 80, 128, 256, tmp_path,
                         **({} if 'yolor' in name else dict(kind='raw', eps=.0001)))
    assert maps <= 1e-9 and boxes <= 1e-6
