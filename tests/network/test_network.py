"""The network against others: real Darknet, OpenCV, torch.compile, broken files, other processes."""
import copy, os, pickle, random, time
from pathlib import Path

import numpy as np
import pytest
import torch

from yolokit.network import zoo
from yolokit.network.cfg import _UNSUPPORTED_SECTIONS, Cfg
from yolokit.network.layers import BUILDERS
from yolokit.network.model import Detector, state_hash
from yolokit.network.weights import layout, read_weights, WeightsError, write_weights
from yolokit.network.checkpoints import load_checkpoint, transfer_weights

SHARED = Path(__file__).parents[3]/'shared'
FAST = SHARED/'data/yolo_fastest'
real = pytest.mark.skipif(not FAST.exists(), reason='../shared/data/yolo_fastest is not there')
PARAMS = {'yolov3-tiny': 8_852_366, 'yolov4-tiny': 6_056_606, 'yolov4': 64_363_101}
BYTES = {'yolov3-tiny': 35_434_956, 'yolov4-tiny': 24_251_276, 'yolov4': 257_717_640}     # the published .weights files
FUSED = {'yolov4-tiny': 6_053_502, 'yolov4': 64_329_949}


@pytest.fixture(scope='module')
def fast():
    d = Detector(Cfg.read(FAST/'yolo-fastest-1.1.cfg'), (FAST/'coco.names').read_text().split('\n')[:80]).eval()
    read_weights(d, FAST/'yolo-fastest-1.1.weights')
    return d


def activated(m, h):
    "A raw map as Darknet's [yolo] leaves it."
    m = m.unflatten(1, (len(h.anchors), 5 + h.nc)).clone()
    m[:, :, :2] = (m[:, :, :2].sigmoid() - .5)*h.scale_x_y + .5
    m[:, :, 4:] = m[:, :, 4:].sigmoid()
    return m.flatten(1, 2)


@real
@pytest.mark.parametrize('folded', [False, True])
@pytest.mark.parametrize('name', ['dog', 'person'])
def test_yolo_fastest_equals_darknet(fast, name, folded):
    z, d = np.load(FAST/f'darknet_reference_{name}.npz'), copy.deepcopy(fast)
    if folded: d.fuse()
    with torch.no_grad(): maps = d(torch.from_numpy(z['input']))
    assert [(h.conv, h.index) for h in d.heads] == [(120, 121), (129, 130)]
    for m, h in zip(maps, d.heads):
        assert np.abs(m.numpy() - z[f'layer{h.conv}_convolutional']).max() <= 1e-4
        assert np.abs(activated(m, h).numpy() - z[f'layer{h.index}_yolo']).max() <= 1e-4


@real
def test_yolo_fastest_bytes(fast, tmp_path):
    good = (FAST/'yolo-fastest-1.1.weights').read_bytes()
    r = read_weights(fast, FAST/'yolo-fastest-1.1.weights')
    assert r.rows[0].start == 20 and r.rows[-1].start + r.rows[-1].bytes == len(good) and r.left == 0
    assert all(a.start + a.bytes == b.start for a, b in zip(r.rows, r.rows[1:]))
    write_weights(fast, tmp_path/'w', r.seen, r.version)
    assert (tmp_path/'w').read_bytes() == good


@real
def test_yolo_fastest_finds_the_dog(fast):
    with torch.no_grad(): p = fast.decode(fast(torch.from_numpy(np.load(FAST/'darknet_reference_dog.npz')['input'])))[0]
    score, cls = (p[:, 4:5]*p[:, 5:]).max(1)
    assert {fast.names[c] for c in cls[score > .4]} >= {'dog', 'bicycle'}


