"""What a teacher gives back of what pruning takes, at equal steps, several seeds: on the embedded default, or on
`data`.

    OMP_NUM_THREADS=1 nice -n 10 python bench/compress.py parent=runs/finetune-001/weights/best.pt budget=0.6 \
steps=200 lr0=.01 seeds=0,1,2

Prints a Markdown table: the parent, and the pruned network fine-tuned without and with its parent as teacher.
"""
import copy, sys, tempfile, time
from dataclasses import replace
from pathlib import Path
import numpy as np, torch
from yolokit.core import environment
from yolokit.network.checkpoints import load_checkpoint
from yolokit.data.loader import Loader
from yolokit.training import runs
from yolokit.training.recipes import RECIPES
from yolokit.training.step import init_training, resolve_amp
from yolokit.training.train import fit, FitOptions
from yolokit.evaluation import metrics
from yolokit.compression import distill
from yolokit.compression.distill import DistillationLoss
from yolokit.apps import compress, prepare

CPU = torch.device('cpu')


def fine_tuned(parent, small, table, judge, recipe, seed, teacher, threads, compile):
    "AP, AP50, CPU seconds of one fine-tuning."
    with tempfile.TemporaryDirectory() as folder, environment.deterministic(threads):
        run = runs.Run.new('x', 'x', folder, seed=seed)
        extra = DistillationLoss(small, load_checkpoint(parent), recipe.gains, teacher, seed) if teacher else None
        loader, began = Loader(table.split('train'), small.size, recipe.bs, seed, recipe.augment,
                               workers=0), time.process_time()
        t = init_training(small.train(), recipe, CPU, resolve_amp('auto', CPU), extra)
        fit(run, t, loader, judge, options=FitOptions(compile=compile))
        m = runs.read_csv(run.folder/'metrics.csv')
        return m['AP'][-1], m['AP50'][-1], time.process_time() - began


def main(parent, budget='0.6', of='macs', steps='200', lr0='0.01', lr0_taught='', seeds='0,1,2', by='taylor',
         how='greedy', multiple='4', least='', threads='1', data='', split='auto', compile='', **numbers):
    teaching = distill.DistillWeights(**{k: float(v) for k, v in numbers.items()})
    table = prepare.prepare_if_needed(data, split=split).table
    d = load_checkpoint(parent).eval()
    judge = metrics.make_validator(table.split('val'), d.size, 8, 0)
    c = compress.CompressConfig(of=of, by=by, how=how, multiple=int(multiple), least=int(least or 0))
    batches, whole = compress.batches_of(table, d.size, 0), compress.cost(d.cfg)
    recipes = {who: replace(RECIPES['finetune'], steps=int(steps), lr0=float(lr),
                            every=1e6) for who, lr in (('alone', lr0), ('taught', lr0_taught or lr0))}
    made = {who: compress.prune_detector(d, float(budget), whole[of], replace(c, distill=who == 'taught'),
                                         batches) for who in recipes}
    m, left = judge(d), compress.cost(made['alone'].cfg)
    print(f'{Path(parent).name}: {steps} steps of {recipes["alone"].bs}, lr0 {recipes["alone"].lr0:g} alone and '
          f'{recipes["taught"].lr0:g} taught; {left["params"]/whole["params"]:.3f} of the parameters and '
          f'{left["macs"]/whole["macs"]:.3f} of the MACs left; {teaching}\n')
    print('| | seed | AP | AP50 | CPU s |\n|---|---|---|---|---|')
    print(f'| parent | | {m["AP"]:.4f} | {m["AP50"]:.4f} | |', flush=True)
    for who, text in (('alone', 'pruned, not trained'), ('taught', 'the same, reconstructed')):
        u = judge(made[who])
        print(f'| {text} | | {u["AP"]:.4f} | {u["AP50"]:.4f} | |', flush=True)
    found = {}
    for seed in map(int, seeds.split(',')):
        for who in ('alone', 'taught'):
            ap, ap50, s = fine_tuned(parent, copy.deepcopy(made[who]), table, judge, recipes[who], seed,
                                     who == 'taught' and teaching, int(threads), bool(compile))
            found.setdefault(who, []).append((ap, ap50))
            print(f'| {who} | {seed} | {ap:.4f} | {ap50:.4f} | {s:.0f} |', flush=True)
    a, b = (np.array(found[k]) for k in ('alone', 'taught'))
    for k, name in enumerate(('AP', 'AP50')):
        lost, back = 100*(m[name] - a[:, k]), 100*(b[:, k] - a[:, k])
        print(f'\n{name}: alone {a[:, k].mean():.4f} ({a[:, k].min():.4f}–{a[:, k].max():.4f}), taught '
              f'{b[:, k].mean():.4f} ({b[:, k].min():.4f}–{b[:, k].max():.4f}); '
              f'lost {lost.mean():.1f} points, {back.mean():.1f} of them back: {100*back.mean()/lost.mean():.0f} %')


if __name__ == '__main__': main(**dict(a.split('=', 1) for a in sys.argv[1:]))
