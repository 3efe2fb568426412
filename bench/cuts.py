"""What the cut of a submission costs on real detections: the table of 66_submission.

    python bench/cuts.py             # trains what is not there yet (about five minutes on one core), then the table
    python bench/cuts.py lot         # one of the two

Thresholds are fitted on one half of the images that were not trained on and judged on the other; caps are shares of the
file as the challenge's code writes it. Every figure is COCO's mAP of the json as it was read back.
"""
import subprocess, sys, tempfile
from pathlib import Path

import numpy as np

from yolokit.core.rng import rng
from yolokit.core.files import project_root
from yolokit.network.checkpoints import load_checkpoint
from yolokit.data import parking
from yolokit.data.table import Table
from yolokit.cleaning import prepare
from yolokit.training.runs import Run, RunError
from yolokit.inference.detect import detect
from yolokit.evaluation.metrics import coco
from yolokit.evaluation.bootstrap import paired_bootstrap
from yolokit.evaluation import results
from yolokit.evaluation.results import challenge_conf_cut, challenge_row_bytes, encode_detections
from yolokit.evaluation.submission import fit_submission, learn_cut

CAPS = .4, .2, .1, .05
FASTEST = '../shared/data/yolo_fastest/yolo-fastest-1.1'
COMMON = '-p threads 1 -p workers 1 --no-progress-bar'
RUNS = {
    'bccd': f'-p stage finetune -p recipe transfer -p lr0 0.004 -p bs 8 -p data ../shared/data/bccd -p network '
            f'{FASTEST}.cfg -p weights {FASTEST}.weights -p width 320 -p height 256 -p steps 250',
    'lot': '-p stage baseline -p data data/lot -p recipe baseline -p network yolokit-nano -p steps 600',
}


def sides(name):
    "Truth and detections, score above .001 and multi-label, on the images that were not trained on."
    run = trained(name)
    data = prepare.load_prepared(project_root()/run.info['data']['folder'])
    seen = np.isin(np.arange(data.n_images), data.boxes['image']) & np.isin(data.images['split'], ['val', 'test'])
    truth = data.keep_images(seen)
    truth = Table.make(truth.images | dict(id=list(range(14_000, 14_000 + truth.n_images))), truth.boxes, truth.names,
                       list(range(1, len(truth.names) + 1)))
    return truth, detect(load_checkpoint(run.folder/'weights/best.pt'), truth, workers=0)


def trained(name):
    "The run, trained now if it is not there."
    try: return Run.open(f'cut-{name}')
    except RunError: pass
    if name == 'lot': parking.make_parking(project_root()/'data/lot', n_train=480, n_val=400, n_test=0, workers=1)
    (project_root()/'runs').mkdir(exist_ok=True)
    subprocess.run([sys.executable, '-m', 'papermill', str(project_root()/'nbs/train.ipynb'),
                    str(project_root()/f'runs/cut-{name}.ipynb'), *f'{RUNS[name]} {COMMON} -p name cut-{name}'.split()],
                   check=True, stderr=subprocess.DEVNULL)
    return Run.open(f'cut-{name}')


def back(s, truth):
    "A submission as its reader finds it."
    with tempfile.TemporaryDirectory() as t: return results.read_results(s.write(Path(t)/'s.json'), truth)


def measure(truth, found, seed=0, draws=1000, caps=CAPS):
    "Rows of the table: cap, bytes; mAP of conf cut, by score, by plan on both halves; the difference and its interval."
    first = rng(seed).permutation(truth.n_images) < truth.n_images//2
    (t0, f0), (t1, f1) = [(truth.keep_images(m), found.keep_images(m)) for m in (first, ~first)]
    plan, out = learn_cut(t0, f0), []
    cost = [challenge_row_bytes(f) for f in (f0, f1)]
    for cap in caps:
        row = dict(cap=cap)
        for t, f, c, half in ((t0, f0, cost[0], 'fit'), (t1, f1, cost[1], 'judge')):
            limit = int(cap*c.sum())
            files = dict(conf=encode_detections(f).table.keep(challenge_conf_cut(f.boxes['score'], c, limit)),
                         score=back(fit_submission(f, limit), t),
                         plan=back(s := fit_submission(f, limit, plan=plan), t))
            row |= {f'{half} {k}': coco(t, x)['AP'] for k, x in files.items()}
            assert s.bytes <= limit
        p = paired_bootstrap(t1, files['conf'], files['plan'], draws)['AP']
        row |= dict(how=s.how, low=p['low'], high=p['high'], uncut=coco(t1, f1)['AP'], bytes=limit)
        out.append(row)
    return out


def table(rows):
    "As Markdown."
    lines = ['| cap | bytes | conf cut | by score | with a plan | gain [95 %] | decided | on the fitting half |',
             '|--:|--:|--:|--:|--:|:--|:--|:--|']
    for r in rows:
        p = {k: f'{100*v:.2f}' for k, v in r.items() if k.startswith(('fit', 'judge'))}
        lines.append(f'| {r["cap"]:.0%} | {r["bytes"]:,} | {p["judge conf"]} | {p["judge score"]} | '
                     f'**{p["judge plan"]}** | {100*(r["judge plan"] - r["judge conf"]):+.3f} [{100*r["low"]:+.3f}, '
                     f'{100*r["high"]:+.3f}] '
                     f'| {r["how"]} | {p["fit conf"]} → {p["fit plan"]} |')
    return '\n'.join(lines)


if __name__ == '__main__':
    for name in sys.argv[1:] or RUNS:
        truth, found = sides(name)
        rows = measure(truth, found)
        print(f'{name}: {truth.n_images} images, {len(found):,} detections; uncut on the judging half '
              f'{100*rows[0]["uncut"]:.2f}\n\n{table(rows)}\n', flush=True)
