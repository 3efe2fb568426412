"""Side by side with YOLOv5: a training step, a loader and detection from a folder, each side in a process of its own,
taking turns in one run.

    python bench/peers.py ~/yolov5-v6.1 --python ~/venv-with-pandas/bin/python [--only step|loader|detect] [--turns 7]

The checkout (v6.1 or master) is the reader's own; nothing of it is here. Figures are CPU time, medians; one thread
each.
"""
import argparse, json, os, shutil, statistics, subprocess, sys, tempfile, time
from dataclasses import replace
from pathlib import Path

import numpy as np

HERE, SIZE, BATCH, BOXES = Path(__file__).resolve().parents[1], 320, 16, 8
NEAR = 128                                             # see 31_loader


# What both sides get

def batch():
    "Sixteen images of noise, eight boxes each."
    rng = np.random.default_rng(0)
    x = rng.integers(0, 256, (BATCH, 3, SIZE, SIZE), np.uint8)
    boxes = [rng.integers(0, 80, (BATCH, BOXES)), *(rng.uniform(.1*SIZE, .9*SIZE, (BATCH, BOXES)) for _ in 'xy'),
             *(rng.uniform(.05*SIZE, .4*SIZE, (BATCH, BOXES)) for _ in 'wh')]
    return x, np.stack(boxes, -1).astype(np.float32)

def folder(where, n=1024, height=480):                 # many more than a worker of ours would hold
    "JPEGs of 640×480, quality 90, four boxes each, laid out as YOLOv5 wants them."
    import cv2
    rng = np.random.default_rng(1)
    for d in ('images', 'labels'): (where/d).mkdir(parents=True)
    for k in range(n):
        rough = [cv2.resize(rng.integers(0, 256, (height >> s, 640 >> s, 3), np.uint8), (640, height),
                            interpolation=cv2.INTER_CUBIC) for s in (6, 4, 2)]
        im = (rough[0]*.6 + rough[1]*.25 + rough[2]*.15).astype(np.uint8)
        rows = []
        for _ in range(4):
            w, h = rng.uniform(.1, .4, 2)
            x, y = rng.uniform(w/2, 1 - w/2), rng.uniform(h/2, 1 - h/2)
            a, b = (x - w/2, y - h/2), (x + w/2, y + h/2)
            a, b = ((int(c[0]*640), int(c[1]*height)) for c in (a, b))
            cv2.rectangle(im, a, b, rng.integers(0, 256, 3).tolist(), -1)
            rows.append(f'{rng.integers(80)} {x:.6f} {y:.6f} {w:.6f} {h:.6f}')
        cv2.imwrite(str(where/f'images/{k:03d}.jpg'), im, [cv2.IMWRITE_JPEG_QUALITY, 90])
        (where/f'labels/{k:03d}.txt').write_text('\n'.join(rows) + '\n')


# Theirs, from their own modules

def open_peer(path):
    "Make a checkout of 2022 run on today's numpy and torch."
    import torch
    sys.path.insert(0, path)
    np.int, clamp = int, torch.Tensor.clamp_
    # v6.1 gives a float bound to a whole number
    torch.Tensor.clamp_ = lambda s, *a, **k: clamp(
        s, *(int(v) if not s.is_floating_point() and isinstance(v, torch.Tensor) else v for v in a), **k)
    import yaml
    return yaml.safe_load((Path(path)/'data/hyps/hyp.scratch-low.yaml').read_text())

