"""Killed anywhere and called again, a disk that is full anywhere, two and three at once: whole results, each time. A
few of each here, all of them in `make soak`."""
import http.server, os, random, re, shutil, subprocess, tempfile, threading, time
from pathlib import Path

import pytest

import victims
from writers import ACTS, begin, call, fresh, first, tree

victims.CONTEXT.set_forkserver_preload(['victims', 'writers'])
# what names times, the machine or the process: there, and not the same twice
MOVES = re.compile(r'(^|/)(log\.txt|run\.json|leaderboard\.\w+|judged\.json|report\.ipynb)$|^one\.zip$|'
                   r'^clean/repair\.zip$|^runs/new/|^ship/certificate')


class Place:
    "A checkout at one path, made anew for each call, and what every call leaves there when nothing happens."
    def __init__(self, folder):
        self.at, self.kept, self.log, self.found = folder/'case', folder/'kept', folder/'log', {}
        self.at.mkdir(exist_ok=True)
        first(self.at)
        shutil.copytree(self.at, self.kept, symlinks=True)

    def fresh(self): fresh(self.at, self.kept)

    def reference(self, name): # -> files, steps of writing, seconds
        if name not in self.found:
            seen = []
            for _ in range(2):
                self.fresh()
                code, said = call(name, self.at, self.log)
                assert code == 0, said[-3000:]
                seen.append(tree(self.at))
            a, b = seen
            odd = [k for k in a if a[k] != b.get(k) and not MOVES.search(k)]
            assert a.keys() == b.keys() and not odd, (name, odd, a.keys() ^ b.keys())
            n, seconds = re.search(r'STEPS (\d+) ([\d.]+)', said).groups()
            self.found[name] = a, int(n), float(seconds)
        return self.found[name]

    def compare(self, name, got): # -> what is not as it is when nothing happens
        want = self.reference(name)[0]
        return sorted(k for k in want.keys() | got.keys() if want.get(k) != got.get(k)
                      and not (MOVES.search(k) and k in want and k in got))


@pytest.fixture(scope='module')
def place(tmp_path_factory): return Place(tmp_path_factory.mktemp('unlucky'))


def anywhere(place, name, r):
    _, n, seconds = place.reference(name)
    return ('step', r.randint(1, n)) if r.random() < .5 else ('time', max(.001, r.random()*seconds))


def killed(place, name, kill): # -> before its end? AssertionError where the same call does not make it whole
    place.reference(name)
    place.fresh()
    code, _ = call(name, place.at, place.log, kill=kill)
    again, said = call(name, place.at, place.log)
    assert again == 0 or 'already' in said, (name, kill, said[-1500:])
    odd = place.compare(name, tree(place.at))
    assert not odd, (name, kill, odd[:5])
    return code < 0


def kills(place, seeds):
    names, count = list(ACTS), dict.fromkeys(ACTS, 0)
    bad = []
    for seed in seeds:
        name = names[seed % len(names)]
        try: count[name] += killed(place, name, anywhere(place, name, random.Random(seed)))
        except AssertionError as e: bad.append(str(e)[:600])
    print(f'{len(seeds)} kills, {sum(count.values())} before the end: {count}')
    assert not bad, '\n'.join([f'{len(bad)} of {len(seeds)}', *bad])


def test_killed_anywhere_and_called_again(place): kills(place, range(0, 10, 2))
@pytest.mark.parametrize('name', ['exported', 'ranked'])
def test_killed_at_its_last_step(place, name): assert killed(place, name, ('step', place.reference(name)[1]))
@pytest.mark.soak
def test_killed_anywhere_and_called_again_in_full(place): kills(place, range(1000, 1300))


# ---- a disk that is full

class Disk(Place):
    "A checkout on a small disk of its own, whose size can be changed."
    def __init__(self, folder):
        (folder/'case').mkdir()
        done = subprocess.run(['mount', '-t', 'tmpfs', '-o', 'size=64m', 'tmpfs', str(folder/'case')],
                              capture_output=True, text=True)
        if done.returncode: pytest.skip('a small disk needs a right to mount one: ' + done.stderr.strip())
        self.at, self.needs = folder/'case', {}
        super().__init__(folder)

    def size(self, n): subprocess.run(['mount', '-o', f'remount,size={n}', str(self.at)], check=True)
    def used(self): s = os.statvfs(self.at); return (s.f_blocks - s.f_bfree)*s.f_frsize

    def need(self, name): # -> bytes that the call takes at most, more than there are before it
        if name in self.needs: return self.needs[name]
        self.reference(name)
        self.fresh()
        before, most = self.used(), 0
        p = begin(name, self.at, self.log)
        while p.exitcode is None: most = max(most, self.used() - before); p.join(.001)
        self.needs[name] = max(most, self.used() - before)
        return self.needs[name]


@pytest.fixture(scope='module')
def disk(): # not among pytest's folders, which it removes by itself
    with tempfile.TemporaryDirectory(prefix='yolokit-disk-', ignore_cleanup_errors=True) as folder:
        d = Disk(Path(folder))
        yield d
        subprocess.run(['umount', '-l', str(d.at)], check=True)


