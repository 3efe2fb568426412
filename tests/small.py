"""What the tests of training share: a checkout of their own, a few drawn pictures, a network of a few thousand
parameters."""
import os
from pathlib import Path
import numpy as np
from yolokit.core.images import write_image

CFG = '[net]\nwidth=96\nheight=96\nchannels=3\n' + ''.join(
    f'[convolutional]\nbatch_normalize=1\nfilters={f}\nsize=3\nstride={s}\npad=1\nactivation=leaky\n'
    for f, s in ((8, 2), (16, 2), (32, 2))) + '''
[convolutional]
filters=21
size=1
activation=logistic
[yolo]
mask=0,1,2
anchors=10,10, 16,16, 26,26
classes=2
num=3
scale_x_y=2.0
new_coords=1
'''


def checkout(folder: Path, n: int = 24) -> Path:
    "A folder that yolokit takes for its checkout: settings.ini, tiny.cfg, and squares/ in YOLO's layout."
    draw = np.random.default_rng(0)
    (folder/'settings.ini').write_text('[DEFAULT]\n')
    (folder/'tiny.cfg').write_text(CFG)
    for split, count in (('train', n), ('val', 8)):
        for sub in ('images', 'labels'): (folder/'squares'/sub/split).mkdir(parents=True)
        for i in range(count):
            rgb, rows = np.kron(draw.integers(90, 130, (12, 12, 3)), np.ones((8, 8, 1))).astype(np.uint8), []
            for _ in range(draw.integers(1, 3)):
                s, c = int(draw.integers(10, 28)), int(draw.integers(2))
                x, y = map(int, draw.integers(0, 96 - s, 2))
                rgb[y:y+s, x:x+s] = (230, 40)[c]
                rows.append(f'{c} {(x + s/2)/96:.6f} {(y + s/2)/96:.6f} {s/96:.6f} {s/96:.6f}\n')
            write_image(folder/f'squares/images/{split}/{split}{i}.png', rgb)
            (folder/f'squares/labels/{split}/{split}{i}.txt').write_text(''.join(rows))
    (folder/'squares/dataset.yaml').write_text('path: .\ntrain: images/train\nval: images/val\nnames: [bright, dark]\n')
    return folder


def unjudged(monkeypatch, judge=None) -> None:
    """Trainings of this process write no predictions, pictures or submission; `judge`, a make_validator of the test's
    own, judges between epochs; None: nothing does."""
    monkeypatch.setattr('yolokit.apps.train.make_validator', judge or (lambda *a, **kw: None))
    monkeypatch.setattr('yolokit.apps.train.finish_run', lambda *a: {})


def environment(folder: Path) -> dict:
    "Variables for a process that is to work in that checkout, with one thread."
    return os.environ | dict(YOLOKIT_ROOT=str(folder), OMP_NUM_THREADS='1')
