"""Trainings that are to be killed, starved or lied to: each in a process of its own, forked from one that has imported
torch already."""
import builtins, fnmatch, functools, io, json, math, multiprocessing, os, signal, sys, threading, time, traceback
from dataclasses import replace
from multiprocessing import forkserver
from pathlib import Path
import pytest, torch
from yolokit.core import images
from yolokit.data import loader
from yolokit.network import checkpoints
from yolokit.network.model import state_hash
from yolokit.training import launcher, loss, optim, runs, step, train as training_train
from yolokit.apps import train as apps_train
from yolokit.apps.train import TrainConfig

# a server that has imported all this and has no threads: a fork of it is ready at once
CONTEXT = multiprocessing.get_context('forkserver')
CONTEXT.set_forkserver_preload(['victims'])
TINY = dict(stage='baseline', weights='none', data='squares', network='tiny.cfg', recipe='transfer', steps=16, bs=4,
            every=1., workers=0, threads=1, device='cpu', amp='off')


def judge(table, **kw):
    "A validator that is quick, takes a moment all the same, and depends on the weights."
    def look(detector):
        time.sleep(.02)
        v = float(detector.layers[0].conv.weight.double().abs().sum()) % 1
        return dict(AP=v, AP50=v, per_class=dict.fromkeys(detector.names, v))
    return look


def finish(run, detector, data):
    "What comes after training: a file, as finish_run makes them."
    time.sleep(.02)
    (run.folder/'predictions.json').write_text('[]')
    return {}


def wrap(owner, name, before=None, after=None, nth=1):
    "At the nth call of owner.name, call before(*its arguments) first, or after(*its arguments) afterwards."
    real, calls = getattr(owner, name), [0]
    @functools.wraps(real)
    def stand_in(*a, **kw):
        calls[0] += 1
        mine = calls[0] == nth or nth == 0
        if mine and before: before(*a, **kw)
        out = real(*a, **kw)
        if mine and after: after(*a, **kw)
        return out
    setattr(owner, name, stand_in)


def die(*a, **kw): os.kill(os.getpid(), signal.SIGKILL)


