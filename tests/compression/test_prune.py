"""Pruning: the channels of small cfgs by hand, every network of the zoo masked against cut, files and ONNX, bad input.
The whole zoo: pytest -m soak tests/compression/test_prune.py (YOLOKIT_CFGS=/path adds a folder of public cfgs)."""
import copy, os, random, warnings
from pathlib import Path

import numpy as np
import pytest
import torch

from yolokit.network import zoo
from yolokit.network.cfg import HEADS, Cfg, CfgError
from yolokit.network.layers import SE
from yolokit.network.model import Detector, state_hash
from yolokit.network.weights import read_weights, write_weights
from yolokit.network.checkpoints import from_checkpoint, to_checkpoint
from yolokit.data.loader import Batch
from yolokit.training.loss import Loss
from yolokit.export.onnx_graph import build_onnx
from yolokit.export.bundles import onnx_session, relative, smooth_noise
from yolokit.compression.channel_groups import (Block, blocks, remove_channels, shrink_cfg, trace_channels,
                                                without_blocks, _validate_mask)
from yolokit.compression.prune import (channel_means, network_cost, prune, PruneError, recalibrate, Sparsity,
                                       weight_scores)
from roundtrip import roundtrip
from test_corpus import dirty

torch.set_num_threads(1)
YOLO = ('[convolutional]\nfilters=18\nsize=1\nactivation=linear\n[yolo]\nmask=0,1,2\nanchors=4,4, 8,8, '
        '16,16\nclasses=1\nnum=3\n')


def sec(kind, **keys): return f'[{kind}]\n' + ''.join(f'{k.rstrip("_")}={v}\n' for k, v in keys.items())
def conv(n, size=1, act='leaky', **keys):
    return sec('convolutional', batch_normalize=1, filters=n, size=size, stride=1, pad=1, activation=act, **keys)
def net(*parts): return Cfg.parse('[net]\nwidth=32\nheight=32\nchannels=3\n' + ''.join(parts) + YOLO)
def tied(c, *layers): return [c.outs[i].tolist() for i in layers]


def small(name, cells=2):
    c = zoo.build(name, 3)
    s = cells*max(round(c.net.int('width')/l.shape[2]) for l in c.plan() if l.type == 'yolo')
    return c.with_size(s, s)


@torch.no_grad()
def lively(cfg, seed=0):
    "Random weights, and BatchNorms that have seen a picture."
    d, g = Detector(cfg, seed=seed), torch.Generator().manual_seed(seed)
    for m in d.modules():
        if isinstance(m, torch.nn.BatchNorm2d):
            m.momentum = 1; m.weight.uniform_(.5, 1.5, generator=g); m.bias.normal_(.3, .5, generator=g)
    d.train()(smooth_noise(2, cfg.net.int('channels', 3), *d.size[::-1], seed))
    return d.eval()