def theirs_step(path, amp, ema):
    "train.py's step: their model, their loss, their three groups in SGD, their average."
    import torch
    from contextlib import nullcontext
    from torch import nn
    hyp = open_peer(path)
    from models.yolo import Model
    from utils.loss import ComputeLoss
    from utils.torch_utils import ModelEMA
    torch.manual_seed(0)
    m, (x, t) = Model(f'{path}/models/yolov5n.yaml', ch=3, nc=80).train(), map(torch.from_numpy, batch())
    m.hyp, m.nc = hyp | dict(label_smoothing=0., obj=hyp['obj']*(SIZE/640)**2), 80
    g = [[], [], []]
    for v in m.modules():
        if isinstance(getattr(v, 'bias', None), nn.Parameter): g[2].append(v.bias)
        if isinstance(v, nn.BatchNorm2d): g[0].append(v.weight)
        elif isinstance(getattr(v, 'weight', None), nn.Parameter): g[1].append(v.weight)
    opt = torch.optim.SGD(g[0], lr=1e-4, momentum=.937, nesterov=True)
    opt.add_param_group(dict(params=g[1], weight_decay=5e-4))
    opt.add_param_group(dict(params=g[2]))
    loss, average = ComputeLoss(m), ModelEMA(m) if ema else None
    flat = torch.cat([torch.arange(BATCH).repeat_interleave(BOXES)[:, None], t.reshape(-1, 5)[:, :1],
                      t.reshape(-1, 5)[:, 1:]/SIZE], 1)
    def go():
        imgs = x.float()/255
        with torch.autocast('cpu', torch.bfloat16) if amp == 'bf16' else nullcontext():
            total, items = loss(m(imgs), flat)
        total.backward()
        opt.step()
        opt.zero_grad()
        if average: average.update(m)
        return items.tolist()
    return go

def theirs_loader(path, data):
    hyp = open_peer(path)
    try: from utils.dataloaders import create_dataloader
    except ImportError: from utils.datasets import create_dataloader
    return create_dataloader(f'{data}/images', 640, BATCH, 32, hyp=hyp, augment=True, workers=1, shuffle=True)[0]


# Ours, as `fit` does it

def ours_step(amp, ema, in_machine_code=False):
    import torch
    from yolokit.network.zoo import build
    from yolokit.training import compile, recipes, step
    from yolokit.data import loader
    from yolokit.data.loader import pad_targets
    from yolokit.network import model
    x, t = batch()
    xyxy = np.concatenate([t[..., :1], t[..., 1:3] - t[..., 3:]/2, t[..., 1:3] + t[..., 3:]/2], -1)
    d = model.Detector(build('yolov5n').with_size(SIZE, SIZE))
    tr = step.init_training(d, recipes.Recipe(bs=BATCH, lr0=1e-4), amp=amp)
    b = loader.Batch(torch.from_numpy(x).to(memory_format=torch.channels_last),
                     torch.stack([torch.from_numpy(pad_targets(v, 4*BOXES)) for v in xyxy]), torch.arange(BATCH),
                     ['']*BATCH, [])
    params, kept = list(d.parameters()), step.BufferSnapshot(d)
    if in_machine_code:
        # for as long as this side lives
        tr.open = compile.fuse_batchnorm(d, compile.find_compiler(torch.device('cpu')))
        tr.open.__enter__()
    def go():
        kept.keep()
        tr.optimizer.zero_grad()
        parts = step.backward(tr, b)
        norm = torch.nn.utils.clip_grad_norm_(params, 10.)
        got = torch.stack([*parts.values(), norm]).tolist()
        tr.optimizer.step()
        if ema: tr.ema.update(d)
        return got
    return go

def ours_loader(data, near):
    from yolokit.data.formats import read
    from yolokit.data import loader
    from yolokit.training.recipes import AUGMENT_LOW
    return loader.Loader(read(data, 'yolo'), (640, 640), BATCH, 0, replace(AUGMENT_LOW, near=near), workers=1, cache='')


# Detection from a folder: the same weights, 640 × 640, one picture after the other or in batches

PICTURES = 16

