"Preparing: what is left behind, reused, refused; the embedded set and real data end to end."
import json, os, shutil, subprocess, sys, unicodedata
from pathlib import Path

import numpy as np
import pytest

from yolokit.core import images
from yolokit.core.files import FormatError, shared_data_dir
from yolokit.data.table import Table
from yolokit.data.formats import read
from yolokit.cleaning import prepare as cleaning_prepare, repair, split as cleaning_split
from yolokit.cleaning.checks import video_frame
from yolokit.cleaning.split import fingerprint, split, SplitError
from yolokit.cleaning.prepare import load_prepared, prepare
from yolokit.apps import prepare as apps_prepare
from yolokit.apps.prepare import prepare_if_needed

ROOT = Path(__file__).parents[2]
DATA = shared_data_dir()/'data' if shared_data_dir() else None
real = pytest.mark.skipif(DATA is None, reason='the real data sets are not beside this checkout (../shared/data)')


def raw(folder, n=10, rows='0 .5 .5 .5 .5'):
    rng = np.random.default_rng(0)
    for i in range(n):
        images.write_image(folder/f'images/{i}번.png', rng.integers(0, 255, (20, 40, 3), dtype=np.uint8))
        p = folder/f'labels/{i}번.txt'
        p.parent.mkdir(exist_ok=True); p.write_text(rows)
    return folder


@pytest.fixture
def home(tmp_path, monkeypatch):
    "A checkout of its own, so that data/ is empty."
    monkeypatch.setenv('YOLOKIT_ROOT', str(tmp_path))
    return tmp_path


def test_splits_do_not_depend_on_order_or_names_and_hardly_on_what_is_added(tmp_path):
    t = cleaning_split.with_digests(read(raw(tmp_path/'a', 30)))
    where = lambda t, **kw: dict(zip(t.images['sha256'], split(t, val=.3, seed=5, **kw).images['split']))
    few = where(t.keep_images(np.arange(20)))
    assert where(t.keep_images(np.arange(20)[::-1])) == few
    for i in range(30): (tmp_path/f'a/images/{i}번.png').rename(tmp_path/f'a/images/{chr(97 + i%7)}{i}.png')
    renamed = cleaning_split.with_digests(read(tmp_path/'a'))
    renamed = renamed.keep_images(renamed.images['path'] != '')
    all_ = where(renamed)
    assert all_ == where(t) and len(all_) == 30
    assert sum(all_[k] != few[k] for k in few) <= 2                    # of 20, where 10 are added
    assert {k: v for k, v in where(renamed, known=few).items() if k in few} == few


def test_a_source_that_grows_keeps_its_validation_pictures(home):
    source = raw(home/'src', 12)
    a = prepare(source, home/'out', val=.4, seed=1)
    was = {f: s for f, s in zip(a.table.images['file'], a.table.images['split'])}
    raw(home/'more', 20)
    for i in range(12, 20):
        for k, e in (('images', 'png'), ('labels', 'txt')): (home/f'more/{k}/{i}번.{e}').rename(source/f'{k}/{i}번.{e}')
    b = prepare(source, home/'out', val=.4, seed=1)
    now = dict(zip(b.table.images['file'], b.table.images['split']))
    assert len(now) > len(was) and all(now[f] == s for f, s in was.items())
    assert not [p for p in home.iterdir() if p.name.startswith('.')], 'the journal of digests stays behind'


@pytest.mark.parametrize('options, says', [
    (dict(how='dice'), "'dice' is not known"), (dict(val=1.), 'leave something for training'),
    (dict(val=-.1), 'leave something'), (dict(how='given'), 'no validation split')])
def test_splits_that_cannot_be(tmp_path, options, says):
    with pytest.raises(SplitError, match=says): split(read(raw(tmp_path, 3)), **options)


