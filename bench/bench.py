"""What things cost, each beside what it is compared with, in one run: `make bench`, or some parts of it by name.

    python bench/bench.py [training] [loading] ...     # PARTS at the end lists them; no name means all

CPU time, not wall time, and the median of several turns taken alternately: the machine may be busy, ratios hold.
"""
import gc, io, json, os, statistics, sys, tempfile, time
from contextlib import nullcontext, redirect_stdout
from importlib.util import find_spec
from pathlib import Path

import numpy as np, torch

from yolokit.core.images import write_image
from yolokit.core.rng import rng as counted
from yolokit.network import weights, zoo
from yolokit.network.model import Detector
from yolokit.data import formats
from yolokit.data.table import Table
from yolokit.data.augment import Augment
from yolokit.data.loader import Loader
from yolokit.cleaning import prepare as cleaning_prepare
from yolokit.training.loss import Loss
from yolokit.inference.nms import nms
from yolokit.inference.parts import detect_in_parts
from yolokit.inference.detect import forward_and_decode, optimized_copy, _predict_candidates
from yolokit.export.runtime import make_runtime
from yolokit.evaluation import bootstrap, errors, matching, metrics, results
from yolokit.apps import prepare as apps_prepare


def turns(n=5, **calls):
    "Median CPU milliseconds of each call, taken in turn."
    took = {k: [] for k in calls}
    for i in range(n + 1):
        for k, call in calls.items():
            began = time.process_time()
            call()
            if i: took[k].append(1e3*(time.process_time() - began))
    return {k: statistics.median(v) for k, v in took.items()}


def line(what, got, unit='ms', each=1):
    first = next(iter(got.values()))
    print(f'{what:<52}' + '   '.join(f'{k} {v/each:.2f} {unit}'
                                     + (f' (×{v/first:.2f})' if v is not first else '') for k, v in got.items()),
          flush=True)


def step(detector, x, targets, bf16):
    "One forward and backward pass."
    loss = Loss(detector)
    def go():
        with torch.autocast('cpu', torch.bfloat16) if bf16 else nullcontext(): maps = detector(x, logits=True)
        loss(maps, targets)[0].backward()
    return go


def training():
    rng = counted(0)
    for name, size in (('yolokit-nano', (416, 256)), ('yolov4-tiny', (416, 416))):
        d = Detector(zoo.build(name, classes=14)).train().to(memory_format=torch.channels_last)
        x = torch.from_numpy(rng.random((8, 3, size[1], size[0]),
                                        np.float32)).contiguous(memory_format=torch.channels_last)
        t = torch.full((8, 32, 5), -1.)
        t[:, :10] = torch.from_numpy(np.stack([rng.integers(0, 14, (8, 10)),
                                               *(rng.uniform(40, 200, (8, 10)) for _ in 'xy'),
                                               *(rng.uniform(10, 60, (8, 10)) for _ in 'wh')], -1).astype(np.float32))
        line(f'training step, {name} {size[0]}×{size[1]}, an image',
             turns(3, float32=step(d, x, t, False), bf16=step(d, x, t, True)), each=8)


def loading():
    table = cleaning_prepare.load_prepared(apps_prepare.prepare_if_needed().folder).split('train')
    plain, mosaic = Augment(), Augment(mosaic=1., hsv_h=.015, hsv_s=.7, hsv_v=.4, scale=.5, translate=.1, fliplr=.5)
    loaders = {k: Loader(table, (416, 256), 16, 0, a, workers=0, cache=c)
               for k, a, c in (('plain from PNG', plain, ''), ('mosaic from PNG', mosaic, ''),
                               ('mosaic from memory', mosaic, 'ram'))}
    def some(loader):
        def go():
            for i, _ in zip(range(4), loader.epoch(0)): pass
        return go
    line('loader, 416×256, an image', turns(3, **{k: some(l) for k, l in loaders.items()}), each=64)


def suppression():
    rng = counted(1)
    pred = torch.from_numpy(np.concatenate([rng.uniform(0, 640, (4, 25200, 2)), rng.uniform(5, 100, (4, 25200, 2)),
                                            rng.random((4, 25200, 81))], -1).astype(np.float32))
    line('nms, (4, 25200, 85) random, conf .001, an image',
         turns(1, multi_label=lambda: nms(pred, .001, .6, 300, True)), each=4)


