"Shards: the same batches as from files, whatever a server does; workers that do not grow."
import hashlib, json, os, subprocess, sys, tarfile, time
import numpy as np
import pytest
from ranges import ranges
from yolokit.core import images
from yolokit.data import shards
from yolokit.data.augment import Augment
from yolokit.data.loader import Loader
from yolokit.data.shards import StoreError, open_store
from yolokit.cleaning.checks import check
from yolokit.cleaning.prepare import load_prepared, prepare

FULL, SIZE, N = Augment(mosaic=.5, mixup=.3, hsv_v=.4, translate=.2, scale=.5, fliplr=.5), (104, 64), 28


@pytest.fixture(scope='module')
def root(tmp_path_factory):
    "A raw set with Korean names, prepared with links and in shards."
    root, g = tmp_path_factory.mktemp('샤드'), np.random.default_rng(0)
    for k in range(N):
        images.write_image(root/f'raw/images/train/주차장 {k:02d}.png', g.integers(0, 255, (140 + k, 200, 3), np.uint8))
        (root/'raw/labels/train').mkdir(parents=True, exist_ok=True)
        (root/f'raw/labels/train/주차장 {k:02d}.txt').write_text(f'{k % 2} .5 .5 .{k % 4 + 2} .4\n')
    first = (root/'raw/images/train/주차장 00.png').read_bytes()           # a copy: equal lengths make the checks hash
    (root/'raw/images/train/주차장 01.png').write_bytes(first)
    (root/'raw/data.yaml').write_text('path: .\ntrain: images/train\nnames: [차, 사람]\n', encoding='utf-8')
    prepare(root/'raw', root/'files', val=.25)
    prepare(root/'raw', root/'tars', val=.25, shards='1MB')
    return root


@pytest.fixture(autouse=True)
def quick(monkeypatch, tmp_path):
    for k, v in dict(_BACKOFF=.001, _TIMEOUT=.2, _SLOWEST=1e6).items(): monkeypatch.setattr(shards, k, v)
    for k, v in dict(YOLOKIT_CACHE=str(tmp_path/'cache'), no_proxy='127.0.0.1', YOLOKIT_SHARD_CACHE='0').items():
        monkeypatch.setenv(k, v)


def digest(table, workers=0, cache='', epochs=(0,), seed=5):
    l = Loader(table.split('train'), SIZE, 4, seed=seed, augment=FULL, workers=workers, cache=cache)
    try: return [hashlib.sha256(b.images.numpy().tobytes() + b.targets.numpy().tobytes()).hexdigest()
                 for e in epochs for b in l.epoch(e)]
    finally: l.close()


def test_a_set_in_shards_is_the_same_set(root):
    a, b = load_prepared(root/'files'), load_prepared(root/'tars')
    ours, theirs = (json.loads((root/k/'prepared.json').read_text()) for k in ('tars', 'files'))
    assert ours['fingerprint'] == theirs['fingerprint'] and len(ours['shards']['files']) > 2
    assert (root/'tars/annotations.json').read_bytes() == (root/'files/annotations.json').read_bytes()
    for k in ('id', 'file', 'split', 'width', 'height'): assert (a.images[k] == b.images[k]).all()
    for p, q in zip(a.images['path'], b.images['path']):
        assert images.read_bytes(p) == images.read_bytes(q) and images.image_size(p) == images.image_size(q)
    assert check(a).counts() == check(b).counts()                    # files are looked at, in the tar too
    assert digest(a) == digest(b) == digest(b, workers=2) == digest(b, cache='ram')


def test_unpacked_it_is_the_folder_with_links(root, tmp_path):
    for t in sorted((root/'tars/shards').iterdir()):
        with tarfile.open(t) as f: f.extractall(tmp_path, filter='data')
    of = lambda folder: {str(p.relative_to(folder)): p.read_bytes() for k in ('images', 'labels')
                         for p in (folder/k).rglob('*') if p.is_file()}
    assert of(tmp_path) == of(root/'files')
    assert prepare(root/'raw', tmp_path/'again', val=.25, shards='1MB').info['shards']['sha256'].items() \
        == json.loads((root/'tars/prepared.json').read_text())['shards']['sha256'].items()
    for t in (root/'tars/shards').iterdir(): assert (tmp_path/'again/shards'/t.name).read_bytes() == t.read_bytes()


def test_a_line_is_used_again(root):
    "Python 3.11 left each answer open: a new connection for every picture."
    with ranges(root) as s:
        t = load_prepared(open_store(f'{s.url}/tars'))
        before, asked = s.lines, len(s.asked)
        for p in t.images['path']: images.read_bytes(p)
        assert len(s.asked) - asked == N and s.lines - before <= 1


FAULTS = 'stall cut lie beside longer drip moved 503'.split() + ['hangs up']

@pytest.mark.soak # one by one; all at once below
@pytest.mark.parametrize('fault', FAULTS)
def test_over_http_whatever_the_server_does(root, fault):
    with ranges(root, lambda n, path: fault if n % 9 == 3 and '?' not in path else '') as s:
        t = load_prepared(open_store(f'{s.url}/tars'))
        assert digest(t) == digest(load_prepared(root/'files'))


def test_over_http_from_processes_with_all_faults_at_once(root, monkeypatch):
    monkeypatch.setenv('YOLOKIT_SHARD_CACHE', '1MB')
    odd = lambda n, path: FAULTS[n % len(FAULTS)] if n % 11 == 0 and '?' not in path else ''
    want = digest(load_prepared(root/'files'))
    with ranges(root, odd) as s:
        t = load_prepared(folder := open_store(f'{s.url}/tars'))
        for cache in ('', 'ram', ''): assert digest(t, workers=2, cache=cache) == want
        assert sum(p.stat().st_size for p in (folder/'shards').iterdir()) <= 10**6 # the bound; sparse, so less on disk


