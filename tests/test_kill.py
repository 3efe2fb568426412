"Killed at any moment and resumed: the same sha256 as if nothing had happened."
import json, os, random, shutil, signal, subprocess, sys, time
from pathlib import Path
import pytest
import victims
from small import checkout, environment
from victims import PLACES, end, gone, run, start

POINTS = 25                                         # kills for each way of loading
WAYS = [(w, c) for w in (0, 1, 2, 4) for c in (True, False)]


@pytest.fixture(scope='module')
def root(tmp_path_factory):
    folder = checkout(tmp_path_factory.mktemp('checkout'))
    assert run(folder, folder/'whole.log', dict(name='whole')) == 0, (folder/'whole.log').read_text()
    return folder


def point(root, draw, name, workers, cache):
    "Kill a run somewhere, resume it with other workers: where it was, and what is in the end."
    log, config = root/f'{name}.log', dict(name=name, workers=workers)
    where = draw.choice([*PLACES, *['from outside']*12])
    if where == 'from outside':
        p = start(root, log, config, cache=cache)
        steps, run_json = root/f'runs/{name}/steps.csv', root/f'runs/{name}/run.json'
        for _ in range(6000):
            if run_json.exists() or p.exitcode is not None: break
            time.sleep(.005)
        time.sleep(draw.uniform(0, 2.5 + .5*workers))
        p.kill(); p.join()
    else:
        n = draw.randint(1, 14)
        where += f' {n}'
        p = start(root, log, config, cache=cache, faults=[(where.rsplit(' ', 1)[0], n)])
        p.join(120)
    gone(p.pid)
    run_json = root/f'runs/{name}/run.json'
    # killed before there was a run: it is simply started again
    if not run_json.exists():
        shutil.rmtree(root/f'runs/{name}', ignore_errors=True)
        assert run(root, log, config) == 0, (where, log.read_text()[-3000:])
        where += ', no run yet'
    elif json.loads(run_json.read_text())['state'] != 'finished':
        at = sorted(f.stem for f in (root/f'runs/{name}/checkpoint').glob('*.sha256'))
        assert run(root, log, dict(victims.TrainConfig(resume=name, workers=draw.choice([0, 1, 2])).__dict__),
                   cache=draw.random() < .5) == 0, (where, log.read_text()[-3000:])
        where += f', {at[-1] if at else "no checkpoint yet"}'
    else: where += ', too late'
    return where, end(root, name)


def campaign(root, points, ways):
    "How many ended with the same bits; all of them have to."
    whole, draw, bad, seen = end(root, 'whole'), random.Random(0), [], []
    for k in range(points):
        for w, c in ways:
            where, sha = point(root, draw, f'k{k}w{w}c{int(c)}', w, c)
            seen.append(where)
            if sha != whole: bad.append((k, w, c, where))
    print(f'{len(seen)} kills, {len(seen) - len(bad)} with the sha256 {whole[:12]} of the run that was never killed, '
          f'{sum("too late" in s for s in seen)} came too late')
    assert not bad, bad


def test_killed_and_resumed(root): campaign(root, 1, [(2, False)])


@pytest.mark.soak
def test_killed_and_resumed_in_full(root): campaign(root, POINTS, WAYS)


def hears(root, name, how, patience): # -> seconds from SIGTERM to a checkpoint
    "A loader that gives nothing: there is a checkpoint of the last step, nobody is left, and it is resumed to the bit."
    log = root/f'{name}.log'
    p = start(root, log, dict(name=name, workers=2), faults=[('stuck', 5, how, patience)], every=1e9, cache=False)
    p.join(120)
    said, code = log.read_text(), p.exitcode
    if code is None: os.killpg(p.pid, signal.SIGKILL)
    assert code == 1 and gone(p.pid) < 2, said[-2000:]
    assert 'stopped by SIGTERM after step' in said and 'the processes of the loader hang' in said, said[-2000:]
    mark, = (root/f'runs/{name}/checkpoint').glob('step-*.sha256')
    seconds = mark.stat().st_mtime - (root/'told').stat().st_mtime
    assert seconds < patience + 5, seconds
    (root/'hang').unlink()
    assert run(root, log, dict(victims.TrainConfig(resume=name, workers=1).__dict__)) == 0, log.read_text()[-2000:]
    assert end(root, name) == end(root, 'whole')
    return seconds


