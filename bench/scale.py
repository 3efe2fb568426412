"""Preparing at the size of the parking challenge: 24,650 pictures of about 20 kB with 134,741 boxes, or N times that.

    python bench/scale.py [N] [FOLDER]  # the pictures are made in FOLDER (a temporary one) and left there if it was \
named

Everything is done that `prepare` does: reading, hashing every picture, the check, the plan, the split, links, labels.
Each run prepares a folder of its own and deletes nothing before: for five minutes ext4 looks at every inode that was
deleted near by before it gives out a new one (`recently_deleted` in perf), which adds up to 30 s of kernel time to
50,000 new files.
"""
import json, resource, shutil, sys, tempfile, time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import cv2
import numpy as np

from yolokit.core import files
from yolokit.cleaning import prepare

IMAGES, BOXES = 24_650, 134_741
NAMES = '세단(승용차) SUV 승합차 버스 학원차량(통학버스) 트럭 택시 성인 어린이 오토바이 전동킥보드 자전거 유모차 쇼핑카트'.split()
SHARE = np.array([.4, .2, .1, .05, .002, .1, .02, .06, .01, .02, .01, .02, .004, .004])


def name(i): return f'{i//1000:03d}/20201102_경기도_-_-_맑음_주간_실외_right_{i:06d}_{i*7:07d}.jpg'


def pictures(folder, a, b):
    "Pictures a to b, no two alike."
    cv2.setNumThreads(1)
    for i in range(a, b):
        g = np.random.Generator(np.random.Philox(key=i))
        x = cv2.resize(g.integers(0, 255, (12, 16, 3), dtype=np.uint8), (320, 240), interpolation=cv2.INTER_CUBIC)
        x = cv2.add(x, g.integers(0, 24, (240, 320, 1), dtype=np.uint8).repeat(3, 2))
        p = folder/'train/images'/name(i)
        p.parent.mkdir(parents=True, exist_ok=True)
        if not p.exists(): p.write_bytes(cv2.imencode('.jpg', x, [cv2.IMWRITE_JPEG_QUALITY, 80])[1])


def make(folder, times):
    "The raw layout of the challenge."
    n, m, g = IMAGES*times, BOXES*times, np.random.Generator(np.random.Philox(key=0))
    with ProcessPoolExecutor(2) as pool:
        for f in [pool.submit(pictures, folder, a, min(a + 1000, n)) for a in range(0, n, 1000)]: f.result()
    image, c = np.sort(g.integers(0, n, m)), g.choice(14, m, p=SHARE/SHARE.sum()) + 1
    box = np.stack([g.uniform(0, 250, m), g.uniform(0, 180, m), g.uniform(8, 60, m), g.uniform(8, 50, m)], 1).round(1)
    d = dict(images=[dict(id=i + 1, file_name=name(i), width=320, height=240) for i in range(n)],
             annotations=[dict(id=k + 1, image_id=i + 1, category_id=j, bbox=b, area=b[2]*b[3],
                               iscrowd=0) for k, (i, j, b) in enumerate(zip(image.tolist(), c.tolist(), box.tolist()))],
             categories=[dict(id=i + 1, name=k) for i, k in enumerate(NAMES)])
    (folder/'train/label').mkdir(parents=True, exist_ok=True)
    (folder/'train/label/Train.json').write_text(json.dumps(d, ensure_ascii=False), encoding='utf-8')


if __name__ == '__main__':
    times, folder = int(sys.argv[1]) if len(sys.argv) > 1 else 1, Path(sys.argv[2] if len(sys.argv) > 2
                                                                       else tempfile.mkdtemp())
    make(folder/'raw', times)
    used = lambda: (lambda u: u.ru_utime + u.ru_stime)(resource.getrusage(resource.RUSAGE_SELF))
    began, before, out = time.monotonic(), used(), files.numbered_dir(folder, 'prepared')
    p = prepare.prepare(folder/'raw', out)
    took, cpu = time.monotonic() - began, used() - before
    print({k: v[0] for k, v in p.info['counts'].items()}, p.info['repair']['found'])
    print(f'{IMAGES*times:,} pictures, {BOXES*times:,} boxes: {took:.1f} s, {cpu:.1f} CPU-s, '
          f'{resource.getrusage(resource.RUSAGE_SELF).ru_maxrss/1e6:.2f} GB at the peak')
    if len(sys.argv) <= 2: shutil.rmtree(folder)
