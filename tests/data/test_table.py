"""The ground, the images and the table under what chapters cannot show in a few lines: cut files, papermill, random
tables."""
import json, os, pickle, subprocess, sys
from io import BytesIO
from pathlib import Path
import nbformat, numpy as np, pytest
from PIL import Image
from yolokit.core import boxes, files, images
from yolokit.core.images import ImageError, letterbox
from yolokit.core.files import shared_data_dir
from yolokit.data.table import concat, Table, TableError

NAMES = ['승용차', 'bus', 'truck']

def random_table(seed, n_images=7, n=40):
    g = np.random.default_rng(seed)
    corners = g.uniform(-10, 300, (n, 4))
    return Table.make(dict(id=[f'i{k}' for k in range(n_images)], file=[f'사진 {k}.png' for k in range(n_images)],
                           split=g.choice(['train', 'val', 'test', ''], n_images)),
                      dict(image=g.integers(0, n_images, n), category=g.integers(0, 3, n),
                           **dict(zip(('x0', 'y0', 'x1', 'y1'), corners.T)),
                           polygon=[[k, k + 1] if k % 3 else None for k in range(n)]), NAMES, [1, 2, 3],
                      dict(source='test'))

def rows(t):
    return [(t.images['id'][i], c, *xyxy) for i, c, xyxy in zip(t.boxes['image'].tolist(), t.boxes['category'].tolist(),
                                                                t.xyxy.tolist())]

# --- the table

@pytest.mark.parametrize('seed', range(10))
def test_choosing_images_is_choosing_rows(seed):
    t, g = random_table(seed), np.random.default_rng(seed)
    mask = g.random(t.n_images) < .5
    for which in (mask, np.flatnonzero(mask), g.permutation(t.n_images)):
        few = t.keep_images(which)
        wanted = set(t.images['id'][which])
        assert rows(few) == [r for r in rows(t) if r[0] in wanted]
        assert few.images['id'].tolist() == t.images['id'][which].tolist()
    assert sorted(np.concatenate([t.of(i) for i in range(t.n_images)]).tolist()) == list(range(len(t)))
    assert all((np.diff(t.of(i)) > 0).all() for i in range(t.n_images))

@pytest.mark.parametrize('seed', range(5))
def test_splits_put_together_again(seed):
    t = random_table(seed)
    parts = [t.split(s) for s in ('train', 'val', 'test', '')]
    assert sum(map(len, parts)) == len(t) and sum(p.n_images for p in parts) == t.n_images
    back = concat([p for p in parts if p.n_images])
    assert sorted(rows(back)) == sorted(rows(t)) and back.category_ids == [1, 2, 3] and back.extra == {'source': 'test'}
    assert (sum(v[0] for v in t.counts().values()) == t.n_images
            and sum(v[1:].sum() for v in t.counts().values()) == len(t))

def test_a_table_is_never_written_to():
    t = random_table(0)
    before = pickle.dumps((t.images, t.boxes))
    t.with_xyxy(t.xyxy + 1)
    t.keep(t.boxes['category'] == 1)
    t.keep_images([2, 1]); t.split('train'); t.with_columns(score=np.ones(len(t))); t.xyxy[:] = 0
    assert pickle.dumps((t.images, t.boxes)) == before
    assert pickle.loads(pickle.dumps(t)).same(t)    # worker processes get it whole

def test_same_sees_every_column():
    t = random_table(1)
    assert t.same(random_table(1)) and not t.same(random_table(2))
    assert not t.same(t.with_columns(score=np.zeros(len(t))))
    assert not t.same(t.with_images(split=[''] * t.n_images))
    assert not t.same(t.with_columns(polygon=[None]*len(t)))

@pytest.mark.parametrize('column, value, says',
                         [('image', 99, "boxes['image'] is 99 in row 3"),
                          ('category', -1, "boxes['category'] is -1 in row 3"),
                          ('category', 1.5, 'row 3 is 1.5'), ('x0', 'left', "boxes['x0'] should be float64")])
def test_the_message_names_column_and_row(column, value, says):
    t = random_table(0)
    v = t.boxes[column].tolist(); v[3] = value
    with pytest.raises(TableError, match='.*') as e: t.with_columns(**{column: v})
    assert says in str(e.value)

def test_boxes_that_are_no_boxes_are_kept_for_the_repair():
    t = Table.make(dict(file=['a.png'], width=[10], height=[10]),
                   dict(image=[0]*3, category=[0]*3, x0=[np.nan, 9, -50], y0=[0, 9, 0], x1=[1, 2, 999], y1=[1, 2, 999]),
                   ['car'])
    assert len(t) == 3 and np.isnan(t.xyxy[0, 0])

# --- images

def encoded(kind, **kw):
    x = np.arange(40*56*3).reshape(40, 56, 3) % 251
    f = BytesIO(); Image.fromarray(x.astype(np.uint8)).save(f, kind, **kw)
    return f.getvalue()

@pytest.mark.parametrize('kind, kw', [('JPEG', {}), ('JPEG', dict(progressive=True)),
                                      ('JPEG', dict(optimize=True, quality=95)), ('PNG', {}), ('WEBP', {}),
                                      ('BMP', {})])
