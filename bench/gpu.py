"""What training does on a GPU, judged by what that GPU can do: rates calibrated first, in the same run.

    python bench/gpu.py                                   # everything
    python bench/gpu.py steps bits --networks yolov4:608:32,yolov5s6:1280:16 --steps 40
    python bench/gpu.py steps --to tables                 # at most eight minutes a part; leaves tables/steps.md
    python bench/gpu.py --device cpu --networks yolokit-nano:64:2 --steps 6     # does the command itself work?

Every training is `train.fit` on one batch of noise, over and over, from pinned memory; `real` is the same with JPEGs,
a mosaic and as many workers as there are cores. Shares are of a roofline: each convolution three times the longer of
its arithmetic and its traffic, and 26 bytes an activation (16 where compiling fuses them), as in Williams et al. 2009.
"""
import argparse, math, os, statistics, sys, tempfile, time, warnings
from contextlib import redirect_stdout
from pathlib import Path

import numpy as np, torch

from yolokit.core import environment
from yolokit.network import zoo
from yolokit.network.model import Detector
from yolokit.data.loader import Batch, pad_targets
from yolokit.training import recipes, runs, step, train

NETWORKS = 'yolov4:608:32,yolov5s6:1280:16,yolov5x6:1280:8'    # name:size:batch


def clock(dev, call, n=10):
    "Median seconds of a call, the device waited for."
    wait, took = torch.cuda.synchronize if dev.type == 'cuda' else lambda: None, []
    for _ in range(n + 3):
        wait()
        began = time.perf_counter()
        call()
        wait()
        took.append(time.perf_counter() - began)
    return statistics.median(took[3:])


def calibrate(dev, dtype):
    "FLOP a second of a large product, bytes a second of a large copy (read and written)."
    n, m = (8192, 2**30) if dev.type == 'cuda' else (512, 2**24)
    a, b = (torch.randn(n, n, device=dev, dtype=dtype) for _ in 'ab')
    x = torch.empty(m, dtype=torch.uint8, device=dev)
    y = torch.empty_like(x)
    return 2*n**3/clock(dev, lambda: a @ b), 2*m/clock(dev, lambda: y.copy_(x))


def least(cfg, flops, copy, size, fused):
    "Seconds an image that a training step takes at the least."
    plan = cfg.plan()
    conv = sum(3*max(2*l.macs/flops, size*(math.prod(l.in_shapes[0]) + math.prod(l.shape))/copy) for l in plan
               if l.macs)
    return conv + (16 if fused else 26)*sum(math.prod(l.shape) for l in plan if l.macs)*size/2/copy


class Again:
    "One batch of noise, as often as it is asked for; what happens from a certain batch on is watched."
    def __init__(self, cfg, bs, dev, quiet=10**9):
        rng, (w, h) = np.random.default_rng(0), (cfg.net.int('width'), cfg.net.int('height'))
        boxes = [np.stack([rng.integers(0, 80, 8), *(rng.uniform(.1, .6, 8)*s for s in (w, h)),
                           *(rng.uniform(.65, .95, 8)*s for s in (w, h))], 1).astype(np.float32) for _ in range(bs)]
        # (class, x0, y0, x1, y1) in pixels
        self.batch = Batch(torch.from_numpy(rng.integers(0, 256, (bs, 3, h, w),
                                                         np.uint8)).contiguous(memory_format=torch.channels_last),
                           torch.stack([torch.from_numpy(pad_targets(v, 32)) for v in boxes]), torch.arange(bs),
                           ['noise']*bs, [])
        if dev.type == 'cuda': self.batch = self.batch.pin_memory()
        self.n, self.part, self.bs, self.dev, self.quiet, self.seen = 10**6, 0, bs, dev, quiet, 0
        self.work = type('Work', (), dict(m=32, source=type('Source', (), dict(size=(w, h)))))
    def __len__(self): return 10**6
    def watch_stop(self, stop): pass
    def epoch(self, e, start=0, **_):
        while True:
            self.seen += 1
            if self.seen == self.quiet and self.dev.type == 'cuda': torch.cuda.set_sync_debug_mode('warn')
            yield self.batch


def trained(cfg, bs, dev, a, amp='bf16', quiet=10**9, loader=None, exact=True, **kw):
    "Images a second of the second half, MB at the peak, how often the device was waited for."
    half, loader = a.steps//2, loader or Again(cfg, bs, dev, quiet)
    if dev.type == 'cuda': torch.cuda.empty_cache(); torch.cuda.reset_peak_memory_stats()
    with tempfile.TemporaryDirectory() as tmp, environment.deterministic(torch.get_num_threads(), exact), \
            warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter('always')
        torch.backends.cudnn.benchmark = not exact
        try:
            run = runs.Run.new('gpu', cfg.name, tmp)
            recipe = recipes.Recipe(steps=2*half, bs=bs, lr0=1e-4, every=1e9)
            t = step.init_training(Detector(cfg), recipe, dev, amp)
            train.fit(run, t, loader, options=train.FitOptions(rows=half, save_every=1e9, **kw))
            speed = runs.read_csv(run.folder/'speed.csv')
        finally:
            if dev.type == 'cuda': torch.cuda.set_sync_debug_mode('default')
    waited = [str(w.message).split('\n')[0] for w in caught if 'synchroniz' in str(w.message)]
    return dict(rate=float(speed['images_s'][-1]), mb=float(speed['memory_mb'][-1]), waited=waited)


