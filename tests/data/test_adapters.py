"Proprietary records (ATM) described in yaml only: three invented conventions, read, converted, trained on and judged."
import json, os, subprocess, sys
from pathlib import Path
from xml.sax.saxutils import quoteattr

import numpy as np
import pytest

from small import environment
from yolokit.core.files import FormatError
from yolokit.data import parking
from yolokit.data.formats import detect_format, read, write

KO = ['세단(승용차)', 'SUV', '승합차', '버스', '학원차량(통학버스)', '트럭', '택시', '성인', '어린이', '오토바이', '전동킥보드', '자전거', '유모차', '쇼핑카트']


@pytest.fixture(scope='module')
def truth(tmp_path_factory):
    "The embedded scene: table and folder."
    folder = tmp_path_factory.mktemp('lot')/'parking'
    parking.make_parking(folder, n_train=8, n_val=4, n_test=0, faults=0, workers=1)
    return read(folder)


def linked(t, folder, sub):
    for f, p in zip(t.images['file'], t.images['path']):
        (folder/sub).mkdir(parents=True, exist_ok=True)
        os.symlink(p, folder/sub/f)


def atm_json(t, folder):
    "A json a picture: boxes nested, centres as fractions, classes as codes, the split in the record."
    linked(t, folder, 'shots')
    (folder/'records').mkdir()
    for i, file in enumerate(t.images['file']):
        w, h = (float(t.images[k][i]) for k in ('width', 'height'))
        found = [{'uid': f'{i}-{j}', 'kind': {'code': 100 + int(t.boxes['category'][j])},
                  'geo': {'mid': [(t.boxes['x0'][j] + t.boxes['x1'][j])/2/w, (t.boxes['y0'][j] + t.boxes['y1'][j])/2/h],
                          'span': {'b': (t.boxes['x1'][j] - t.boxes['x0'][j])/w,
                                   'h': (t.boxes['y1'][j] - t.boxes['y0'][j])/h}},
                  'by': '민수', 'note': None} for j in t.of(i)]
        (folder/f'records/{i:03d}.json').write_text(json.dumps({
            'device': 'ATM-7', 'pic': {'name': file, 'size': {'w': int(w), 'h': int(h)}},
            'set': str(t.images['split'][i]), 'found': found}, ensure_ascii=False, indent=2), encoding='utf-8')
    (folder/'atm.yaml').write_text('''adapter: ATM
files: "records/*.json"
images: shots
image: {file: pic.name, width: pic.size.w, height: pic.size.h, split: set}
box: {each: "found[]", id: uid, class: kind.code, cx: "geo.mid[0]", cy: "geo.mid[1]", w: geo.span.b, h: geo.span.h, \
columns: {by: by}}
unit: fraction
classes: {''' + ', '.join(f'{100 + i}: {n}' for i, n in enumerate(t.names)) + '}\n', encoding='utf-8')


def atm_csv(t, folder, codec='cp949'):
    "A csv, one row a box: corner pixels, Korean columns and class names, an empty row for a picture without boxes."
    linked(t, folder, 'images')
    rows = ['번호;파일;종류;좌;상;우;하;메모\r\n']
    for i, file in enumerate(t.images['file']):
        for j in t.of(i):
            rows.append(f'{j};{file};{KO[t.boxes["category"][j]]};'
                        f'{";".join(repr(float(t.boxes[k][j])) for k in ("x0", "y0", "x1", "y1"))};"맑음; ""주간"""\r\n')
        if not len(t.of(i)): rows.append(f';{file};;;;;;\r\n')
    (folder/'boxes.csv').write_bytes(''.join(rows).encode(codec))
    (folder/'atm.yaml').write_text('adapter: ATM\nfiles: boxes.csv\nseparator: ";"\nimages: images\nimage: {file: '
                                   '파일}\nbox: {class: 종류, x0: 좌, y0: 상, x1: 우, y1: 하}\n'
                                   + ('encoding: cp949\n' if codec == 'cp949' else '') + 'classes: {'
                                   + ', '.join(f'"{k}": {n}' for k, n in zip(KO, t.names)) + '}\n', encoding='utf-8')


