"""Every file that yolokit writes and reads again, with bits flipped, cut short, zeroed, emptied: what is read is what
was written, or an error names the file, or what it held is made again. A few of each kind here, 100 in `make soak`."""
import json, os, random, shutil

import numpy as np, pytest, torch

import small
from yolokit.core import files
from yolokit.core.download import download, DownloadError, fetch_into
from yolokit.core.files import FormatError
from yolokit.network.cfg import Cfg
from yolokit.network.checkpoints import load_checkpoint
from yolokit.network.model import Detector, state_hash
from yolokit.data import formats, parking, shards
from yolokit.data.table import Table
from yolokit.cleaning import checks, prepare as preparing, repair, split
from yolokit.cleaning.prepare import load_prepared, prepare
from yolokit.cleaning.repair import Journal, RepairError
from yolokit.training import guards, runs
from yolokit.training.recipes import TrainError
from yolokit.training.runs import Run, RunError
from yolokit.training.train import save_detector
from yolokit.evaluation import leaderboard
from yolokit.evaluation.leaderboard import LeaderboardError
from yolokit.inference import parts
from yolokit.compression import qat
from yolokit.compression.quantize import QuantParams

NAMED = FormatError, RunError, RepairError, LeaderboardError, TrainError, DownloadError
KINDS = {}
def kind(f): KINDS[f.__name__] = f; return f


def plain(t): # a table
    columns = {k: v.tolist() for d in (t.images, t.boxes) for k, v in d.items()
               if k not in ('source', 'sha256', 'gist')}
    return repr((columns, t.names, t.category_ids))


def ready(d, **how):
    small.checkout(d, 6)
    return prepare(d/'squares', d/'ready', **how).folder


def again(d, name): # prepare makes it again where it is damaged
    def read():
        preparing._told.clear()
        t = plain(prepare(d/'squares', d/'ready').table)
        for p in d.glob('ready-old-*'): shutil.rmtree(p)
        return t
    return d/'ready'/name, read


@kind
def prepared_json(d): return ready(d)/'prepared.json', lambda: plain(load_prepared(d/'ready'))
@kind
def annotations_json(d): return ready(d)/'annotations.json', lambda: plain(load_prepared(d/'ready'))
@kind
def pictures_json(d): return ready(d)/'pictures.json', lambda: plain(load_prepared(d/'ready', True))
@kind
def prepared_again(d): ready(d); return again(d, 'prepared.json')
@kind
def annotations_again(d): ready(d); return again(d, 'annotations.json')
@kind
def splits_again(d): ready(d); return again(d, 'splits.json')
@kind
def shards_npy(d): return ready(d, shards='1MB')/'shards.npy', lambda: plain(load_prepared(d/'ready'))
@kind
def shards_kept(d):
    files.save_json({'00000.tar': 5000}, d/'kept.json', seal=True)
    def read():
        shards._kept.cache_clear()
        with pytest.MonkeyPatch.context() as m:
            m.setattr(shards, '_cache_of', lambda url: d)
            return shards._kept('x')[1] or {'00000.tar': 5000} # nothing is kept: it is fetched again
    return d/'kept.json', read


@kind
def digests(d):
    small.checkout(d, 6)
    t = formats.read(d/'squares')
    split.with_digests(t, d/'.digests')
    def read():
        u = split.with_digests(t, d/'.digests')
        return repr([u.images[k].tolist() for k in ('sha256', 'gist')])
    return d/'.digests', read


@kind
def run_json(d):
    r = Run.new('baseline', folder=d, config=dict(bs=8), seed=3).update(state='finished', result=dict(AP=.25))
    return r.folder/'run.json', lambda: repr(Run.open(r.name, d).info)


@kind
def one_of_three_runs(d):
    "The other two are there whatever becomes of it."
    a, b, c = (Run.new('baseline', folder=d).update(state='finished', result=dict(AP=k)) for k in (.1, .2, .3))
    def read():
        runs._told.clear()
        found = {r.name: repr(r.info) for r in runs.list_runs(d)}
        assert {a.name, c.name} <= found.keys()
        if b.name not in found: raise FormatError(b.folder/'run.json', 'left out', '')
        return found
    return b.folder/'run.json', read


def table_of_steps(name):
    def make(d):
        f = d/name
        for k in range(12): runs.append_csv_row(f, dict(step=k, loss=1/(k + 1), lr=.01))
        mark = runs.csv_mark(f)
        def read():
            told = []
            runs.truncate_csv(f, 11, told.append, mark)
            runs.append_csv_row(f, dict(step=12, loss=1., lr=.01))
            got = runs.read_csv(f)
            assert {*got} == {'step', 'loss', 'lr'} and got['step'][-1] == 12 and got['loss'].dtype == float
            if told: assert (d/f'{name}.damaged').exists(); raise FormatError(f, told[0], '')
            return repr(got)
        return f, read
    return make

