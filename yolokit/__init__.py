"""yolokit: a workshop for YOLO detectors of the Darknet family (YOLOv3, v4, scaled v4, YOLOR, v5, v7).

A network is its Darknet cfg, boxes live in one table, a run is a folder, the same seed gives the same bits.

    import yolokit as yk

    table = yk.read('my-photos')                 # any annotation format -> one table of boxes
    findings = yk.check(table)                   # what is wrong with it
    repaired, journal = yk.apply(table, yk.plan(findings))   # yk.undo(repaired, journal) takes it back

    run = yk.train(stage='finetune', data='my-photos')   # a folder in ./runs, or under $YOLOKIT_ROOT
    d = yk.load('finetune-001')                  # a run, a .pt or .weights file, or a published name (yolov5s)
    found = yk.detect(d, 'my-photos')            # boxes with scores, in the same kind of table; yk.nms by itself
    yk.coco(table, found)                        # the twelve COCO numbers
    yk.fit_submission(found, 20_000_000)         # what is worth most within 20 MB

    yk.to_darknet(d, 'out')                      # .cfg and .weights; to_onnx, to_deepstream likewise
    yk.check_compatibility(d.cfg, 'opencv')      # what a runtime refuses, and what it silently ignores

    yk.Cfg.read('yolov4.cfg'); yk.build('yolov4-tiny', classes=14); yk.Detector(cfg); yk.write(table, 'out', 'yolo')

In a terminal: `yolokit train stage=finetune`, `yolokit --help`, `yolokit lab` for the notebooks.
Packages, in reading order: core network data cleaning training inference evaluation export compression apps.
"""
__version__ = "0.2.0"

import os, sys
from importlib import import_module
from typing import TYPE_CHECKING

# Before torch loads libgomp: its threads spin while they wait, and on a machine that anything else uses too,
# each of a network's hundred small layers then waits for a descheduled spinner (measured with two threads on two
# busy cores, Yolo-Fastest at 416x256: 1,075 ms an image spinning, 107 ms sleeping).
os.environ.setdefault('OMP_WAIT_POLICY', 'PASSIVE')

# Names a user looks for, and where they stand. They are imported when they are first used, so that
# `import yolokit` loads neither torch nor OpenCV nor matplotlib.
_NAMES = {name: module for module, names in {
    'network.cfg': 'Cfg', 'network.model': 'Detector', 'network.zoo': 'build', 'apps.config': 'load',
    'data.formats': 'read write', 'cleaning.checks': 'check', 'cleaning.repair': 'plan apply undo',
    'inference.detect': 'detect', 'inference.nms': 'nms', 'evaluation.metrics': 'coco',
    'evaluation.submission': 'fit_submission', 'export.bundles': 'to_darknet to_onnx',
    'export.deepstream': 'to_deepstream', 'export.compatibility': 'check_compatibility',
    'apps.train': 'train'}.items() for name in names.split()}

# Modules of 0.1.0, all of them flat, and the place of what they held.
_MOVED = dict(line.split(maxsplit=1) for line in '''
boxes core.boxes
images core.images
ground core.files, core.rng, core.console
files core.files, core.download
cfg network.cfg
layers network.layers
model network.model
zoo network.zoo
census network.zoo
pickles network.safe_pickle
published network.pretrained
weights network.weights, network.checkpoints
table data.table
adapters data.adapters
records data.layouts
formats data.formats
known data.catalog
scene data.scene
parking data.parking
viewer data.viewer, cleaning.gallery
augment data.augment
loader data.loader
checks cleaning.checks
repair cleaning.repair, data.faults
inspector cleaning.inspector
datasets cleaning.prepare, cleaning.split, apps.prepare
loss training.loss
optim training.optim
recipes training.recipes
anchors training.anchors
runs training.runs, core.environment, apps.config
ranks training.distributed
launch training.launcher
compiled training.compile
fused training.compile
board training.monitor
train training.train, training.step, training.guards
suppress inference.nms
detect inference.detect, inference.render, apps.infer
views inference.ensemble
match evaluation.matching
curves evaluation.curves
evaluate evaluation.metrics
certainty evaluation.bootstrap
errors evaluation.errors
compact evaluation.results
leaderboard evaluation.leaderboard
submit evaluation.submission
suspects evaluation.label_errors
graph export.onnx_graph
lower export.lowering
targets export.compatibility
channels compression.channel_groups
prune compression.prune
distill compression.distill
quantize compression.quantize
qat compression.qat
tensorrt compression.tensorrt_int8
front compression.pareto
stages apps.train
sweeps apps.sweep
compress apps.compress
sixteen apps.precision_study
'''.strip().splitlines())


class _Moved:
    "Says where a module of 0.1.0 is now."
    @staticmethod
    def find_spec(name, path=None, target=None):
        package, _, old = name.partition('.')
        if package != __name__ or old not in _MOVED: return None
        new = ', '.join(f'yolokit.{m}' for m in _MOVED[old].split(', '))
        raise ModuleNotFoundError(f'{name} was a module of yolokit 0.1.0; what it held is now in {new} '
                                  '(CHANGELOG.md has the list; `import yolokit; help(yolokit)` the usual names)')


sys.meta_path.append(_Moved)


def __getattr__(name: str):
    if name in _NAMES: return getattr(import_module(f'{__name__}.{_NAMES[name]}'), name)
    raise AttributeError(f'module {__name__!r} has no attribute {name!r}')


def __dir__() -> list[str]:
    return sorted([*_NAMES, *'core network data cleaning training inference evaluation export compression apps'.split(),
                   '__version__', '__doc__'])


if TYPE_CHECKING:  # for editors and type checkers
    from .apps.config import load
    from .apps.train import train
    from .cleaning.checks import check
    from .cleaning.repair import apply, plan, undo
    from .data.formats import read, write
    from .evaluation.metrics import coco
    from .evaluation.submission import fit_submission
    from .export.bundles import to_darknet, to_onnx
    from .export.compatibility import check_compatibility
    from .export.deepstream import to_deepstream
    from .inference.detect import detect
    from .inference.nms import nms
    from .network.cfg import Cfg
    from .network.model import Detector
    from .network.zoo import build
