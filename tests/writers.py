"""Every kind of call that writes, on a few small pictures, each in a process that is forked from one that has imported
all: to be killed, starved of room, and run several at once."""
import hashlib, os, shutil, signal, sys, time, traceback
from pathlib import Path

import torch

import victims
from small import checkout
from yolokit.apps import capsule, config, convert, evaluate, export, infer, leaderboard
from yolokit.apps import train as apps_train
from yolokit.cleaning import checks, repair
from yolokit.cleaning.inspector import Inspector
from yolokit.cleaning.prepare import prepare
from yolokit.core import download, files
from yolokit.data import formats, parking
from yolokit.evaluation import errors, metrics
from yolokit.network.weights import write_weights
from yolokit.training import runs

ACTS = {} # name -> a call in the checkout where the process stands
def act(f): ACTS[f.__name__] = f; return f


@act
def prepared(): prepare('squares', 'ready')
@act
def prepared_anew(): # over a folder that was made from other parameters
    if not Path('first').exists(): before()
    prepare('squares', 'ready', split='given')
def before():
    prepare('squares', 'ready', val=.4, split='hash')
    Path('first').touch()
@act
def shards(): prepare('squares', 'tars', shards='1MB')
@act
def drawn(): parking.make_parking('park', 4, 2, 1, workers=1)
@act
def to_coco(): convert.convert(convert.ConvertConfig(data='squares', to='coco', out='coco'))
@act
def to_yolo(): convert.convert(convert.ConvertConfig(data='squares', to='yolo', out='yolo'))
@act
def to_voc(): convert.convert(convert.ConvertConfig(data='squares', to='voc', out='voc'))
@act
def repaired():
    t = formats.read('twice')
    repair.write_repaired(t, repair.plan(checks.check(t)), 'clean')
@act
def decided():
    t = formats.read('twice')
    box = Inspector(t, repair.plan(checks.check(t)), Path('decisions.json'))
    for k in range(len(box)): box.go(k).accept()
@act
def trained():
    for owner, name, new in ((apps_train, 'make_validator', victims.judge), (apps_train, 'finish_run', victims.finish),
                             (runs, '_ROOM_SECONDS', .02)): setattr(owner, name, new)
    apps_train.train(apps_train.TrainConfig(**victims.TINY | dict(name='new', steps=6)))
@act
def detected():
    c = infer.InferConfig(run='one', images='squares/images/val', rectangles=True, out='found', device='cpu', bs=2,
                          conf=.01, workers=0)
    _, detector = config.load_detector(c)
    found = infer.detect_and_record(c, detector, infer.resolve_images(c, None), config.output_dir(c, None, 'infer'))
    infer.write_predictions(found, 'found', pictures=3, conf=.01)
@act
def evaluated():
    c = evaluate.EvaluateConfig(run='one', out='judged', device='cpu', bs=8, draws=0, check='', workers=0)
    truth, found, folder = evaluate.load_truth_and_detections(c)
    metrics.evaluate_to_folder(truth, found, folder)
    errors.error_report(truth, found, folder/'errors.html', n=2, most=1)
@act
def ranked():
    leaderboard.update_leaderboard(leaderboard.LeaderboardConfig(run='one', name='row', device='cpu', workers=0))
@act
def exported(): export.export_all(export.ExportConfig(run='one', to='darknet', out='ship', ap=0))
@act
def onnx(): export.export_all(export.ExportConfig(run='one', to='onnx', out='ship', ap=0))
@act
def packed(): capsule.run_capsule(capsule.CapsuleConfig(run='one', data=True, out='one.zip'))
@act
def weights(): write_weights(config.load('one'), 'one.weights')
@act
def rows():
    Path('steps.csv').unlink(missing_ok=True)
    for k in range(20): runs.append_csv_row(Path('steps.csv'), dict(step=k, loss=1/(k + 1)))
def downloaded(): # a server is needed: not among the others
    download.fetch_into(Path('cache'), Path('address').read_text())
def numbered(): runs.Run.new('baseline', state='running')


class Container: # the same process id and host as another one's on the same volume
    getpid, gethostname = staticmethod(lambda: 7), staticmethod(lambda: 'box')
    def __init__(self, real): self.real = real
    def __getattr__(self, name): return getattr(self.real, name)


def first(place: Path) -> None: # what every call finds: pictures, a set with a fault, a finished run
    checkout(place, 6)
    shutil.copytree(place/'squares', place/'twice')
    label = place/'twice/labels/train/train0.txt'
    label.write_text(label.read_text()*2)
    assert victims.run(place, place/'log', dict(name='one', steps=4)) == 0, (place/'log').read_text()


EVENTS = {'os.rename', 'os.remove', 'os.mkdir', 'os.rmdir', 'os.link', 'os.symlink', 'os.truncate', 'os.utime'}

def writes(event, args): # is that a step of writing?
    if event == 'open':
        return isinstance(args[1], str) and {*args[1]} & {*'wax+'} or args[2] & (os.O_WRONLY | os.O_RDWR)
    return event in EVENTS


def life(name, place, log, kill, equal, gate): # of a process: make the call; kill: ('step', n) or ('time', seconds)
    os.setsid()
    fd = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for k in (1, 2): os.dup2(fd, k)
    os.chdir(place)
    (place/'.tmp').mkdir(exist_ok=True)
    os.environ |= dict(YOLOKIT_ROOT=str(place), OMP_NUM_THREADS='1', TMPDIR=str(place/'.tmp'))
    torch.set_num_threads(1)
    steps, code = [0], 0
    def watch(event, args):
        if not writes(event, args): return
        steps[0] += 1
        if kill[0] == 'step' and steps[0] == kill[1]: os.kill(os.getpid(), signal.SIGKILL)
    if equal: files.os, files.socket = Container(os), Container(files.socket)
    if gate: gate.wait(60)
    began = time.monotonic()
    sys.addaudithook(watch)
    if kill[0] == 'time': signal.setitimer(signal.ITIMER_REAL, kill[1]) # nobody hears it: that is a kill
    try: globals()[name]()
    except BaseException as e:
        traceback.print_exc()
        print(f'ENDED {type(e).__name__}: {e}', flush=True)
        code = 1
    signal.setitimer(signal.ITIMER_REAL, 0)
    print(f'STEPS {steps[0]} {time.monotonic() - began:.3f}', flush=True)
    os._exit(code)


def begin(name, place, log, kill=('', 0), equal=False, gate=None):
    return victims.fork(life, name, place, log, kill, equal, gate)


def call(name, place, log, **how): # -> exit code, what was said
    log.unlink(missing_ok=True)
    p = begin(name, place, log, **how)
    p.join(300) # the first one waits until all is imported
    if p.exitcode is None: p.kill(); p.join(); raise AssertionError(f'{name} hangs')
    return p.exitcode, log.read_text()


def fresh(place: Path, kept: Path) -> None: # the checkout as it was in the beginning; place may be a mount
    for p in place.iterdir() if place.is_dir() else ():
        if p.is_dir() and not p.is_symlink(): shutil.rmtree(p)
        else: p.unlink()
    shutil.copytree(kept, place, symlinks=True, dirs_exist_ok=True)


def tree(place: Path) -> dict: # file -> sha256; what is hidden is left out
    out = {}
    for p in sorted(place.rglob('*')):
        rel = p.relative_to(place)
        if any(k[0] == '.' for k in rel.parts) or p.is_dir() and not p.is_symlink(): continue
        data = str(os.readlink(p)).encode() if p.is_symlink() else p.read_bytes()
        out[str(rel)] = hashlib.sha256(data).hexdigest()[:16]
    return out
