"""COCO of a million boxes: what `read` and `write` cost beside pycocotools and `json.dumps`, in one run.

    python bench/coco.py [boxes]            # 1,000,000

Each turn is a process of its own: CPU seconds, and the peak of its memory without that of the imports.
Medians of three turns, taken alternately.
"""
import json, os, resource, statistics, subprocess, sys, tempfile, time
from contextlib import redirect_stdout
from pathlib import Path

from yolokit.core.rng import rng


def make(path, boxes=1_000_000, per=10):
    "Boxes of 80 classes on pictures that are not there, in the keys of COCO's own files: 136 bytes a box."
    r, images = rng(0), max(boxes//per, 1)
    wh, image = r.integers(240, 641, (images, 2)).tolist(), r.integers(0, images, boxes).tolist()
    cat, x, y, w, h = r.integers(1, 81, boxes).tolist(), *(r.uniform(1, 320, boxes).round(2).tolist() for _ in 'xywh')
    d = dict(info=dict(description='random'), licenses=[],
             images=[dict(id=i + 1, file_name=f'{i + 1:012d}.jpg', width=a, height=b, license=1)
                     for i, (a, b) in enumerate(wh)],
             annotations=[dict(area=round(w[i]*h[i], 4), iscrowd=int(i % 100 == 0), image_id=image[i] + 1,
                               bbox=[x[i], y[i], w[i], h[i]], category_id=cat[i], id=i + 1) for i in range(boxes)],
             categories=[dict(supercategory='thing', id=i + 1, name=f'class {i + 1}') for i in range(80)])
    Path(path).write_text(json.dumps(d))


def pycocotools(path, out):
    from pycocotools.coco import COCO
    yield
    with redirect_stdout(sys.stderr): COCO(path)


def read(path, out):
    from yolokit.data import formats
    yield
    formats.read(path)


def dumps(path, out):
    d = json.loads(Path(path).read_text())
    yield
    text = json.dumps(d)


def written(path, out, change=lambda t: t):
    from yolokit.data import formats
    t = change(formats.read(path))
    yield
    formats.write(t, out, 'coco')


def same(path, out): return written(path, out)


def moved(path, out): # every tenth box
    import numpy as np
    return written(path, out, lambda t: t.with_columns(x0=t.boxes['x0'] - (np.arange(len(t)) % 10 == 0)))


def fewer(path, out): # boxes of every other picture
    import numpy as np
    return written(path, out, lambda t: t.keep_images(np.arange(t.n_images) % 2 == 0))


def new(path, out): # no source: every record is made
    def forget(t):
        columns = {k: v for k, v in t.images.items() if k not in ('source', 'place')}
        return type(t).make(columns, {k: v for k, v in t.boxes.items() if k != 'slot'}, t.names, t.category_ids)
    return written(path, out, forget)


TURNS = {f.__name__: f for f in (pycocotools, read, dumps, same, moved, fewer, new)}


def one(name, path):
    "One turn in this process: prints CPU seconds, and MB of memory at most."
    with tempfile.TemporaryDirectory(dir=Path(path).parent) as folder:
        work = TURNS[name](str(path), Path(folder)/'out.json')
        next(work)
        began, before = time.process_time(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        next(work, None)
        print(time.process_time() - began, (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)/1e3)


def run(path, n=3, names=TURNS):
    "Medians of n turns: name -> (seconds, MB)."
    took = {k: [] for k in names}
    for _ in range(n):
        for k in names:
            r = subprocess.run([sys.executable, __file__, '--one', k, str(path)], capture_output=True, text=True)
            if r.returncode: sys.exit(r.stderr)
            took[k].append([float(v) for v in r.stdout.split()[-2:]])
    return {k: [statistics.median(c) for c in zip(*v)] for k, v in took.items()}


if __name__ == '__main__':
    if sys.argv[1:2] == ['--one']: one(*sys.argv[2:]); sys.exit()
    if sys.argv[1:2] == ['--make']: make(sys.argv[2], int(sys.argv[3])); sys.exit()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder)/'boxes.json'
        # not in this process: a turn's peak would begin at its own
        subprocess.run([sys.executable, __file__, '--make', path, (sys.argv[1:] or ['1000000'])[0]], check=True)
        print(f'{os.path.getsize(path)/1e6:.0f} MB, Python {sys.version.split()[0]}, {os.cpu_count()} cores; CPU time')
        got = run(path)
    for k, (s, mb) in got.items():
        to = 'pycocotools' if k in ('pycocotools', 'read') else 'dumps'
        memory = f', ×{mb/got[to][1]:.2f} memory' if k == 'read' and got[to][1] else ''  # writing: below reading's peak
        print(f'{k:12} {s:6.2f} s  {mb:6.0f} MB   ×{s/got[to][0]:.2f} time{memory} of {to}')
