"""Rates from shards over files: the same epochs of the loader from links to pictures, from tar files, and from
tar files behind HTTP on 127.0.0.1, with nothing kept and with everything kept.

    python bench/shards.py [PICTURES] [TURNS]

The pictures are JPEGs of about 90 kB, 640 x 480. Wall time, two worker processes, medians of interleaved turns; the
server is a process of its own. Reading alone shows what a place costs beside a path.
"""
import hashlib, multiprocessing, os, statistics, sys, tempfile, time
from pathlib import Path

import cv2
import numpy as np

sys.path.insert(0, str(Path(__file__).parent.parent/'tests'))
from ranges import ranges

from yolokit.cleaning.prepare import load_prepared, prepare
from yolokit.core import images
from yolokit.data.augment import Augment
from yolokit.data.loader import Loader
from yolokit.data.shards import open_store


def make(folder, n):
    for k in ('images', 'labels'): (folder/k/'train').mkdir(parents=True)
    for i in range(n):
        g = np.random.Generator(np.random.Philox(key=i))
        x = cv2.resize(g.integers(0, 255, (60, 80, 3), dtype=np.uint8), (640, 480), interpolation=cv2.INTER_CUBIC)
        x = cv2.add(x, g.integers(0, 12, (480, 640, 1), dtype=np.uint8).repeat(3, 2))
        images.write_image(folder/f'images/train/{i:06d}.jpg', x, 85)
        (folder/f'labels/train/{i:06d}.txt').write_text(f'{i % 3} .5 .5 .3 .4\n')
    (folder/'data.yaml').write_text('path: .\ntrain: images/train\nnames: [a, b, c]\n')


def serve(folder, url):
    with ranges(folder) as s:
        url.put(s.url)
        while True: time.sleep(60)


def main(n=1000, turns=7):
    with tempfile.TemporaryDirectory() as tmp:
        os.environ |= dict(YOLOKIT_CACHE=f'{tmp}/cache', YOLOKIT_SHARD_CACHE='0', no_proxy='127.0.0.1')
        tmp = Path(tmp)
        make(tmp/'raw', n)
        prepare(tmp/'raw', tmp/'files')
        prepare(tmp/'raw', tmp/'tars', shards='20MB')
        url = multiprocessing.Queue()
        server = multiprocessing.Process(target=serve, args=(tmp, url), daemon=True)
        server.start()
        url = url.get()
        tables = dict(files=load_prepared(tmp/'files'), shards=load_prepared(tmp/'tars'))
        tables['http'] = load_prepared(open_store(f'{url}/tars'))
        os.environ['YOLOKIT_SHARD_CACHE'] = '10GB'
        (tmp/'again').symlink_to(tmp/'tars')
        tables['http, kept'] = load_prepared(open_store(f'{url}/again'))
        size = np.mean([len(images.read_bytes(p)) for p in tables['files'].images['path']])
        print(f'{n} pictures of {size/1000:.0f} kB, {len(list((tmp/"tars/shards").iterdir()))} shards, {turns} turns')
        aug = Augment(mosaic=1., hsv_h=.015, hsv_s=.7, hsv_v=.4, scale=.5, translate=.1, fliplr=.5)
        loaders = {(w, k): Loader(t.split('train'), (416, 416), 16, 0, a, workers=2, cache='')
                   for w, a in (('as they are', Augment()), ('mosaic', aug)) for k, t in tables.items()}
        def epoch(l, e): return hashlib.sha256(b''.join(b.images[:, :, ::16, ::16].numpy().tobytes()
                                                        for b in l.epoch(e))).hexdigest()
        def read(t): return [len(images.read_bytes(p)) for p in t.images['path']][0]
        work = {('bytes alone', k): (lambda e, t=t: read(t)) for k, t in tables.items()}
        work |= {key: (lambda e, l=l: epoch(l, e)) for key, l in loaders.items()}
        took = {key: [] for key in work}
        for turn in range(-1, turns): # the first one is not counted
            for what in ('bytes alone', 'as they are', 'mosaic'):
                said = set()
                for k in list(tables)[::1 if turn % 2 else -1]:
                    began = time.monotonic()
                    said.add(work[what, k](turn + 1))
                    if turn >= 0: took[what, k].append(time.monotonic() - began)
                assert len(said) == 1, 'the batches differ'
        for what in ('bytes alone', 'as they are', 'mosaic'):
            base = statistics.median(took[what, 'files'])
            print(f'{what:12}', '   '.join(f'{k} {n/statistics.median(took[what, k]):,.0f}/s '
                                           f'(×{base/statistics.median(took[what, k]):.2f})'
                                           for k in tables), flush=True)
        for l in loaders.values(): l.close()
        server.terminate()


if __name__ == '__main__': main(*map(int, sys.argv[1:]))
