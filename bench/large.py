"""A set of the size of Open Images, from its csv to the loader: time and memory of each step, without its pictures.

    python bench/large.py [boxes ...] [--folder FOLDER]    # 14,610,229 boxes on 1,743,042 pictures; or a curve

Each size runs in a process of its own: wall seconds, CPU seconds, the peak of memory so far and what is kept, both
without the imports. The csv has two columns more than Open Images', the size of the picture, because the
pictures are not there.
"""
import argparse, json, resource, shutil, subprocess, sys, tempfile, time
from pathlib import Path
import numpy as np

BOXES, IMAGES = 14_610_229, 1_743_042
COLUMNS = ('ImageID,Source,LabelName,Confidence,XMin,XMax,YMin,YMax,IsOccluded,IsTruncated,IsGroupOf,IsDepiction,'
           'IsInside,Width,Height')
ADAPTER = '''
adapter: openimages with sizes
files: ["*annotations-bbox.csv"]
unit: fraction
image: {file: "{ImageID}.jpg", width: Width, height: Height}
box: {class: LabelName, x0: XMin, x1: XMax, y0: YMin, y1: YMax, crowd: IsGroupOf,
      columns: {occluded: IsOccluded, truncated: IsTruncated, depiction: IsDepiction, inside: IsInside}}
like: class-descriptions*.csv
'''


def make(folder: Path, boxes: int) -> None:
    "Boxes of 600 classes, the frequent ones a hundred times as many as the rare ones."
    g, images = np.random.Generator(np.random.Philox(key=0)), max(boxes*IMAGES//BOXES, 1)
    (folder/'adapter.yaml').write_text(ADAPTER)
    names = ''.join(f'/m/0{k:03d}x,Class {k}\n' for k in range(600))
    (folder/'class-descriptions-boxable.csv').write_text(names)
    sizes = np.array([(1024, 768), (1024, 683), (768, 1024), (1024, 1024)])
    with open(folder/'oidv6-train-annotations-bbox.csv', 'w') as f:
        f.write(COLUMNS + '\n')
        for a in range(0, boxes, 500_000):
            n = min(500_000, boxes - a)
            image = np.sort(g.integers(a*images//boxes, max((a + n)*images//boxes, 1), n))
            kind = (600*g.random(n)**3).astype(int)
            at, wh, flags = g.uniform(0, .7, (n, 2)), g.uniform(.02, .3, (n, 2)), g.random((n, 5)) < .1
            box = np.round(np.stack([at[:, 0], at[:, 0] + wh[:, 0], at[:, 1], at[:, 1] + wh[:, 1]], 1), 6)
            columns = image, kind, box, flags.astype(int), sizes[image % 4]
            rows = zip(*(c.tolist() for c in columns))
            f.writelines(f'{i*2654435761 % 2**64:016x},xclick,/m/0{k:03d}x,1,{b[0]},{b[1]},{b[2]},{b[3]},'
                         f'{o[0]},{o[1]},{o[2]},{o[3]},{o[4]},{s[0]},{s[1]}\n' for i, k, b, o, s in rows)


def measure(folder: Path) -> None:
    "Read, check, plan, split, in this process."
    from yolokit.cleaning import checks, repair, split
    from yolokit.data import formats
    from yolokit.data.table import tuned_malloc
    peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss*1024
    now = lambda: int(Path('/proc/self/statm').read_text().split()[1])*4096
    base, out = now(), {}
    def step(name, f):
        wall, cpu = time.monotonic(), time.process_time()
        v = f()
        out[name] = dict(wall=time.monotonic() - wall, cpu=time.process_time() - cpu, peak=peak() - base,
                         kept=now() - base)
        print(name, {k: round(v/1e9, 3) if v > 1e6 else round(v, 1) for k, v in out[name].items()}, file=sys.stderr,
              flush=True)
        return v
    t = step('read', lambda: formats.read(folder, format=str(folder/'adapter.yaml')))
    with tuned_malloc(): # as `prepare` does
        found = step('check', lambda: checks.check(t))
        plan = step('plan', lambda: repair.plan(found))
        t = step('apply', lambda: repair.apply(t, plan)[0])
        t = step('split', lambda: split.split(t))
    print(json.dumps(out | dict(boxes=len(t), images=t.n_images)))


if __name__ == '__main__':
    p = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    p.add_argument('boxes', type=int, nargs='*', default=[BOXES])
    p.add_argument('--folder', type=Path)
    p.add_argument('--measure', action='store_true')
    a = p.parse_args()
    if a.measure: measure(a.folder); sys.exit()
    for n in a.boxes:
        folder = (a.folder or Path(tempfile.mkdtemp()))/str(n)
        folder.mkdir(parents=True, exist_ok=True)
        if not (folder/'adapter.yaml').exists(): make(folder, n)
        command = [sys.executable, __file__, '--measure', '--folder', folder]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode: sys.exit(done.stderr)
        d = json.loads(done.stdout.splitlines()[-1])
        print(f'{d.pop("boxes"):,} boxes, {d.pop("images"):,} pictures')
        for k, v in d.items():
            print(f'  {k:6s} {v["wall"]:8.2f} s wall {v["cpu"]:8.2f} s CPU   peak {v["peak"]/n:7.0f} bytes a box, '
                  f'{v["peak"]/1e9:6.2f} GB; kept {v["kept"]/n:6.0f}', flush=True)
        if not a.folder: shutil.rmtree(folder)