def networks(a): # yields cfg, batch, a name
    for word in a.networks.split(','):
        name, size, bs = word.split(':')
        yield zoo.build(name).with_size(int(size), int(size)), int(bs), f'{name}@{size}, {bs} images'


def steps(a, dev):
    "Images a second beside the roofline; what bf16 and exactness cost."
    flops, copy = calibrate(dev, torch.bfloat16)
    print(f'calibrated: {flops/1e12:.1f} TFLOP/s in bf16, {copy/1e12:.3f} TB/s copied\n')
    print('| network | img/s | of the roofline | compiled | of its roofline | deterministic off | float32 img/s | MB, '
          'bf16 and float32 |\n|---|---|---|---|---|---|---|---|')
    for cfg, bs, name in networks(a):
        most, fused = (1/least(cfg, flops, copy, 2, f) for f in (False, True))
        half, fast, free, full = (trained(cfg, bs, dev, a), trained(cfg, bs, dev, a, compile=True),
                                  trained(cfg, bs, dev, a, exact=False), trained(cfg, bs, dev, a, 'off'))
        print(f'| {name} | {half["rate"]:.1f} | {half["rate"]/most:.2f} | {fast["rate"]:.1f} | '
              f'{fast["rate"]/fused:.2f} | ×{free["rate"]/half["rate"]:.2f} | {full["rate"]:.1f} | {half["mb"]:.0f} '
              f'and {full["mb"]:.0f} |', flush=True)


def waits(a, dev):
    "How often a steady step waits for the device, and where."
    for cfg, bs, name in networks(a):
        got = trained(cfg, bs, dev, a, quiet=a.steps//2)
        print(f'{name}: {len(got["waited"])} synchronisations in {a.steps - a.steps//2} steady steps'
              + (', such as ' + '; '.join(sorted(set(got['waited']))[:3]) if got['waited'] else '')
              if dev.type == 'cuda' else f'{name}: synchronisations are counted on a GPU only')


def bits(a, dev):
    "The backward passes of nearest upsampling and max-pooling, a hundred times."
    for dtype in (torch.float32, torch.bfloat16):
        for form in (torch.contiguous_format, torch.channels_last):
            torch.manual_seed(0)
            x = torch.randn(4, 64, 40, 40, device=dev, dtype=dtype).to(memory_format=form).requires_grad_()
            for what, f in (('nearest', lambda v: torch.nn.functional.interpolate(v, scale_factor=2)),
                            ('max-pool', lambda v: torch.nn.functional.max_pool2d(v, 5, 1, 2))):
                y = f(x)
                g = torch.randn_like(y)
                got = [torch.autograd.grad(f(x), x, g)[0] for _ in range(100)]
                print(f'{what}, {dtype}, {form}: {sum(torch.equal(got[0], v) for v in got)} of 100 backward passes '
                      f'with the same bits')


def real(a, dev):
    "Images a second from JPEGs through a mosaic, over those of one batch again and again."
    from peers import folder
    from yolokit.data.formats import read as read_folder
    from yolokit.data import loader
    from yolokit.training.recipes import AUGMENT_LOW
    with tempfile.TemporaryDirectory() as tmp:
        folder(Path(tmp)/'jpegs', 512 if dev.type == 'cuda' else 16)
        table = read_folder(Path(tmp)/'jpegs', 'yolo')
        for cfg, bs, name in networks(a):
            made = trained(cfg, bs, dev, a)['rate']
            size = cfg.net.int('width'), cfg.net.int('height')
            read = trained(cfg, bs, dev, a, loader=loader.Loader(table, size, bs, 0, AUGMENT_LOW,
                                                                 workers=os.cpu_count(), cache='ram',
                                                                 pin=dev.type == 'cuda'))['rate']
            print(f'{name}: {read:.1f} img/s from JPEGs with {os.cpu_count()} workers, {made:.1f} without reading: '
                  f'{read/made:.3f}', flush=True)


PARTS = {f.__name__: f for f in (bits, steps, waits, real)}


class Both:
    "The terminal and a file: what was measured stays if the machine goes."
    def __init__(self, path):
        if path: path.parent.mkdir(parents=True, exist_ok=True)
        self.to = [sys.stdout, *([open(path, 'w', encoding='utf-8')] if path else [])]
    def write(self, s):
        for f in self.to: f.write(s)
    def flush(self):
        for f in self.to: f.flush()
    def __enter__(self): return self
    def __exit__(self, *_):
        for f in self.to[1:]: f.close()


if __name__ == '__main__':
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('parts', nargs='*', metavar='part', help=f'{", ".join(PARTS)}; none: all')
    p.add_argument('--networks', default=NETWORKS)
    p.add_argument('--steps', type=int, default=40)
    p.add_argument('--device', default='cuda')
    p.add_argument('--to', help='folder for a file of each part, written as it goes')
    a = p.parse_args()
    dev = torch.device(a.device, 0) if a.device == 'cuda' else torch.device(a.device)
    if dev.type == 'cuda' and not torch.cuda.is_available(): sys.exit('no GPU here; --device cpu tries the command out')
    machine = (f'{torch.cuda.get_device_name() if dev.type == "cuda" else "CPU"}, {os.cpu_count()} cores, torch '
               f'{torch.__version__}')
    for k in a.parts or PARTS:
        with Both(a.to and Path(a.to)/f'{k}.md') as out, redirect_stdout(out):
            print(f'## {PARTS[k].__doc__}\n\n{machine}\n', flush=True)
            PARTS[k](a, dev)
