"""The results table of the README: real data, from COCO weights against from scratch, at the same number of steps.

    make real                    # everything; a run that has finished is not run again
    python bench/real.py table   # only the table and the picture, from the runs that are there
    python bench/real.py list    # the commands

Every row is one papermill command on a raw folder. The figure of a run is that of its last weights (the average over
steps), not of its best: nothing is chosen by the split that judges.
"""
import json, subprocess, sys, time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

ROOT = Path(__file__).parents[1]
DATA = '../shared/data'
# steps; from scratch the last third of 6,000 adds .003 AP: a plateau
LENGTHS, SEEDS = (600, 1200, 3000, 6000), (0, 1, 2)
BATCH, EVERY = 32, 400                                # images a step; steps between two evaluations
NET = f'-p network {DATA}/yolo_fastest/yolo-fastest-1.1.cfg'
WEIGHTS = {'COCO weights': f'{DATA}/yolo_fastest/yolo-fastest-1.1.weights', 'scratch': 'none'}
# one thread a run: on two cores two runs side by side are faster than one on both, on a GPU thirteen share it well
COMMON = '-p stage finetune -p recipe transfer -p threads 1 -p workers 2'


def commands():
    "Name of a run -> the words that make it."
    out = {}
    for seed in SEEDS:
        for steps in LENGTHS:
            for arm, weights in WEIGHTS.items():
                name = f'parking-space-{arm.split()[0].lower()}-{steps}-{seed}'
                out[name] = (f'papermill nbs/train.ipynb -p data {DATA}/parking_space -p split time {NET} -p weights '
                             f'{weights} '
                             f'-p width 416 -p height 224 -p every {EVERY/(187//BATCH):g} {COMMON} -p lr0 0.006 -p bs '
                             f'{BATCH} -p steps {steps} -p seed {seed} -p name {name}')
    out['bccd-0'] = (f'papermill nbs/train.ipynb -p data {DATA}/bccd {NET} -p weights {WEIGHTS["COCO weights"]} '
                     f'-p width 320 -p height 256 {COMMON} -p lr0 0.004 -p bs 8 -p steps 1000 -p seed 0 -p name bccd-0')
    return out


def run(name, words):
    "One command, unless its run has finished."
    info = ROOT/'runs'/name/'run.json'
    if info.exists() and json.loads(info.read_text())['state'] == 'finished': return
    print(words, flush=True)
    with open(ROOT/f'runs/{name}.out', 'w') as out:
        code = subprocess.run([sys.executable, '-m', *words.split(), '--no-progress-bar'], cwd=ROOT,
                              stdout=subprocess.DEVNULL, stderr=out).returncode
    print(f'{name}: exit {code}', flush=True)


def rows(name):
    "metrics.csv as columns."
    import csv
    with open(ROOT/'runs'/name/'metrics.csv') as f: table = list(csv.DictReader(f))
    return {k: np.array([float(r[k]) for r in table]) for k in ('step', 'AP', 'AP50')}


def done(name):
    return ((ROOT/'runs'/name/'run.json').exists()
            and json.loads((ROOT/'runs'/name/'run.json').read_text())['state'] == 'finished')


def reached(steps, arm):
    "The runs of an arm that have judged anything, and the last step that all of them have judged."
    names = [f'parking-space-{arm.split()[0].lower()}-{steps}-{s}' for s in SEEDS]
    names = [n for n in names if (ROOT/'runs'/n/'metrics.csv').exists()]
    at = {n: rows(n)['step'] for n in names}
    return names, max(set.intersection(*(set(v) for v in at.values())), default=0) if names else 0


def table():
    "The README's rows, one a number of steps and a start; spread: lowest to highest of the seeds."
    lines = ['| start | steps | AP | AP50 | minutes a run |', '|---|---|---|---|---|']
    show = lambda v: f'{v.mean():.3f} ({v.min():.3f}–{v.max():.3f})'
    for steps in LENGTHS:
        for arm in WEIGHTS:
            names, step = reached(steps, arm)
            if not step: continue
            at = {k: np.array([r[k][r['step'] == step][0] for r in map(rows, names)]) for k in ('AP', 'AP50')}
            took = [json.loads((ROOT/'runs'/n/'run.json').read_text())['seconds']/60 for n in names if done(n)]
            lines.append(f'| {arm}{"" if len(names) == len(SEEDS) else f", {len(names)} seed"} | '
                         f'{steps}{"" if step == steps else f", at step {step:.0f}"} '
                         f'| {show(at["AP"])} | {show(at["AP50"])} | {f"{np.median(took):.1f}" if took else ""} |')
    if done('bccd-0'): lines.append(f'\nbccd: AP {rows("bccd-0")["AP"][-1]:.3f}, AP50 {rows("bccd-0")["AP50"][-1]:.3f}')
    return '\n'.join(lines)


def picture(path):
    "AP over steps, every seed."
    from matplotlib.figure import Figure
    fig = Figure(figsize=(9, 3.2), layout='constrained')
    for ax, key in zip(fig.subplots(1, 2), ('AP', 'AP50')):
        for arm, color in zip(WEIGHTS, ('tab:blue', 'tab:orange')):
            for steps, style in zip(LENGTHS, (':', '-.', '--', '-')):
                for s in SEEDS:
                    n = f'parking-space-{arm.split()[0].lower()}-{steps}-{s}'
                    if not (ROOT/'runs'/n/'metrics.csv').exists(): continue
                    r = rows(n)
                    ax.plot(r['step'], r[key], style, color=color, lw=1.2, label=f'{arm}, {steps} steps'
                            if s == SEEDS[0] else None)
        ax.set(xlabel='optimizer step', ylabel=key, ylim=(0, .7), title='parking_space, held-back block of time'
               if key == 'AP' else f'{len(SEEDS)} seeds each')
        ax.grid(alpha=.3)
    fig.axes[1].legend(fontsize=7, loc='lower right', ncol=2)
    fig.savefig(path, dpi=90)


if __name__ == '__main__':
    what = sys.argv[1] if len(sys.argv) > 1 else 'all'
    if what == 'list': print('\n'.join(commands().values())); sys.exit()
    if what == 'all':
        if not (ROOT/DATA).is_dir():
            sys.exit(f'{DATA} is not there: see "Real data" in the README for where each set is published')
        (ROOT/'runs').mkdir(exist_ok=True)
        import torch
        with ThreadPoolExecutor(14 if torch.cuda.is_available() else 2) as pool:
            for item in commands().items():
                pool.submit(run, *item)
                time.sleep(1)                      # two kernels that start at once may choose the same port
    (ROOT/'assets').mkdir(exist_ok=True)
    picture(ROOT/'assets/parking_space.png')
    print(table())