def test_frames_of_the_gap_are_listed_as_a_number(tmp_path):
    t = Table.make(images=dict(file=[f'v-{i}.png' for i in range(50)]),
                   boxes=dict(image=range(50), category=[0]*50, x0=[0]*50, y0=[0]*50, x1=[2]*50, y1=[2]*50),
                   names=['a'])
    s = split(t, how='time', val=.2, test=.2, gap=4)
    n = np.array([video_frame(f)[1] for f in s.images['file']])
    assert (len(n) == 42 and [n[s.images['split'] == k].tolist() for k in ('train', 'val', 'test')]
            == [list(range(30)), list(range(34, 40)), list(range(44, 50))])


def test_prepared_folder(tmp_path):
    raw(tmp_path/'raw')
    (tmp_path/'raw/labels/0번.txt').write_text('0 .5 .5 -.5 .5\n0 .5 .5 -.5 .5\n0 .9 .5 .5 .5')
    before = {p: p.read_bytes() for p in (tmp_path/'raw').rglob('*') if p.is_file()}
    p = prepare(tmp_path/'raw', tmp_path/'out', val=.4, seed=1)
    t = p.table
    assert {q: q.read_bytes() for q in before} == before, 'the source was touched'
    assert p.info['fingerprint'] == fingerprint(t) and p.info['repair']['changed'] >= 2
    links = [q for q in (tmp_path/'out/images').rglob('*') if not q.is_dir()]
    assert len(links) == 10 and all(q.is_symlink() and not os.path.isabs(os.readlink(q)) and q.exists() for q in links)
    for s in ('train', 'val'):
        lines = (tmp_path/f'out/{s}.txt').read_text().split()
        assert len(lines) == (t.images['split'] == s).sum() and all((tmp_path/'out'/q).exists() for q in lines)
    y = read(tmp_path/'out/dataset.yaml')
    assert len(y) == len(t) and sorted(y.boxes['x0'].round(6)) == sorted(t.boxes['x0'].round(6))
    journal = repair.Journal.load(tmp_path/'out/repair/journal.json')
    assert len(journal) == p.info['repair']['changed']
    # both moved together: the links hold
    shutil.move(tmp_path/'raw', tmp_path/'x/raw'), shutil.move(tmp_path/'out', tmp_path/'x/out')
    assert (all(os.path.exists(q) for q in load_prepared(tmp_path/'x/out').images['path'])
            and apps_prepare.unrepaired_table(cleaning_prepare.Prepared(tmp_path/'x/out', p.info)).n_images == 10)


def test_not_fixed(tmp_path):
    p = prepare(raw(tmp_path/'raw', rows='0 .5 .5 -.5 .5'), tmp_path/'out', fix=False)
    assert (p.table.boxes['x0'] > p.table.boxes['x1']).all() and not (tmp_path/'out/repair').exists()


def test_reused_moved_aside_or_refused(tmp_path):
    raw(tmp_path/'raw')
    a = prepare(tmp_path/'raw', tmp_path/'out')
    stamp = (tmp_path/'out/prepared.json').stat().st_mtime_ns
    prepare(tmp_path/'raw', tmp_path/'out')
    assert (tmp_path/'out/prepared.json').stat().st_mtime_ns == stamp
    (tmp_path/'raw/labels/3번.txt').write_text('0 .5 .5 .1 .1')  # the source changed
    b = prepare(tmp_path/'raw', tmp_path/'out')
    assert b.info['fingerprint'] != a.info['fingerprint'] and load_prepared(tmp_path/'out-old-1').n_images == 10
    (tmp_path/'mine').mkdir(); (tmp_path/'mine/notes.txt').write_text('x')
    with pytest.raises(FormatError, match='Nothing was touched'): prepare(tmp_path/'raw', tmp_path/'mine')
    with pytest.raises(FormatError, match='inside its source'): prepare(tmp_path/'raw', tmp_path/'raw/out')
    assert os.listdir(tmp_path/'mine') == ['notes.txt']


