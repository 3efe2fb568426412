"""Folders as people have them, in formats that ship as adapters, and what must come out; each names its tool.

The small folders in ../shared were rebuilt from public reports; others of each kind are made here.
"""
import json
import shutil
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from yolokit.core import images
from yolokit.core.files import FormatError
from yolokit.data.formats import DESCRIBED, detect_format, read, write
from yolokit.data.table import Table

CAT = [5, 6, 30, 40]  # the box that nearly all of them hold


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch): monkeypatch.setenv('YOLOKIT_CACHE', str(tmp_path/'cache'))


def shared(name):
    p = Path(__file__).parents[3]/'shared/data/field/annotations'/name
    if not p.exists(): pytest.skip(f'{p} is not here: the small folders lie beside the checkout')
    return p


def save(path, text, encoding='utf-8'):
    path.parent.mkdir(parents=True, exist_ok=True)
    text = text if isinstance(text, str) else json.dumps(text, ensure_ascii=False)
    path.write_bytes(text.encode(encoding))
    return path


def picture(path, size=(64, 48)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new('RGB', size).save(path)
    return path


def facts(t): # what a folder says: split and file of each picture, class and corners of each box
    return (sorted(zip(t.images['split'], (Path(p).name for p in t.images['path']))),
            [(t.names[c], *np.round(b, 4).tolist()) for c, b in zip(t.boxes['category'], t.xyxy)])


# folder, format, tool or specification, class names, (split, picture found) of each, boxes
FOLDERS = [
    ('f01_tfcsv', 'tf-csv', "TensorFlow Object Detection API's csv (datitran/raccoon_dataset), Roboflow", ['cat'],
     [('train', 'a.jpg')], [('cat', *CAT)]),
    ('f02_via', 'via', 'VGG Image Annotator 2, Annotations > Export as json', ['cat'],
     [('', 'a.jpg')], [('cat', *CAT)]),
    ('f03_createml', 'createml', "Apple Create ML's object detection: centre and size in pixels", ['cat'],
     [('train', 'a.jpg')], [('cat', *CAT)]),
    ('f06_labelstudio_json', 'label-studio', 'Label Studio, json export: percents', ['cat'], [('', '')],
     [('cat', 6.4, 4.8, 25.6, 24)]),
    ('f07_vott', 'vott', 'Microsoft VoTT 2, json export', ['cat'], [('', '')], [('cat', *CAT)]),
    ('f10_widerface', 'wider', 'WIDER FACE, wider_face_split/readme.txt', ['face'], [('train', 'a.jpg')],
     [('face', *CAT)]),
    ('f11_visdrone', 'visdrone', 'VisDrone2018-DET-toolkit, readme', list(DESCRIBED['visdrone'].classes.values()),
     [('', 'a.jpg')], [('car', *CAT)]),
    ('f12_keras_txt', 'keras', "qqwweee/keras-yolo3, Roboflow's YOLO Keras TXT", ['cat', 'dog'], [('train', 'a.jpg')],
     [('cat', *CAT), ('dog', 1, 2, 9, 9)]),
    ('f13_aihub', 'adapter', 'AI-Hub, box null where a polygon was drawn', ['불꽃', '연기'], [('', ''), ('', 'a.jpg')],
     [('불꽃', *CAT), ('연기', 1, 1, 9, 9)]),
    ('f15_hf_meta', 'hf', 'Hugging Face datasets, ImageFolder with metadata.jsonl', ['0'], [('train', 'a.jpg')],
     [('0', *CAT)]),
    ('y31_dota', 'dota', 'DOTA: four corners, class, difficult', ['plane'],
     [('', 'a.jpg')], [('plane', 8, 10, 30, 30)]),
    ('y44_zip', '', 'a zip of YOLO labels in a folder', ['cat'], [('train', 'a.jpg')], [('cat', 24, 18, 40, 30)]),
    ('y45_sub_root', '', 'a Roboflow export one folder below', ['cat'],
     [('train', 'a.jpg')], [('cat', 24, 18, 40, 30)]),
]


@pytest.mark.parametrize('name,format,tool,names,pictures,boxes', FOLDERS, ids=[f[0] for f in FOLDERS])
def test_a_folder_is_read_as_its_tool_means_it(tmp_path, name, format, tool, names, pictures, boxes):
    t = read(shared(name))
    assert (t.names, facts(t)) == (names, (pictures, boxes)), tool
    if not format: return
    assert detect_format(shared(name)) == format
    write(t, tmp_path/'again', t.extra['format'])
    for p in shared(name).rglob('*'):
        if p.is_file() and p.suffix not in ('.jpg', '.md'):
            assert (tmp_path/'again'/p.relative_to(shared(name))).read_bytes() == p.read_bytes()


def test_every_small_folder_has_a_test():
    tests = [p.read_text(encoding='utf-8') for p in Path(__file__).parents[1].glob('*/test_field_*.py')]
    names = [p.name for p in shared('').iterdir() if p.is_dir()]
    assert len(names) >= 85 and not [n for n in names if not any(n in text for text in tests)]


def test_cvat_tracks_become_pictures_of_frames():  # CVAT for video 1.1; outside: not seen
    t = read(shared('k05_track_video'), 'cvat')
    assert facts(t) == ([('', f'frame_{k:06d}.PNG') for k in range(3)], [('cat', *CAT), ('cat', 6, 6, 30, 40)])


# --- others of each kind

MEMBERS = [
    ('tf-csv', 'valid/_annotations.csv',
     'filename,width,height,class,xmin,ymin,xmax,ymax\n"a,b.jpg",64,48,"a ""cat""",5,6,30,40\n',
     [('val', 'a "cat"', CAT)]),
    ('via', 'x.json', {'a.jpg9': {'fileref': '', 'size': 9, 'filename': 'a.jpg', 'file_attributes': {}, 'regions': {
        '0': {'shape_attributes': {'name': 'circle', 'cx': 10, 'cy': 20, 'r': 5}, 'region_attributes': {}}}}},
     [('', 'object', [5, 15, 15, 25])]),
    ('via-project', 'p.json', {'_via_settings': {},
     '_via_img_metadata': {'a.jpg9': {'filename': 'a.jpg', 'size': 9, 'regions': [
        {'shape_attributes': {'name': 'polygon', 'all_points_x': [5, 30, 30], 'all_points_y': [6, 6, 40]},
         'region_attributes': {'kind': {'cat': True}}},
        {'shape_attributes': {'name': 'point', 'cx': 1, 'cy': 1}, 'region_attributes': {'kind': 'dog'}}]}}},
     [('', 'cat', CAT)]),
    ('via-csv', 'v.csv',
     'filename,file_size,file_attributes,region_count,region_id,region_shape_attributes,'
     'region_attributes\n'
     'a.jpg,9,"{}",1,0,"{""name"":""rect"",""x"":5,""y"":6,""width"":25,""height"":34}","{""class"":""cat""}"\n'
     'b.jpg,9,"{}",0,0,"{}","{}"\n', [('', 'cat', CAT)]),
    ('createml', 'c.json', [{'imagefilename': 'a.jpg', 'annotation': [
        {'label': 'cat', 'coordinates': {'x': 17.5, 'y': 23, 'width': 25, 'height': 34}}]}], [('', 'cat', CAT)]),
    ('hf', 'val/metadata.jsonl',
     '{"file_name": "a.jpg", "objects": {"id": [7], "bbox": [[5, 6, 25, 34]], "category": ["cat"]}}\n'
     '{"file_name": "b.jpg", "objects": {"id": [], "bbox": [], "category": []}}\n', [('val', 'cat', CAT)]),
    ('label-studio', 'ls.json', [{'id': 1, 'data': {'photo': 's3://x/a.jpg'}, 'annotations': [{'result': [
        {'type': 'rectanglelabels', 'original_width': 100, 'original_height': 100, 'value': {
            'x': 50, 'y': 50, 'width': 20, 'height': 10, 'rotation': 90, 'rectanglelabels': ['cat']}},
        {'type': 'keypointlabels', 'original_width': 100, 'original_height': 100,
         'value': {'keypointlabels': ['eye']}}]}]}],
     [('', 'cat', [40, 50, 50, 70])]),
    ('label-studio-min', 'm.json', [{'id': 1, 'image': '/data/upload/1/a.jpg', 'label': [
        {'x': 10, 'y': 10, 'width': 30, 'height': 40, 'rotation': 0, 'rectanglelabels': ['cat'], 'original_width': 100,
         'original_height': 100}]}], [('', 'cat', [10, 10, 40, 50])]),
    ('openimages', 'train-annotations-bbox.csv',
     'ImageID,Source,LabelName,Confidence,XMin,XMax,YMin,YMax,IsOccluded,IsTruncated,'
     'IsGroupOf,IsDepiction,IsInside\na,xclick,/m/01yrx,1,0.25,0.5,0.125,1,0,0,1,0,0\n',
     [('train', '/m/01yrx', [16, 6, 32, 48])]),
    ('bdd100k', 'det.json', {'frames': [{'name': 'a.jpg', 'labels': [
        {'category': 'lane', 'poly2d': [{'vertices': [[1, 2]]}]},
        {'category': 'car', 'box2d': {'x1': 5, 'y1': 6, 'x2': 30, 'y2': 40}}]}, {'name': 'b.jpg', 'labels': None}]},
     [('', 'car', CAT)]),
    ('supervisely', 'ds/ann/a.jpg.json', {'size': {'height': 48, 'width': 64}, 'objects': [
        {'classTitle': 'cat', 'geometryType': 'rectangle', 'points': {'exterior': [[5, 6], [30, 40]], 'interior': []}},
        {'classTitle': 'dog', 'geometryType': 'bitmap', 'bitmap': {'data': '', 'origin': [1, 1]}}]},
     [('', 'cat', CAT)]),
    ('mot', 'train/MOT17-02/gt/gt.txt', '1,7,5,6,25,34,1,1,1\n3,7,5,6,25,34,0,3,.5\n',
     [('train', 'pedestrian', CAT), ('train', 'car', CAT)]),
    ('datumaro', 'annotations/train.json', {'info': {},
     'categories': {'label': {'labels': [{'name': 'dog'}, {'name': 'cat'}]}},
     'items': [{'id': 'a', 'annotations': [{'id': 1, 'type': 'bbox', 'label_id': 1, 'bbox': [5, 6, 25, 34]},
                                           {'id': 2, 'type': 'points', 'label_id': 0, 'points': [1, 2]}]}]},
     [('train', 'cat', CAT)]),
    ('aihub', '라벨링데이터/a.json', {'image': {'filename': 'a.jpg', 'resolution': [64, 48]}, 'annotations': [
        {'data ID': 'S3', 'box': [5, 6, 30, 40], 'class': '01'},
        {'data ID': 'S3', 'class': '02', 'box': None, 'polygon': [[5, 6], [30, 6], [30, 40]]}]},
     [('', '01', CAT), ('', '02', CAT)]),
    ('vott-csv', 'vott-csv-export.csv',
     '"image","xmin","ymin","xmax","ymax","label"\n"a.jpg",5,6,30,40,"cat"\n', [('', 'cat', CAT)]),
    ('wider', 'wider_face_val_bbx_gt.txt',
     'x/b.jpg\r\n0\r\n0 0 0 0 0 0 0 0 0 0 \r\nx/a.jpg\r\n1\r\n5 6 25 34 2 0 0 0 0 0 \r\n',
     [('val', 'face', CAT)]),
    ('keras', 'train.txt', '폴더/a b.jpg 5,6,30,40,3\nb.jpg\n', [('train', '3', CAT)]),
    ('dota', 'labelTxt/a.txt', '5 6 30 6 30 40 5 40 large-vehicle 1\n', [('', 'large-vehicle', CAT)]),
]


@pytest.mark.parametrize('format,file,content,boxes', MEMBERS, ids=[m[0] for m in MEMBERS])
def test_others_of_the_kind(tmp_path, format, file, content, boxes):
    d = tmp_path/'set'
    p = save(d/file, content)
    picture(d/'pics/a.jpg')
    save(d/'README.txt', 'nothing'), save(d/'.DS_Store', 'x')
    assert detect_format(d) == format
    t = read(d)
    rows = zip(t.boxes['image'], t.boxes['category'], t.xyxy.tolist())
    got = [(t.images['split'][i], t.names[c], b) for i, c, b in rows]
    assert [g[:2] for g in got] == [b[:2] for b in boxes]
    np.testing.assert_allclose([g[2] for g in got], [b[2] for b in boxes], atol=1e-9)
    write(t, tmp_path/'again', format, sidecar=False)
    assert (tmp_path/'again'/file).read_bytes() == p.read_bytes()
    moved = t.with_xyxy(t.xyxy + 1)
    write(moved, tmp_path/'moved', format, sidecar=False)
    u = read(tmp_path/'moved', format, sidecar=False)
    np.testing.assert_allclose(u.xyxy, moved.xyxy, atol=1e-6)


def three(format):
    own = dict(wider=['face'], mot=['pedestrian', 'car'], visdrone=['pedestrian', 'car'])
    names = own.get(format, ['고양이', 'dog'])
    return names, dict(image=[0, 0, 2], category=[0, len(names) - 1, 0], x0=[5, 1, 7.5], y0=[6, 2, 8],
                       x1=[30, 9, 20.25], y1=[40, 12, 30])


@pytest.mark.parametrize('format', sorted(DESCRIBED))
def test_a_new_set_is_read_back_and_edited(tmp_path, format):
    pics = [picture(tmp_path/f'pics/{k}.jpg') for k in (1, 2, 3)]
    names, boxes = three(format)
    t = Table.make(dict(file=[p.name for p in pics], path=list(map(str, pics)), width=[64]*3, height=[48]*3,
                        split=['train', 'train', 'val']), boxes, names)
    key = lambda t: sorted((int(Path(t.images['file'][i]).stem), t.images['split'][i], t.names[c], *np.round(b, 6))
                           for i, c, b in zip(t.boxes['image'], t.boxes['category'], t.xyxy.tolist()))
    write(t, tmp_path/'a', format, sidecar=False)
    assert detect_format(tmp_path/'a') == format
    u = read(tmp_path/'a', sidecar=False)
    assert key(u) == key(t) and all(u.images['path'])
    write(u, tmp_path/'b', format, sidecar=False)
    files = lambda d: {p.relative_to(d).as_posix(): p.read_bytes() for p in d.rglob('*') if p.is_file()}
    assert files(tmp_path/'a') == files(tmp_path/'b')
    less = u.keep(np.arange(1, len(u)))
    more = {k: np.concatenate([v, v[:1]]) for k, v in u.boxes.items()}
    more['slot'][-1], more['x1'][-1] = -1, more['x1'][-1] + 3
    more = Table.make(u.images, more, u.names, u.category_ids, u.extra)
    for k, v in enumerate((less, more, u.keep_images([0, u.n_images - 1]))):
        write(v, tmp_path/f'c{k}', format, sidecar=False)
        assert key(read(tmp_path/f'c{k}', format, sidecar=False)) == key(v)


# --- the language

def test_yaml_records_and_decimal_commas(tmp_path):
    save(tmp_path/'y/adapter.yaml', 'adapter: lights\nfiles: "*.rec.yaml"\nimage: {each: "[]", file: path}\n'
         'box: {each: "boxes[]", class: label, x0: x_min, y0: y_min, x1: x_max, y1: y_max}\n')
    text = ('- boxes:\n  - {label: Green, occluded: false, x_max: 30, x_min: 5.5, y_max: 40, y_min: 6}  # kept\n'
            '  path: ./a.jpg\n')
    save(tmp_path/'y/t.rec.yaml', text)
    t = read(tmp_path/'y')
    assert t.xyxy.tolist() == [[5.5, 6, 30, 40]]
    write(t, tmp_path/'y2', 'adapter')
    assert (tmp_path/'y2/t.rec.yaml').read_text() == text
    write(t.with_xyxy(t.xyxy + 1), tmp_path/'y3', 'adapter')
    assert read(tmp_path/'y3', sidecar=False).xyxy.tolist() == [[6.5, 7, 31, 41]]
    save(tmp_path/'c/adapter.yaml', 'adapter: sheet\nfiles: "*.csv"\nseparator: ";"\ndecimal: ","\nencoding: cp949\n'
         'image: {file: 파일}\nbox: {class: 종류, x0: x, y0: y, w: w, h: h}\n')
    save(tmp_path/'c/표.csv', '파일;종류;x;y;w;h\na.jpg;차;5,5;6;24,5;34\n', 'cp949')
    t = read(tmp_path/'c')
    assert t.xyxy.tolist() == [[5.5, 6, 30, 40]]
    write(t.with_xyxy(t.xyxy + [.25, 0, .25, 0]), tmp_path/'c2', 'adapter')
    assert (tmp_path/'c2/표.csv').read_bytes().decode('cp949').splitlines()[1] == 'a.jpg;차;5,75;6;24,5;34'


@pytest.mark.parametrize('x0, moved', [('5.5', '6.5'), ('5,5', '6,5')])  # as a spreadsheet saves it in Seoul, in Berlin
def test_tables_saved_with_semicolons(tmp_path, x0, moved):
    text = 'filename;width;height;class;xmin;ymin;xmax;ymax\na.jpg;64;48;"a;b";{};6;30;40\n'
    p = save(tmp_path/'s/train/_annotations.csv', text.format(x0))
    t = read(tmp_path/'s')
    assert (t.extra['format'], t.names, t.xyxy.tolist()) == ('tf-csv', ['a;b'], [[5.5, 6, 30, 40]])
    write(t, tmp_path/'again', 'tf-csv')
    assert (tmp_path/'again/train/_annotations.csv').read_bytes() == p.read_bytes()
    write(t.with_columns(x0=t.boxes['x0'] + 1), tmp_path/'moved', 'tf-csv')
    assert (tmp_path/'moved/train/_annotations.csv').read_text() == text.format(moved)


def test_class_lists_beside_the_records(tmp_path):
    save(tmp_path/'k/_annotations.txt', 'a.jpg 5,6,30,40,1\n')
    save(tmp_path/'k/_classes.txt', 'dog\ncat\n')
    assert read(tmp_path/'k').names == ['dog', 'cat']
    save(tmp_path/'k/_annotations.txt', 'a.jpg 5,6,30,40,2\n')
    with pytest.raises(FormatError, match='class 2 is out of range'): read(tmp_path/'k')
    line = '{"file_name": "a.jpg", "objects": {"bbox": [[5, 6, 25, 34]], "categories": [1]}}\n'
    save(tmp_path/'h/metadata.jsonl', line)
    assert read(tmp_path/'h', names=['dog', 'cat']).names == ['dog', 'cat']
    save(tmp_path/'h/metadata.jsonl', line.replace('[1]', '[]'))
    with pytest.raises(FormatError, match='side by side'): read(tmp_path/'h')


# --- archives

def yolo_set(d):
    picture(d/'train/images/맑음.jpg'), save(d/'train/labels/맑음.txt', '0 .5 .5 .25 .25\n')
    save(d/'data.yaml', 'train: train/images\nnames: [cat]\n')
    return d


@pytest.mark.parametrize('suffix', ['.zip', '.tar', '.tar.gz', '.tgz', '.tar.xz'])
def test_an_archive_is_a_source(tmp_path, suffix):
    d, p = yolo_set(tmp_path/'set'), tmp_path/f'export{suffix}'
    files = [f for f in sorted(d.rglob('*')) if f.is_file()]
    if suffix == '.zip':
        with zipfile.ZipFile(p, 'w') as z:
            for f in files: z.write(f, Path('export')/f.relative_to(d))
    else:
        with tarfile.open(p, 'w:' + {'tar': '', 'gz': 'gz', 'tgz': 'gz', 'xz': 'xz'}[suffix.rsplit('.', 1)[-1]]) as a:
            for f in files: a.add(f, Path('export')/f.relative_to(d))
    a, b = read(d), read(p)
    assert facts(a) == facts(b) and a.names == b.names
    assert read(p).images['path'].tolist() == b.images['path'].tolist()  # the second time from the cache


def test_archives_that_are_refused(tmp_path):
    def link(t):
        i = tarfile.TarInfo('x'); i.type, i.linkname = tarfile.SYMTYPE, '/etc/passwd'; t.addfile(i)
    def device(t): i = tarfile.TarInfo('x'); i.type = tarfile.CHRTYPE; t.addfile(i)
    def named(n): return lambda t: t.addfile(tarfile.TarInfo(n))
    cases = ((link, 'a link or a device'), (device, 'a link or a device'), (named('/x'), 'leads out'),
             (named('a/../../x'), 'leads out'), (named('C:/x'), 'leads out'))
    for k, (fill, says) in enumerate(cases):
        with tarfile.open(tmp_path/f'{k}.tar', 'w') as t: fill(t)
        with pytest.raises(FormatError, match=says): read(tmp_path/f'{k}.tar')
    with zipfile.ZipFile(tmp_path/'twins.zip', 'w') as z: z.writestr('a.txt', ''), z.writestr('A.txt', '')
    with pytest.raises(FormatError, match="is 'a.txt' in other letters"): read(tmp_path/'twins.zip')
    with zipfile.ZipFile(tmp_path/'bomb.zip', 'w', zipfile.ZIP_DEFLATED) as z: z.writestr('a', bytes(10**7))
    with pytest.raises(FormatError, match='decompression bomb'): read(tmp_path/'bomb.zip')
    (tmp_path/'cut.zip').write_bytes((tmp_path/'twins.zip').read_bytes()[:40])
    with pytest.raises(FormatError, match='damaged'): read(tmp_path/'cut.zip')
    assert not list((tmp_path/'cache').rglob('*.part')) and not list((tmp_path/'cache').rglob('x'))


def test_a_turned_box_goes_into_label_studio_and_back(tmp_path):  # it turns boxes about their left top corner
    xml = ('<annotations><meta><task><labels><label><name>cat</name></label></labels></task></meta><image id="0" '
           'name="a.jpg" width="64" height="48"><box label="cat" xtl="20" ytl="15" xbr="40" ybr="25" rotation="30"/>'
           '</image></annotations>')
    save(tmp_path/'in/annotations.xml', xml)
    t = read(tmp_path/'in', 'cvat')
    assert not [x for x in write(t, tmp_path/'out', 'label-studio', sidecar=False) if 'angle' in x]
    value = json.loads((tmp_path/'out/project.json').read_text())[0]['annotations'][0]['result'][0]['value']
    x, y = 30 - 10*np.cos(np.pi/6) + 5*np.sin(np.pi/6), 20 - 10*np.sin(np.pi/6) - 5*np.cos(np.pi/6)
    np.testing.assert_allclose([value[k] for k in ('x', 'y', 'width', 'height', 'rotation')],
                               [x/.64, y/.48, 20/.64, 10/.48, 30])
    back = read(tmp_path/'out')
    np.testing.assert_allclose(back.xyxy, t.xyxy)
    np.testing.assert_allclose(back.boxes['angle'], [30])


def test_a_folder_above_several_sets_names_them(tmp_path):
    yolo_set(tmp_path/'top/one')
    assert len(read(tmp_path/'top')) == 1
    yolo_set(tmp_path/'top/two')
    with pytest.raises(FormatError, match='2 data sets: one/data.yaml, two/data.yaml'): read(tmp_path/'top')
    for k in 'ab': shutil.make_archive(tmp_path/'zips'/k, 'zip', tmp_path/'top/one')
    with pytest.raises(FormatError, match='2 sets in it: a.zip, b.zip'): read(tmp_path/'zips')


def test_broken_records_are_one_sentence(tmp_path):
    rng = np.random.default_rng(0)
    for name, content in ((m[1], m[2]) for m in MEMBERS):
        data = (content if isinstance(content, str) else json.dumps(content)).encode()
        fmt = next(m[0] for m in MEMBERS if m[1] == name)
        for k in range(6):
            d = tmp_path/f'{fmt}{k}'
            broken = bytearray(data)
            at = int(rng.integers(len(broken)))
            if k % 2: broken[at:] = b''
            else: broken[at] = int(rng.integers(256))
            (d/name).parent.mkdir(parents=True, exist_ok=True)
            (d/name).write_bytes(broken)
            try: read(d, fmt)
            except FormatError: pass


@pytest.mark.parametrize('deep', ['set', 'set/deep', '내려받기/세트/v2'])
@pytest.mark.parametrize('packed', [True, False])
def test_the_description_of_a_set_that_stands_deeper(tmp_path, deep, packed):
    "An archive whose folders stand in each other alone keeps its class names and its split."
    d = tmp_path/'in'/deep
    for name, text in {'data.yaml': 'train: images\nnames: [cat, 개]\n', 'labels/a.txt': '1 .5 .5 .25 .25\n'}.items():
        (d/name).parent.mkdir(parents=True, exist_ok=True)
        (d/name).write_text(text, encoding='utf-8')
    images.write_image(d/'images/a.png', np.zeros((48, 64, 3), np.uint8))
    if packed:
        with tarfile.open(tmp_path/'x.tar.gz', 'w:gz') as z: z.add(tmp_path/'in', '.')
    t = read(tmp_path/('x.tar.gz' if packed else 'in'))
    assert (t.names, t.images['split'].tolist(), t.images['file'].tolist()) == (['cat', '개'], ['train'], ['a.png'])


@pytest.mark.parametrize('codec', ['utf-16-le', 'utf-16-be'])
@pytest.mark.parametrize('file, text, format', [
    ('train_labels.csv', 'filename,width,height,class,xmin,ymin,xmax,ymax\na.png,64,48,차,1,2,30,40\n', 'tf-csv'),
    ('a.txt', '0 .5 .5 .25 .25\n', 'yolo'),
    ('a.json', json.dumps(dict(images=[dict(id=1, file_name='a.png')], annotations=[dict(id=1, image_id=1, bbox=[
        1, 2, 3, 4], category_id=1)], categories=[dict(id=1, name='차')])), 'coco')])
def test_files_in_utf_16_are_known(tmp_path, codec, file, text, format):
    "As Excel saves `Unicode text`, and as PowerShell writes with `>`."
    images.write_image(tmp_path/'a.png', np.zeros((48, 64, 3), np.uint8))
    (tmp_path/file).write_bytes(('\ufeff' + text).encode(codec))
    t = read(tmp_path)
    assert (t.extra['format'], len(t), t.images['file'].tolist()) == (format, 1, ['a.png'])


def test_records_that_hold_no_suffix_and_no_folder(tmp_path):
    "Open Images' ImageID: png come back by the sidecar, with their sizes, and no two pictures get one name."
    boxes = dict(image=[0, 1, 2], category=[0, 1, 1], x0=[3.25, 10, 0], y0=[2.5, 6, 1], x1=[30.125, 40, 60], y1=[
        40.75, 44, 30])
    t = Table.make(dict(file=['가 1.png', 'd/a.png', 'e/a.jpg'], width=[64]*3, height=[48]*3, split=['train']*3),
                   boxes, ['차', 'cat'])
    write(t, tmp_path/'a', 'openimages')
    u = read(tmp_path/'a')
    assert (u.images['file'].tolist(), u.xyxy.tolist()) == (t.images['file'].tolist(), t.xyxy.tolist())
    assert u.boxes['image'].tolist() == [0, 1, 2] and u.images['width'].tolist() == [64]*3
    pics = [picture(tmp_path/f'pics/{f}') for f in t.images['file']]
    write(t.with_images(path=list(map(str, pics))), tmp_path/'b', 'openimages', sidecar=False)
    u = read(tmp_path/'b', sidecar=False)
    assert all(u.images['path']) and np.allclose(sorted(u.xyxy.tolist()), sorted(t.xyxy.tolist()))