FULL = re.compile('No space left|disk is full|could not be written|cannot be written|full disk', re.I)
# written piece by piece, and read so
APPENDS = re.compile(r'^(steps\.csv|decisions\.json|first)$|^(runs/new|runs/row)/')

def starved(disk, name, share): # -> did it end with an error?
    need = disk.need(name)
    disk.fresh()
    disk.size((disk.used() + int(need*share))//4096*4096 + 4096*(share == 0))
    disk.log.write_text('')
    try:
        p = begin(name, disk.at, disk.log)
        for _ in range(600):
            p.join(.2)
            if p.exitcode is not None: break
            if 'until there is room' in disk.log.read_text(): disk.size('64m') # a training waits for it
        code, said = p.exitcode, disk.log.read_text()
        if code is None: p.kill(); p.join(); raise AssertionError((name, share, 'hangs', said[-1500:]))
        got = tree(disk.at)
    finally: disk.size('64m')
    want, ended = disk.reference(name)[0], re.search(r'(?m)^ENDED (\w+): (.*(?:\n.*)*?)\nSTEPS', said)
    where = name, share, said[-1500:]
    if code: assert ended and FULL.search(ended[2]) and ended[1] != 'RuntimeError', where
    half = [k for k in got if k in want and got[k] != want[k] and not MOVES.search(k) and not APPENDS.search(k)]
    assert not half, (where, half)
    again, said = call(name, disk.at, disk.log)
    assert again == 0 or 'already' in said, (name, share, said[-1500:])
    # which steps' checkpoints a training that waited has kept is a matter of when there was room
    odd = [k for k in disk.compare(name, tree(disk.at)) if not k.startswith('runs/new/checkpoint/')]
    assert not odd, (name, share, odd[:5])
    return bool(code)


def full(disk, cases):
    bad, ended = [], 0
    for name, share in cases:
        try: ended += starved(disk, name, share)
        except AssertionError as e: bad.append(str(e)[:1500])
    print(f'{len(cases)} full disks, {ended} calls ended with an error: {dict(disk.needs)}')
    assert not bad, '\n'.join([f'{len(bad)} of {len(cases)}', *bad])


def test_a_disk_that_is_full(disk): full(disk, [('prepared', .5), ('to_coco', .3), ('weights', .6), ('decided', .2)])
@pytest.mark.soak
@pytest.mark.parametrize('name', ACTS)
def test_a_disk_that_is_full_in_full(disk, name): full(disk, [(name, k/20) for k in range(20)])


# ---- two and three at once

@pytest.fixture(scope='module')
def server():
    "A file that comes slowly."
    class Slow(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200)
            self.send_header('Content-Length', '40000')
            self.end_headers()
            for _ in range(40): self.wfile.write(b'x'*1000); time.sleep(.001)
        def log_message(self, *a): pass
    s = http.server.ThreadingHTTPServer(('127.0.0.1', 0), Slow)
    threading.Thread(target=s.serve_forever, daemon=True).start()
    yield f'http://127.0.0.1:{s.server_port}/a.bin'
    s.shutdown()


RACES = ('prepared', 'prepared_anew', 'shards', 'drawn', 'downloaded', 'decided', 'to_coco', 'repaired', 'weights',
         'exported', 'numbered')

def race(place, name, r, address):
    if name in ACTS: place.reference(name)
    place.fresh()
    (place.at/'address').write_text(address)
    if name == 'prepared_anew': assert call('before', place.at, place.log)[0] == 0
    n, logs = r.choice((2, 2, 3)), [place.log.with_name(f'log{k}') for k in range(3)]
    gate = victims.CONTEXT.Barrier(n)
    for l in logs: l.unlink(missing_ok=True)
    all_of_them = [begin(name, place.at, l, equal=r.random() < .7, gate=gate) for l in logs[:n]]
    for p in all_of_them: p.join(120)
    said = [l.read_text() for l in logs[:n]]
    codes = [p.exitcode for p in all_of_them]
    fine = [c == 0 or 'already' in s and name in ('to_coco', 'repaired', 'exported') for c, s in zip(codes, said)]
    assert all(fine) and 0 in codes, (name, codes, [s[-1500:] for s, f in zip(said, fine) if not f])
    got = tree(place.at)
    del got['address']
    if name == 'downloaded':
        odd = (place.at/'cache/a.bin').read_bytes() != b'x'*40000 or len(got) != len(tree(place.kept)) + 2
    elif name == 'numbered': odd = len(list((place.at/'runs').glob('baseline-*/run.json'))) != n
    else: odd = [k for k in place.compare(name, got) if not k.startswith('ready-old-')]
    assert not odd, (name, odd)


def races(place, server, seeds):
    bad = []
    for seed in seeds:
        try: race(place, RACES[seed % len(RACES)], random.Random(seed), server)
        except AssertionError as e: bad.append(f'{seed}: {e}'[:1500])
    print(f'{len(seeds)} races, {len(seeds) - len(bad)} ended with one whole result')
    assert not bad, '\n'.join([f'{len(bad)} of {len(seeds)}', *bad])


def test_races(place, server): races(place, server, (0, 3, 4, 5, 10))
@pytest.mark.soak
def test_races_in_full(place, server): races(place, server, range(1000, 1200))
