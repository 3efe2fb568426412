"""Checkpoints of YOLOv5 and YOLOv7 read by yolokit, against their authors' own code.

    python bench/foreign_checkpoints.py FOLDER [RELEASE ...]

FOLDER holds the authors' code as you fetched it, a folder a release (v5.0/models, yolov7/models, …). For every release
a small network of random weights is built, saved and run by that code in a process of its own; yolokit reads the file
and decodes the same picture. Printed is the greatest difference of boxes (pixels) and of scores.
"""
import importlib.abc, importlib.machinery, os, sys, tempfile, types
from pathlib import Path
import numpy as np, torch, yaml

CASES = [ # release, yaml, width, depth, how it is saved
    *[(v, 'models/yolov5s.yaml', .125, .33, '') for v in 'v2.0 v3.0 v3.1 v4.0 v5.0 v6.0 v6.1 v6.2 v7.0'.split()],
    ('v3.1', 'models/yolov5s.yaml', .125, .33, 'fused'), ('v5.0', 'models/hub/yolov5s6.yaml', .125, .33, 'half fused'),
    ('v5.0', 'models/hub/yolov3-spp.yaml', .125, .33, ''), ('v6.1', 'models/hub/yolov5-panet.yaml', .125, .33, ''),
    ('v7.0', 'models/yolov5s.yaml', .125, .33, 'used'), ('v6.2', 'models/hub/yolov5s6.yaml', .125, .33, 'used'),
    ('yolov7', 'cfg/training/yolov7-tiny.yaml', .5, 1, ''), ('yolov7', 'cfg/training/yolov7.yaml', .25, 1, ''),
    ('yolov7', 'cfg/training/yolov7x.yaml', .125, 1, ''), ('yolov7', 'cfg/training/yolov7-w6.yaml', .125, 1, ''),
    ('yolov7', 'cfg/training/yolov7-d6.yaml', .125, 1, ''), ('yolov7', 'cfg/deploy/yolov7.yaml', .25, 1, 'fused'),
    ('yolov7', 'cfg/deploy/yolov7-tiny-silu.yaml', .5, 1, 'half')]


class _Nothing:
    "Stands for whatever a module that is not installed would give."
    def __init__(self, *a, **k): pass
    def __call__(self, *a, **k): return a[0] if len(a) == 1 and callable(a[0]) else _Nothing()
    def __getattr__(self, name):
        if name.startswith('__'): raise AttributeError(name)
        return _Nothing()
    def __ge__(self, other): return True                     # versions


class _Absent(types.ModuleType):
    __path__ = []
    def __getattr__(self, name):
        if name.startswith('__'): raise AttributeError(name)
        return type(name, (_Nothing,), {}) if name[:1].isupper() else _Nothing()


class _Absents(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    "Modules that the authors' code imports and that neither building nor running a network needs."
    names = set('seaborn pandas thop requests pkg_resources psutil wandb google clearml ultralytics git scipy '
                'torchvision pycocotools IPython'.split())
    def find_spec(self, name, path, target=None):
        if name.split('.')[0] in self.names or name == 'utils.plots':
            return importlib.machinery.ModuleSpec(name, self, is_package=True)
    def create_module(self, spec): return _Absent(spec.name)
    def exec_module(self, module): pass


def make(code: Path, cfg: str, width, depth, how: str, out: Path) -> None:
    "Build, save and run a network by the code in a folder; in a process of its own."
    os.chdir(code)
    sys.path.insert(0, str(code)); sys.meta_path.insert(0, _Absents())
    np.int = int
    from models import yolo
    y = yaml.safe_load(open(cfg)) | dict(nc=2, width_multiple=width, depth_multiple=depth)
    torch.manual_seed(1)
    g = torch.Generator().manual_seed(2)
    with torch.no_grad():
        m = yolo.Model(y)
        for k, t in m.state_dict().items():
            if 'running_var' in k: t.uniform_(.5, 1.5, generator=g)
            elif 'running_mean' in k or k.endswith('bn.bias'): t.normal_(0, .2, generator=g)
            elif 'implicit' in k: t.normal_(float('.im.' in k), .3, generator=g)
        m.eval()
        side = 128 if len(m.stride) < 4 else 256
        x = torch.rand(1, 3, side, side, generator=g)
        if 'fused' in how: m.fuse()
        if 'used' in how.split(): m(x)
        m.names = ['car', 'bus']
        if 'half' in how: m.half()
        torch.save(dict(epoch=-1, model=m, ema=None), out/'theirs.pt')
        np.savez(out/'theirs.npz', x=x, y=m.float()(x)[0])


def compare(code: Path, *case) -> str:
    "The line for one release."
    from yolokit.network.checkpoints import load_checkpoint
    out = Path(tempfile.mkdtemp())
    if not (pid := os.fork()):
        sys.stdout = sys.stderr = open(out/'log', 'w')
        try: make(code, *case, out); os._exit(0)
        except BaseException:
            import traceback
            traceback.print_exc(); sys.stdout.flush(); os._exit(1)
    if os.waitpid(pid, 0)[1]: return 'its own code failed: ' + (out/'log').read_text().strip().split('\n')[-1][:150]
    z = np.load(out/'theirs.npz')
    try: d = load_checkpoint(out/'theirs.pt').eval()
    except ValueError as e: return f'refused: {e}'
    with torch.no_grad(): y = d.decode(d(torch.from_numpy(z['x']))).numpy()
    gap = np.abs(y - z['y'])
    return f'{len(d.layers)} layers, boxes {gap[..., :4].max():.1e} px, scores {gap[..., 4:].max():.1e}'


if __name__ == '__main__':
    torch.set_num_threads(1)
    folder, wanted = Path(sys.argv[1]).resolve(), sys.argv[2:]
    for release, *case in CASES:
        if wanted and release not in wanted or not (folder/release).is_dir(): continue
        print(f'{release:7s} {case[0]:34s} {case[3]:11s}', compare(folder/release, *case), flush=True)