def half(state, path, *a, **kw):
    "Half a file, then death."
    os.truncate(path, os.path.getsize(path)//2)
    die()


# where a process may be killed, and the call of what it dies at
PLACES = {
    'saving: half written': lambda n: wrap(torch, 'save', after=half, nth=n),
    'saving: written, not forced to the disk': lambda n: wrap(torch, 'save', after=die, nth=n),
    'saving: before the rename': lambda n: wrap(os, 'replace', before=die, nth=n),
    'saving: after the rename': lambda n: wrap(os, 'replace', after=die, nth=n),
    'saving: the file is there, its sha256 is not': lambda n: wrap(runs, 'sha256', after=die, nth=n),
    'saving: an old one goes': lambda n: wrap(Path, 'unlink', after=die, nth=4*n),
    'judging': lambda n: wrap(training_train, 'fitness', before=die, nth=max(1, n//4)),
    'judging: weights': lambda n: wrap(training_train, 'save_detector', after=die, nth=max(1, n//4)),
    'judging: before its row': lambda n: wrap(training_train, '_log_row', before=die, nth=n),
    'step: half the weights are new': lambda n: wrap(optim.EMA, 'update', before=die, nth=n),
    'step: in the backward pass': lambda n: wrap(torch.Tensor, 'backward', before=die, nth=4 + n),
    'step: a row is written': lambda n: wrap(runs, 'append_csv_row', after=die, nth=max(1, n//2)),
}


def worker(n):
    "The loader's processes are killed while a batch is worked on, once; n=0: whenever there are any."
    def kill(*a, **kw):
        for p in multiprocessing.active_children(): os.kill(p.pid, signal.SIGKILL)
    wrap(step, 'backward', before=kill, nth=n)


def stuck(n, how, patience):
    "At the nth step the loader's processes are stopped, or hang while reading; SIGTERM comes a moment later."
    loader._PATIENCE, main, root = patience, os.getpid(), Path(os.environ['YOLOKIT_ROOT'])
    (root/'hang').unlink(missing_ok=True)
    def tell():
        (root/'told').touch()
        os.kill(main, signal.SIGTERM)
    def stop(*a, **kw):
        (root/'hang').touch()
        for p in multiprocessing.active_children() if how == 'stopped' else (): os.kill(p.pid, signal.SIGSTOP)
        threading.Timer(1., tell).start()
    def hang(*a, **kw):
        while os.getpid() != main and (root/'hang').exists(): time.sleep(1)
    wrap(optim.EMA, 'update', after=stop, nth=n)
    if how == 'reading': wrap(loader._BatchBuilder, '__getitem__', before=hang, nth=0)


def full(pattern, n):
    "From the nth file of that name on the disk is full: half of it is written."
    def no_space(path): raise OSError(28, 'No space left on device', str(path))
    seen = [0]
    def hit(path):
        if not isinstance(path, (str, os.PathLike)) or not fnmatch.fnmatch(Path(path).name, pattern): return False
        seen[0] += 1
        return seen[0] == n
    if pattern == 'fsync': return wrap(os, 'fsync', before=lambda fd: no_space('disk'), nth=n)
    real_open, real_save = builtins.open, torch.save
    def guarded(path, mode='r', *a, **kw):
        if mode[0] in 'wax' and hit(path):
            real_open(path, mode, *a, **kw).close()
            no_space(path)
        return real_open(path, mode, *a, **kw)
    def save(x, path, *a, **kw):
        real_save(x, path, *a, **kw)
        if hit(path): os.truncate(path, 100); no_space(path)
    builtins.open = io.open = guarded
    torch.save = save
    real_write = images.write_image
    def write(path, rgb):
        if hit(path): no_space(path)
        return real_write(path, rgb)
    images.write_image = write


def oom(where, step):
    "Out of memory once, at a step; -1: in the trial."
    error = torch.OutOfMemoryError('CUDA out of memory. Tried to allocate 2.00 GiB')
    done, now = [], []
    def out(place):
        if place == where and not done and now and now[-1].step == step: done.append(1); raise error
    def begun(*a, **kw):
        t = real_begin(*a, **kw)
        now.append(t)
        t.detector.layers[2].conv.register_forward_hook(lambda *a: out('forward') if t is now[-1] else None)
        t.detector.layers[0].conv.weight.register_hook(lambda g: out('backward'))
        return t
    real_begin = apps_train.init_training
    apps_train.init_training = begun
    if step == -1:
        def fails(*a, **kw): raise error
        apps_train.forward_loss = fails
    if where == 'step': wrap(optim.EMA, 'update', before=lambda *a: out('step'), nth=0)
    if where == 'judge':
        global judge
        real, calls = judge, [0]
        def judge(table, **kw):
            look = real(table, **kw)
            def short(detector):
                calls[0] += 1
                if calls[0] == step: raise error
                return look(detector)
            return short


def nan(where, step):
    "The loss is NaN at a step; 0: at all."
    real = loss.Loss.forward
    def forward(self, maps, targets): return real(self, [m*math.nan for m in maps], targets)
    loss.Loss.forward = forward


def image(how):
    "An image is damaged once the data are prepared and before they are read."
    path = Path(os.environ['YOLOKIT_ROOT'])/'squares/images/train/train3.png'
    def damage(*a, **kw):
        if path.exists():
            path.with_suffix('.png.kept').write_bytes(path.read_bytes())
            if how == 'cut': os.truncate(path, 60)
            else: path.unlink()
    wrap(apps_train, '_make_loader', before=damage)


def told(sig, phase):
    "A signal in a phase."
    if sig == signal.SIGHUP: signal.signal(sig, signal.SIG_DFL) # also where the tests were started by nohup
    tell = lambda *a, **kw: (os.kill(os.getpid(), sig), time.sleep(.05))
    if phase == 'preparing': wrap(apps_train.prepare, 'prepare_if_needed', before=tell)
    if phase == 'probing': wrap(apps_train, 'forward_loss', before=tell, nth=2)
    if phase == 'stepping': wrap(optim.EMA, 'update', before=tell, nth=7)
    if phase == 'saving': wrap(torch, 'save', after=tell, nth=5)
    if phase == 'judging': wrap(time, 'sleep', before=lambda s: s == .02 and os.kill(os.getpid(), sig), nth=0)
    if phase == 'finishing': wrap(apps_train.monitor, 'plot_curves', after=tell)


def orphan(n):
    "The parent goes away that waits for this process, as papermill does."
    launcher._has_supervisor = lambda: True
    wrap(optim.EMA, 'update', before=lambda *a: (setattr(os, 'getppid', lambda: 1), time.sleep(.5)), nth=n)


def shell_gone(n):
    "The shell that started it is closed: nobody waits for this process."
    wrap(optim.EMA, 'update', before=lambda *a: (setattr(os, 'getppid', lambda: 1), time.sleep(.5)), nth=n)


def nohup(n):
    "SIGHUP, ignored as nohup has it, and the shell gone."
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    wrap(optim.EMA, 'update', before=lambda *a: os.kill(os.getpid(), signal.SIGHUP), nth=n)
    shell_gone(n + 1)


def torch_full(*calls):
    "The disk is full at these calls of torch.save, as torch says it."
    real, count = torch.save, [0]
    def save(x, path, *a, **kw):
        count[0] += 1
        if count[0] not in calls: return real(x, path, *a, **kw)
        raise RuntimeError('[enforce fail at inline_container.cc:664] . unexpected pos 64 vs 0')
    torch.save = save


def ap(value):
    "What a validation split without boxes says."
    global judge
    def judge(table, **kw): return lambda detector: dict(AP=value, AP50=value)


def slow(): wrap(optim.EMA, 'update', before=lambda *a: time.sleep(1), nth=0)


FAULTS = dict(worker=worker, stuck=stuck, full=full, oom=oom, nan=nan, image=image, signal=told,
              orphan=orphan, slow=slow, shell_gone=shell_gone, nohup=nohup,
              torch_full=torch_full, ap=ap)


def live(root, config, log, faults=(), every=.0, cache=True):
    "The life of a victim."
    os.setsid()
    fd = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for k in (1, 2): os.dup2(fd, k)
    os.environ |= dict(YOLOKIT_ROOT=str(root), OMP_NUM_THREADS='1')
    torch.set_num_threads(1)
    real = apps_train.fit
    def fit(run, t, loader, evaluate=None, stop=None, options=training_train.FitOptions()):
        return real(run, t, loader, evaluate, stop, replace(options, save_every=every))
    apps_train.fit = fit
    if not cache: apps_train.environment.available_memory = lambda: 0
    for what, *args in faults: {**PLACES, **FAULTS}[what](*args)
    code = 0
    apps_train.make_validator, apps_train.finish_run, runs._ROOM_SECONDS = judge, finish, .02
    try: apps_train.train(TrainConfig(**config))
    except BaseException:
        traceback.print_exc()
        code = 1
    sys.stdout.flush()
    sys.exit(code)


def fork(target, *args, **kw):
    "A process that is on its way. The server is told where its modules are: Python 3.11 would not, and import again."
    with pytest.MonkeyPatch.context() as m:
        m.setenv('PYTHONPATH', os.pathsep.join(filter(None, sys.path)))
        forkserver.ensure_running()
    p = CONTEXT.Process(target=target, args=args, kwargs=kw)
    p.start()
    return p


def start(root, log, config=(), **kw):
    "A victim that is on its way."
    return fork(live, str(root), TINY | dict(config), str(log), **kw)


def run(root, log, config=(), seconds=120, **kw):
    "A victim, to its end: its exit code."
    p = start(root, log, config, **kw)
    p.join(seconds)
    if p.exitcode is None: p.kill(); p.join(); raise AssertionError(f'hangs: {Path(log).read_text()[-2000:]}')
    return p.exitcode


def end(root, name):
    "sha256 of all that a finished run is: weights, average, optimizer, counters, loss log."
    folder = Path(root)/'runs'/name
    info = json.loads((folder/'run.json').read_text())
    assert info['state'] == 'finished', info
    state = runs.load_run_checkpoint(folder/'checkpoint')
    files = [(folder/f).read_text() for f in ('steps.csv', 'metrics.csv')]
    return runs.checkpoint_digest([state, files, [state_hash(checkpoints.load_checkpoint(folder/f'weights/{k}.pt'))
                                                  for k in ('last', 'best')]])


def gone(group, seconds=10.):
    "Wait until no process of a group (a victim and its loader's processes) is left: the seconds it took."
    began = time.monotonic()
    while time.monotonic() - began < seconds:
        alive = False
        for p in Path('/proc').glob('[0-9]*/stat'):
            try: f = p.read_text().rsplit(')', 1)[1].split()
            except OSError: continue
            alive |= int(f[2]) == group and f[0] != 'Z'
        if not alive: return time.monotonic() - began
        time.sleep(.05)
    raise AssertionError(f'processes of group {group} are left after {seconds} s')