def make_weights(path, to):
    """yolov5n with heads that answer: some boxes above .25, some thousands of pairs above .001; folded statistics too.

    Boxes have at least a third of their anchor's sides: v6.1 leaves out those below 2 px."""
    import torch
    open_peer(path)
    from models.yolo import Model
    torch.manual_seed(0)
    m = Model(f'{path}/models/yolov5n.yaml', ch=3, nc=80).train()
    with torch.no_grad():
        for _ in range(20): m(torch.rand(4, 3, 160, 160))
        m.eval()
        head, seen = m.model[-1], {}
        for k, c in enumerate(head.m): c.register_forward_hook(lambda c, i, y, k=k: seen.__setitem__(k, y))
        m(torch.rand(1, 3, 640, 640))
        for k, c in enumerate(head.m):
            y = seen[k].transpose(0, 1).flatten(1)
            want = torch.tensor([[0., .5]]*2 + [[0., .2]]*2 + [[-11., 3.]] + [[-5., 2.]]*80).repeat(3, 1)
            scale = want[:, 1]/y.std(1).clamp(min=1e-6)
            c.weight *= scale[:, None, None, None]
            c.bias.copy_(want[:, 0] - (y.mean(1) - c.bias)*scale)
            c._forward_hooks.clear()
    torch.save(dict(model=m.half()), to)

def theirs_detect(path, data, weights, conf):
    "detect.py's loop without its writing: their reading, network, suppression and way back."
    import torch
    open_peer(path)
    from models.common import DetectMultiBackend
    from utils.datasets import LoadImages
    from utils.general import non_max_suppression, scale_coords
    load = torch.load
    torch.load = lambda *a, **k: load(*a, **k | dict(weights_only=False))
    m = DetectMultiBackend(weights, device=torch.device('cpu'))
    m.model.float()
    def go():
        out = []
        with torch.no_grad():
            for name, im, raw, _, _ in LoadImages(f'{data}/images', img_size=640, stride=32, auto=False):
                x = torch.from_numpy(im).float()[None]/255
                d = non_max_suppression(m(x), conf, .6, multi_label=conf < .01, max_det=300)[0]
                d[:, :4] = scale_coords(x.shape[2:], d[:, :4], raw.shape)
                out.append(d.numpy())
        return out
    return go

def ours_detect(data, weights, conf, runtime, bs):
    from yolokit.export.runtime import make_runtime
    from yolokit.inference.detect import detect
    from yolokit.network.checkpoints import load_checkpoint
    d = make_runtime(load_checkpoint(weights).eval(), runtime)
    def go():
        t = detect(d, f'{data}/images', (640, 640), conf, .6, bs=bs, workers=0, multi_label=conf < .01)
        rows = np.column_stack([t.xyxy, t.boxes['score'], t.boxes['category']])
        return [rows[t.boxes['image'] == i] for i in range(t.n_images)]
    return go

def apart(a, b): # (N, 6) a picture
    "Pixels between boxes of the same class, each to its nearest; and how many have none within a tenth."
    worst, lost = 0., 0
    for p, q in zip(a, b):
        for row in p:
            near = np.abs(q[q[:, 5] == row[5]][:, :4] - row[:4]).max(1, initial=0)
            d = near.min() if len(near) else np.inf
            if d > .1: lost += 1
            else: worst = max(worst, d)
    return worst, lost

def detect_race(a, tmp):
    folder(data := tmp/'data', PICTURES, 640)              # square: nothing lies in a padding
    weights = tmp/'n.pt'
    Side(a, 'theirs', side='weights', weights=weights).line()
    for conf in (.25, .001):
        kinds = {'theirs': Side(a, 'theirs', side='detect', data=data, weights=weights, conf=conf)}
        for r, bs in ('torch', 1), *((r, 1) for r in a.runtimes.split(',') if r):
            kinds[f'ours {r}, batches of {bs}'] = Side(a, 'ours', side='detect', data=data, weights=weights, conf=conf,
                                                       runtime=r, bs=bs)
        got = race(a, **kinds)
        med = {k: statistics.median(t for t, _ in v) for k, v in got.items()}
        boxes = {k: [np.array(p).reshape(-1, 6) for p in v[0][1]] for k, v in got.items()}
        for k, t in med.items():
            worst, lost = apart(boxes[k], boxes['theirs'])
            print(f'detect, yolov5n 640, conf {conf}: {k:<28} {1e3*t:6.1f} ms a picture, {1/t:5.1f} a CPU-second, '
                  f'{med["theirs"]/t:.2f} x; {sum(map(len, boxes[k]))} boxes, {worst:.1e} px apart, {lost} without a '
                  f'partner', flush=True)


