"""Every layer and head against numbers that real Darknet (AlexeyAB's, its CPU build, BatchNorm folded by its own
loader) printed for the same cfg, weights and input."""
import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from yolokit.network.cfg import HEADS, Cfg
from yolokit.network.layers import build_layer
from yolokit.network.model import decode, parse_head
from yolokit.network.weights import layout

CASES = json.loads((Path(__file__).parent/'darknet_layers.json').read_text())
KNOWN_TO_DIFFER = {'act_relu6': "Darknet's CPU build forgets relu6 and gives 0",
                   'w_per_feature_relu': 'its loader folds shortcut weights with max(w, .001) where its training used '
                                         'max(w, 0)', 'w_per_channel_relu': 'the same'}


def fill(cfg):
    "The modules of a cfg with numbers that depend on nothing but numpy's Philox."
    r, plan = np.random.Generator(np.random.Philox(5)), cfg.plan()
    mods = torch.nn.ModuleList(build_layer(l) for l in plan).eval()
    d = SimpleNamespace(layers=mods, cfg=cfg, shared={l.index for l in plan if 'share_index' in l.section})
    for i in d.shared: mods[i].share(mods[plan[i].section.int('share_index')])
    for _, _, name, t in layout(d):
        x = r.standard_normal(tuple(t.shape))
        x = x*(t[0].numel()**-.5 if t.dim() > 1 else .3) if name in ('weights', 'bias', 'mean') else np.abs(x)*.5 + .5
        t.copy_(torch.from_numpy(x.astype(np.float32)))
    return d, plan, torch.from_numpy(r.standard_normal((1, 3, cfg.net.int('height'),
                                                        cfg.net.int('width'))).astype(np.float32))


@torch.no_grad()
def run(cfg):
    d, plan, x = fill(cfg)
    maps = {-1: x}
    for l, m in zip(plan, d.layers): maps[l.index] = m(*[maps[j] for j in l.inputs])
    return plan, maps


@pytest.mark.parametrize('name', CASES)
def test_equals_darknet(name):
    case = CASES[name]
    plan, maps = run(Cfg(case['cfg'], name))
    last = plan[-1]
    if last.type not in HEADS:
        y = maps[last.index].detach().flatten().numpy()
        near = abs(y[case['at']] - case['values']).max() <= 2e-5*max(1, abs(y).max())
        assert y.size == case['size'] and near == (name not in KNOWN_TO_DIFFER), KNOWN_TO_DIFFER.get(name, '')
        return
    cfg = Cfg(case['cfg'], name)
    p = decode(maps[last.index], parse_head(cfg, plan, last))[0].numpy()
    p[:, 5:] *= p[:, 4:5]
    for row in case['boxes']:                                    # x y w h in pixels, class scores
        assert abs(p[:, [0, 1, 2, 3, 5, 6]] - row).max(1).min() <= 1e-4*max(1, np.abs(row).max())