KINDS['steps_csv'], KINDS['metrics_csv'] = table_of_steps('steps.csv'), table_of_steps('metrics.csv')


@kind
def memory_csv(d):
    r = Run.new('baseline', folder=d)
    for k in (3, 9): runs.append_csv_row(r.folder/'memory.csv', dict(step=k, rung=k//3, rank=0, what='checkpointing'))
    r.update(memory=[dict(step=3, rung=1, rank=0), dict(step=9, rung=3, rank=0)])
    return r.folder/'memory.csv', lambda: guards.memory_levels(r)


@kind
def tables_json(d):
    "The digests of a run's tables: without them the rows are looked at one by one."
    f = d/'tables.json'
    files.save_json(dict(step=5, tables=dict(steps=[3, 'x', 'y'])), f, seal=True)
    return f, lambda: repr(files.load_json(f, ('step', 'tables')))


def run_checkpoint(suffix):
    def make(d):
        runs.save_run_checkpoint(d, dict(step=1, w=torch.arange(40.)), 1)
        def read():
            said = []
            if got := runs.load_run_checkpoint(d, said.append): return runs.checkpoint_digest(got)
            raise FormatError(d/f'step-00000001{suffix}', said[0], '')
        return d/f'step-00000001{suffix}', read
    return make

KINDS['checkpoint'], KINDS['checkpoint_sha256'] = run_checkpoint('.pt'), run_checkpoint('.sha256')


@kind
def best_pt(d):
    (d/'tiny.cfg').write_text(small.CFG)
    net = Detector(Cfg.read(d/'tiny.cfg')).eval()
    save_detector(d/'best.pt', net, step=1, fitness=.5, metrics=dict(AP=.5))
    return d/'best.pt', lambda: state_hash(load_checkpoint(d/'best.pt'))


def row(d):
    r = Run.new('judged', folder=d, state='finished')
    t = Table.make(dict(file=['a.jpg', 'b.jpg'], width=[100, 100], height=[100, 100]),
                   dict(image=[0, 1], category=[0, 0], x0=[1, 2], y0=[1, 2], x1=[30, 40], y1=[30, 40]), ['car'])
    boxes = '[{"image_id": 1, "category_id": 0, "bbox": [1, 1, 29, 29], "score": 0.9}]'
    (r.folder/'predictions.json').write_text(boxes)
    from yolokit.evaluation.metrics import coco
    from yolokit.evaluation.results import read_results
    result, own = coco(t, read_results(r.folder/'predictions.json', t)), dict(width=96, height=96, dtype='float32')
    leaderboard.write_record(r.folder, t, dict(data='x', split='val'), r.folder/'predictions.json', result,
                             dict(own=own, way=dict(conf=.01)), None)
    return r, t


@kind
def judged_json(d):
    r, _ = row(d)
    def read():
        leaderboard._read_judged(r.folder/'judged.json')
        return repr(leaderboard.read_rows(d))
    return r.folder/'judged.json', read


@kind
def predictions_json(d):
    r, t = row(d)
    def read():
        with pytest.MonkeyPatch.context() as m:
            m.setattr(leaderboard, '_load_truth', lambda where: t)
            return repr(leaderboard.recompute(r.name, d))
    return r.folder/'predictions.json', read


@kind
def part_of_detections(d):
    t = Table.make(dict(file=['a.jpg']), dict(image=[0], category=[0], x0=[1], y0=[1], x1=[30], y1=[30], score=[.5]),
                   ['car'], None, dict.fromkeys(parts._LEFT, 0) | dict(unreadable=[]))
    parts._write_part(d/'000000.npz', t)
    def read():
        if not (got := parts._load_part(d/'000000.npz')): # it is done again
            parts._write_part(d/'000000.npz', t)
            got = parts._load_part(d/'000000.npz')
        return repr({k: v.tolist() for k, v in got[0].items()}), repr(got[1])
    return d/'000000.npz', read


def repaired(d):
    small.checkout(d, 4)
    p = d/'squares/labels/train/train0.txt'
    p.write_text(p.read_text()*2)
    t = formats.read(d/'squares')
    return t, repair.write_repaired(t, repair.plan(checks.check(t)), d/'out')[1]


@kind
def repair_zip(d):
    t, _ = repaired(d)
    def read():
        shutil.rmtree(d/'back', ignore_errors=True)
        repair.restore_sources(d/'out', d/'back')
        return sorted((str(p.relative_to(d/'back')), p.read_bytes()) for p in (d/'back').rglob('*.txt'))
    return d/'out/repair.zip', read


@kind
def journal_json(d):
    _, j = repaired(d)
    j.save(d/'journal.json')
    return d/'journal.json', lambda: repr(Journal.load(d/'journal.json').plain())


@kind
def sidecar_json(d):
    small.checkout(d, 4)
    t = formats.read(d/'squares')
    t = Table.make(t.images, t.boxes | dict(crowd=np.ones(len(t), bool)), t.names, [5, 9], t.extra)
    assert formats.write(t, d/'out', 'voc')
    return d/'out/sidecar.json', lambda: plain(formats.read(d/'out'))


@kind
def grids_json(d):
    class C:
        target, method = 'onnxruntime', 'minmax'
        plan = {'a': QuantParams(.5, 3, -128), 'b': QuantParams(.25, 0, 0)}
    return qat._save_quant_params(C, d/'grids.json', [3]), lambda: repr(qat._load_quant_params(d/'grids.json'))


@kind
def key_json(d):
    p = dict(version=1, n_train=3)
    files.save_json(dict(parameters=p, planted=[1, 2, 3]), d/'key.json', seal=True)
    return d/'key.json', lambda: parking._is_drawn(d, p)


@kind
def note_of_a_download(d):
    with files.atomic_write(d/'a.bin') as f: f.write_bytes(b'0123456789'*9)
    fetch_into(d, 'https://nowhere.invalid/a.bin')
    return d/'a.bin.sha256', lambda: fetch_into(d, 'https://nowhere.invalid/a.bin').read_bytes()


@kind
def sweep_json(d):
    asked = dict(what='train', space='lr0=.1,.2', fixed='', metric='AP')
    files.save_json(asked, d/'sweep.json', seal=True, indent=1)
    return d/'sweep.json', lambda: repr(files.load_json(d/'sweep.json', tuple(asked)))


@kind
def decisions_json(d):
    "Written by hand, too: no checksum, every field is looked at."
    reason = next(iter(checks.FINDING_TYPES))
    rows = [dict(box=k, reason=reason, file=f'{k}.jpg', decision='accept', after=[1., 2., 3., 4.])
            for k in range(5)]
    files.save_json(rows, d/'decisions.json', indent=1)
    def read(): repair.load_decisions(d/'decisions.json')
    return d/'decisions.json', read


def damage(data, r):
    b, what = bytearray(data), r.random()
    i, j = sorted(r.randrange(len(b) + 1) for _ in range(2))
    if what < .5:
        for _ in range(r.choice((1, 1, 1, 2, 9))): b[r.randrange(len(b))] ^= 1 << r.randrange(8)
    elif what < .65: del b[i:]
    elif what < .75: b[i:j] = bytes(j - i)
    elif what < .8: b[i:i + 20] = b[j:j + 20]
    elif what < .85: b[i:i] = r.choice((b'\0', b'null', b'"', b'\xff\xfe', b'9'*5000, b'['*3000, b'\n', b'-'))
    elif what < .9: b = bytearray(data.replace(*r.choice(((b'1', b'2'), (b'0', b'9'), (b'a', b'b'), (b'{', b'[')))))
    else: b = bytearray(r.choice((b'', b'null', b'{}', b'[]', b'0', b'"x"', b'\0'*len(b), b'{"state": null}',
                                  r.randbytes(99))))
    return bytes(b)


def campaign(name, d, seeds, monkeypatch):
    monkeypatch.setenv('YOLOKIT_ROOT', str(d))
    file, read = KINDS[name](d)
    kept = {p: p.read_bytes() for p in d.rglob('*') if p.is_file() and not p.is_symlink()}
    want, data, named, same = read(), kept[file], 0, 0
    for seed in seeds:
        for p, b in kept.items():
            if p.parent.is_dir() and (not p.exists() or p.read_bytes() != b): p.write_bytes(b)
        file.write_bytes(damage(data, random.Random(f'{name} {seed}')))
        try: got = read()
        except NAMED as e:
            assert file.name in str(e) or file.parent.name in str(e), (name, seed, e)
            named += 1
        except ValueError as e: # of checkpoints and weights
            assert name == 'best_pt' and file.name in str(e), (name, seed, repr(e))
            named += 1
        else:
            same += 1
            assert got == want, (name, seed, str(got)[:300], str(want)[:300])
    print(f'{name}: {named} refused by name, {same} read or made again as they were')


@pytest.mark.parametrize('name', KINDS)
def test_damaged(name, tmp_path, monkeypatch): campaign(name, tmp_path, range(4), monkeypatch)

@pytest.mark.soak
@pytest.mark.parametrize('name', KINDS)
def test_damaged_in_full(name, tmp_path, monkeypatch): campaign(name, tmp_path, range(1000, 1100), monkeypatch)