def test_a_stuck_loader_hears_sigterm(root): hears(root, 'stuck', 'stopped', 1.)

@pytest.mark.soak
@pytest.mark.parametrize('how', ['stopped', 'reading'])
def test_a_stuck_loader_hears_sigterm_in_full(root, how):
    seconds = [hears(root, f'{how}{k}', how, 5.) for k in range(8)]
    print(f'{how}: a checkpoint {min(seconds):.1f} to {max(seconds):.1f} s after SIGTERM, {len(seconds)} of them')


TRAIN = Path(__file__).resolve().parents[1]/'nbs/train.ipynb'
APP = dict(data='squares', network='tiny.cfg', stage='baseline', weights='none', recipe='transfer', bs=4, threads=1,
           workers=1, device='cpu', amp='off', steps=400, every=30)


def papermill(root, log, before=(), **parameters):
    "The train app, in a session of its own."
    p = [x for k, v in parameters.items() for x in ('-p', k, str(v))]
    call = [*before, sys.executable, '-m', 'papermill', '--no-progress-bar', str(TRAIN), str(log.with_suffix('.ipynb')),
            *p]
    return subprocess.Popen(call, cwd='/', env=environment(root), stdout=open(log, 'a'), stderr=subprocess.STDOUT,
                            start_new_session=True)


def family(pid):
    "A process and all that descend from it."
    parents = {}
    for p in Path('/proc').glob('[0-9]*/stat'):
        try: f = p.read_text()
        except OSError: continue
        if f.rsplit(')', 1)[1].split()[0] != 'Z': parents[int(p.parent.name)] = int(f.rsplit(')', 1)[1].split()[1])
    found = [pid]
    for k in found: found += [c for c, parent in parents.items() if parent == k]
    return found


def running(pids):
    return [k for k in pids if Path(f'/proc/{k}/stat').exists()
            and Path(f'/proc/{k}/stat').read_text().rsplit(')', 1)[1].split()[0] != 'Z']


def told(p, how):
    """Tell it to stop as somebody does: the seconds until the last process is gone, papermill and its kernel and the
    loader's."""
    all_of_them = family(p.pid)
    assert len(all_of_them) >= 3, 'papermill, kernel, loader'
    began = time.monotonic()
    if how == 'its process': p.terminate()
    elif how == 'its group': os.killpg(p.pid, signal.SIGTERM)
    else:
        for k in all_of_them: os.kill(k, signal.SIGTERM)         # scancel, systemd: every process of the job
    while running(all_of_them) and time.monotonic() - began < 30: time.sleep(.02); p.poll()
    assert not running(all_of_them), 'a process was left behind'
    return time.monotonic() - began


@pytest.mark.soak
def test_papermill_told_to_stop(root):
    whole = papermill(root, root/'app.log', name='app', **APP)
    assert whole.wait(300) == 0, (root/'app.log').read_text()[-2000:]
    for k, how in enumerate(('its process', 'its group', 'every process')):
        name, log = f'app{k}', root/f'app{k}.log'
        p, rows = papermill(root, log, name=name, **APP), root/f'runs/{name}/steps.csv'
        for _ in range(6000):
            if rows.exists() and rows.read_text().count('\n') > 3: break
            time.sleep(.05)
        seconds = told(p, how)
        at = sorted(f.stem for f in (root/f'runs/{name}/checkpoint').glob('*.sha256'))
        state = json.loads((root/f'runs/{name}/run.json').read_text())['state']
        assert p.returncode and at and state == 'interrupted', (state, at)
        assert papermill(root, log, resume=name).wait(300) == 0, log.read_text()[-2000:]
        print(f'SIGTERM to {how}: all gone after {seconds:.1f} s, {at[-1]}, resumed to the same sha256: '
              f'{end(root, name) == end(root, "app")}')
        assert end(root, name) == end(root, 'app')
