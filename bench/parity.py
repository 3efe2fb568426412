"""Step by step beside the originals: the same network, first weights and batches, in their code and in ours.

    python bench/parity.py ~/yolov5-v6.1 [--yolor ~/yolor] [--darknet ~/darknet] [--steps 100]
        [--only schedule|yolov5n|yolov5s|yolor-csp|yolov4-tiny]
    python bench/parity.py ~/yolov5-v6.1 --yolor ~/yolor --float64 --rate 1 --floor 1000

Each original runs in a process of its own, from the checkout that is named; nothing of it is here. YOLOv5's side is
the loop of its own train.py, with its loader replaced by the batches of a file; YOLOR's is its model, its loss and
its optimiser's groups. The batches are of the embedded parking lot, drawn once by our loader with YOLOv5's
augmentation. A box that claims an anchor and cell another one has is left out of them: which of the two is then true
is chance in the originals, and the better one here. float32, one thread.

Darknet's side is its own `update_network`, called by a C program of this file: its policy, not its loss.

A training from nothing at a full rate multiplies a rounding error several times a step, whoever computes it. So the
rates are a thousandth of the recipes' unless --rate says otherwise, and each comparison is followed by ours with
itself, from first weights moved by half of their last digit: what rounding alone does. With --float64 both sides
compute in double precision, and what keeps a box's overlap from 0/0 is 1e-15 on both (their 1e-7 also makes boxes
higher). Then --rate 1 --floor 1000, the recipe as it is, can be compared.
"""
import argparse, copy, json, os, re, subprocess, sys, tempfile, types, warnings
from dataclasses import replace
from functools import partial
from pathlib import Path
from unittest.mock import MagicMock

import numpy as np

EPS, HERE, BATCH, NOMINAL, PER, CLASSES = 1e-15, Path(__file__).resolve().parents[1], 4, 8, 6, 14
LOOK = 1, 10, 100                                      # steps after which weights are compared
# batches an epoch, epochs, batch, nominal batch, floor of the warm-up
SCHEDULES = ((300, 6, 16, 64, 1000), (721, 4, 2, 64, 100), (26, 16, 8, 8, 78), (50, 9, 24, 64, 1000),
             (101, 5, 64, 64, 10))


# Theirs

def open_peer(folder, double=False):
    "Make a checkout of 2022 run on today's numpy and torch, without what only plots and logs; double: in float64."
    import torch, torchvision
    sys.path.insert(0, folder)
    for name in 'utils.plots pandas seaborn scipy scipy.cluster scipy.cluster.vq scipy.signal tensorboard thop ' \
                'pkg_resources torch.utils.tensorboard wandb pycocotools pycocotools.coco pycocotools.cocoeval'.split():
        sys.modules[name] = MagicMock()
    np.int, np.float, clamp = int, float, torch.Tensor.clamp_
    # v6.1 and YOLOR give a float bound to a whole number
    torch.Tensor.clamp_ = lambda s, *a, **k: clamp(
        s, *(int(v) if not s.is_floating_point() and isinstance(v, torch.Tensor) else v for v in a), **k)
    torch.set_num_threads(1)
    warnings.simplefilter('ignore')
    if double:
        torch.set_default_dtype(torch.float64)
        torch.Tensor.float = torch.Tensor.double           # what their code calls float becomes double
        import utils.loss
        utils.loss.bbox_iou = partial(utils.loss.bbox_iou, eps=EPS)

class FileLoader:
    "Batches of a file in the place of a loader: the same ones every epoch."
    num_workers = 0
    def __init__(self, batches): self.batches = batches
    def __len__(self): return len(self.batches)
    def __iter__(self): return ((x, t, [''], None) for x, t in self.batches)

def v61_train(folder, nominal, floor, names):
    "The module train.py with another nominal batch and floor of the warm-up, and some of its names replaced."
    source = Path(folder, 'train.py').read_text()
    for old, new in (('nbs = 64', f'nbs = {nominal}'), ('* nb), 1000)', f'* nb), {floor})')):
        assert source.count(old) == 1, f'{folder}/train.py is not v6.1\'s: {old!r}'
        source = source.replace(old, new)
    m = types.ModuleType('peer_train')
    m.__file__ = f'{folder}/train.py'
    exec(compile(source, m.__file__, 'exec'), m.__dict__)
    quiet = lambda *a, **k: None
    m.val, m.Loggers, m.strip_optimizer, m.attempt_load = MagicMock(), MagicMock(), quiet, quiet
    m.val.run.return_value = ((0.,)*7, np.zeros(CLASSES), None)
    m.Loggers.return_value.wandb = None
    m.methods, m.tqdm = lambda x: [], partial(m.tqdm, disable=True)
    m.check_dataset = lambda d: dict(train='', val='', nc=CLASSES, names=[str(i) for i in range(CLASSES)])
    m.__dict__.update(names)
    return m