# A side: says when it is ready, then a number for every line it gets

def cpu(pid): # seconds
    v = (Path('/proc')/str(pid)/'stat').read_text().rsplit(')', 1)[1].split()
    return (int(v[11]) + int(v[12]))/os.sysconf('SC_CLK_TCK')

def children():
    return [int(p) for f in (Path('/proc')/str(os.getpid())/'task').glob('*/children') for p in f.read_text().split()]

def side(a):
    import torch
    torch.set_num_threads(1)
    out, sys.stdout = sys.stdout, sys.stderr
    if a.side == 'step':
        go = theirs_step(a.yolov5, a.amp, a.ema) if a.who == 'theirs' else ours_step(a.amp, a.ema, a.compiled)
        for _ in range(2): go()
        def turn():
            began = time.process_time()
            go()
            return 1e3*(time.process_time() - began)/BATCH
    elif a.side == 'weights':
        make_weights(a.yolov5, a.weights)
        print('ready', file=out, flush=True)
        os._exit(0)
    elif a.side == 'detect':
        ours = lambda: ours_detect(a.data, a.weights, a.conf, a.runtime, a.bs)
        go, times = theirs_detect(a.yolov5, a.data, a.weights, a.conf) if a.who == 'theirs' else ours(), []
        go()
        def turn():
            began = time.process_time()
            got = go()
            took = (time.process_time() - began)/PICTURES
            times.append(took)
            return took, [p.tolist() for p in got] if len(times) == 1 else []
    else:
        loader = theirs_loader(a.yolov5, a.data) if a.who == 'theirs' else ours_loader(a.data, a.near)
        def endless():
            for e in range(10**6): yield from iter(loader) if a.who == 'theirs' else loader.epoch(e)
        stream = endless()
        # two hundred and fifty-six images: pages are there, and what is held is held
        for _ in range(16): next(stream)
        def turn(n=16):
            workers = children()
            before = sum(map(cpu, workers)), time.process_time()
            for _ in range(n): next(stream)
            # what was drawn ahead waits at the beginning as it does at the end
            return [1e3*(sum(map(cpu, workers)) - before[0])/(n*BATCH), 1e3*(time.process_time() - before[1])/(n*BATCH)]
    print('ready', file=out, flush=True)
    for _ in sys.stdin: print(json.dumps(turn()), file=out, flush=True)
    os._exit(0)                                        # workers go with it

class Side:
    def __init__(self, a, who, **kw):
        args = [a.ours if who == 'ours' else a.python, __file__, a.yolov5, '--who', who,
                *(f'--{k}={v}' for k, v in kw.items())]
        env = os.environ | dict(OMP_NUM_THREADS='1', YOLOV5_CONFIG_DIR=a.config, YOLO_CONFIG_DIR=a.config,
                                CUDA_VISIBLE_DEVICES='', GIT_PYTHON_REFRESH='quiet',
                                PYTHONPATH=str(HERE) if who == 'ours' else '')
        self.p = subprocess.Popen(args, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=None
                                  if a.loud else subprocess.DEVNULL, env=env, text=True)
    def line(self):
        while s := self.p.stdout.readline():
            if s.startswith('ready') or s[0] in '[0123456789': return s
        raise SystemExit('a side ended before its turn: run again with --loud')
    def turn(self):
        print(file=self.p.stdin, flush=True)
        return json.loads(self.line())

def race(a, **sides): # name: Side -> name: list of what its turns took
    try:
        for s in sides.values(): s.line()
        got = {k: [] for k in sides}
        for _ in range(a.turns):
            for k, s in sides.items(): got[k].append(s.turn())
        return got
    finally:
        for s in sides.values(): s.p.stdin.close(); s.p.terminate(); s.p.wait()

