"""`check` against OpenCV's importer as it really behaves: one-key mutations of small networks, and (soak) every public
cfg of YOLOKIT_CFGS."""
import tempfile
from collections import Counter

import numpy as np
import pytest
import torch

from yolokit.network.cfg import Cfg, CfgError
from yolokit.network.weights import file_floats, layout, write_weights
from yolokit.export.compatibility import RUNTIMES, check_compatibility, deepstream
from test_corpus import corpus, detects, files, read, small
from test_darknet import CASES, fill
from test_network import FAST, calibrated, picture, real

cv2 = pytest.importorskip('cv2')
if not hasattr(cv2.dnn, 'readNetFromDarknet'):
    pytest.skip('this OpenCV has no Darknet importer', allow_module_level=True)
NET = '[net]\nwidth=32\nheight=32\nchannels=3\n'


def conv(n, k=3, s=1, act='leaky', extra=''):
    return f'[convolutional]\nbatch_normalize=1\nfilters={n}\nsize={k}\nstride={s}\npad=1\nactivation={act}\n{extra}\n'


B = conv(16)
MUTATIONS = dict(
    plain=B, seven=conv(8, 7, 2), even=conv(8, 4, 2), pad_wins=conv(8, extra='padding=2'),
    no_size='[convolutional]\nfilters=8\nactivation=leaky\n', no_activation='[convolutional]\nfilters=8\nsize=1\n',
    twice=B + conv(8, extra='filters=9'), bn2=B + conv(8).replace('normalize=1', 'normalize=2'), cbn_too=B
    + conv(8, extra='cbn=1'), cbn=B + conv(8, extra='cbn=1').replace('batch_normalize=1\n', ''),
    alias='[conv]\nfilters=8\nsize=1\nactivation=leaky\n', pool_no_size=B + '[maxpool]\nstride=2\n', pool_no_stride=B
    + '[maxpool]\nsize=3\n', pool_stride4=B + '[maxpool]\nstride=4\n', focus=B + '[reorg]\n', upsample=B
    + '[upsample]\n',
    shortcut_leaky=B + conv(16) + '[shortcut]\nfrom=-2\nactivation=leaky\n', sam_leaky=B
    + conv(16) + '[sam]\nfrom=-2\nactivation=leaky\n', comment=B
    + '[convolutional]\nfilters=8\nsize=1\nactivation=leaky # slope\n',
    number_comment=B + '[convolutional]\nfilters=8 # eight\nsize=1 ; one\nactivation=leaky\n', header_comment=B
    + '[convolutional] # here\nfilters=8\nsize=1\nactivation=leaky\n', lhalf=B + '[route_lhalf]\nlayers=-1\n',
    depthwise=B + '[depthwise]\nfilters=16\nsize=3\npad=1\nactivation=leaky\n', se=B + '[se]\nfilters=16\n', deconv=B
    + '[deconvolutional]\nfilters=4\nsize=2\nstride=2\nactivation=leaky\n',
    implicit=B + '[implicit_add]\nfilters=16\n[route]\nlayers=0\n[shift_channels]\nfrom=1\n', stray=B + 'hello\n'
    + conv(8), flipped=B + conv(8, extra='flipped=1'), dropout=B
    + conv(16) + '[dropout]\nprobability=.2\n[shortcut]\nfrom=-3\nactivation=linear\n',
    softmax2=B + '[softmax]\ngroups=2\n', temperature=conv(8, 3, 4) + '[avgpool]\n[softmax]\ntemperature=3\n',
    softmax=conv(8, 3, 4) + '[avgpool]\n[softmax]\n', connected=conv(4, 3, 4) + '[connected]\noutput=20\n',
    scale=B + '[upsample]\nstride=2\nscale=.5\n', share=conv(8) + conv(8) + conv(8, 3, 2, extra='share_index=1'),
    group=B + '[route]\nlayers=-1\ngroups=4\ngroup_id=3\n', groups=B
    + conv(8) + '[route]\nlayers=-1,0\ngroups=2\ngroup_id=1\n',
    h_swish=conv(8, act='h_swish'), none=conv(8, act='none'), silu=conv(8, act='silu'), sigmoid=conv(8, act='sigmoid'),
    blanks=B + conv(8) + '[route]\nlayers = -1 , 0\n', stride_xy=B + conv(8, extra='stride_x=2\nstride_y=1'),
    stride_same=B + conv(8, 3, 2, extra='stride_x=2\nstride_y=2'), resnet=B + '[maxpool]\nsize=2\nstride=2\n'
    + conv(16) + '[shortcut]\nfrom=0\nactivation=linear\n', xnor=B + conv(8, extra='xnor=1'), network='[network]\n')


@torch.no_grad()
def opencv(cfg):
    "What OpenCV really makes of a small network with full weights: rejected, silent (another output) or right."
    d, plan, x = fill(cfg)
    maps = {-1: x}
    for l, m in zip(plan, d.layers): maps[l.index] = m(*[maps[j] for j in l.inputs])
    for m in d.layers.modules():
        if isinstance(m, torch.nn.modules.batchnorm._BatchNorm): m.running_var += m.eps - 1e-6
    with tempfile.TemporaryDirectory() as tmp:
        cfg.write(tmp + '/c.cfg'); write_weights(d, tmp + '/c.weights')
        try:
            net = cv2.dnn.readNetFromDarknet(tmp + '/c.cfg', tmp + '/c.weights')
            net.enableWinograd(False); net.setInput(x.numpy()); out = net.forward()
        except cv2.error: return 'rejected'
    y = maps[plan[-1].index].detach().numpy()
    return 'right' if out.size == y.size and np.abs(out.ravel() - y.ravel()).max() <= 1e-4*np.abs(y).max() else 'silent'