def options(m, a, **given):
    "Their command line, with nothing validated or saved on the way."
    sys.argv[1:] = []
    opt = m.parse_opt(True)
    import yaml
    hyp = yaml.safe_load(Path(a.folder, 'data/hyps/hyp.scratch-low.yaml').read_text())
    for k in ('lr0', 'warmup_bias_lr'): hyp[k] *= a.rate
    given |= dict(weights='', data='', hyp=hyp, save_dir=a.out, noval=True, nosave=True, noautoanchor=True)
    for k, v in (vars(opt) | given).items(): setattr(opt, k, str(v) if isinstance(v, Path) else v)
    return opt

class Over(Exception): pass

def theirs_v5(a):
    "Their train.py over the batches of a file; its losses at every batch and its weights after some steps."
    import torch
    open_peer(a.folder, a.float64)
    batches, out = torch.load(a.batches), dict(losses=[], steps=0)
    data = FileLoader([(x, flat_targets(t, x.shape[-1])) for x, t in batches])
    labels = types.SimpleNamespace(labels=[np.zeros((1, 5), np.float32)], n=1)
    m = v61_train(a.folder, NOMINAL, a.floor, dict(create_dataloader=lambda *b, **k: (data, labels)))
    Loss, EMA = m.ComputeLoss, m.ModelEMA
    class Watched(Loss):
        def __init__(self, model): # comes after `model.half().float()`, which rounds the first weights too
            super().__init__(model)
            torch.save(dict(model=model), f'{a.out}/first.pt')
        def __call__(self, *b):
            total, items = super().__call__(*b)
            out['losses'].append(items.tolist())
            return total, items
    class Average(EMA):
        def update(self, model):
            super().update(model)
            out['steps'] += 1
            if out['steps'] in LOOK: torch.save(dict(model=model), f'{a.out}/{out["steps"]}.pt')
            if out['steps'] == a.steps: raise Over
    m.ComputeLoss, m.ModelEMA = Watched, Average
    opt = options(m, a, cfg=f'{a.folder}/models/{a.network}.yaml', epochs=a.epochs, batch_size=BATCH,
                  imgsz=batches[0][0].shape[-1])
    m.init_seeds = lambda seed: torch.manual_seed(0)
    m.plot_labels = lambda *b, **k: None
    try: m.train(opt.hyp, opt, torch.device('cpu'), m.Callbacks())
    except Over: pass
    Path(a.out, 'found.json').write_text(json.dumps(out))

def theirs_schedule(a):
    "What their train.py sets before each step; its network is one weight and its batches are nothing."
    import torch
    from torch import nn
    open_peer(a.folder)
    nb, epochs, bs, nominal, floor = SCHEDULES[a.number]
    data, rows = FileLoader([(torch.zeros(1, 1, 1, 1), torch.zeros(0, 6))]*nb), []
    labels = types.SimpleNamespace(labels=[np.zeros((1, 5), np.float32)], n=1)
    m = v61_train(a.folder, nominal, floor, dict(create_dataloader=lambda *b, **k: (data, labels)))
    class Net(nn.Module):
        stride = torch.tensor([32.])
        def __init__(self, *b, **k):
            super().__init__()
            self.model, self.bn = nn.ModuleList([nn.Conv2d(1, 1, 1)]), nn.BatchNorm2d(1)
            self.model[-1].nl = 3
        def forward(self, x): return self.model[0](x).sum()
    class Sgd(m.SGD):
        def step(self, *b, **k):
            bn, weight, bias = self.param_groups
            rows.append((weight['lr'], bn['lr'], bias['lr'], weight['momentum']))
    m.Model, m.SGD, m.ModelEMA, m.ComputeLoss = Net, Sgd, MagicMock(), lambda model: lambda p, t: (p, torch.zeros(3))
    m.check_img_size, m.plot_labels = lambda size, *b, **k: size, lambda *b, **k: None
    opt = options(m, a, cfg='', epochs=epochs, batch_size=bs, imgsz=64, patience=10**6)
    torch.save, save = (lambda *b, **k: None), torch.save
    m.train(opt.hyp, opt, torch.device('cpu'), m.Callbacks())
    Path(a.out, 'found.json').write_text(json.dumps([[float(v) for v in r] for r in rows]))

