"""The exported files in the compiled Darknets themselves, the check of `darknet-v5` against what hank-ai's does.

Soak: YOLOKIT_DARKNET and YOLOKIT_DARKNET_V5 name the folders of libdarknet.so (see darknets.py)."""
import os

import numpy as np
import pytest
import torch

from yolokit.network import zoo
from yolokit.network.cfg import Cfg
from yolokit.network.model import Detector
from yolokit.export import bundles
from yolokit.export.compatibility import check_compatibility
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
def in_darknets(name, folder, classes=3, w=256, h=128):
    "Worst difference of the maps in every compiled Darknet, relative to their scale; the unchanged file's last head."
    d, out = calibrated(zoo.build(name, classes).with_size(w, h)), {}
    e = bundles.write_darknet(d, folder, target='darknet-v5')
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


@compiled
@pytest.mark.soak
@pytest.mark.parametrize('name', zoo.names())
def test_the_zoo_in_compiled_darknets(name, tmp_path):
    worst = in_darknets(name, tmp_path)
    print(name, worst)
    assert max(worst.values()) <= 1e-4