def test_no_cut_goes_unseen(tmp_path, kind, kw):
    data, f = encoded(kind, **kw), tmp_path/f'잘린.{kind.lower()}'
    f.write_bytes(data)
    assert images.read_image(f).shape == (40, 56, 3) and images.image_size(f) == (56, 40)
    end = len(data) - (12 if kind == 'PNG' else 0)     # PNG's last chunk holds no pixels
    for n in [*range(0, end, max(1, end//150)), end - 2, end - 1]:
        f.write_bytes(data[:n])
        with pytest.raises(ImageError, match='잘린'): images.read_image(f)

def test_a_folder_is_no_image(tmp_path):
    for ask in (images.read_image, images.image_size):
        with pytest.raises(ImageError): ask(tmp_path)

@pytest.mark.skipif(files.shared_data_dir() is None, reason='no shared data beside the checkout')
def test_no_whole_picture_is_refused():
    files = [f for p in ('*.jpg', '*.png') for f in sorted((shared_data_dir()/'data').rglob(p))]
    for f in files[::max(1, len(files)//150)]:
        rgb = images.read_image(f)
        assert rgb.shape == (*images.image_size(f)[::-1], 3) and rgb.dtype == np.uint8

def test_stretch_and_letterbox_agree_on_the_same_shape():
    a, b = letterbox(200, 100, 400, 200), letterbox(200, 100, 400, 200, 'stretch')
    assert [(f.sx, f.sy, f.dx, f.dy, f.w, f.h) for f in (a, b)] == [(2, 2, 0, 0, 400, 200)]*2

def test_tensors_and_arrays_convert_alike():
    torch = pytest.importorskip('torch')
    b = np.random.default_rng(0).uniform(-50, 50, (20, 4))
    for f in (boxes.xyxy2xywh, boxes.xyxy2cxcywh, boxes.cxcywh2xyxy, boxes.box_area,
              lambda x: boxes.clip_boxes(x, 30, 20)):
        assert np.array_equal(f(b), f(torch.from_numpy(b)).numpy()) and np.array_equal(f(b), f(b.tolist()))

def test_the_light_chapters_import_no_torch():
    code = ('import sys, yolokit.core.boxes, yolokit.core.files, yolokit.core.console, yolokit.core.images, '
            'yolokit.data.table; '
            'print(sorted({"torch", "IPython", "ipywidgets", "fastcore", "pandas"} & set(sys.modules)))')
    assert subprocess.check_output([sys.executable, '-c', code], text=True).strip() == '[]'

# --- the ground

def test_atomic_survives_a_full_disk(tmp_path, monkeypatch):
    f = tmp_path/'last.pt'
    f.write_bytes(b'good')
    def full(fd): raise OSError(28, 'No space left on device')
    monkeypatch.setattr(os, 'fsync', full)
    with pytest.raises(OSError, match='No space'):
        with files.atomic_write(f) as p: p.write_bytes(b'half')
    assert f.read_bytes() == b'good' and [p.name for p in tmp_path.iterdir()] == ['last.pt']

def test_a_killed_writer_leaves_the_old_file(tmp_path):
    f = tmp_path/'last.pt'
    f.write_text('good')
    code = (f'import os\nfrom yolokit.core.files import atomic_write\nwith atomic_write({str(f)!r}) as p:\n'
            f'    p.write_text("half"); os.kill(os.getpid(), 9)')
    assert subprocess.run([sys.executable, '-c', code]).returncode == -9
    assert f.read_text() == 'good'

def test_root_from_anywhere(tmp_path, monkeypatch):
    here = Path(__file__).resolve().parents[2]
    monkeypatch.delenv('YOLOKIT_ROOT', raising=False)
    monkeypatch.chdir(here/'nbs'); assert files.project_root() == here
    monkeypatch.chdir(here.anchor); assert files.project_root() == here      # papermill called from elsewhere
    monkeypatch.setenv('YOLOKIT_ROOT', str(tmp_path)); assert files.project_root() == tmp_path.resolve()

def test_a_pipe_gets_whole_lines():
    code = ('from yolokit.core.console import log_line, progress_bar\nlog_line("begin")\nfor i in (b := '
            'progress_bar(range(50), desc="epoch")): b.set_postfix(loss=i)\nlog_line("end")')
    r = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, encoding='utf-8',
                       env=os.environ | {'PYTHONIOENCODING': 'utf-8'})
    assert r.stdout == 'begin\nend\n'
    lines = r.stderr.splitlines()
    assert '\r' not in r.stderr and len(lines) == 2 and '50/50' in lines[-1] and 'loss=49' in lines[-1]

def test_papermill_without_output_reaches_the_terminal(tmp_path):
    cells = ['print("only in the notebook")\nfrom yolokit.core.console import log_line, progress_bar',
             'log_line("계획: 3 epochs", log="log.txt")',
             'for i in progress_bar(range(5), desc="epoch", log="log.txt"): pass', 'log_line("done")']
    nb = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(c) for c in cells],
                                  metadata={'kernelspec': {'name': 'python3', 'display_name': 'python3',
                                                           'language': 'python'}})
    nbformat.write(nb, tmp_path/'talk.ipynb')
    r = subprocess.run([sys.executable, '-m', 'papermill', 'talk.ipynb', '--no-progress-bar'], cwd=tmp_path,
                       capture_output=True, text=True, encoding='utf-8', timeout=120)
    assert r.returncode == 0, r.stderr
    said = r.stderr.splitlines()
    for line in ('계획: 3 epochs', 'done'): assert said.count(line) == 1, r.stderr
    assert any('5/5' in s for s in said) and 'only in the notebook' not in r.stderr
    log = (tmp_path/'log.txt').read_text(encoding='utf-8')
    assert '계획: 3 epochs\n' in log and '5/5' in log
    text = [''.join(o.get('text', '')) for c in json.loads(r.stdout)['cells'] for o in c['outputs']]
    assert ''.join(text).count('계획: 3 epochs') == 1      # once in the notebook as well
