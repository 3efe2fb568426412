"""Pruning beside uniform L1 and beside torch-pruning as it comes, and what it gains on the clock.

    python bench/pruning.py front PARENT.pt [STEPS] [SEEDS] [SHARE ...]   # AP after equal fine-tuning, on the \
embedded parking lot
    python bench/pruning.py clock [NETWORK ...]                           # milliseconds of the CPU, one thread

torch-pruning (1.6.1) is an oracle, no dependency: install it beside the checkout's packages, or its column stays empty.
"""
import copy, sys, tempfile, time
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from yolokit.network import zoo
from yolokit.network.model import Detector
from yolokit.network.checkpoints import load_checkpoint
from yolokit.data.loader import Loader
from yolokit.training import recipes, runs, step, train
from yolokit.evaluation import metrics
from yolokit.export.onnx_graph import build_onnx
from yolokit.export.bundles import onnx_session
from yolokit.compression import channel_groups, prune
from yolokit.apps import prepare

SHARES, MULTIPLE = (.6, .45, .3, .2, .12), 4


@torch.no_grad()
def macs(d):
    "Multiplications of what really runs, whatever the cfg says."
    n, hooks = [0], []
    def count(m, x, y): n[0] += y.numel()*m.weight[0].numel()
    hooks = [m.register_forward_hook(count) for m in d.modules() if isinstance(m, torch.nn.Conv2d)]
    d.eval()(torch.zeros(1, 3, *d.size[::-1]))
    for h in hooks: h.remove()
    return n[0]


def theirs(d, ratio):
    "The pruner of torch-pruning's README: group magnitude, one ratio for all."
    import torch_pruning as tp
    d = copy.deepcopy(d).eval()
    heads = [d.layers[h.conv].conv for h in d.heads]
    tp.pruner.BasePruner(d, torch.rand(1, 3, *d.size[::-1]), importance=tp.importance.GroupMagnitudeImportance(p=2),
                         pruning_ratio=ratio, ignored_layers=heads, round_to=MULTIPLE).step()
    return d


def theirs_at(d, share):
    "The largest of theirs that the budget allows."
    whole, lo, hi = macs(d), 0., 1.
    for _ in range(9):
        mid = (lo + hi)/2
        lo, hi = (lo, mid) if macs(theirs(d, mid)) <= share*whole else (mid, hi)
    return theirs(d, hi)


def front(parent, steps=150, seeds=1, shares=SHARES):
    parent, p = load_checkpoint(parent), prepare.prepare_if_needed('')
    (w, h), table = parent.size, p.table
    recipe = replace(recipes.RECIPES['finetune'], steps=steps, every=1e6, bs=8, warmup_floor=10, warmup=.2, ema_tau=20.)
    judge = metrics.make_validator(table.split('val'), (w, h), workers=0)
    plain = Loader(table.split('train'), (w, h), 16, workers=0)
    seen = [b for _, b in zip(range(12), plain.epoch(0))]
    whole, params = macs(parent), sum(q.numel() for q in parent.parameters())
    ours, values = dict(multiple=MULTIPLE, least=MULTIPLE), prune.channel_means(parent, seen[:8])
    ways = {'taylor': lambda s: prune.prune(parent, s, by='taylor', batches=seen[:8], how='greedy', values=values,
                                            **ours),
            'uniform L1': lambda s: prune.prune(parent, s, by='l1', how='layer', **ours),
            'torch-pruning': lambda s: theirs_at(parent, s)}
    print(f'parent: AP {judge(copy.deepcopy(parent).eval())["AP"]:.4f}, {params:,} parameters, {whole/1e6:.1f} M MACs; '
          f'{steps} steps of {recipe.bs} pictures each', flush=True)
    print(f'{"MACs":>5s} {"":14s} {"MACs":>6s} {"params":>7s} {"seed":>4s} {"AP":>7s} {"AP50":>7s}', flush=True)
    for s in shares:
        for name, way in ways.items():
            try: d = prune.recalibrate(way(s), seen)
            except Exception as e:
                print(f'{s:5.2f} {name:14s} {type(e).__name__}: {str(e)[:120]}', flush=True); continue
            size = macs(d)/whole, sum(q.numel() for q in d.parameters())/params
            for seed in range(seeds):
                loader, e = Loader(table.split('train'), (w, h), recipe.bs, seed, recipe.augment,
                                   workers=0), copy.deepcopy(d)
                with tempfile.TemporaryDirectory() as folder:
                    if steps:
                        run = runs.Run.new('pruned', folder=Path(folder), config={}, seed=seed)
                        e = train.fit(run, step.init_training(e, recipe), loader).ema.model
                m = judge(e.eval())
                print(f'{s:5.2f} {name:14s} {size[0]:6.3f} {size[1]:7.3f} {seed:4d} {m["AP"]:7.4f} {m["AP50"]:7.4f}',
                      flush=True)


@torch.no_grad()
def runner(d, runtime):
    x = torch.rand(1, 3, *d.size[::-1])
    if runtime == 'torch': d = copy.deepcopy(d).eval().fuse(); return lambda: d(x)
    s, feed = onnx_session(build_onnx(d, 'raw').SerializeToString()), {'input': x.numpy()}
    return lambda: s.run(None, feed)


def beside(a, b, reps=7):
    "CPU milliseconds of two functions, run in turn: medians."
    found = [], []
    with torch.no_grad():
        a(), b()
        for _ in range(reps):
            for f, out in ((a, found[0]), (b, found[1])):
                t = time.process_time(); f(); out.append(1e3*(time.process_time() - t))
    return np.median(found[0]), np.median(found[1])


def clock(*names):
    "Latency gain over MACs gain, of uniform shares in multiples of 8 and 16 and of a budget in milliseconds."
    print(f'{"":12s} {"budget":12s} {"MACs":>6s} '
          + ''.join(f'{r + " ms":>22s} {"gain/MACs gain":>15s}' for r in prune.TIMED_RUNTIMES), flush=True)
    for name in names or ('yolov4-tiny', 'yolov5s'):
        d = Detector(zoo.build(name).with_size(320, 320)).eval()
        price = prune.latency(channel_groups.trace_channels(d.cfg), 'onnxruntime', points=(.25, .5, 1.), multiple=16,
                              reps=3)
        for share in (.5, .25):
            ways = {f'{share} of 8': dict(multiple=8, how='layer'),
                    f'{share} of 16': dict(multiple=16, least=16, how='layer'),
                    f'{share} of ms': dict(multiple=16, least=16, price=price)}
            for label, how in ways.items():
                e = prune.prune(d, share, by='l1', **how)
                row, gain = f'{name:12s} {label:12s} {macs(e)/macs(d):6.3f} ', macs(d)/macs(e)
                for r in prune.TIMED_RUNTIMES:
                    a, b = beside(runner(d, r), runner(e, r))
                    row += f'{f"{a:.1f} -> {b:.1f}":>22s} {a/b/gain:15.2f}'
                print(row, flush=True)


if __name__ == '__main__':
    torch.set_num_threads(1)
    what, *args = sys.argv[1:] or ['']
    if what == 'front' and args:
        front(args[0], *map(int, args[1:3]), **dict(shares=tuple(map(float, args[3:]))) if args[3:] else {})
    elif what == 'clock': clock(*args)
    else: print(__doc__)