@torch.no_grad()
def mask_channels(detector, c, keep):
    "What remove_channels has to equal: the whole network, with zeros where the units are to leave."
    d, keep = copy.deepcopy(detector), _validate_mask(c, keep)
    for m, out in zip(d.layers, c.outs):
        if keep[out].all(): continue
        if isinstance(m, SE):
            r = m.squeeze.in_features//m.squeeze.out_features
            m.excite.weight[:, torch.from_numpy(~keep[out[:len(out)//r*r:r]])] = 0
        mask = torch.from_numpy(keep[out]).view(-1, 1, 1)
        m.register_forward_hook(lambda m, x, y, mask=mask: y*mask.to(y))
    return d


def random_mask(c, share, seed=0):
    g, keep = np.random.default_rng(seed), np.ones(len(c.locked), bool)
    for x in c.groups: keep[g.permutation(x.units)[max(1, round(share*len(x.units))):]] = False
    return keep


def mask_of(d, c, share, how, seed=0):
    if how == 'random': return random_mask(c, share, seed)
    score = weight_scores(d, c, 'l1')
    keep = np.ones(len(c.locked), bool)
    for g in c.groups: keep[g.units[np.argsort(-score[g.units])[max(1, round(share*len(g.units))):]]] = False
    return keep


@torch.no_grad()
def worst(cfg, shares, hows, seed=0):
    d, c = lively(cfg, seed).double(), trace_channels(cfg)
    x, out = smooth_noise(1, cfg.net.int('channels', 3), *d.size[::-1], seed).double(), 0.
    for share in shares:
        for how in hows:
            keep = mask_of(d, c, share, how, seed)
            out = max(out, relative(remove_channels(d, c, keep)(x), mask_channels(d, c, keep)(x)))
    return out


# by hand

def test_a_route_with_groups_keeps_its_halves_in_step():
    c = trace_channels(net(conv(4), sec('route', layers=-1, groups=2, group_id=1), conv(2),
                           sec('route', layers='-1,-3')))
    assert tied(c, 0, 1, 3) == [[3, 4, 3, 4], [3, 4], [5, 6, 3, 4, 3, 4]]
    keep = ~np.isin(np.arange(len(c.locked)), [4])
    assert [l.shape[0] for l in shrink_cfg(c, keep).plan()][:4] == [2, 1, 2, 4]


def test_a_chain_of_shortcuts_is_one_group():
    c = trace_channels(net(conv(4), conv(2), conv(4), sec('shortcut', from_=-3), conv(2), conv(4),
                           sec('shortcut', from_=-3)))
    assert c.outs[0].tolist() == c.outs[2].tolist() == c.outs[3].tolist() == c.outs[5].tolist() == c.outs[6].tolist()
    assert [sorted(g.layers) for g in c.groups] == [[0, 2, 3, 5, 6], [1], [4]]
    assert blocks(c.cfg) == [Block(1, 3), Block(4, 6)]


def test_a_depthwise_convolution_passes_its_channels_on():
    c = trace_channels(net(conv(6), conv(6, 3, groups=6), conv(4)))
    assert tied(c, 0, 1) == [[3, 4, 5, 6, 7, 8]]*2
    keep = ~np.isin(np.arange(len(c.locked)), [4, 8])
    s = shrink_cfg(c, keep).sections[2]
    assert (s['filters'], s['groups']) == ('4', '4')


def test_an_spp_stacks_the_same_channels():
    c = trace_channels(net(conv(4), sec('maxpool', size=5, stride=1), sec('route', layers=-2),
                           sec('maxpool', size=9, stride=1), sec('route', layers='-1,-3,-4'), conv(3)))
    assert tied(c, 4) == [[3, 4, 5, 6]*3]
    d = Detector(c.cfg)
    e = remove_channels(d, c, ~np.isin(np.arange(len(c.locked)), [3, 5]))
    assert torch.equal(e.layers[5].conv.weight, d.layers[5].conv.weight[:, [1, 3, 5, 7, 9, 11]])


def test_what_stays_of_the_text_stays():
    text = ('[net]\r\nwidth=32 # w\r\nheight=32\r\nchannels=3\r\n# first\r\n[conv]\r\nfilters = 8   ;eight\r\n'
            'size=3\r\npad=1\r\nbatch_normalize=1\r\nfilters=99\r\nactivation=leaky\r\n\r\n'
            + YOLO.replace('\n', '\r\n'))
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        c = trace_channels(Cfg.parse(text))
    assert str(shrink_cfg(c, ~np.isin(np.arange(len(c.locked)), [3]))) == text.replace('filters = 8', 'filters = 7')


def test_names_training_state_and_type_are_kept():
    d = Detector(small('yolokit-nano').with_classes(2), ['a', 'b']).double().train()
    e = prune(d, .5, multiple=4, least=4)
    assert e.names == d.names and e.training and next(e.parameters()).dtype == torch.float64
    assert from_checkpoint(to_checkpoint(e)).cfg == e.cfg


# equality

@pytest.mark.parametrize('name,share,how', [('yolokit-nano', .25, 'l1'), ('yolov4-tiny', .5, 'random'),
                                            ('yolov5n', .75, 'l1')])
def test_masked_is_cut(name, share, how): assert worst(small(name), [share], [how]) <= 1e-10


def test_masked_is_cut_in_dirty_networks():
    for seed in range(6):
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')
            cfg = Cfg.parse(dirty(random.Random(seed))[0])
        assert worst(cfg, [.5], ['random'], seed) <= 1e-10, seed


@pytest.mark.soak
@pytest.mark.parametrize('name', zoo.names())
def test_masked_is_cut_in_the_whole_zoo(name):
    found = worst(small(name), [.75, .5, .25], ['random', 'l1'])
    print(f'{name}: {found:.1e}')
    assert found <= 1e-10


def crossings(name, share, folder):
    "cfg + weights files and ONNX in float32, against the masked network; relative to the maps' scale."
    d = lively(small(name))
    c = trace_channels(d.cfg)
    keep = mask_of(d, c, share, 'l1')
    e, x = remove_channels(d, c, keep), smooth_noise(1, 3, *d.size[::-1])
    e.cfg.write(folder/'a.cfg'); write_weights(e, folder/'a.weights')
    back = Detector(Cfg.read(folder/'a.cfg')).eval()
    read_weights(back, folder/'a.weights')
    with torch.no_grad():
        want = mask_channels(d.double(), c, keep)(x.double())
        maps = onnx_session(build_onnx(e, 'raw').SerializeToString()).run(None, {'input': x.numpy()})
        return relative(back(x), want), relative([torch.from_numpy(m) for m in maps], want)


@pytest.mark.parametrize('name', ['yolov4-tiny'])
def test_files_and_onnx(name, tmp_path): assert max(crossings(name, .5, tmp_path)) <= 1e-4


@pytest.mark.soak
@pytest.mark.parametrize('name', zoo.names())
def test_files_and_onnx_in_the_whole_zoo(name, tmp_path):
    found = np.max([crossings(name, share, tmp_path) for share in (.75, .5, .25)], 0)
    print(f'{name}: files {found[0]:.1e}, onnx {found[1]:.1e}')
    assert found.max() <= 1e-4


FOLDER = os.environ.get('YOLOKIT_CFGS', '')


@pytest.mark.soak
@pytest.mark.skipif(not FOLDER or not Path(FOLDER).is_dir(), reason='YOLOKIT_CFGS names no folder of public cfgs')
def test_public_cfgs():
    "Whatever builds is cut right, however much of it is locked."
    from test_corpus import small as affordable
    seen, free = 0, []
    for p in sorted(Path(FOLDER).rglob('*.cfg')):
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')
            try:
                cfg = affordable(Cfg.read(p))
                if not any(s.type in HEADS for s in cfg.sections) or sum(l.params for l in cfg.plan()) > 7e7: continue
                found = worst(cfg, [.5], ['random'])
            except (CfgError, ValueError, RuntimeError) as e:
                if isinstance(e, CfgError) or 'normaliz' in str(e) or 'Expected more than 1 value' in str(e): continue
                raise AssertionError(f'{p}: {e}') from e
        c = trace_channels(cfg)
        seen, free = seen + 1, free + [1 - c.locked[np.concatenate([
            o for l, o in zip(c.plan, c.outs) if l.type == 'convolutional'])].mean()]
        assert found <= 1e-8, (p, found)
    print(f'\n{seen} cfgs, {np.mean(free):.1%} of their filters free on average')


# budgets and bad input

@pytest.mark.parametrize('of', ['params', 'macs'])
@pytest.mark.parametrize('how', ['global', 'layer', 'greedy'])
def test_budgets_are_counted_on_the_cfg_that_comes_out(of, how):
    d = Detector(zoo.build('yolokit-nano', 3))
    for share in (.3,):
        e = prune(d, share, of=of, how=how, multiple=4, least=4)
        assert .9*share <= network_cost(e.cfg, of)/network_cost(d.cfg, of) <= share
        n = sum(p.numel() for p in e.parameters())
        assert n == network_cost(e.cfg, 'params')
        widths = {l.shape[0]: m.shape[0] for l, m in zip(e.cfg.plan(), d.cfg.plan()) if l.type == 'convolutional'}
        assert all(n % 4 == 0 or n == was for n, was in widths.items())


def test_bad_input_leaves_the_parent_untouched():
    d = Detector(small('yolokit-nano'))
    before = state_hash(d), str(d.cfg), d.training
    for kw, words in ((dict(budget=.001), 'cannot be reached'), (dict(budget=0), 'a share'),
                      (dict(budget=.5, by='best'), 'one of bn'), (dict(budget=.5, of='ms'), "'params' or 'macs'"),
                      (dict(budget=.5, how='luck'), 'one of global'), (dict(budget=.5, by='taylor'), 'needs batches')):
        with pytest.raises(PruneError, match=words): prune(d, **kw)
    with pytest.raises(PruneError, match='use by="l1"'): prune(copy.deepcopy(d).fuse(), .5, by='bn')
    with pytest.raises(PruneError, match='no BatchNorm'): Sparsity().attach(copy.deepcopy(d).fuse())
    c = trace_channels(d.cfg)
    with pytest.raises(ValueError, match='locked'): remove_channels(d, c, np.zeros(len(c.locked), bool))
    with pytest.raises(ValueError, match='a mask of'): remove_channels(d, c, np.ones(3, bool))
    b = Batch((smooth_noise(2, 3, *d.size[::-1])*255).byte(), torch.tensor([[[0., 20, 20, 10, 10]]]*2), torch.arange(2),
              ['']*2, [None]*2)
    for by in ('bn', 'l1', 'l2', 'median', 'taylor'): prune(d, .4, by=by, batches=[b], multiple=4, least=4)
    channel_means(d, [b])
    without_blocks(d, blocks(d.cfg)[:2])
    assert (state_hash(d), str(d.cfg), d.training) == before


def test_the_error_names_what_can_be_reached():
    d = Detector(zoo.build('yolokit-nano', 3))
    with pytest.raises(PruneError) as e: prune(d, .001)
    least = float(str(e.value).split('a share of ')[1].split('.')[0] + '.'
                  + str(e.value).split('a share of ')[1].split('.')[1])
    assert .001 < least < .3
    assert network_cost(prune(d, least + .002).cfg, 'macs') <= (least + .002)*network_cost(d.cfg, 'macs')


def test_pruned_networks_are_recalibrated_and_train():
    d = Detector(small('yolokit-nano'))
    b = Batch((smooth_noise(4, 3, *d.size[::-1])*255).byte(), torch.tensor([[[0., 20, 20, 10, 10]]]*4), torch.arange(4),
              ['']*4, [None]*4)
    e = recalibrate(prune(d, .4, by='taylor', batches=[b], how='greedy', multiple=4, least=4), [b])
    Loss(e)(e.train()(b.images/255, logits=True), b.targets)[0].backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in e.parameters())


@pytest.mark.soak
def test_pruned_networks_leave_by_the_doors():
    out = roundtrip(prune(lively(small('yolov5n')).train(False), .4, multiple=8))
    assert out['float64'] < 1e-9 and out['files'] < 1e-4 and out['onnx'] < 1e-4 and out['deepstream'] == 'reads it'