@real
def test_surgery_keeps_what_a_class_knew(fast):
    few = Detector(fast.cfg.with_classes(2), ['DOG', 'unicorn']).eval()
    r = transfer_weights(few, fast)
    assert r.count('sliced') == 4 and r.count('new') == 0 and r.count('unused') == 0
    x = torch.from_numpy(np.load(FAST/'darknet_reference_dog.npz')['input'])
    with torch.no_grad(): a, b = fast.decode(fast(x)), few.decode(few(x))
    assert torch.allclose(a[..., :5], b[..., :5], atol=1e-3) and torch.allclose(a[..., 5 + 16], b[..., 5], atol=1e-5)


def picture(n, w, h, seed):
    "Blobs of all sizes: plain noise averages out in deep layers, whose BatchNorm would then amplify rounding."
    g = torch.Generator().manual_seed(seed)
    return sum(torch.nn.functional.interpolate(torch.rand(n, 3, k, k, generator=g), (h, w),
                                               mode='bilinear') for k in (2, 4, 8, 16, 32)) / 5


@torch.no_grad()
def calibrated(cfg, seed=0):
    "Random weights whose BatchNorms have seen a picture, so that maps keep a sensible scale through the whole net."
    d, g = Detector(cfg, seed=seed), torch.Generator().manual_seed(seed)
    norms = [m for m in d.modules() if isinstance(m, torch.nn.BatchNorm2d)]
    # mostly in the linear part: random nets are chaotic otherwise
    for m in norms: m.momentum = 1; m.weight.uniform_(.7, 1.3, generator=g); m.bias.normal_(.7, .3, generator=g)
    d.train()(picture(4, *d.size, seed))
    for h in d.heads: d.layers[h.conv].conv.bias.normal_(0, 1, generator=g)
    for m in norms: m.momentum = .03
    return d.eval()


def opencv(d, folder, x):
    "Raw maps and decoded rows of OpenCV's own importer for the same files; its epsilon is 1e-6, ours 1e-5."
    cv2 = pytest.importorskip('cv2')
    if not hasattr(cv2.dnn, 'readNetFromDarknet'): pytest.skip('this OpenCV has no Darknet importer')
    e, cfg = copy.deepcopy(d), d.cfg
    for m in e.modules():
        if isinstance(m, torch.nn.BatchNorm2d): m.running_var += 9e-6
    for h in d.heads: cfg = cfg.with_value(h.index + 1, 'thresh', 0)
    cfg.write(folder/'n.cfg'); write_weights(e, folder/'n.weights')
    net = cv2.dnn.readNetFromDarknet(str(folder/'n.cfg'), str(folder/'n.weights'))
    net.setPreferableBackend(cv2.dnn.DNN_BACKEND_OPENCV)
    net.enableWinograd(False)       # its 3×3 shortcut alone costs a factor of 4 in precision
    net.setInput(x.numpy())
    raw = net.forward([f'logistic_{h.conv + 1}' if h.logistic else f'conv_{h.conv}' for h in d.heads])
    return raw, net.forward([f'yolo_{h.index}' for h in d.heads])


def against_opencv(cfg, folder):
    d = calibrated(cfg)
    w, h = d.size
    x = picture(1, w, h, 7)
    raw, rows = opencv(d, folder, x)
    with torch.no_grad(): maps = d(x)
    for m, r in zip(maps, raw):
        assert r.shape == tuple(m.shape)
        assert np.abs(r - m.numpy()).max() <= 1e-4*np.abs(r).max(), np.abs(r - m.numpy()).max()/np.abs(r).max()
    parts = d.decode(maps)[0].split([len(k.anchors)*m[0, 0].numel() for k, m in zip(d.heads, maps)])
    for p, r, k, m in zip(parts, rows, d.heads, maps):
        # OpenCV: cell, then anchor
        p = p.view(len(k.anchors), -1, 5 + k.nc).transpose(0, 1).numpy().reshape(-1, 5 + k.nc)
        r = r.reshape(-1, 5 + k.nc)
        assert np.allclose(r[:, :4]*[w, h, w, h], p[:, :4], rtol=1e-3, atol=w*1e-4)
        assert np.allclose(r[:, 4], p[:, 4], atol=1e-4) and np.allclose(r[:, 5:], p[:, 5:]*p[:, 4:5], atol=1e-4)