def atm_xml(t, folder):
    "An xml for all, left, top, width, height as elements, the class as an attribute."
    linked(t, folder, 'images')
    rows = ['<?xml version="1.0" encoding="euc-kr"?>\n<dump made="2024-01-01">\n']
    for i, file in enumerate(t.images['file']):
        rows.append(f'  <pic src={quoteattr(file)} part="{t.images["split"][i]}"><!-- {i} -->\n')
        for j in t.of(i):
            x, y, w, h = (float(v) for v in (t.boxes['x0'][j], t.boxes['y0'][j], t.boxes['x1'][j] - t.boxes['x0'][j],
                                             t.boxes['y1'][j] - t.boxes['y0'][j]))
            rows.append(f'    <obj type={quoteattr(t.names[t.boxes["category"][j]])} who="민수">\n      '
                        f'<left>{x!r}</left><top>{y!r}</top><width>{w!r}</width><height>{h!r}</height><tag/>\n    '
                        f'</obj>\n')
        rows.append('  </pic>\n')
    (folder/'dump.xml').write_bytes(''.join([*rows, '</dump>\n']).encode('euc-kr'))
    (folder/'atm.yaml').write_text('adapter: ATM\nfiles: dump.xml\nroot: dump\nimage: {each: "pic[]", file: "@src", '
                                   'split: "@part"}\nbox: {each: "obj[]", class: "@type", x0: left, y0: top, w: width, '
                                   'h: height}\n', encoding='utf-8')


MADE = dict(json=atm_json, csv=atm_csv, csv_bom=lambda t, d: atm_csv(t, d, 'utf-8-sig'), xml=atm_xml)


@pytest.fixture(scope='module', params=MADE)
def atm(request, truth, tmp_path_factory):
    folder = tmp_path_factory.mktemp(request.param)
    MADE[request.param](truth, folder)
    return folder


def rows(t):
    return sorted((t.images['file'][i], t.names[c],
                   *np.round(x, 6)) for i, c, x in zip(t.boxes['image'], t.boxes['category'], t.xyxy))


def test_read_as_described(atm, truth):
    assert detect_format(atm) == 'adapter'
    t = read(atm)
    assert (rows(t) == rows(truth) and t.n_images == truth.n_images and all(map(os.path.exists, t.images['path']))
            and set(t.names) <= set(truth.names))
    assert t.images['width'].tolist() == [1920 if w == 1920 else w
                                          for w in t.images['width'].tolist()] and (t.images['width'] > 0).all()
    if 'csv' not in atm.name:
        assert dict(zip(t.images['file'], t.images['split'])) == dict(zip(truth.images['file'], truth.images['split']))
    assert read(atm/'atm.yaml').same(t) and read(atm, format=str(atm/'atm.yaml')).same(t)


def test_same_bytes_again(atm, tmp_path):
    assert write(read(atm), tmp_path/'again', 'adapter') == []
    for p in (p for p in atm.rglob('*') if p.suffix in ('.json', '.csv', '.xml', '.yaml')):
        assert (tmp_path/'again'/p.relative_to(atm)).read_bytes() == p.read_bytes(), p.name


def test_to_coco_and_yolo_and_back(atm, truth, tmp_path):
    t = read(atm)
    for f in ('coco', 'yolo'):
        assert any('other fields' in s for s in write(t, tmp_path/f, f))
        plain = read(tmp_path/f, sidecar=False)
        assert (rows(plain) == [tuple(r) for r in rows(truth)]
                or np.allclose([r[2:] for r in rows(plain)], [r[2:] for r in rows(truth)], atol=1e-5))
        back = read(tmp_path/f)
        write(back, tmp_path/f'{f}-back', 'adapter')
        for p in (p for p in atm.rglob('*') if p.suffix in ('.json', '.csv', '.xml')):
            assert (tmp_path/f'{f}-back'/p.relative_to(atm)).read_bytes() == p.read_bytes(), (f, p.name)


def test_other_data_in_the_same_convention(atm, truth, tmp_path):
    "A table that never was ATM, written by the yaml alone."
    write(truth, tmp_path/'new', str(atm/'atm.yaml'))
    t = read(tmp_path/'new')
    assert ([r[:2] for r in rows(t)] == [r[:2] for r in rows(truth)]
            and np.allclose([r[2:] for r in rows(t)], [r[2:] for r in rows(truth)], atol=1e-6)
            and t.n_images == truth.n_images)