def judging():
    rng, n, per = counted(2), 500, 20
    image, cat = np.repeat(np.arange(n), per), rng.integers(0, 80, n*per)
    x0, y0, w, h = (rng.uniform(0, 500, n*per), rng.uniform(0, 350, n*per), rng.uniform(20, 120, n*per),
                    rng.uniform(20, 120, n*per))
    images = dict(file=[f'{i}.jpg' for i in range(n)], width=[640]*n, height=[480]*n)
    names = [f'class {i}' for i in range(80)]
    table = lambda **more: Table.make(images, dict(image=image, category=cat, **more), names)
    truth = table(x0=x0, y0=y0, x1=x0 + w, y1=y0 + h)
    noise = rng.normal(0, 3, (4, n*per)).clip(-9, 9)
    found = table(x0=x0 + noise[0], y0=y0 + noise[1], x1=x0 + w + noise[2], y1=y0 + h + noise[3],
                  score=rng.random(n*per))
    line('the 12 numbers, 500 images, 10,000 detections',
         turns(1, **{b: (lambda b=b: metrics.coco(truth, found, b))
                     for b in ('pycocotools', 'faster-coco-eval', 'ultrafast-pycocotools')}))
    line('500 images, matching at ten thresholds; 300 draws',
         turns(1, match=lambda: matching.match(truth, found),
               interval=lambda: bootstrap.bootstrap_interval(truth, found, 300),
               errors=lambda: errors._error_costs(errors.classify_errors(truth, found))))


def evaluation(n_turns=3):
    "Both files read, checked and judged; each evaluator once in each turn."
    rng, n, per = counted(3), 5000, 100
    share = 1/np.arange(1, 81)
    box = lambda m: np.stack([rng.uniform(0, 500, m), rng.uniform(0, 350, m), rng.uniform(8, 140, m),
                              rng.uniform(8, 130, m)], 1)
    image = np.sort(rng.integers(0, n, 36_893))
    cls, truth, start = (rng.choice(80, len(image), p=share/share.sum()), box(len(image)).round(2),
                         np.searchsorted(image, np.arange(n + 1)))
    at = np.repeat(np.arange(n), per)
    near, hit = ((start[at] + rng.random(n*per)*(start[at + 1] - start[at])).astype(int).clip(max=len(image) - 1),
                 (rng.random(n*per) < .2) & (start[at + 1] > start[at]))
    found = np.where(hit[:, None], truth[near] + rng.normal(0, 5, (n*per, 4)).clip(-7, 7), box(n*per)).round(2)
    kind, score = (np.where(hit, cls[near], rng.choice(80, n*per, p=share/share.sum())),
                   np.where(hit, rng.uniform(.1, 1, n*per), rng.uniform(.001, .7, n*per)).clip(.00001).round(5))
    gt = dict(images=[dict(id=i + 1, file_name=f'{i + 1:012d}.jpg', width=640, height=480) for i in range(n)],
              categories=[dict(id=k + 1, name=f'class {k}') for k in range(80)],
              annotations=[dict(id=k + 1, image_id=i + 1, category_id=c + 1, bbox=b, area=b[2]*b[3], iscrowd=0)
                           for k, (i, c, b) in enumerate(zip(image.tolist(), cls.tolist(), truth.tolist()))])
    dt = [dict(image_id=i + 1, category_id=c + 1, bbox=b, score=s)
          for i, c, b, s in zip(at.tolist(), kind.tolist(), found.tolist(), score.tolist())]
    with tempfile.TemporaryDirectory() as d:
        files = Path(d)/'truth.json', Path(d)/'found.json'
        for f, rows in zip(files, (gt, dt)): f.write_text(json.dumps(rows))
        del gt, dt, rows
        numbers = {}
        def alone(backend):
            COCO, COCOeval = metrics.backend_classes(backend)
            with redirect_stdout(io.StringIO()):
                t = COCO(str(files[0]))
                e = COCOeval(t, t.loadRes(str(files[1])), 'bbox')
                e.evaluate(); e.accumulate(); e.summarize()
            numbers[backend, 'alone'] = e.stats[:12].tolist()
        def ours(backend):
            t = formats.read_fast(files[0])
            numbers[backend] = list(metrics.coco(
                t, results.read_results(files[1], t, backend == 'ultrafast-pycocotools'), backend).numbers.values())
        slow, fast, quick = 'pycocotools', *metrics.BACKENDS[::2]
        calls = {'pycocotools alone': lambda: alone(slow), fast: lambda: ours(fast),
                 f'{quick} alone': lambda: alone(quick), quick: lambda: ours(quick)}
        took = {k: [] for k in calls}
        for turn in range(9*n_turns):
            for k, call in calls.items():
                if turn >= n_turns and quick not in k: continue # half a second: more turns
                began = time.process_time()
                call()
                took[k].append(time.process_time() - began)
                gc.collect()
    got = {b: statistics.median(v) for b, v in took.items()}
    print(f'5,000 images, 500,000 detections, {len(image):,} truths, 80 classes, json to numbers: '
          + '   '.join(f'{b} {v:.2f} s (×{got["pycocotools alone"]/v:.1f} faster)' for b, v in got.items())
          + f'; here over {quick} alone {got[quick]/got[f"{quick} alone"]:.2f}; largest difference '
            f'{np.ptp(list(numbers.values()), axis=0).max():.1e}, AP {numbers[quick][0]:.3f}', flush=True)


