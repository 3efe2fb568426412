"""The exported files in the compiled Darknets themselves, the check of `darknet-v5` against what hank-ai's does.

Soak: YOLOKIT_DARKNET and YOLOKIT_DARKNET_V5 name the folders of libdarknet.so (see darknets.py)."""
import os
from importlib.util import find_spec

import numpy as np
import pytest
import torch

from yolokit.network import zoo
from yolokit.network.cfg import Cfg
from yolokit.network.model import Detector
from yolokit.export import bundles
from yolokit.export.compatibility import check_compatibility
from yolokit.export.openvino_ncnn import to_ncnn, to_openvino
from darknets import DARKNETS, head_maps, last_layer
from test_export import calibrated

HERE = {t: os.environ[v] for t, v in DARKNETS.items() if os.environ.get(v)}
compiled = pytest.mark.skipif(not HERE, reason='no folder of a compiled Darknet in ' + ' or '.join(DARKNETS.values()))
NET = '[net]\nwidth=32\nheight=32\nchannels=3\n'
CONV = '[convolutional]\nfilters=14\nsize=1\nstride=1\nactivation=linear\n'
YOLO = '[yolo]\nmask=0,1\nanchors=5,6, 20,15\nclasses=2\nnum=2\n'
# what follows the plain network, and whether hank-ai's V5.1 was seen to abort
CASES = dict(
    plain=(CONV + YOLO, 0), thresh=(CONV + YOLO + 'thresh=.001\n', 1), unknown=(CONV + 'colour=3\n' + YOLO, 1),
    twice=(CONV + 'pad=0\npad=0\n' + YOLO, 1), exponent=('learning_rate=1e-3\n' + CONV + YOLO, 1),
    spaced=(CONV + YOLO.replace('[yolo]', '[ yolo ]'), 1), indented=(CONV + YOLO.replace('[yolo]', '  [yolo]'), 0),
    header_comment=(CONV + YOLO.replace('[yolo]', '[yolo] # here'), 0), comment=(CONV + 'pad=0 # no\n' + YOLO, 0),
    semicolon=(CONV + 'pad=0 ; no\n' + YOLO, 1), stray=(CONV + 'hello\n' + YOLO, 0),
    empty=('angle=\n' + CONV + YOLO, 0),
    reorg=('[reorg]\nstride=2\n' + CONV + YOLO, 1), reorg3d=('[reorg3d]\nstride=2\n' + CONV + YOLO, 0),
    local=('[local]\nfilters=3\n' + CONV + YOLO, 1), batchnorm=(CONV + '[batchnorm]\n' + YOLO, 1),
    activation=('[activation]\nactivation=relu\n' + CONV + YOLO, 1),
    implicit=('[implicit]\nfilters=3\n' + CONV + YOLO, 1),
    silence=(CONV + '[silence]\n' + YOLO, 1), silu=(CONV.replace('linear', 'silu') + YOLO, 1),
    conv=(CONV.replace('convolutional', 'conv') + YOLO, 0), typo=(CONV + YOLO + 'nms_kind=grpeedynms\n', 1),
    step_unread=('policy=steps\nsteps=1\nscales=.1\nstep=2\n' + CONV + YOLO, 1),
    step_read=('policy=step\nscale=.1\nstep=2\n' + CONV + YOLO, 0), adam=('B1=.9\n' + CONV + YOLO, 1),
    adam_read=('adam=1\nB1=.9\n' + CONV + YOLO, 0), size48=(CONV + YOLO, 1), max_crop=('max_crop=9\n' + CONV + YOLO, 1),
    plus=('angle=+1\n' + CONV + YOLO, 1), sam_mish=(CONV + '[sam]\nfrom=-1\nactivation=mish\n' + YOLO, 1))


def text_of(name):
    text = NET + CASES[name][0]
    return text.replace('width=32', 'width=48') if name == 'size48' else text


@pytest.mark.parametrize('name', CASES)
def test_v5_refusals_are_foretold(name):
    said = [f for f in check_compatibility(Cfg(text_of(name), name), 'darknet-v5') if f.effect == 'rejected']
    assert bool(said) == bool(CASES[name][1]), said


@compiled
@pytest.mark.soak
@pytest.mark.parametrize('name', CASES)
def test_v5_refusals_as_seen(name, tmp_path):
    (tmp_path/'n.cfg').write_text(text_of(name))
    y = last_layer(HERE['darknet-v5'], tmp_path/'n.cfg', '', np.zeros((1, 3, 32, 48), np.float32), 1, tmp_path)
    assert isinstance(y, str) == bool(CASES[name][1]), y