def test_mended_added_and_deleted_boxes(atm, tmp_path):
    t = read(atm)
    xyxy = t.xyxy
    xyxy[3] = xyxy[3, [2, 3, 0, 1]]                                             # corners turned round
    t2 = t.with_xyxy(xyxy).keep([*range(5), *range(6, len(t)), 0])              # one deleted, one added
    t2 = t2.with_columns(slot=np.r_[t2.boxes['slot'][:-1], -1])
    write(t2, tmp_path/'x', 'adapter')
    u = read(tmp_path/'x')
    assert sorted(rows(u)) == sorted(rows(t2))
    a, b = (''.join(p.read_bytes().decode('cp949' if atm.name.startswith('csv0')
                                          else 'euc-kr' if atm.name[:3] == 'xml' else 'utf-8')
                    for p in sorted(d.rglob('*.[jcx][sm]*')) if p.suffix in ('.json', '.csv', '.xml')).splitlines()
            for d in (atm, tmp_path/'x'))
    assert len(set(a) ^ set(b)) < 60 and len(a) > 60                            # the rest of the text is as it was


@pytest.mark.parametrize('change, says', [
    (('kind.code', 'kind.kode'), "000.json:.*no class"),
    (('geo.span.b', 'geo.span.x'), '000.json:.*None where a number should be. The adapter reads geo/mid/0'),
    (('records/*.json', 'nowhere/*.json'), 'no file nowhere/.*.json in it'),
    (('unit: fraction', 'units: fraction'), "the key 'units'"), (('100:', '999:'), "class '100' is out of range"),
    (('pic.name', 'pic.nam'), 'no file name'), (('found[]', 'found[x]'), 'A path is like')])
def test_what_a_wrong_yaml_says(truth, tmp_path, change, says):
    atm_json(truth, tmp_path)
    f = tmp_path/'atm.yaml'
    f.write_text(f.read_text().replace(*change))
    with pytest.raises(FormatError, match=says): read(tmp_path)


@pytest.mark.parametrize('text, says', [
    ('- file: ' + '['*200_000 + ']'*200_000, 'yaml nested too deep'),        # libyaml would end the process
    ('- file: ' + '1:'*300 + '1', 'a number of 601 letters'), ('- file: &a x\n- file: *a', r'all.yaml:2: an alias')])
def test_yaml_records_that_cost_too_much_are_refused_by_name(tmp_path, text, says):
    (tmp_path/'all.yaml').write_text(text)
    (tmp_path/'mine.yaml').write_text('adapter: mine\nfiles: all.yaml\nimage: {each: "[]", file: file}\n'
                                      'box: {each: "boxes[]", class: c, x0: a, x1: b, y0: d, y1: e}\n')
    with pytest.raises(FormatError, match=says): read(tmp_path, str(tmp_path/'mine.yaml'))


def test_a_csv_without_the_column(truth, tmp_path):
    atm_csv(truth, tmp_path, 'utf-8-sig')
    (tmp_path/'atm.yaml').write_text((tmp_path/'atm.yaml').read_text().replace('x0: 좌', 'x0: 왼쪽'))
    with pytest.raises(FormatError, match="boxes.csv:1: no column '왼쪽', only 번호, 파일"): read(tmp_path)


def app(name, root, **parameters):
    "A notebook through papermill, as a user calls it."
    p = [x for k, v in parameters.items() for x in ('-p', k, str(v))]
    done = subprocess.run([sys.executable, '-m', 'papermill', '--no-progress-bar',
                           str(Path(__file__).resolve().parents[2]/f'nbs/{name}.ipynb'), str(root/f'{name}.ipynb'), *p],
                          cwd='/', env=environment(root), capture_output=True, text=True, timeout=400)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stderr


@pytest.mark.parametrize('kind', ['json', pytest.param('csv', marks=pytest.mark.soak),
                                  pytest.param('xml', marks=pytest.mark.soak)])
def test_yaml_only_to_a_judged_detector(kind, truth, tmp_path):
    (tmp_path/'settings.ini').write_text('[DEFAULT]\n')
    (tmp_path/'atm').mkdir()
    MADE[kind](truth, tmp_path/'atm')
    app('train', tmp_path, data='atm', stage='baseline', steps=3, width=160, height=96, bs=4, workers=0, threads=1,
        device='cpu')
    run = tmp_path/'runs/baseline-001'
    info = json.loads((run/'run.json').read_text())
    assert info['state'] == 'finished' and 'AP50' in info['result'] and (run/'weights/best.pt').exists()
    # the second app is judged on the other two
    if kind == 'json': return
    said = app('evaluate', tmp_path, run='baseline-001', data='atm', split='', workers=0, check='', bs=4,
               device='cpu')
    assert 'AP' in said