def theirs_yolor(a):
    "YOLOR's model, loss and groups under the rates of a file."
    import torch
    os.chdir(a.folder)
    open_peer(a.folder, a.float64)
    torch.set_default_dtype(torch.float32)                 # the first weights are of float32 in any case
    from models.models import Darknet
    from utils.loss import compute_loss
    torch.manual_seed(0)
    batches, out, plan = torch.load(a.batches), dict(losses=[]), json.loads(Path(a.out, 'plan.json').read_text())
    size = batches[0][0].shape[-1]
    net = Darknet(f'{a.out}/narrow-yolor_csp.cfg', (size, size)).train()
    torch.save(net.state_dict(), f'{a.out}/first.pt')
    if a.float64:
        torch.set_default_dtype(torch.float64)
        net.double()
    groups = dict(bias=[], weight=[], norm=[])
    for k, v in net.named_parameters():
        groups['bias' if '.bias' in k else 'weight' if 'Conv2d.weight' in k else 'norm'].append(v)
    opt = torch.optim.SGD([dict(params=v, name=k, weight_decay=5e-4*(k == 'weight')) for k, v in groups.items()],
                          lr=.01, momentum=.937, nesterov=True)
    net.hyp, net.nc, net.gr = dict(box=.05, obj=1., cls=.5*CLASSES/80, cls_pw=1., obj_pw=1., anchor_t=4.,
                                   fl_gamma=0.), CLASSES, 1.
    for step, (rates, momentum, first, end) in enumerate(plan[:a.steps], 1):
        for g in opt.param_groups: g['lr'], g['momentum'] = rates[g['name']], momentum
        for k in range(first, end):
            x, t = batches[k % len(batches)]
            total, items = compute_loss(net(x.float()/255), flat_targets(t, size), net)
            total.backward()
            out['losses'].append(items[:3].tolist())
        opt.step()
        opt.zero_grad()
        if step in LOOK: torch.save(net.state_dict(), f'{a.out}/{step}.pt')
    Path(a.out, 'found.json').write_text(json.dumps(out))

def flat_targets(t, size):
    "Ours (B, M, 5) in pixels as theirs (N, 6), image and shares."
    import torch
    at, place = (t[..., 0] >= 0).nonzero(as_tuple=True)
    rows = t[at, place].float()                            # double, where `open_peer` says so
    return torch.cat([at[:, None].float(), rows[:, :1], rows[:, 1:]/size], 1)


# Ours