def main(a):
    (Path(a.yolov5)/'train.py').exists() or sys.exit(f'{a.yolov5}: no checkout of YOLOv5 '
                                                     f'(github.com/ultralytics/yolov5, v6.1 or master)')
    machine = next((l.split(':')[1].strip() for l in open('/proc/cpuinfo') if l.startswith('model name')), '')
    print(f'{machine}, {os.cpu_count()} cores; {Path(a.yolov5).name}; one thread, CPU time, medians of {a.turns} turns')
    with tempfile.TemporaryDirectory() as tmp:
        a.config = tmp
        for p in (Path(tmp), Path(tmp)/'Ultralytics'):         # a font that it would download
            p.mkdir(exist_ok=True)
            import matplotlib
            shutil.copy(Path(matplotlib.get_data_path())/'fonts/ttf/DejaVuSans.ttf', p/'Arial.ttf')
        if a.only in (None, 'detect'): detect_race(a, Path(tmp))
        if a.only in (None, 'step'):
            kinds = [(who, amp, e, c) for e in ((1, 0) if a.without_ema
                                                else (1,)) for who, c in (('theirs', 0), ('ours', 0),
                                                                          ('ours', 1)) for amp in ('off', 'bf16')]
            got = race(a, **{f'{w} {m}' + ' compiled'*c
                             + ' without EMA'*(not e): Side(a, w, side='step', amp=m, ema=e,
                                                            compiled=c) for w, m, e, c in kinds})
            med = {k: statistics.median(v) for k, v in got.items()}
            for k, v in med.items():
                print(f'step, yolov5n {SIZE}, batch {BATCH}: {k:<24} {v:6.1f} ms an image ({min(got[k]):.1f} to '
                      f'{max(got[k]):.1f})')
            for e in {k[len('ours bf16'):]: 0 for k in med if k.startswith('ours bf16')}:
                them = e.replace(' compiled', '')
                print(f'ours / theirs{e}: float32 {med["ours off" + e]/med["theirs off" + them]:.3f}   bf16 '
                      f'{med["ours bf16" + e]/med["theirs bf16" + them]:.3f}   our bf16 / their float32 '
                      f'{med["ours bf16" + e]/med["theirs off" + them]:.3f}')
        if a.only in (None, 'loader'):
            folder(data := Path(tmp)/'loader')
            got = race(a, theirs=Side(a, 'theirs', side='loader', data=data),
                       **{f'ours, near={n}': Side(a, 'ours', side='loader', data=data, near=n) for n in (0, NEAR)})
            med = {k: [statistics.median(c) for c in zip(*v)] for k, v in got.items()}
            for k, (w, m) in med.items():
                print(f'loader, mosaic 640 from JPEG: {k:<14} worker {w:6.2f} ms an image = {1e3/w:.0f} images a '
                      f'second; the process that takes them {m:.2f} ms')
            print('ours / theirs, images a second: ' + ', '.join(f'{med["theirs"][0]/w:.2f} with {k[6:]}'
                                                                 for k, (w, _) in med.items() if k != 'theirs'))

if __name__ == '__main__':
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('yolov5')
    p.add_argument('--python', default=sys.executable, help='with what YOLOv5 needs: pandas, seaborn, requests, psutil')
    p.add_argument('--only', choices=['step', 'loader', 'detect'])
    p.add_argument('--runtimes', default='onnx', help='of detection, with commas: onnx,openvino')
    p.add_argument('--turns', type=int, default=7)
    p.add_argument('--without-ema', action='store_true', help='both sides also without their averages')
    p.add_argument('--loud', action='store_true', help='show what the sides write')
    for k in ('who', 'side', 'amp', 'data', 'weights', 'runtime'): p.add_argument(f'--{k}', help=argparse.SUPPRESS)
    for k in ('ema', 'near', 'compiled', 'bs'): p.add_argument(f'--{k}', type=int, help=argparse.SUPPRESS)
    p.add_argument('--conf', type=float, help=argparse.SUPPRESS)
    p.add_argument('--with', dest='ours', default=sys.executable, help="python of our side, for a runtime elsewhere")
    a = p.parse_args()
    side(a) if a.side else main(a)
