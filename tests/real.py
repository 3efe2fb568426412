"""The results table of the README: real data, from COCO weights against from scratch, at the same number of steps.

    make real                    # everything, about an hour on two cores; finished runs are not run again
    python tests/real.py table   # only the table and the picture, from the runs that are there

Each row is one papermill command; it is printed before it runs, and stands in the README.
"""
import csv, json, os, subprocess, sys, time
from pathlib import Path

ROOT = Path(__file__).parents[1]
SHARED = Path('../shared/data')
STEPS, FIFTH, SEEDS = 1000, 200, (0, 1, 2)          # 1000: where the from-scratch curve has flattened
NET = f'-p network {SHARED}/yolo_fastest/yolo-fastest-1.1.cfg'
PARKING = f'-p data {SHARED}/parking_space -p split time {NET} -p width 416 -p height 256'
WEIGHTS = {'coco': f'{SHARED}/yolo_fastest/yolo-fastest-1.1.weights', 'scratch': 'none'}


def commands():
    "Name of a run -> the words that make it."
    out = {}
    for steps in (FIFTH, STEPS):
        for seed in SEEDS:
            for arm, weights in WEIGHTS.items():
                name = f'parking-space-{arm}-{steps}-{seed}'
                out[name] = f'papermill nbs/train.ipynb {PARKING} -p weights {weights} -p stage finetune -p recipe transfer -p steps {steps} -p seed {seed} -p name {name}'
    for seed in SEEDS:
        name = f'bccd-{seed}'
        out[name] = f'papermill nbs/train.ipynb -p data {SHARED}/bccd {NET} -p weights {WEIGHTS["coco"]} -p width 320 -p height 256 -p stage finetune -p recipe transfer -p steps {STEPS} -p seed {seed} -p name {name}'
    return out