@pytest.mark.parametrize('fault, says', [('404', 'the server says 404'), ('403', 'check address and login'),
                                         ('whole', 'sends whole files only'), ('lie', 'other bytes came'),
                                         ('beside', 'asked for the bytes'), ('cut', 'the line broke'),
                                         ('stall', 'timed out'), ('500', 'the server says 500')])
def test_a_server_that_never_gives_it(root, fault, says):
    "Nothing is passed over, even where unreadable pictures are."
    with ranges(root, lambda n, path: fault) as s:
        t = load_prepared(open_store(f'{s.url}/tars'))
        began = time.monotonic()
        for workers in (0, 1):
            l = Loader(t.split('train'), SIZE, 4, workers=workers, cache='', unreadable='skip')
            with pytest.raises(StoreError, match=says): list(l.epoch(0))
            l.close()
        assert time.monotonic() - began < 15


def test_the_server_is_gone(root):
    with ranges(root) as s: t = load_prepared(open_store(f'{s.url}/tars'))
    with pytest.raises(StoreError, match='7 times in a row'): images.read_image(t.images['path'][0])


def test_kept_parts(root, monkeypatch):
    "What is kept is not asked for again, is trusted no more than the server, and bounded."
    monkeypatch.setenv('YOLOKIT_SHARD_CACHE', '1.5MB')
    want = digest(load_prepared(root/'files'))
    with ranges(root) as s:
        t = load_prepared(folder := open_store(f'{s.url}/tars'))
        assert digest(t) == want
        kept = sorted((folder/'shards').iterdir())
        assert [p.name for p in kept] == ['00000.tar', '00001.tar'] and sum(p.stat().st_size for p in kept) <= 1.5e6
        s.asked.clear()
        assert digest(t) == want
        assert {p for p, r in s.asked} == {'/tars/shards/00001.tar'} | {f'/tars/shards/{k:05d}.tar' for k in (2, 3)
                                                                        if any(f'{k:05d}' in p for p, r in s.asked)}
        with open(kept[0], 'r+b') as f: f.truncate(5000); f.seek(9000); f.write(b'damage')
        assert digest(t) == want
        monkeypatch.setattr(shards, '_keep_part', lambda *a: (_ for _ in ()).throw(OSError(28, 'No space left')))
        kept[0].unlink()
        assert digest(t) == want and not kept[0].exists()             # a full disk: fetched again
        n = len(s.asked)
        assert open_store(f'{s.url}/tars/') == folder                  # only the record is fetched
        assert [p for p, r in s.asked[n:]] == ['/tars/prepared.json']


def test_another_set_at_the_address(root, tmp_path):
    with ranges(tmp_path) as s:
        (tmp_path/'set').symlink_to(root/'tars')
        first = load_prepared(open_store(f'{s.url}/set'))
        prepare(root/'raw', tmp_path/'other', val=.25, seed=9, shards='1MB')
        (tmp_path/'set').unlink(); (tmp_path/'set').symlink_to(tmp_path/'other')
        with pytest.raises(StoreError, match='other bytes|server says|the line broke|asked for'):
            for p in first.images['path']: images.read_image(p)       # who still has the old index is told
        again = load_prepared(open_store(f'{s.url}/set'))
        assert digest(again) == digest(load_prepared(tmp_path/'other'))


def test_what_is_no_set(root, tmp_path):
    with ranges(root) as s:
        with pytest.raises(ValueError, match='prepared, but not in shards'): open_store(f'{s.url}/files')
        with pytest.raises(ValueError, match='404'): open_store(f'{s.url}/nothing')
        assert not [p for p in (tmp_path/'cache/shards').iterdir()]
    with pytest.raises(ValueError, match='at least 1MB'): prepare(root/'raw', tmp_path/'x', shards='10kB')
    with pytest.raises(ValueError, match='is no size'): prepare(root/'raw', tmp_path/'x', shards='big')
    assert not (tmp_path/'x').exists()


GROW = """
import sys
import numpy as np
from yolokit.cleaning.prepare import load_prepared
from yolokit.data.loader import Loader
from yolokit.data.table import Table

def private(pid): # kB
    text = open(f'/proc/{pid}/smaps_rollup').read()
    return sum(int(line.split()[1]) for line in text.splitlines() if line.startswith('Private_'))

t, n, per = load_prepared(sys.argv[1]).split('train'), 40_000, 320
rows = np.arange(n) % t.n_images
table = Table.make(dict(id=np.arange(n).astype(object), file=t.images['file'][rows],
                        path=np.array([f'{p}/../{i}.png' for i, p in enumerate(t.images['path'][rows])], object)),
                   dict(image=np.arange(n), category=np.zeros(n, int), x0=np.zeros(n), y0=np.zeros(n),
                        x1=np.full(n, 60.), y1=np.full(n, 60.)), ['car'])
loader = Loader(table, (32, 32), 16, workers=2, cache='', parts=n//per)
for e in range(4):
    for _ in loader.epoch(e): pass
    print(max(private(w.pid) for w in loader.pool._iterator._workers))
loader.close()
"""


@pytest.mark.skipif(not os.path.exists('/proc/self/smaps_rollup'), reason='Linux says what a process does not share')
def test_workers_do_not_grow(root):
    "A worker of a large set writes into nothing that it shares: from a process of its own, else pytest's heap counts."
    done = subprocess.run([sys.executable, '-c', GROW, root/'tars'], capture_output=True, text=True, check=True)
    used = [int(line) for line in done.stdout.split()]
    assert len(used) == 4 and used[-1] - used[0] < 2500, used          # kB: .3 MB; lists instead: 4 MB and more