def test_files_hold_nothing_that_v5_refuses(tmp_path):
    "Odd keys, exponents, missing num and mask: left out or rewritten, and the maps stay."
    text = str(zoo.build('yolokit-nano', 2).with_size(64, 64))
    text = text.replace('[net]', '[net]\nmax_crop=9\nlearning_rate=1e-3\nseen=3',
                        1).replace('[yolo]', '[yolo]\nbeta1=.6')
    d = calibrated(Cfg(text, 'nano.cfg'))
    e = bundles.to_darknet(d, tmp_path, target='darknet-v5')
    cfg = Cfg.read(tmp_path/'nano.cfg')
    assert not [f for f in check_compatibility(cfg, 'darknet-v5') if f.effect in ('rejected', 'silent')]
    assert cfg.net['learning_rate'] == '0.001' and 'max_crop' not in cfg.net and '\nthresh' not in str(cfg)
    assert str(Cfg.read(tmp_path/'nano-opencv.cfg')).count('thresh=0.001') == len(d.heads)
    assert e.worst('opencv')[0] < 1e-4
    assert any('max_crop' in t for t in e.done)


@torch.no_grad()
def in_darknets(d, folder): # Detector → {runtime: gap}
    "Worst gap of the maps in OpenCV and every compiled Darknet, by their scale; the unchanged file's last head."
    w, h = d.size
    e = bundles._write_darknet(d, folder, target='darknet-v5')
    out = dict(opencv=e.worst('opencv')[0])
    again, x = Detector(Cfg.read(e.files[0])), bundles.smooth_noise(1, 3, h, w)
    maps, _ = bundles._reference(d, again, x)
    for target, where in HERE.items():
        k, m = again.heads[-1], torch.from_numpy(maps[-1])
        last = last_layer(where, e.files[0], e.files[1], x.numpy(), m.numel(), folder)
        assert not isinstance(last, str), (target, last)
        a = len(k.anchors)                                              # σ, then x and y around the cell's middle
        p = m.view(a, 5 + k.nc, -1).clone()
        s = p if k.logistic else p.sigmoid()
        want = torch.cat([s[:, :2]*k.scale_x_y - (k.scale_x_y - 1)/2, (s if k.logistic else p)[:, 2:4], s[:, 4:]], 1)
        assert np.abs(last - want.numpy().ravel()).max() <= 1e-4*want.abs().max(), target
        got = head_maps(where, e.files[0], e.files[1], again, x.numpy(), folder)
        assert not isinstance(got, str), (target, got)
        out[target] = max(float(np.abs(g - m).max()/np.abs(m).max()) for g, m in zip(got, maps))
    return out


@pytest.mark.soak
@pytest.mark.parametrize('name', zoo.names())
def test_the_zoo_in_every_runtime(name, tmp_path):
    "OpenCV, ONNX Runtime, OpenVINO, ncnn and both Darknets, those of them that are here."
    size = (192, 128) if name == 'yolokit-nano' else (256, 128)        # wider: see test_pooling_of_wide_maps
    d = calibrated(zoo.build(name, 3).with_size(*size))
    worst = in_darknets(d, tmp_path/'darknet')
    worst['onnx'] = bundles.to_onnx(d, tmp_path/'onnx', 'raw').worst()[0]
    for package, to in (('openvino', to_openvino), ('ncnn', to_ncnn)):
        if find_spec(package): worst[package] = to(d, tmp_path/package).worst()[0]
    print(name, {k: float(f'{v:.1e}') for k, v in worst.items()})
    assert max(worst.values()) <= 1e-4, worst


WIDE = NET.replace('width=32', 'width=416') + '[maxpool]\nsize=5\nstride=1\n'
WIDE += CONV.replace('size=1', 'size=32').replace('stride=1', 'stride=32') + YOLO


def test_pooling_of_wide_maps_is_said():
    "Built for a CPU with AVX, both Darknets pass over what lies left of the first eight columns' windows."
    for target in ('darknet', 'darknet-v5'):
        said = [f for f in check_compatibility(Cfg(WIDE, 'n.cfg'), target) if 'AVX' in f.found]
        assert [(f.line, f.effect) for f in said] == [(5, 'slight')]
        small = Cfg(WIDE.replace('size=5', 'size=2').replace('stride=1', 'stride=1\npadding=1', 1), 'n.cfg')
        assert not [f for f in check_compatibility(small, target) if 'AVX' in f.found]


@compiled
@pytest.mark.soak
def test_pooling_of_wide_maps(tmp_path):
    x = np.random.default_rng(0).random((1, 3, 32, 416), np.float32)
    (tmp_path/'n.cfg').write_text(WIDE.split('[conv')[0])
    want = torch.nn.functional.max_pool2d(torch.from_numpy(x), 5, 1, 2).numpy()
    for where in HERE.values():
        got = last_layer(where, tmp_path/'n.cfg', '', x, x.size, tmp_path).reshape(x.shape)
        wrong = np.nonzero((got != want).any((0, 1, 2)))[0]
        assert len(wrong) and wrong.max() < 8, wrong