def draw_batches(file, detector, size):
    "PER batches of the embedded parking lot; no two boxes of a picture claim the same anchor and cell."
    import torch
    from yolokit.data import formats, parking
    from yolokit.data.loader import Loader
    from yolokit.training.loss import assign_targets
    from yolokit.training.recipes import AUGMENT_LOW
    with tempfile.TemporaryDirectory() as tmp:
        table = formats.read(parking.make_parking(tmp + '/DATA', BATCH*PER, 1, 1)).split('train')
        loader = Loader(table, (size, size), BATCH, 0, AUGMENT_LOW, workers=0)
        batches = [(b.images, b.targets.clone()) for b in loader.epoch(0)]
    left = 0
    for _, t in batches:
        for image in t:
            taken = set()
            for box in image:
                if box[0] < 0: continue
                mine = set()
                for h in detector.heads:
                    cells, mask = assign_targets(box[None, None, 1:]/h.stride, torch.ones(1, 1, dtype=torch.bool),
                                                 torch.as_tensor(h.anchors/h.stride, dtype=torch.float32),
                                                 size//h.stride, size//h.stride, 4.)
                    for _, an, _, k in mask.nonzero().tolist(): mine.add((h.stride, an, *cells[0, 0, k].tolist()))
                if mine & taken or not mine: box[0] = -1.; left += 1
                else: taken |= mine
            image[:] = torch.cat([image[image[:, 0] >= 0], image[image[:, 0] < 0]])
    torch.save(batches, file)
    there = sum(int((t[..., 0] >= 0).sum()) for _, t in batches)
    print(f'{len(batches)} batches of {BATCH} at {size}, {there} boxes, {left} left out')
    return batches

def in_double(detector, given):
    "A pre-hook: the picture k/255 in float64, of what was rounded to float32."
    return (given[0].double()*255).round()/255, *given[1:]

def ours(detector, recipe, batches, steps, double=False):
    "A training over the batches as `fit` does it: losses of every batch, state dicts after some steps."
    import torch
    from yolokit.data.loader import Batch
    from yolokit.training.guards import optimizer_step
    from yolokit.training.optim import set_lr
    from yolokit.training.recipes import batches_of_step, lr_and_momentum
    from yolokit.training.step import backward, init_training
    torch.set_num_threads(1)
    if double:
        from yolokit.training import loss
        loss.ciou = partial(loss.ciou, eps=EPS)
        detector.double().register_forward_pre_hook(in_double)
    t, losses, states = init_training(detector, recipe), [], {}
    batch = lambda x, targets: Batch(x, targets, torch.arange(len(x)), ['']*len(x), [None]*len(x))
    while t.step < steps:
        set_lr(t.optimizer, *lr_and_momentum(recipe, t.step, PER))
        first, fresh, end = batches_of_step(recipe, t.step, PER)
        for k in range(first, end):
            if k == fresh: t.optimizer.zero_grad()
            parts = backward(t, batch(*batches[k % PER]))
            losses.append([float(parts[n]) for n in ('box', 'obj', 'cls')])
        optimizer_step(t)
        t.step += 1
        if t.step in LOOK: states[t.step] = {k: v.clone() for k, v in detector.state_dict().items()}
    return losses, states

def compare(name, losses, states, their_losses, their_states):
    "Print how far apart the two are, relative: losses up to each look, and the weights after it."
    a, b = np.array(losses), np.array(their_losses)[:len(losses)]
    off = np.abs(a - b).max(1)/np.abs(b).sum(1)
    rows = []
    for s, mine in states.items():
        other = their_states[s]
        floats = [k for k, v in mine.items() if v.is_floating_point()]
        assert set(floats) == {k for k, v in other.items() if v.is_floating_point()}
        each = {k: float((mine[k] - other[k]).norm()/other[k].norm().clamp(min=1e-12)) for k in floats}
        gap = sum(float((mine[k] - other[k]).double().square().sum()) for k in floats)**.5
        whole = sum(float(other[k].double().square().sum()) for k in floats)**.5
        worst = max(each, key=each.get)
        rows.append((s, gap/whole, each[worst], worst))
        print(f'{name:12s} after {s:3d} steps: weights {gap/whole:.1e} relative, the worst tensor {each[worst]:.1e} '
              f'({worst})', flush=True)
    print(f'{name:12s} losses of {len(a)} batches: {off.max():.1e} relative at most, {off[0]:.1e} at the first; '
          f'total {b[0].sum():.4f} at first, {b[-1].sum():.4f} at last', flush=True)
    return dict(name=name, losses=[a.tolist(), b.tolist()], off=off.tolist(), weights=rows)

def rounding(name, detector, recipe, batches, steps, found, double=False):
    "The same here from first weights that are moved by about half of their last digit: what rounding alone does."
    import torch
    g, by = torch.Generator().manual_seed(0), 1.1e-16 if double else 6e-8
    if double: detector.double()
    with torch.no_grad():
        for p in detector.parameters(): p.mul_(1 + by*(2*torch.rand(p.shape, generator=g, dtype=p.dtype) - 1))
    moved = ours(detector, recipe, batches, steps, double)
    return compare(f'{name}, moved', *moved, *found)

def child(mode, folder, out, **more):
    words = [w for k, v in more.items() for w in ([f'--{k}']*v if isinstance(v, bool) else [f'--{k}', str(v)])]
    env = os.environ | dict(OMP_NUM_THREADS='1', PYTHONPATH='')
    done = subprocess.run([sys.executable, __file__, folder, '--theirs', mode, '--out', out, *words],
                          capture_output=True, text=True, env=env, cwd=out)
    if done.returncode: sys.exit(f'{mode} of {folder} failed:\n{done.stderr[-3000:]}')

def schedule(folder):
    "Rates, momentum and number of steps of five trainings."
    from yolokit.training.recipes import lr_and_momentum, RECIPES, total_steps
    for number, (nb, epochs, bs, nominal, floor) in enumerate(SCHEDULES):
        with tempfile.TemporaryDirectory() as out:
            child('schedule', folder, out, number=number, rate=1)
            want = np.array(json.loads(Path(out, 'found.json').read_text()))
        r = replace(RECIPES['v5-low'], epochs=epochs, bs=bs, nominal=nominal, warmup_floor=floor)
        got = []
        for s in range(total_steps(r, nb)):
            rates, momentum = lr_and_momentum(r, s, nb)
            got.append((rates['weight'], rates['norm'], rates['bias'], momentum))
        same = len(got) == len(want)
        off = np.abs(np.array(got) - want).max() if same else np.inf
        print(f'schedule {nb} batches × {epochs} epochs of {bs}, nominal {nominal}, warm-up {floor}: {len(want)} steps '
              f'there, {len(got)} here, rates and momentum {off:.1e} apart at most', flush=True)

def v5(folder, network, steps, size, rate, floor, double):
    "yolov5n or yolov5s beside v6.1's train.py."
    import torch
    from yolokit.network import zoo
    from yolokit.network.checkpoints import load_checkpoint
    from yolokit.network.model import Detector
    from yolokit.training.recipes import RECIPES
    cfg, epochs = zoo.build(network, CLASSES).with_size(size, size), 2*steps//PER + 4
    with tempfile.TemporaryDirectory() as out:
        batches = draw_batches(f'{out}/batches.pt', Detector(cfg), size)
        child('v5', folder, out, network=network, steps=steps, epochs=epochs, floor=floor, rate=rate,
              batches=f'{out}/batches.pt', float64=double)
        there = json.loads(Path(out, 'found.json').read_text())
        d, first = Detector(cfg), load_checkpoint(f'{out}/first.pt')
        assert all(np.array_equal(a.anchors, b.anchors) for a, b in zip(d.heads, first.heads))
        d.load_state_dict(first.state_dict())
        r = replace(RECIPES['v5-low'], bs=BATCH, nominal=NOMINAL, epochs=epochs, warmup_floor=floor, clip=0.,
                    compat='ramp, drop-accumulation', lr0=.01*rate, warmup_bias_lr=.1*rate)
        twin = copy.deepcopy(d)
        found = ours(d, r, batches, steps, double)
        theirs = {s: load_checkpoint(f'{out}/{s}.pt').state_dict() for s in LOOK if s <= steps}
    return (compare(network, *found, there['losses'], theirs),
            rounding(network, twin, r, batches, steps, found, double))

def narrow(text, by):
    "YOLOR's cfg with fewer channels; its heads are made for CLASSES."
    lines, out = text.replace('\r', '').split('\n'), []
    heads = 3*(5 + CLASSES)
    for line in lines:
        key, _, value = line.partition('=')
        if key.strip() == 'filters': line = f'filters={heads if int(value) == 255 else max(8, int(value)//by)}'
        if key.strip() == 'classes': line = f'classes={CLASSES}'
        out.append(line)
    return '\n'.join(out)

def yolor(folder, steps, size, rate, floor, double):
    "A narrow yolor-csp beside YOLOR's own model and loss."
    import torch
    from yolokit.network.cfg import Cfg
    from yolokit.network.checkpoints import load_checkpoint
    from yolokit.network.model import Detector
    from yolokit.training.recipes import batches_of_step, lr_and_momentum, RECIPES
    text = narrow(Path(folder, 'cfg/yolor_csp.cfg').read_text(), 8)
    # what YOLOR's code does whatever its cfg says
    told = re.sub('scale_x_y *=.*', 'scale_x_y=2.0\nnew_coords=1', text)
    told = told.replace('batch_normalize=1', 'batch_normalize=1\neps=.0001')
    own = Cfg.parse(told, 'yolor_csp').with_size(size, size)
    r = replace(RECIPES['agc2021-scratch'], bs=BATCH, nominal=NOMINAL, epochs=30, warmup_floor=floor, clip=0.,
                compat='ramp', lr0=.01*rate, warmup_bias_lr=.1*rate)
    plan = []
    for s in range(steps):
        rates, momentum = lr_and_momentum(r, s, PER)
        first, _, end = batches_of_step(r, s, PER)
        plan.append((rates, momentum, first, end))
    with tempfile.TemporaryDirectory() as out:
        Path(out, 'narrow-yolor_csp.cfg').write_text(text)
        Path(out, 'plan.json').write_text(json.dumps(plan))
        d = Detector(own)
        batches = draw_batches(f'{out}/batches.pt', d, size)
        child('yolor', folder, out, steps=steps, batches=f'{out}/batches.pt', float64=double)
        there = json.loads(Path(out, 'found.json').read_text())
        read = lambda name: load_checkpoint(f'{out}/{name}.pt', own).state_dict()
        d.load_state_dict(read('first'))
        twin = copy.deepcopy(d)
        found = ours(d, r, batches, steps, double)
        theirs = {s: read(s) for s in LOOK if s <= steps}
    return (compare('yolor-csp/8', *found, there['losses'], theirs),
            rounding('yolor-csp/8', twin, r, batches, steps, found, double))


_DARKNET_C = r'''
#include "darknet.h"
#include <stdio.h>
#include <stdlib.h>
float get_current_rate(network net);
void update_network(network net);
void save_weights(network net, char *file);
network parse_network_cfg(char *file);
void load_weights(network *net, char *file);

static void pull(int n, float *w, float *to, float *update, int batch) {
    for (int i = 0; w && i < n; ++i) update[i] += batch*(to[i] - w[i]);
}
int main(int argc, char **argv) { // cfg, first weights, weights to go to, steps, folder, steps whose rate is asked
    network net = parse_network_cfg(argv[1]), goal = parse_network_cfg(argv[1]);
    load_weights(&net, argv[2]); load_weights(&goal, argv[3]);
    int batch = net.batch*net.subdivisions, steps = atoi(argv[4]);
    for (int a = 6; a < argc; ++a) {
        *net.seen = (uint64_t)atoi(argv[a])*batch;
        fprintf(stderr, "rate %s %.9g\n", argv[a], get_current_rate(net));
    }
    *net.seen = 0;
    for (int s = 1; s <= steps; ++s) {
        *net.seen += batch;                                // as train_network does before update_network
        *net.cur_iteration += 1;
        for (int i = 0; i < net.n; ++i) {
            layer l = net.layers[i], g = goal.layers[i];
            if (l.type != CONVOLUTIONAL) continue;
            pull(l.nweights, l.weights, g.weights, l.weight_updates, batch);
            pull(l.n, l.biases, g.biases, l.bias_updates, batch);
            pull(l.n, l.scales, g.scales, l.scale_updates, batch);
        }
        update_network(net);
        char file[4096];
        snprintf(file, sizeof file, "%s/%d.weights", argv[5], s);
        if (s == 1 || s == 10 || s == 100) save_weights(net, file);
    }
    return 0;
}
'''

def darknet(folder, steps, burn_in):
    """yolov4-tiny under Darknet's policy: burn-in, turns, momentum and decay, in a compiled Darknet and here.

    The loss is not Darknet's here, so both follow the same simple one, half the squared distance of every weight to
    that of a second network; Darknet's update_network makes the steps there, `make_optimizer` here."""
    import torch
    from yolokit.network.cfg import Cfg
    from yolokit.network.model import Detector
    from yolokit.network.weights import read_weights, write_weights
    from yolokit.training.optim import make_optimizer, param_groups, scaled_weight_decay, set_lr
    from yolokit.training.recipes import lr_and_momentum, RECIPES
    text = Path(folder, 'cfg/yolov4-tiny.cfg').read_text()
    own = Cfg.parse(text, 'yolov4-tiny').net
    number = lambda k: float(own[k])
    turns = [int(v) for v in own['steps'].split(',')]
    # the sizes of pictures and of what is in memory do not matter here
    for k, v in dict(burn_in=burn_in, subdivisions=own['batch'], width=32, height=32).items():
        text = re.sub(f'\\n{k} *=.*', f'\\n{k}={v}', text)
    r = replace(RECIPES['darknet-yolov4'], steps=int(number('max_batches')), lr0=number('learning_rate'),
                momentum=number('momentum'), weight_decay=number('decay'), nominal=int(number('batch')),
                at=tuple(t/number('max_batches') for t in turns))
    r = replace(r, bs=r.nominal, warmup_floor=burn_in)
    with tempfile.TemporaryDirectory() as out:
        out = Path(out)
        (out/'tiny.cfg').write_text(text)
        (out/'policy.c').write_text(_DARKNET_C)
        subprocess.run(['cc', '-O2', '-I', f'{folder}/include', '-I', f'{folder}/src', out/'policy.c', '-o',
                        out/'policy', '-L', folder, '-ldarknet', '-lm', f'-Wl,-rpath,{folder}'], check=True)
        d, goal = (Detector(Cfg.parse(text, 'yolov4-tiny'), seed=k, init='darknet') for k in (0, 1))
        for m in goal.modules():
            if isinstance(m, torch.nn.BatchNorm2d): torch.nn.init.uniform_(m.weight, .5, 1.5)
        write_weights(d, out/'first.weights')
        write_weights(goal, out/'goal.weights')
        asked = sorted({1, 2, burn_in - 1, burn_in, burn_in + 1, *(t + k for t in turns for k in (-1, 0, 1))})
        done = subprocess.run([out/'policy', out/'tiny.cfg', out/'first.weights', out/'goal.weights', str(steps), out,
                               *map(str, asked)], capture_output=True, text=True, cwd=folder)
        if done.returncode: sys.exit(f'Darknet failed:\n{done.stderr[-2000:]}')
        rates = {int(a): float(b) for a, b in re.findall(r'rate (\d+) (\S+)', done.stderr)}
        off = max(abs(lr_and_momentum(r, s - 1, 1)[0]['weight']/v - 1) for s, v in rates.items())
        print(f'yolov4-tiny  rates of {len(rates)} steps, at burn-in and turns: {off:.1e} relative (float32 there)')
        opt = make_optimizer(param_groups(d), r.optimizer, r.lr0, r.momentum,
                             scaled_weight_decay(r.bs, r.weight_decay, r.nominal))
        states, theirs, twin = {}, {}, Detector(Cfg.parse(text, 'yolov4-tiny'))
        for s in range(1, steps + 1):
            set_lr(opt, *lr_and_momentum(r, s - 1, 1))
            for p, to in zip(d.parameters(), goal.parameters()): p.grad = p.detach() - to.detach()
            opt.step()
            if s not in LOOK: continue
            read_weights(twin, out/f'{s}.weights')
            states[s], theirs[s] = ({k: v.clone() for k, v in m.state_dict().items()} for m in (d, twin))
    there = [[float((v - w).detach().square().sum()) for v, w in zip(d.parameters(), goal.parameters())]]
    return compare('yolov4-tiny', there, states, there, theirs),


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('folder', help="checkout of YOLOv5 v6.1")
    p.add_argument('--yolor', help='checkout of WongKinYiu/yolor')
    p.add_argument('--darknet', help='folder of a Darknet (AlexeyAB) that was compiled with LIBSO=1')
    p.add_argument('--only', default='', help='schedule, yolov5n, yolov5s, yolor-csp or yolov4-tiny')
    p.add_argument('--steps', type=int, default=100)
    p.add_argument('--size', type=int, default=128)
    p.add_argument('--rate', type=float, default=.001, help='share of the recipe\'s learning rates, see above')
    p.add_argument('--float64', action='store_true', help='both sides in double precision')
    p.add_argument('--json', help='file for every number')
    p.add_argument('--theirs', help=argparse.SUPPRESS)
    p.add_argument('--out'); p.add_argument('--batches'); p.add_argument('--network')
    p.add_argument('--floor', type=int, default=40, help='batches of the warm-up; the recipes have 1000')
    for k in ('number', 'epochs'): p.add_argument(f'--{k}', type=int)
    a = p.parse_args()
    if a.theirs: return dict(v5=theirs_v5, schedule=theirs_schedule, yolor=theirs_yolor)[a.theirs](a)
    sys.path.insert(0, str(HERE))
    folder, found = str(Path(a.folder).expanduser().resolve()), []
    if a.only in ('', 'schedule'): schedule(folder)
    for network in ('yolov5n', 'yolov5s'):
        if a.only in ('', network): found += (v5(folder, network, a.steps, a.size, a.rate, a.floor,
                                                           a.float64))
    if a.yolor and a.only in ('', 'yolor-csp'):
        found += (yolor(str(Path(a.yolor).expanduser().resolve()), a.steps, a.size, a.rate,
                        a.floor, a.float64))
    if a.darknet and a.only in ('', 'yolov4-tiny'):
        found += darknet(str(Path(a.darknet).expanduser().resolve()), a.steps, a.floor)
    if a.json: Path(a.json).write_text(json.dumps(found))

if __name__ == '__main__': main()
