"""Two halves of the embedded set, each with seven of its fourteen classes unlabelled, against the whole. Hours on a
shared machine: `python tests/training/test_partly_labelled.py whole|halves|background [steps] [seed]` runs one."""
import sys, tempfile
from dataclasses import replace

import numpy as np
import pytest

from yolokit.apps.prepare import prepare_if_needed
from yolokit.core.environment import deterministic
from yolokit.data.loader import Loader
from yolokit.data.table import Table, merge
from yolokit.evaluation.metrics import make_validator
from yolokit.network import zoo
from yolokit.network.model import Detector
from yolokit.training.recipes import RECIPES
from yolokit.training.runs import read_csv, Run
from yolokit.training.step import init_training
from yolokit.training.train import FitOptions, fit


def halves(t: Table, forget=False) -> Table:
    "The even pictures know the even classes, the odd ones the odd; forget: nobody says so."
    def part(k):
        mine = t.keep_images(np.arange(t.n_images) % 2 == k)
        names = [n for i, n in enumerate(t.names) if i % 2 == k]
        mine = mine.keep(mine.boxes['category'] % 2 == k)
        return Table.make(mine.images, mine.boxes | dict(category=mine.boxes['category']//2), names)
    both = merge([part(0), part(1)])
    order = [both.names.index(n) for n in t.names]                     # the classes in their old order
    back = np.argsort(order)
    images = {k: v for k, v in both.images.items() if not (forget and k == 'unlabelled')}
    return Table.make(images, both.boxes | dict(category=back[both.boxes['category']]), t.names)


def reach(which: str, steps: int = 1000, seed: int = 0, data='') -> float: # AP on the fully labelled validation images
    table = prepare_if_needed(data).table
    train, val = table.split('train'), table.split('val')
    if which != 'whole': train = halves(train, which == 'background')
    r = replace(RECIPES['baseline'], steps=steps, every=8.4)
    with deterministic(1), tempfile.TemporaryDirectory() as folder:
        d = Detector(zoo.build('yolokit-nano', len(train.names)), train.names, seed)
        loader = Loader(train, d.size, r.bs, seed, r.augment, 0, epochs=-(-steps*r.bs//train.n_images))
        t = init_training(d, r)
        run = Run.new(which, folder=folder, seed=seed)
        fit(run, t, loader, make_validator(val, d.size, workers=0), options=FitOptions(save_every=1e9))
        m = read_csv(run.folder/'metrics.csv')
        return float(m['AP'][m['step'] == t.best_step][-1])


def test_halves_hold_every_image_and_half_the_boxes():
    n, names = 12, [f'class {k}' for k in range(14)]
    image, category = np.repeat(np.arange(n), 14), np.tile(np.arange(14), n)
    x, y = category*20., image*10.
    t = Table.make(dict(file=[f'{i}.jpg' for i in range(n)], width=[416]*n, height=[256]*n),
                   dict(image=image, category=category, x0=x, y0=y, x1=x + 15, y1=y + 9), names)
    h = halves(t)
    assert h.names == t.names and h.n_images == t.n_images
    assert sorted(h.images['file']) == sorted(t.images['file'])
    assert all(len(u) == 7 for u in h.images['unlabelled'])
    at = {f: i for i, f in enumerate(t.images['file'])}
    rows = {(at[h.images['file'][i]], c, *x) for i, c, x in zip(h.boxes['image'], h.boxes['category'], h.xyxy.tolist())}
    assert rows <= {(i, c, *x) for i, c, x in zip(t.boxes['image'], t.boxes['category'], t.xyxy.tolist())}
    loader = Loader(h, (416, 256), 8, workers=0, cache='')
    assert loader.unlabelled.sum(1).tolist() == [14, 7, 7]


@pytest.mark.soak
def test_who_knows_what_is_unlabelled_learns_more():
    "The whole is not reached in equal steps: .33 of .40, where the rest taken for background gives .31 (see 39_loss)."
    assert reach('halves') > reach('background')


if __name__ == '__main__': print(sys.argv[1:], reach(sys.argv[1], *map(int, sys.argv[2:4]), *sys.argv[4:]))