@pytest.mark.parametrize('name', ['yolokit-nano', 'yolov3-tiny', 'yolov4-tiny'])
def test_opencv_agrees(name, tmp_path): against_opencv(zoo.build(name, 20).with_size(160, 128), tmp_path)


@pytest.mark.soak
def test_opencv_agrees_on_yolov4(tmp_path): against_opencv(zoo.build('yolov4', 80).with_size(256, 192), tmp_path)


@real
def test_opencv_agrees_on_yolo_fastest(fast, tmp_path):
    x = torch.from_numpy(np.load(FAST/'darknet_reference_dog.npz')['input'])
    raw, _ = opencv(fast, tmp_path, x)
    with torch.no_grad():
        for m, r in zip(fast(x), raw): assert np.abs(m.numpy() - r).max() <= 1e-4*np.abs(r).max()


@pytest.mark.parametrize('name', list(PARAMS))
def test_counts(name):
    d = Detector(zoo.build(name))
    assert sum(p.numel() for p in d.parameters()) == PARAMS[name]
    assert 20 + 4*sum(t.numel() for *_, t in layout(d)) == BYTES[name]
    if name in FUSED: assert sum(p.numel() for p in d.fuse().parameters()) == FUSED[name]


@pytest.mark.parametrize('name', ['yolokit-nano', 'yolov3-tiny', 'yolov4-tiny',
                                  pytest.param('yolov4', marks=pytest.mark.soak)])
def test_read_write_is_identical(name, tmp_path):
    a, b = Detector(zoo.build(name), seed=1), Detector(zoo.build(name), seed=2)
    write_weights(a, tmp_path/'a', seen=99)
    r = read_weights(b, tmp_path/'a')
    write_weights(b, tmp_path/'b', r.seen, r.version)
    assert (tmp_path/'a').read_bytes() == (tmp_path/'b').read_bytes() and state_hash(a) == state_hash(b)


def test_every_cut_is_noticed(tmp_path):
    d = Detector(zoo.build('yolokit-nano', 3))
    write_weights(d, tmp_path/'w')
    good, before, r = (tmp_path/'w').read_bytes(), state_hash(d), random.Random(0)
    for n in [0, 1, 15, 16, 19, 20, 21, len(good) - 1, len(good) - 4] + [r.randrange(len(good)) for _ in range(60)]:
        (tmp_path/'cut').write_bytes(good[:n])
        with pytest.raises(WeightsError, match='cut'): read_weights(d, tmp_path/'cut')
    for more in (b'\0'*4, b'\0'*4000):                                 # up to three bytes are left unread
        (tmp_path/'long').write_bytes(good + more)
        with pytest.raises(WeightsError, match=f'{len(more):,} bytes are left'): read_weights(d, tmp_path/'long')
    assert state_hash(d) == before


def test_partial_takes_whole_layers_only(tmp_path):
    a, cfg = Detector(zoo.build('yolov4-tiny', 3), seed=1), zoo.build('yolov4-tiny', 3)
    ends = [r.start + r.bytes for r in write_weights(a, tmp_path/'w').rows]
    good = (tmp_path/'w').read_bytes()
    (tmp_path/'backbone').write_bytes(good[:ends[40] + 1000])
    b, c = Detector(cfg, seed=2), Detector(cfg, seed=2)
    r = read_weights(b, tmp_path/'backbone', partial=True)
    taken = {row.layer for row in r.rows if row.how == 'read'}
    assert r.count('read') and r.count('missing') and not taken & {row.layer for row in r.rows if row.how == 'missing'}
    for (i, _, name, t), (*_, ta), (*_, tc) in zip(layout(b), layout(a), layout(c)):
        assert torch.equal(t, ta if i in taken else tc), (i, name)