def said(cfg, raw=True): # raw: what happens behind the head's map does not count
    found = [f for f in check_compatibility(cfg, 'opencv') if not (raw and ('thresh' in f.found or 'no σ' in f.found))]
    return next((e for e in ('rejected', 'silent') if any(f.effect == e for f in found)), 'right')


SMALL = {k: c['cfg'] for k, c in CASES.items() if 'values' in c} | {'mutated_' + k: NET + t if k != 'network' else t
                                                                    + NET[6:] + B for k, t in MUTATIONS.items()}


@pytest.mark.parametrize('name', SMALL)
def test_check_says_what_opencv_does(name):
    cfg = Cfg(SMALL[name], name)
    with np.errstate(all='ignore'):
        assert said(cfg) == opencv(cfg), [str(f) for f in check_compatibility(cfg, 'opencv')]


def test_every_finding_has_a_line_and_a_mend():
    for name, text in SMALL.items():
        for target in RUNTIMES:
            for f in check_compatibility(Cfg(text, name), target):
                assert f.remedy and f.found and f.effect in ('rejected', 'silent', 'slight',
                                                           'ignored') and f.target == target, f
                line = text.split('\n')[f.line - 1]
                # a key that is missing points at the header
                assert not f.key or f.key in line or line.startswith('['), f


def test_floats_of_small_files():
    for name, text in SMALL.items():
        cfg = Cfg(text, name)
        d, plan, _ = fill(cfg)
        assert file_floats(plan) == sum(t.numel() for *_, t in layout(d)), name


@real
def test_yolo_fastest_is_miswired_in_deepstream():
    cfg = Cfg.read(FAST/'yolo-fastest-1.1.cfg')
    assert any(f.effect == 'silent' and 'instead of' in f.found
               for f in check_compatibility(cfg, 'deepstream')) and deepstream(cfg).problems
    assert not [f for f in check_compatibility(cfg, 'darknet')]
    assert deepstream(cfg).floats < file_floats(cfg.plan()) == 346_062


@torch.no_grad()
def opencv_heads(cfg, folder): # the same for a whole detector: its head maps
    d = calibrated(cfg)
    x = picture(1, *d.size, 7)
    maps = d(x)
    for m in d.modules():
        if isinstance(m, torch.nn.modules.batchnorm._BatchNorm): m.running_var += m.eps - 1e-6
    cfg.write(folder/'n.cfg'); write_weights(d, folder/'n.weights')
    try:
        net = cv2.dnn.readNetFromDarknet(str(folder/'n.cfg'), str(folder/'n.weights'))
        net.enableWinograd(False); net.setInput(x.numpy()); net.forward()
        raw = net.forward([f'logistic_{h.conv + 1}' if h.logistic else f'conv_{h.conv}' for h in d.heads])
    except cv2.error: return 'rejected'
    worst = max(np.abs(r - m.numpy()).max()/np.abs(r).max() if r.shape == tuple(m.shape) else 9
                for r, m in zip(raw, maps))
    return 'right' if worst <= 1e-3 else 'silent'


@corpus
@pytest.mark.soak
def test_check_against_opencv_over_the_corpus(tmp_path):
    table, wrong = Counter(), []
    for p in files():
        c = read(p)
        if not detects(c) or c.net.int('channels', 3) != 3: continue
        try: c = small(c)
        except CfgError: continue
        try: truth = opencv_heads(c, tmp_path)
        except CfgError: continue
        table[said(c), truth] += 1
        if said(c) != truth: wrong.append((p.name, said(c), truth)); print(*wrong[-1], flush=True)
    kinds = 'rejected', 'silent', 'right'
    print('\nsaid \\ did ' + ' '.join(f'{k:>9s}' for k in kinds))
    for a in kinds: print(f'{a:10s} ' + ' '.join(f'{table[a, b]:9d}' for b in kinds))
    assert sum(table[k, k] for k in kinds) >= .98*table.total()


REGION = ('[net]\nwidth=32\nheight=32\nchannels=3\n[convolutional]\nfilters=14\nsize=1\nactivation=linear\n'
          '[region]\nanchors=1,1,2,2\nclasses=2\nnum=2\nsoftmax=1\ncoords=4\n')


@pytest.mark.parametrize('more, wrong', [('', False), ('tree=data/9k.tree\n', True), ('tree=\n', False)])
def test_a_hierarchy_of_classes_is_refused_by_opencv(tmp_path, more, wrong):
    "It reads such a cfg and refuses it when its shapes are asked for: public cfgs of YOLO9000."
    (tmp_path/'n.cfg').write_text(REGION + more)
    (tmp_path/'n.weights').write_bytes(np.array([0, 2, 5, 0, 0], np.int32).tobytes() + bytes(4*(14 + 42)))
    net = cv2.dnn.readNetFromDarknet(str(tmp_path/'n.cfg'), str(tmp_path/'n.weights'))
    found = [f.line for f in check_compatibility(Cfg(REGION + more, 'n.cfg'), 'opencv') if f.effect == 'rejected']
    assert found == [15]*wrong
    if wrong:
        with pytest.raises(cv2.error, match='not implemented'): net.getFLOPS([1, 3, 32, 32])
    else: assert net.getFLOPS([1, 3, 32, 32]) > 0
