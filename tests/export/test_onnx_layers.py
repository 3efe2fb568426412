"""Every layer that the library runs leaves as ONNX, or check_compatibility says before why not."""
from pathlib import Path

import numpy as np
import pytest
import torch

from yolokit.network.cfg import Cfg, CfgError
from yolokit.network.model import Detector
from yolokit.export import bundles
from yolokit.export.compatibility import check_compatibility
from yolokit.export.onnx_graph import build_onnx

FIELD = Path(__file__).parents[3]/'shared/data/field/darknet'
NET = '[net]\nwidth=32\nheight=32\nchannels=3\n[convolutional]\nfilters=16\nsize=3\nstride=2\npad=1\nactivation=leaky\n'
HEAD = '[convolutional]\nfilters={n}\nsize=1\nactivation=linear\n[{kind}]\n{mask}anchors=5,6, 20,15\nclasses=2\nnum=2\n'
YOLO = HEAD.format(n=14, kind='yolo', mask='mask=0,1\n')
LAYERS = dict(
    antialiasing='[convolutional]\nfilters=8\nsize=3\nstride=2\npad=1\nantialiasing=1\nactivation=leaky\n' + YOLO,
    antialiasing2='[convolutional]\nfilters=8\nsize=3\nstride=2\npad=1\nantialiasing=2\nactivation=leaky\n' + YOLO,
    maxpool_aa='[maxpool]\nsize=2\nstride=2\nantialiasing=1\n' + YOLO, upsample='[upsample]\nstride=-2\n' + YOLO,
    deconv='[deconvolutional]\nfilters=8\nsize=2\nstride=2\nbatch_normalize=1\nactivation=leaky\n' + YOLO,
    deconv_groups='[deconvolutional]\nfilters=8\nsize=4\nstride=2\npadding=1\ngroups=4\nactivation=mish\n' + YOLO,
    depthwise='[depthwise]\nfilters=16\nsize=3\npad=1\nactivation=relu6\n' + YOLO, se='[se]\nfilters=16\n' + YOLO,
    xnor='[convolutional]\nfilters=8\nsize=3\npad=1\nxnor=1\nactivation=leaky\n' + YOLO,
    depth_pool='[maxpool]\nmaxpool_depth=1\nout_channels=5\n' + YOLO,
    local=('[local]\nfilters=6\nsize=3\nstride=1\nactivation=leaky\n'
           '[deconvolutional]\nfilters=4\nsize=3\nactivation=relu\n' + YOLO),
    plain_back='[reorg]\nstride=2\nreverse=1\n' + YOLO, scramble_back='[reorg3d]\nstride=2\nreverse=1\n' + YOLO,
    gaussian=HEAD.format(n=22, kind='Gaussian_yolo', mask='mask=0,1\n'),
    region=HEAD.format(n=14, kind='region', mask='softmax=1\n'),
    detection='[connected]\noutput=48\nactivation=linear\n[detection]\nclasses=2\ncoords=4\nside=2\nnum=2\nsqrt=1\n')


@torch.no_grad()
def gaps(cfg):
    d = Detector(cfg, seed=1).eval()
    for p in d.parameters(): p.mul_(1).add_(.01)
    x = bundles.smooth_noise(2, cfg.net.int('channels', 3), *d.size[::-1])
    maps = d(x)
    out = []
    for form, want in (('raw', maps), ('decoded', [d.decode(maps)])):
        got = bundles.onnx_session(build_onnx(d, form)).run(None, {'input': x.numpy()})
        out.append(max(float(np.abs(a - b.numpy()).max()/b.abs().max()) for a, b in zip(got, want, strict=True)))
    return out


@pytest.mark.parametrize('name', LAYERS)
def test_layer(name):
    cfg = Cfg(NET + LAYERS[name], name)
    assert not [f for f in check_compatibility(cfg, 'onnx') if f.effect in ('rejected', 'silent')]
    assert max(gaps(cfg)) <= 1e-5


@pytest.mark.skipif(not FIELD.exists(), reason='../shared/data/field/darknet is not there')
@pytest.mark.parametrize('path', sorted(FIELD.glob('*.cfg')) if FIELD.exists() else [], ids=lambda p: p.stem)
def test_field(path):
    "Each file leaves, or the check has said that it will not."
    cfg = Cfg(path.read_text(errors='surrogateescape'), path.name)
    refused = [f for f in check_compatibility(cfg, 'onnx') if f.effect == 'rejected']
    try: worst = max(gaps(cfg))
    except (CfgError, ValueError) as why:
        assert refused, why
        return
    assert not refused and worst <= 1e-4, (refused, worst)


@pytest.mark.parametrize('extra, word', [('binary=1', 'binary'), ('sway=1', 'sway')])
def test_refusals(extra, word):
    cfg = Cfg(NET + f'[convolutional]\nfilters=8\nsize=3\npad=1\nactivation=leaky\n{extra}\n' + YOLO, 'n.cfg')
    for target in ('onnx', 'tensorrt', 'openvino'):
        assert [f for f in check_compatibility(cfg, target) if f.effect == 'rejected' and word in f.found], target


def test_refusals_of_the_shape():
    text = NET + '[convolutional]\nfilters=16\nsize=3\nstride=2\npad=1\nactivation=leaky\n[shortcut]\nfrom=-2\n' + YOLO
    found = [f for f in check_compatibility(Cfg(text, 'n.cfg'), 'onnx') if f.effect == 'rejected']
    assert found and found[0].key == 'from'
    headless = check_compatibility(Cfg(NET, 'n.cfg'), 'onnx')
    assert any(f.effect == 'rejected' for f in headless)