def reading():
    with tempfile.TemporaryDirectory() as folder:
        path, d = Path(folder)/'yolov4.weights', Detector(zoo.build('yolov4'))
        weights.write_weights(d, path)
        line('yolov4.weights, 258 MB', turns(5, **{'np.fromfile': lambda: np.fromfile(path, np.uint8),
                                                   'read_weights': lambda: weights.read_weights(d, path)}))


def looking():
    d, x = Detector(zoo.build('yolov5n')).eval(), torch.rand(4, 3, 640, 640)
    quick, inner = optimized_copy(d), x.contiguous(memory_format=torch.channels_last)
    def some(call):
        def go():
            with torch.inference_mode(): call()
        return go
    line('yolov5n 640, rows of an image', turns(3, **{
        'as it is': some(lambda: forward_and_decode(d, x)),
        'ready': some(lambda: _predict_candidates(quick, inner, 'float32', .001)),
        'bf16': some(lambda: _predict_candidates(quick, inner, 'bfloat16', .001))}), each=4)


def forward():
    "The network alone beside ONNX Runtime, and OpenVINO where it is installed; one thread each."
    for name, size in (('yolov4-tiny', 416), ('yolov5n', 640)):
        d, x = Detector(zoo.build(name).with_size(size, size)).eval(), torch.rand(1, 3, size, size)
        quick, inner, given = optimized_copy(d), x.contiguous(memory_format=torch.channels_last), x.numpy()
        def ours():
            with torch.inference_mode(): quick(inner)
        calls = {}
        for k in ('onnx', 'openvino'):
            if k == 'openvino' and not find_spec(k): continue
            run = make_runtime(d, k)._session(size, size)
            calls[k] = lambda run=run: run(given)
        line(f'{name} {size}, the network alone', turns(21, **calls, here=ours))


def processes():
    "500 pictures by one process and by two, in wall time: for an idle machine only."
    d = Detector(zoo.build('yolov5s')).eval()
    with tempfile.TemporaryDirectory() as folder:
        for k in range(500):
            x = counted(k).integers(0, 256, (15, 20, 3)).astype(np.uint8).repeat(32, 0).repeat(32, 1)
            write_image(Path(folder)/f'shots/{k:03d}.jpg', x)
        took, said = [], set()
        for n in (1, 2):
            began = time.monotonic()
            t = detect_in_parts(d, Path(folder)/'shots', Path(folder)/str(n), n, size=(640, 640), workers=1)
            took.append(time.monotonic() - began)
            said.add(results.results_text(t))
    print(f'yolov5s 640, 500 pictures: one process {took[0]:.1f} s, two {took[1]:.1f} s, '
          f'{took[0]/took[1]:.2f} times as fast; {"the same" if len(said) == 1 else "OTHER"} bytes', flush=True)


PARTS = {f.__name__: f for f in (training, loading, reading, suppression, looking, forward, processes, judging,
                                 evaluation)}


if __name__ == '__main__':
    names = sys.argv[1:] or list(PARTS)
    if unknown := [n for n in names if n not in PARTS]:
        sys.exit(f'no part is called {", ".join(unknown)}; there are {", ".join(PARTS)}')
    torch.set_num_threads(1)
    cpu = next((l.split(':')[1].strip() for l in open('/proc/cpuinfo') if l.startswith('model name')),
               '') if os.path.exists('/proc/cpuinfo') else ''
    print(f'{cpu}, {os.cpu_count()} cores, torch {torch.__version__}, one thread; CPU time, medians')
    for n in names: PARTS[n]()