@pytest.mark.parametrize('where', ['read', '_write_yolo_layout', 'save_json', 'fingerprint'])
def test_an_interrupted_preparation_leaves_nothing(tmp_path, monkeypatch, where):
    raw(tmp_path/'raw')
    def full(*a, **k): raise OSError(28, 'No space left on device')
    with monkeypatch.context() as m:
        m.setattr(cleaning_prepare, where, full)
        with pytest.raises(OSError, match='No space'): prepare(tmp_path/'raw', tmp_path/'out')
    # what hashing has found out serves the next attempt
    assert [n for n in os.listdir(tmp_path) if n != '.out.digests'] == ['raw']
    prepare(tmp_path/'raw', tmp_path/'out')
    with pytest.raises(FormatError, match='prepare it again'): load_prepared(tmp_path/'raw')


def test_bad_pictures_are_left_out_and_listed(tmp_path):
    raw(tmp_path/'raw')
    whole = (tmp_path/'raw/images/1번.png').read_bytes()
    (tmp_path/'raw/images/1번.png').write_bytes(whole[:len(whole)//2])
    (tmp_path/'raw/images/2번.png').write_bytes(b'<html>404</html>')
    (tmp_path/'raw/images/3번.png').unlink()
    p = prepare(tmp_path/'raw', tmp_path/'out')
    assert sorted(x['file'][:2] for x in p.info['left_out']) == ['1번', '2번', '3번'] and p.table.n_images == 7
    assert all(x['boxes'] == 1 and x['why'] for x in p.info['left_out'])


def test_nothing_to_learn_from(tmp_path):
    with pytest.raises(SplitError, match='no boxes'): prepare(raw(tmp_path/'raw', rows=''), tmp_path/'out')
    (tmp_path/'a.json').write_text(json.dumps(dict(images=[dict(id=1, file_name='a.jpg', width=9, height=9)],
                                                   categories=[dict(id=1, name='a')],
                                                   annotations=[dict(id=1, image_id=1, category_id=1,
                                                                     bbox=[1, 1, 2, 2])])))
    with pytest.raises(FormatError, match='none of its 1 pictures was found'):
        prepare(tmp_path/'a.json', tmp_path/'out')
    with pytest.raises(FormatError, match='nowhere: not there'): prepare(tmp_path/'nowhere', tmp_path/'out')


def test_without_links_pictures_are_copied(tmp_path, monkeypatch):
    raw(tmp_path/'raw', 3)
    def refuse(*a, **k): raise OSError('no links here')
    monkeypatch.setattr(os, 'symlink', refuse)
    p = prepare(tmp_path/'raw', tmp_path/'out')
    assert p.table.n_images == 3 and not any(q.is_symlink() for q in (tmp_path/'out').rglob('*'))


def test_same_names_in_different_folders(tmp_path):
    d = dict(images=[], categories=[dict(id=1, name='a')], annotations=[])
    for i, name in enumerate(('x/1.png', 'y/1.png', unicodedata.normalize('NFD', 'y/강.png')), 1):
        images.write_image(tmp_path/'raw'/name, np.full((8, 8, 3), i*9, np.uint8))
        d['images'].append(dict(id=i, file_name=unicodedata.normalize('NFC', name), width=8, height=8))
        d['annotations'].append(dict(id=i, image_id=i, category_id=1, bbox=[i, 1, 4, 4]))
    (tmp_path/'raw/all.json').write_text(json.dumps(d))
    t = prepare(tmp_path/'raw', tmp_path/'out', val=.3).table
    for i in range(3): assert images.read_image(t.images['path'][i])[0, 0, 0] == t.boxes['x0'][t.of(i)][0]*9


def test_two_processes_prepare_at_once(home):
    raw(home/'raw')
    program = 'from yolokit.apps.prepare import prepare_if_needed; print(prepare_if_needed("raw").info["fingerprint"])'
    env = os.environ | dict(PYTHONPATH=str(ROOT), OMP_NUM_THREADS='1')
    jobs = [subprocess.Popen([sys.executable, '-c', program], env=env, cwd=home, stdout=subprocess.PIPE,
                             stderr=subprocess.PIPE, text=True) for _ in range(2)]
    out = [j.communicate(timeout=120) for j in jobs]
    assert all(j.returncode == 0 for j in jobs), out
    assert len({o.split()[-1] for o, _ in out}) == 1 and os.listdir(home/'data') == ['raw-prepared']


def test_ensure(home):
    raw(home/'raw')
    p = prepare_if_needed('raw', seed=3)
    assert p.folder == home/'data/raw-prepared-seed-3' and prepare_if_needed(str(p.folder)).folder == p.folder
    raw(home/'other/raw', 5)
    q = prepare_if_needed('raw'), prepare_if_needed(home/'other/raw')
    assert (q[0].folder != q[1].folder and q[1].table.n_images == 5
            and prepare_if_needed('other/raw').folder == q[1].folder)
    with pytest.raises(FormatError, match='parameter `data`'): prepare_if_needed('gone')
    with pytest.raises(TypeError): prepare_if_needed('raw', splitt='time')


def test_the_embedded_set(home):
    parking = pytest.importorskip('yolokit.data.parking')
    few = dict(n_train=12, n_val=4, n_test=3, workers=1)
    p = prepare_if_needed('', default=lambda folder: parking.make_parking(folder, **few))
    t = p.table
    assert (p.folder == home/'data/parking-prepared'
            and {k: int(v[0]) for k, v in t.counts().items()} == dict(train=12, val=4, test=3))
    assert t.names == parking.CLASSES and t.category_ids == list(range(1, 15))
    assert not os.path.exists(p/'key.json') and len((p/'test_imgs.txt').read_text().split()) == 3
    info = json.loads((home/'data/parking/Test_Images_Information.json').read_text())['images']
    # a submission needs these
    assert {m['id']: m['file_name'] for m in info} == dict(zip(t.split('test').images['id'],
                                                               t.split('test').images['file']))
    assert 'id-twice' not in p.info['repair']['found']
    truth, val = read(home/'data/parking').split('val'), t.split('val')
    assert len(truth) == len(val)  # nothing to mend in clean truth


@real
def test_parking_space_by_time(tmp_path):
    p = prepare(DATA/'parking_space', tmp_path/'out', split='time', val=.2)
    t = p.table
    at = {s: {video_frame(f)[1] for f in t.split(s).images['file']} for s in ('train', 'val')}
    assert min(at['val']) - max(at['train']) >= 20
    assert t.n_images + p.info['in_gaps'] == 218 and p.info['repair']['found']['polygon'] == 3612
    assert p.info['names'] == ['empty', 'occupied']
    w = t.images['width'][t.boxes['image']]
    assert (t.boxes['x0'] >= 0).all() and (t.boxes['x1'] <= w).all()


@real
def test_bccd(tmp_path):
    p = prepare(DATA/'bccd', tmp_path/'out')
    assert {k: v[0] for k, v in p.info['counts'].items()} == dict(train=205, val=87, test=72)
    assert len(p.table) == 4886 and p.info['repair']['found']['zero-area'] == 2


def test_the_app(home):
    "prepare.ipynb on a small raw folder, as a user calls it."
    raw(home/'raw', 6, '0 .5 .5 -.5 .5')
    env = os.environ | dict(PYTHONPATH=str(ROOT), OMP_NUM_THREADS='1',
                            PATH=f'{Path(sys.executable).parent}:{os.environ["PATH"]}')
    run = lambda *a: subprocess.run(['papermill', str(ROOT/'nbs/prepare.ipynb'), 'out.ipynb', *a], env=env, cwd=home,
                                    capture_output=True, text=True, timeout=240)
    done = run('-p', 'data', 'raw', '-p', 'val', '0.3')
    assert done.returncode == 0, done.stderr[-2000:]
    assert 'Prepared:' in done.stderr and (home/'data/raw-prepared-val-0.3/prepared.json').exists()
    shown = (home/'out.ipynb').read_text()
    assert 'reversed-x' in shown and 'image/png' in shown