def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    d = Detector(zoo.build('yolokit-nano', 3))
    write_weights(d, tmp_path/'w')
    good = (tmp_path/'w').read_bytes()
    monkeypatch.setattr(os, 'fsync', lambda fd: (_ for _ in ()).throw(OSError(28, 'No space left on device')))
    with pytest.raises(OSError, match='No space'): write_weights(Detector(d.cfg, seed=5), tmp_path/'w')
    assert (tmp_path/'w').read_bytes() == good and [p.name for p in tmp_path.iterdir()] == ['w']


def test_other_peoples_files(tmp_path):
    class Model: pass
    Model.__module__, Model.__qualname__ = 'models.yolo', 'Model'
    import sys, types
    sys.modules['models'], sys.modules['models.yolo'] = types.ModuleType('models'), types.ModuleType('models.yolo')
    sys.modules['models.yolo'].Model = Model
    try: torch.save({'epoch': -1, 'model': Model()}, tmp_path/'v5.pt')
    finally: del sys.modules['models'], sys.modules['models.yolo']
    with pytest.raises(WeightsError, match='checkpoint of YOLOv5'): load_checkpoint(tmp_path/'v5.pt')
    with pytest.raises(WeightsError, match='zip file'):
        read_weights(Detector(zoo.build('yolokit-nano', 3)), tmp_path/'v5.pt')
    with pytest.raises(WeightsError, match='no such'): load_checkpoint(tmp_path/'none.pt')


SMALL = """[net]
width=64
height=64
[convolutional]
batch_normalize=1
filters=8
size=3
stride=8
pad=1
activation=mish
[maxpool]
size=2
stride=1
[shortcut]
from=-2
activation=linear
[route]
layers=-1,-2
groups=2
group_id=1
[convolutional]
filters=16
activation=logistic
[yolo]
mask=0,1
anchors=8,8, 20,20
num=2
classes=3
new_coords=1
scale_x_y=2
"""


def test_compiles_without_a_break():
    d = calibrated(Cfg.parse(SMALL))
    x = torch.rand(1, 3, 64, 64)
    run = torch.compile(lambda x: d.decode(d(x, logits=True), logits=True), fullgraph=True, backend='eager')
    with torch.no_grad(): assert torch.allclose(run(x), d.decode(d(x)), atol=1e-4)
    torch.compiler.reset()


def test_copies_and_pickles():
    d = Detector(zoo.build('yolokit-nano', 3))
    for e in (copy.deepcopy(d), pickle.loads(pickle.dumps(d))):
        assert state_hash(e) == state_hash(d) and str(e.cfg) == str(d.cfg)
        assert torch.equal(e.eval()(torch.ones(1, 3, 64, 64))[0], d.eval()(torch.ones(1, 3, 64, 64))[0])


def test_gradients_reach_every_parameter():
    d = Detector(zoo.build('yolov4-tiny', 3).with_size(64, 64)).train()
    sum(m.square().mean() for m in d(torch.rand(2, 3, 64, 64), logits=True)).backward()
    assert [n for n, p in d.named_parameters() if p.grad is None or not p.grad.isfinite().all()] == []


@pytest.mark.skipif(not SHARED.exists(), reason='../shared is not there')
def test_every_public_section_is_built_or_named():
    import json
    seen = json.loads((SHARED/'data/darknet_sections.json').read_text())['sections']
    assert set(seen) - set(BUILDERS) - set(_UNSUPPORTED_SECTIONS) - {'net', 'network', 'empty'} == set()


@pytest.mark.soak
def test_reading_is_as_fast_as_the_disk(tmp_path):
    d = Detector(zoo.build('yolov4'))
    write_weights(d, tmp_path/'w')
    def best(fn): return min(timed(fn) for _ in range(3))
    def timed(fn): t = time.perf_counter(); fn(); return time.perf_counter() - t
    plain, ours = best(lambda: (tmp_path/'w').read_bytes()), best(lambda: read_weights(d, tmp_path/'w'))
    print(f'{(tmp_path/"w").stat().st_size/1e6:.0f} MB: bytes {plain:.3f} s, weights {ours:.3f} s')
    assert ours <= 2*plain
