"""What the loader promises across processes: the same batches, clear errors, no orphans."""
from dataclasses import replace
import ctypes, hashlib, os, signal, subprocess, sys, time
import numpy as np
import pytest
import torch
from yolokit.core import images
from yolokit.core.images import ImageError
from yolokit.data.table import Table, tuned_malloc
from yolokit.data.augment import Augment
from yolokit.data.loader import Loader, LoaderError

FULL = Augment(mosaic=.8, mixup=.3, hsv_h=.015, hsv_s=.7, hsv_v=.4, degrees=5, translate=.2, scale=.5, shear=2,
               flipud=.2, fliplr=.5, close_mosaic=1)
SIZE = (104, 64)                                       # not square


@pytest.fixture(scope='module')
def table(tmp_path_factory):
    folder, g = tmp_path_factory.mktemp('사진'), np.random.default_rng(0)
    n, sizes, rows = 23, [(160, 96), (90, 120), (64, 64)], []
    for k in range(n):
        w, h = sizes[k % 3]
        images.write_image(folder/f'맑음_{k:02d}.png',
                           g.integers(0, 255, (h//8, w//8, 3), np.uint8).repeat(8, 0).repeat(8, 1)[:h, :w])
        for _ in range(k % 4):
            x, y = g.uniform(0, w-20), g.uniform(0, h-20)
            rows.append((k, g.integers(3), x, y, x+g.uniform(5, 20), y+g.uniform(5, 20)))
    r = np.array(rows)
    files = [f'맑음_{k:02d}.png' for k in range(n)]
    return Table.make(dict(file=files, path=[str(folder/f) for f in files], width=[sizes[k % 3][0] for k in range(n)],
                           height=[sizes[k % 3][1] for k in range(n)]),
                      dict(image=r[:, 0].astype(int), category=r[:, 1].astype(int),
                           **dict(zip(('x0', 'y0', 'x1', 'y1'), r[:, 2:].T))), list('abc'))


def digest(batches):
    return [hashlib.sha256(b.images.numpy().tobytes() + b.targets.numpy().tobytes()
                           + ','.join(b.files).encode()).hexdigest() for b in batches]


def test_any_workers_any_cache_any_start(table):
    want = {e: digest(Loader(table, SIZE, 4, seed=7, augment=FULL, workers=0, epochs=3).epoch(e)) for e in (0, 2)}
    assert len(want[0]) == 5 and len(set(want[0] + want[2])) == 10
    for workers, cache in ((1, ''), (2, 'ram'), (4, '')):
        loader = Loader(table, SIZE, 4, seed=7, augment=FULL, workers=workers, cache=cache, epochs=3)
        next(iter(loader.epoch(1)))                    # left in the middle
        assert digest(loader.epoch(0)) == want[0]
        assert digest(loader.epoch(2, start=3)) == want[2][3:]
        assert digest(loader.epoch(2)) == want[2]
        loader.close()


@pytest.mark.parametrize('near', [3, 9, 1000])         # within a batch, over some, and more than there are
def test_neighbours_depend_on_places_alone(table, near):
    aug = Augment(mosaic=.9, mixup=.3, hsv_v=.4, translate=.2, scale=.5, fliplr=.5, near=near)
    want = {e: digest(Loader(table, SIZE, 4, seed=7, augment=aug, workers=0).epoch(e)) for e in (0, 1)}
    assert len(set(want[0] + want[1])) == 10
    for workers, cache in ((0, ''), (2, ''), (1, 'ram')):
        loader = Loader(table, SIZE, 4, seed=7, augment=aug, workers=workers, cache=cache)
        next(iter(loader.epoch(1)))
        assert digest(loader.epoch(0, start=2)) == want[0][2:] and digest(loader.epoch(1)) == want[1]
        loader.close()
    small = Loader(table, SIZE, 4, seed=7, augment=aug, workers=0, cache='')
    small.work.source.room = 2                         # forgets nearly everything
    assert digest(small.epoch(1)) == want[1] and len(small.work.source.held) == 2
    parts = [list(Loader(table, SIZE, 4, seed=7, augment=aug, workers=0, share=(k, 2)).epoch(1)) for k in (0, 1)]
    whole = list(Loader(table, SIZE, 4, seed=7, augment=aug, workers=0).epoch(1))
    for b, x, y in zip(whole, *parts):
        assert (torch.equal(torch.cat([x.images, y.images]), b.images)
                and torch.equal(torch.cat([x.targets, y.targets]), b.targets))


def test_neighbours_come_as_often_as_each_other(table):
    """Over many epochs each image is in as many mosaics as every other, however few places they come from."""
    loader, count = Loader(table, SIZE, 4, augment=Augment(mosaic=1., near=5), workers=0), np.zeros(23, int)
    src = loader.work.source
    load = type(src).tile
    try:
        type(src).tile = lambda self, i: (count.__setitem__(i, count[i] + 1), load(self, i))[1]
        for e in range(30): list(loader.epoch(e))
    finally: type(src).tile = load
    assert abs(count.mean() - 30*4*20/23) < 1 and count.std() < .12*count.mean()


def test_a_tile_is_decoded_once_for_its_neighbours(table, monkeypatch):
    seen, aug = [], Augment(mosaic=1., near=8)
    for n, held in ((80, 0), (23, 1)):                 # four for each of twenty samples, or none twice
        loader = Loader(table, SIZE, 4, augment=replace(aug, near=8*held), workers=0, cache='')
        seen.clear()
        with monkeypatch.context() as m:
            m.setattr(images, 'read_image', lambda p, read=images.read_image: (seen.append(p), read(p))[1])
            list(loader.epoch(0))
        assert len(seen) == n if not held else len(seen) == len(set(seen)) <= n


def test_two_seeds_differ(table):
    a, b = (digest(Loader(table, SIZE, 4, seed=s, workers=0).epoch(0)) for s in (0, 1))
    assert not set(a) & set(b)


def test_start_reads_nothing_before(table, monkeypatch):
    seen, loader = [], Loader(table, SIZE, 4, workers=0, cache='')
    monkeypatch.setattr(images, 'read_image', lambda p, read=images.read_image: (seen.append(p), read(p))[1])
    list(loader.epoch(0, start=4))
    assert len(seen) == 4


def test_targets_are_clean(table):
    loader = Loader(table, SIZE, 4, augment=FULL, workers=0)
    for e in range(6):
        for b in loader.epoch(e):
            assert b.targets.shape == (4, 3*4*2, 5) and b.images.dtype == torch.uint8
            t = b.targets[b.targets[..., 0] >= 0]
            x0, y0, x1, y1 = t[:, 1]-t[:, 3]/2, t[:, 2]-t[:, 4]/2, t[:, 1]+t[:, 3]/2, t[:, 2]+t[:, 4]/2
            assert ((x0 > -1e-3).all() and (y0 > -1e-3).all()
                    and (x1 < SIZE[0] + 1e-3).all() and (y1 < SIZE[1] + 1e-3).all())
            assert (t[:, 3:] > 1.99).all()


def test_closing_the_mosaic(table):
    loader = Loader(table, SIZE, 4, augment=FULL, workers=0, epochs=3)
    last = max(int((b.targets[..., 0] >= 0).sum(1).max()) for b in loader.epoch(2))
    assert last <= 3                                   # one image's boxes


def test_judging_gets_back_to_the_image(table):
    for b in Loader(table, SIZE, 4, shuffle=False, workers=1).epoch(0):
        for i, t, fit in zip(b.index.tolist(), b.targets.double().numpy(), b.fits):
            t = t[t[:, 0] >= 0]
            back = fit.back(np.concatenate([t[:, 1:3]-t[:, 3:]/2, t[:, 1:3]+t[:, 3:]/2], 1))
            assert np.abs(back - table.xyxy[table.of(i)]).max(initial=0) < 1e-3


def test_faulty_boxes_do_no_harm(table):
    x = table.xyxy
    x[0], x[1], x[2], x[3] = x[0][[2, 1, 0, 3]], np.nan, [-50, -50, -10, -10], [-50, -50, 500, 500]
    loader = Loader(table.with_xyxy(x), SIZE, 4, shuffle=False, workers=0)
    assert loader.left_out == 2
    total = sum(int((b.targets[..., 0] >= 0).sum()) for b in loader.epoch(0))
    assert total == len(table) - 3                     # reversed, nan, and the one that lies outside
    assert all(torch.isfinite(b.targets).all() for b in loader.epoch(0))


@pytest.mark.parametrize('workers', [0, 2])
def test_unreadable_image_is_named(table, tmp_path, workers):
    (tmp_path/'찢어짐.png').write_bytes(b'\x89PNG\r\n\x1a\nnot really')
    path = table.images['path'].copy()
    path[5] = str(tmp_path/'찢어짐.png')
    torn = Table.make(table.images | {'path': path}, table.boxes, table.names)
    with pytest.raises(ImageError, match='찢어짐.png'): list(Loader(torn, SIZE, 4, workers=workers, cache='').epoch(0))
    with pytest.raises(ImageError, match='찢어짐.png'): Loader(torn, SIZE, 4)
    for cache in ('', 'ram'):
        got = list(Loader(torn, SIZE, 4, shuffle=False, workers=workers, cache=cache, unreadable='skip').epoch(0))
        assert sum(map(len, got)) == 22
        assert [i for b in got for i, why in b.skipped] == [5] and '찢어짐.png' in got[1].skipped[0][1]


def test_killed_worker_is_a_clear_error(table):
    loader = Loader(table, SIZE, 2, augment=FULL, workers=2, cache='')
    stream = loader.epoch(0)
    next(stream)
    for w in loader.pool._iterator._workers: os.kill(w.pid, signal.SIGKILL)
    with pytest.raises(LoaderError, match='a loader process died'): list(stream)
    assert len(list(loader.epoch(0))) == len(loader)   # and it can start again


@pytest.mark.soak                                      # PyTorch's watchdog looks every five seconds
def test_nobody_is_left_behind(table, tmp_path):
    """Workers ignore Ctrl-C and SIGTERM, so they must go when their process does, however it goes."""
    script = tmp_path/'train.py'
    script.write_text(f'''
import pickle, sys, time
from yolokit.data.loader import Loader
if __name__ == '__main__':
    loader = Loader(pickle.load(open({str(tmp_path/"t.pkl")!r}, 'rb')), {SIZE}, 2, workers=2, cache='')
    next(iter(loader.epoch(0)))
    print(*[w.pid for w in loader.pool._iterator._workers], flush=True)
    time.sleep(60)
''')
    import pickle
    (tmp_path/'t.pkl').write_bytes(pickle.dumps(table))
    p = subprocess.Popen([sys.executable, str(script)], stdout=subprocess.PIPE, text=True)
    pids = [int(x) for x in p.stdout.readline().split()]
    assert len(pids) == 2
    for pid in pids: os.kill(pid, signal.SIGTERM)      # as a signal to the whole group would
    time.sleep(.3)
    def alive(pid):
        try: return open(f'/proc/{pid}/stat').read().rsplit(')', 1)[1].split()[0] not in 'ZX'
        except OSError: return False
    assert all(map(alive, pids))
    p.kill(); p.wait()
    end = time.time() + 15
    while any(map(alive, pids)) and time.time() < end: time.sleep(.2)
    assert not any(map(alive, pids))


def test_nothing_to_learn(table):
    with pytest.raises(LoaderError, match='no images'): Loader(table.keep_images(np.zeros(23, bool)), SIZE)
    with pytest.raises(LoaderError, match='no boxes at all'): Loader(table.keep(np.zeros(len(table), bool)), SIZE)
    assert len(list(Loader(table.keep(np.zeros(len(table), bool)), SIZE, shuffle=False, workers=0).epoch(0))) == 2


@pytest.mark.parametrize('how', ['held', 'stopped', 'dropped'])
def test_a_forked_process_that_forgot_its_loader_still_ends(table, how):
    """multiprocessing's own children (nbdev_test's workers) leave without atexit and wait for their children first."""
    import multiprocessing
    def forgets():
        global kept
        loader = Loader(table, SIZE, 4, workers=1, cache='')
        kept = loader, loader.epoch(0)
        next(kept[1])
        if how == 'stopped': os.kill(loader.pool._iterator._workers[0].pid, signal.SIGSTOP)
        if how == 'dropped':
            del kept, loader
            assert not multiprocessing.active_children() # at once, without the garbage collector
    p = multiprocessing.get_context('fork').Process(target=forgets)
    p.start()
    p.join(60)
    gone = not p.is_alive()
    p.kill()
    assert gone and p.exitcode == 0


class _Mallinfo2(ctypes.Structure):
    _fields_ = [(n, ctypes.c_size_t) for n in 'arena ordblks smblks hblks hblkhd usmblks fsmblks uordblks fordblks '
                                              'keepcost'.split()]


@pytest.mark.soak                                      # alone: another test of this process may have tuned malloc
@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), 'mallinfo2'), reason='a C library without mallinfo2')
def test_malloc_is_as_it_was_after_a_training():
    "A map of 64 MB of its own, from the heap while the block runs, and of its own again: a kernel lives on."
    libc = ctypes.CDLL(None)
    libc.mallinfo2.restype, libc.malloc.restype, libc.free.argtypes = _Mallinfo2, ctypes.c_void_p, [ctypes.c_void_p]
    def maps():
        before, p = libc.mallinfo2().hblks, libc.malloc(ctypes.c_size_t(2**26))
        after = libc.mallinfo2().hblks
        libc.free(p)
        return after - before
    assert maps() == 1
    with tuned_malloc(): assert maps() == 0
    assert maps() == 1
    with pytest.raises(ZeroDivisionError), tuned_malloc(): 1/0
    assert maps() == 1
