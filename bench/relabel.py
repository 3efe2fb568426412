"""What the loop of labels finds and gains on the embedded set, one label in five spoilt: the table of 98_relabel.

    python bench/relabel.py FOLDER [seed]    # 50 minutes on a busy core; what is done is not done again

Boxes are taken away, of another class, moved and invented, one in twenty of each. A run learns them; the detectors of
its cross-validation rank the labels; a person, played here by the key, looks at the first k findings, k as many as were
planted, and accepts those that are right; the prediction layers are refitted on either labels.
"""
import json, os, sys
from pathlib import Path

import numpy as np

FOLDER, SEED = Path(sys.argv[1]).resolve(), int((sys.argv + ['0'])[2])
FOLDER.mkdir(parents=True, exist_ok=True)
(FOLDER/'settings.ini').touch()
os.environ['YOLOKIT_ROOT'] = str(FOLDER)
os.chdir(FOLDER)

from yolokit.apps import relabel
from yolokit.apps.train import train, TrainConfig
from yolokit.cleaning import repair
from yolokit.core.boxes import box_iou_rowwise
from yolokit.core.files import save_json
from yolokit.data import formats, parking
from yolokit.data.table import Table
from yolokit.evaluation.bootstrap import paired_bootstrap
from yolokit.evaluation.label_errors import plant_label_errors, precision_at_k
from yolokit.evaluation.results import read_results
from yolokit.training.runs import Run, RunError

KIND = dict(overlooked='missing', swapped='swapped', misplaced='misplaced', spurious='spurious')
HOW = dict(device='cpu', workers=0, threads=1)


def clean() -> Table: # training and validation pictures
    "The embedded set as it was drawn, without the faults that its own labels have."
    parking.make_parking(FOLDER/'drawn')
    t, key = formats.read(FOLDER/'drawn'), json.loads((FOLDER/'drawn/key.json').read_text(encoding='utf-8'))['clean']
    t = t.keep_images(t.images['split'] != 'test')
    row = {f: i for i, f in enumerate(t.images['file'])}
    name, a = {m['id']: row[m['file_name']] for m in key['images']}, key['annotations']
    xyxy = np.array([b['bbox'] for b in a])
    xyxy[:, 2:] += xyxy[:, :2]
    made = dict(image=[name[b['image_id']] for b in a], category=[b['category_id'] - 1 for b in a],
                **dict(zip(('x0', 'y0', 'x1', 'y1'), xyxy.T)))
    val = t.keep(t.images['split'][t.boxes['image']] == 'val')
    return Table.make(t.images, {k: np.concatenate([np.asarray(v), val.boxes[k]]) for k, v in made.items()}, t.names)


def where(truth: Table, bad: Table, key: list) -> list: # the key, its rows those of the truth that the app reads
    "Each planted error among the labels as they were read back."
    image = {Path(f).name: i for i, f in enumerate(truth.images['file'])}
    at = [image[Path(f).name] for f in bad.images['file']]
    def row(j):
        here = truth.of(at[bad.boxes['image'][j]])
        other = truth.boxes['category'][here] != bad.boxes['category'][j]
        off = np.abs(truth.xyxy[here] - bad.xyxy[j]).max(1) + 9*other
        assert len(here) and off.min() < 1, f'box {j} of {bad.images["file"][bad.boxes["image"][j]]} is not read back'
        return int(here[off.argmin()])
    return [e | dict(image=at[e['image']], box=e['box'] if e['box'] < 0 else row(e['box'])) for e in key]


def as_drawn(town: Table, truth: Table) -> Table: # validation pictures as the app knows them
    "The sound boxes of those pictures."
    images, val = truth.images, town.keep_images(town.images['split'] == 'val')
    at = {Path(f).name: i for i, f in enumerate(images['file'])}
    boxes = val.boxes | dict(image=np.array([at[Path(f).name] for f in val.images['file']])[val.boxes['image']])
    return Table.make(images, boxes, truth.names, truth.category_ids).split('val')


def judge(findings, key: list) -> list: # for each finding: the planted error that it names, or None; each error once
    "A finding is right where its kind is, its box is, and an overlooked object's class and place (IoU .5) are."
    out, used, r = [], set(), findings.rows
    for k in range(len(findings)):
        def fits(e):
            if e['kind'] != KIND[r['reason'][k]]: return False
            if e['kind'] != 'missing': return e['box'] == r['box'][k]
            return (e['image'], e['category']) == (r['image'][k], r['label'][k]) and \
                box_iou_rowwise(np.array([e['xyxy']]), r['proposal'][k:k + 1])[0] >= .5
        i = next((i for i, e in enumerate(key) if i not in used and fits(e)), None)
        used.add(i)
        out.append(None if i is None else key[i])
    return out


def main():
    folder = FOLDER/'spoilt'
    town = clean()
    bad, key = plant_label_errors(town, .05, SEED)
    if not folder.exists(): formats.write(bad, folder, 'yolo')
    try: run = Run.open('first')
    except RunError:
        run = train(TrainConfig(stage='baseline', data='spoilt', network='yolokit-nano', weights='none', name='first',
                                recipe='baseline', seed=SEED, **HOW))
    c = relabel.RelabelConfig(run=run.name, folds=5, seed=SEED, **HOW)
    d = relabel.rank_doubts(c)
    key = where(d.truth, bad, key)
    k = len(key)
    first = d.findings.worst()
    first = first.keep(np.arange(len(first)) < k)
    right = judge(first, key)
    share = np.mean([e is not None for e in right])
    print(f'{k} planted among {len(bad)} labels; of the first {k} findings {share:.3f} are planted ones')
    alone = precision_at_k(d.findings, key)
    for reason, kind in KIND.items():
        n, own = alone[kind]
        shown = int((first.rows['reason'] == reason).sum())
        hit = sum(e is not None and e['kind'] == kind for e in right)
        print(f'  {kind:10} {n} planted; {hit} of {shown} among the first {k}; alone, of the first {n}: {own:.3f}')
    said = []
    for f, e in zip(repair.plan(first).records(), right):
        one = {x: f[x] for x in ('box', 'reason', 'file', 'proposal', 'label') if x in f}
        one['decision'] = 'reject' if e is None else 'accept'
        if e and e['kind'] == 'swapped': one['label'] = e['category']
        said.append(one)
    save_json(said, d.file)
    print(f'{sum(e is not None for e in right)} accepted, {sum(e is None for e in right)} refused')
    gain = relabel.measure_gain(c, d)
    print(gain._repr_markdown_())
    val = as_drawn(town, d.truth)
    found = [read_results(Run.open(n).folder/'predictions.json', val) for n in gain.runs.values()]
    for name, a, b in (('the labels gained', *found[1:]), ('since the run', found[0], found[2])):
        g = paired_bootstrap(val, a, b, 1000, seed=SEED)['AP']
        print(f'judged by the labels as drawn: AP that {name}: {g["difference"]:+.4f}, 95 % of the draws between '
              f'{g["low"]:+.4f} and {g["high"]:+.4f}')


if __name__ == '__main__': main()
