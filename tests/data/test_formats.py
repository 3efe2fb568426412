"Formats on input that is broken, odd or real."
import json, os, shutil, unicodedata
from pathlib import Path

import numpy as np
import pytest

from yolokit.core import images
from yolokit.core.files import FormatError, shared_data_dir
from yolokit.core.boxes import sort_corners
from yolokit.data import formats
from yolokit.data.table import Table
from yolokit.core.files import decode_text
from yolokit.data.adapters import parse_xml
from yolokit.data.formats import lossy_fields, read, write
from yolokit.evaluation.results import read_results

DATA = shared_data_dir()/'data' if shared_data_dir() else None
real = pytest.mark.skipif(DATA is None, reason='the real data sets are not beside this checkout (../shared/data)')


def save(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text if isinstance(text, str) else json.dumps(text), encoding='utf-8')
    return path


def yolo(folder, rows, names='[car, bus]'):
    images.write_image(folder/'images/train/a.png', np.zeros((50, 100, 3), np.uint8))
    save(folder/'labels/train/a.txt', rows)
    save(folder/'data.yaml', f'names: {names}\ntrain: images/train\n')
    return folder


def coco(**changes):
    return dict(images=[dict(id=1, file_name='a.jpg', width=100, height=50)], categories=[dict(id=1, name='car')],
                annotations=[dict(id=1, image_id=1, category_id=1, bbox=[1, 2, 3, 4])]) | changes


@pytest.mark.parametrize('rows, says', [
    ('0 .5 .5 .1', ('a.txt:1', 'found 4 numbers', 'cx cy w h')),
    ('0 .5 .5 .1 .1\n\n7 .5 .5 .1 .1', ('a.txt:3', 'class 7 is out of range', 'data.yaml')),
    ('car .5 .5 .1 .1', ('a.txt:1', "'car'")), ('0 .5 .5 .1 1,5', ("'1,5'",)), ('0.5 .5 .5 .1 .1', ('class 0.5',)),
    ('-1 .5 .5 .1 .1', ('class -1',)), ('0 1 1 2 2 3 3 4', ('lacks its y',)), ('0', ('found 1 numbers',))])
def test_yolo_rows_that_are_none(tmp_path, rows, says):
    with pytest.raises(FormatError) as e: read(yolo(tmp_path, rows))
    for s in says: assert s in str(e.value)


@pytest.mark.parametrize('rows, xyxy', [
    ('0 .5 .5 2 2', [-50, -25, 150, 75]), ('0 .5 .5 -.2 .2', [60, 20, 40, 30]), ('0 .5 .5 0 0', [50, 25, 50, 25]),
    ('0.0 5e-1 .5 .2 .2', [40, 20, 60, 30])])
def test_yolo_reads_whatever_can_be_parsed(tmp_path, rows, xyxy):
    t = read(yolo(tmp_path, rows))
    np.testing.assert_allclose(t.xyxy, [xyxy])
    write(t, tmp_path/'again', 'yolo')
    assert (tmp_path/'again/labels/train/a.txt').read_text().strip() == rows
    assert np.array_equal(read(tmp_path/'again').xyxy, t.xyxy)


def test_yolo_nan_is_read_and_written(tmp_path):
    t = read(yolo(tmp_path, '0 nan .5 .1 .1'))
    assert np.isnan(t.boxes['x0']).all()
    for f in set(formats.WRITERS) - {'adapter', 'mot', 'visdrone', 'wider'}: write(t, tmp_path/f, f)
    assert np.isnan(read(tmp_path/'coco').boxes['x0']).all()


def test_yolo_list_files_and_missing_pictures(tmp_path):
    d = yolo(tmp_path/'d', '0 .5 .5 .1 .1')
    save(d/'labels/train/gone.txt', '1 .25 .5 .5 .5')
    t = read(d)
    gone = t.images['path'].tolist().index('')
    # fractions, as of a picture of 1 x 1
    assert t.images['width'][gone] == 0 and t.xyxy[t.of(gone)].tolist() == [[0, .25, .5, .75]]
    save(d/'val.txt', 'images/train/a.png\n/home/x/images/train/a.png\n')
    t = read(d/'val.txt')
    assert len(t) == 2 and t.images['split'].tolist() == ['val', 'val'] and all(t.images['path'])


@pytest.mark.parametrize('text, says', [
    ('names: [a\n', 'data.yaml:2'), ('just words', 'names, and where'),
    ('names: [a]\nnc: 3\n', 'nc is 3, but there are 1 names')])
def test_data_yaml(tmp_path, text, says):
    yolo(tmp_path, '0 .5 .5 .1 .1')
    save(tmp_path/'data.yaml', text)
    with pytest.raises(FormatError, match=says.replace('[', r'\[')): read(tmp_path)


@pytest.mark.parametrize('d, says', [
    ('{"images": [', ':1: broken json'), ([1, 2], 'no list "images"'), (coco(images=[dict(id=1)]), r'images\[0\]'),
    (coco(images=coco()['images']*2), 'id 1 is there twice'),
    (coco(annotations=[dict(id=5, image_id=1, category_id=1, bbox=[1, 2])]), r'#5: bbox is \[1, 2\]'),
    (coco(annotations=[dict(id=5, image_id=1, category_id=9, bbox=[1, 2, 3, 4])]), 'category_id 9 is out of range'),
    (coco(annotations=[dict(id=5, image_id=1, category_id=1, bbox=[1, 2, 'x', 4])]), "'x' where a number"),
    (coco(categories=[dict(id=1)]), r'categories\[0\]'),
    (coco(images=[dict(id=1, file_name='a', width='wide', height=3)]), "'wide'")])
def test_broken_coco(tmp_path, d, says):
    with pytest.raises(FormatError, match=says) as e: read(save(tmp_path/'a.json', d), strict=True)
    assert 'a.json' in str(e.value)


@pytest.mark.parametrize('text, says', [
    ('<annotation><object>', 'a.xml:1: broken xml'), ('<!DOCTYPE x [<!ENTITY a "b">]><annotation/>', 'DOCTYPE'),
    ('<annotation>\n<object><name>car</name></object></annotation>',
     'a.xml:2: None where a number should be. The adapter reads bndbox/xmin'),
    ('<annotation><object/></annotation>', 'no class'),
    ('<annotation><object><name>car</name><bndbox><xmin>l</xmin><ymin>1</ymin><xmax>1</xmax><ymax>1</ymax></bndbox>'
     '</object></annotation>', "'l' where a number")])
def test_broken_voc(tmp_path, text, says):
    with pytest.raises(FormatError, match=says): read(save(tmp_path/"Annotations/a.xml", text).parents[1], strict=True)


def test_xml_tricks_are_refused_in_any_encoding(tmp_path):
    bomb = '<!DOCTYPE a [<!ENTITY a "ha">' + ''.join(f'<!ENTITY {chr(98+i)} "{f"&{chr(97+i)};"*10}">'
                                                     for i in range(12)) + ']><a>&m;</a>'
    for codec in ('utf-8', 'utf-16'):
        (tmp_path/'a.xml').write_bytes(f'<?xml version="1.0" encoding="{codec}"?>{bomb}'.encode(codec))
        with pytest.raises(FormatError, match="DOCTYPE"):
            parse_xml(decode_text((tmp_path/"a.xml").read_bytes(), "a.xml")[0], "a.xml")


def test_where_nothing_is(tmp_path):
    with pytest.raises(FormatError, match='nowhere: not there'): read(tmp_path/'nowhere')
    with pytest.raises(FormatError, match='no annotations in it'): read(tmp_path)
    with pytest.raises(FormatError, match="format 'kittens' is not known"): read(tmp_path, 'kittens')
    yolo(tmp_path, '0 .5 .5 .1 .1'); save(tmp_path/'annotations/instances_train.json', coco())
    with pytest.raises(FormatError, match='looks like yolo and coco'): read(tmp_path)
    save(tmp_path/'thesis.txt', 'mine')
    with pytest.raises(FormatError, match='Nothing was written'): write(read(tmp_path, 'yolo'), tmp_path, 'yolo')
    with pytest.raises(FormatError, match='Nothing was written'):
        write(read(tmp_path, 'yolo'), tmp_path/'thesis.txt', 'coco')


def test_decomposed_korean_names_are_found(tmp_path):
    name = '20201102_경기도_-_-_맑음_주간_실외_right_000079_0088055.png'
    images.write_image(tmp_path/'train/images'/unicodedata.normalize('NFD', name), np.zeros((8, 8, 3), np.uint8))
    save(tmp_path/'train/label/Train.json', dict(images=[dict(id=1, file_name=name)], annotations=[]))
    t = read(tmp_path)
    assert os.path.exists(t.images['path'][0]) and t.images['width'][0] == 8
    assert formats.detect_format(tmp_path) == 'parking' and t.names[13] == 'cart'


def test_coco_files_with_ids_of_their_own(tmp_path):
    "Two splits that both count from 1, classes listed differently: joined, and each gets its own back."
    a, b = coco(), coco(categories=[dict(id=1, name='bus'), dict(id=2, name='car')],
                        annotations=[dict(id=1, image_id=1, category_id=2, bbox=[5, 5, 5, 5], keep='me')])
    save(tmp_path/'annotations/instances_train.json', a); save(tmp_path/'annotations/instances_val.json', b)
    t = read(tmp_path)
    assert (t.names == ['car', 'bus'] and t.boxes['category'].tolist() == [0, 0]
            and t.images['split'].tolist() == ['train', 'val'])
    write(t, tmp_path/'out', 'coco')
    assert json.loads((tmp_path/'out/annotations/instances_train.json').read_text())['annotations'] == a['annotations']
    back = read(tmp_path/'out')
    assert np.array_equal(back.xyxy, t.xyxy) and back.images['split'].tolist() == ['train', 'val']
    assert json.loads((tmp_path/'out/annotations/instances_val.json').read_text())['annotations'][0]['keep'] == 'me'
    write(t, tmp_path/'one.json', 'coco')
    one = read(tmp_path/'one.json')
    assert one.images['split'].tolist() == ['train', 'val'] and len(set(one.boxes['id'])) == 2


def some_table(seed, n=6, classes=4):
    rng = np.random.default_rng(seed)
    wh = rng.integers(30, 4000, (n, 2))
    image = np.sort(rng.integers(0, n, 40))
    xyxy = rng.uniform(-.2, 1.2, (40, 4)) * np.tile(wh[image], 2)  # reversed, outside: all of it
    return Table.make(images=dict(file=[f'{"그림" if i % 2 else "p"} {i}.jpg' for i in range(n)], width=wh[:, 0],
                                  height=wh[:, 1], split=['train', 'val', 'test']*(n//3)),
                      boxes=dict(image=image, category=rng.integers(0, classes, 40),
                                 **dict(zip(('x0', 'y0', 'x1', 'y1'), xyxy.T))), names=['a', 'b b', '다', 'd'])


OWN_CLASSES = {k for k, A in formats.DESCRIBED.items() if A.classes}  # mot, visdrone, wider
UNLISTED = {'voc', 'labelme'} | {k for k, A in formats.DESCRIBED.items()
                                 if not A.names and A.like != '_classes.txt' and k != 'dota'}


@pytest.mark.parametrize('format', sorted(set(formats.READERS) - {'adapter'} - OWN_CLASSES))
@pytest.mark.parametrize('seed', range(3))
def test_any_table_survives_any_format(tmp_path, format, seed):
    t = some_table(seed)
    if format == 'dota': t = t.with_xyxy(sort_corners(t.xyxy))  # four corners know no order
    write(t, tmp_path/'x', format)
    # without pictures fractions need the sizes that the sidecar keeps, KITTI and DOTA the names with spaces; a class
    # that no file lists comes in the order of the alphabet
    beside = format in ('yolo', 'darknet', 'kitti', 'openimages', 'dota')
    u = read(tmp_path/'x', format, sidecar=beside, **({'names': t.names} if format in UNLISTED else {}))
    key = lambda t: sorted(zip(*[(t.images['file'][t.boxes['image']] if k == 'file' else t.boxes[k] if k != 's'
                                  else t.images['split'][t.boxes['image']]).tolist()
                                 for k in ('file', 's', 'category', 'x0', 'y0', 'x1', 'y1')]))
    a, b = key(t), key(u)
    assert [r[:3] for r in a] == [r[:3] for r in b] and u.names == t.names
    np.testing.assert_allclose([r[3:] for r in b], [r[3:] for r in a], atol=2e-6, rtol=0)


def test_poorer_formats_say_what_they_drop(tmp_path):
    d = coco(annotations=[dict(id=1, image_id=1, category_id=1, bbox=[1, 2, 3, 4], iscrowd=1,
                               segmentation=[[1, 1, 2, 2, 3, 1]], area=2)])
    t = read(save(tmp_path/'a.json', d))
    assert lossy_fields(t, 'coco') == [] and lossy_fields(t, 'parking') == []
    said = ' '.join(write(t, tmp_path/'y', 'yolo'))
    for word in ('crowd', 'segmentation', 'category ids'): assert word in said
    assert len(read(tmp_path/'y')) == 1


def test_same_stem_in_one_split(tmp_path):
    for n in ('a.png', 'a.jpg'): images.write_image(tmp_path/'raw/images'/n, np.full((8, 8, 3), ord(n[2]), np.uint8))
    d = coco(images=[dict(id=1, file_name='a.png', width=8, height=8),
                     dict(id=2, file_name='a.jpg', width=8, height=8)],
             annotations=[dict(id=i, image_id=i, category_id=1, bbox=[i, 1, 2, 2]) for i in (1, 2)])
    t = read(save(tmp_path/'raw/x.json', d), 'coco')
    write(t, tmp_path/'y', 'yolo')
    u = read(tmp_path/'y', sidecar=False)
    assert sorted(u.images['file']) == ['a-2.jpg', 'a.png'] and sorted(u.boxes['x0'].round(6)) == [1, 2]


def test_detections(tmp_path):
    t = read(save(tmp_path/'a.json', coco()))
    for row, says in ((dict(image_id=5, category_id=1, bbox=[1]*4, score=1), 'image_id 5'),
                      (dict(image_id=1, category_id=1, bbox=[1]*4), 'no score')):
        with pytest.raises(FormatError, match=says): read_results(save(tmp_path/'r.json', [row]), t)
    assert len(read_results(save(tmp_path/'r.json', []), t)) == 0


@real
def test_parking_space():
    t = read(DATA/'parking_space')
    assert (t.n_images, len(t), t.names) == (218, 17307, ['empty', 'occupied'])
    assert {k: int(v[0]) for k, v in t.counts().items()} == dict(train=176, val=21, test=21)
    poly = np.array([p is not None for p in t.boxes['polygon']])
    split = t.images['split'][t.boxes['image']]
    assert (poly == (split != 'train')).all()
    w, h = t.images['width'][t.boxes['image']], t.images['height'][t.boxes['image']]
    assert ((t.boxes['x1'] > t.boxes['x0']).all() and (t.boxes['x0'] > -1).all()
            and (t.boxes['x1'] < w + 1).all() and (t.boxes['y1'] < h + 1).all())
    sides = [np.median((t.boxes['x1'] - t.boxes['x0'])[m]) for m in (poly, ~poly)]
    assert .5 < sides[0]/sides[1] < 2  # polygon rows give boxes of the same size as box rows


@real
def test_bccd_round_trip(tmp_path):
    t = read(DATA/'bccd')
    assert (t.n_images, len(t), t.names) == (364, 4888, ['Platelets', 'RBC', 'WBC'])
    assert {k: int(v[0]) for k, v in t.counts().items()} == dict(train=205, val=87, test=72)
    flat = t.boxes['x1'] == t.boxes['x0']
    assert {Path(o.split(':')[0]).stem for o in t.boxes['origin'][flat]} == {'BloodImage_00338', 'BloodImage_00343'}
    assert write(t, tmp_path/'v', 'voc') == []
    u = read(tmp_path/'v')
    assert np.array_equal(u.xyxy, t.xyxy) and u.counts().keys() == t.counts().keys() 
    for f in (DATA/'bccd').rglob('*'):
        if f.suffix in ('.xml', '.txt') and f.relative_to(DATA/'bccd').parts[0] in ('Annotations', 'ImageSets'):
            assert (tmp_path/'v'/f.relative_to(DATA/'bccd')).read_bytes() == f.read_bytes(), f


@real
def test_coco_golden_file_comes_back_equal(tmp_path):
    f = DATA/'coco_val2014_100/instances_val2014_100.json'
    t = read(f)
    write(t, tmp_path/'a.json', 'coco')
    assert json.loads((tmp_path/'a.json').read_text()) == json.loads(f.read_text())
    r = read_results(DATA/'coco_val2014_100/instances_val2014_fakebbox100_results.json', t)
    assert len(r) == len(json.loads((DATA/'coco_val2014_100/instances_val2014_fakebbox100_results.json').read_text()))
    write(t, tmp_path/'y', 'yolo')   # no pictures: the sizes travel in sizes.json
    u = read(tmp_path/'y')
    assert len(u) == len(t) == 839
    at = {os.path.splitext(f)[0]: i for i, f in enumerate(t.images['file'])}
    order = [at[os.path.splitext(f)[0]] for f in u.images['file']]
    for i, j in enumerate(order): np.testing.assert_allclose(u.xyxy[u.of(i)], t.xyxy[t.of(j)], atol=1e-6)


def test_two_files_of_one_split(tmp_path):
    for n in 'ab': save(tmp_path/f'annotations/instances_train_{n}.json', coco())
    t = read(tmp_path)
    assert t.n_images == 2 and len(set(t.images['id'])) == 2 and set(t.images['split']) == {'train'}


# --- lossless

def files_of(folder):
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob('*'))
            if p.is_file() and p.suffix in ('.txt', '.xml', '.json', '.yaml', '.data', '.names', '.csv')}


@real
@pytest.mark.parametrize('name', ['parking_space', 'bccd', 'coco_val2014_100/instances_val2014_100.json'])
def test_same_format_in_and_out_is_the_same_bytes(tmp_path, name):
    "Every annotation file, list and yaml of the real sets: `diff -r` finds nothing."
    t = read(DATA/name)
    if name.endswith('.json'):
        write(t, tmp_path/'a.json', 'coco')
        assert (tmp_path/'a.json').read_bytes() == (DATA/name).read_bytes()
        return
    write(t, tmp_path/'a', t.extra['format'])
    here, there = files_of(tmp_path/'a'), files_of(DATA/name)
    assert ({k for k in here} == {k for k in there if k.split('/')[-1][:6] not in ('README',)}
            and all(here[k] == there[k] for k in here))
    assert read(tmp_path/'a').same(t.with_images(path=read(tmp_path/'a').images['path']))


@real
def test_one_mended_box_changes_one_row(tmp_path):
    t = read(DATA/'parking_space')
    xyxy = t.xyxy
    xyxy[1000, 0] += 1
    write(t.with_xyxy(xyxy), tmp_path/'y', 'yolo')
    a, b = files_of(DATA/'parking_space'), files_of(tmp_path/'y')
    f, k = t.boxes['origin'][1000].split(':')
    assert [n for n in b if a[n] != b[n]] == [f]
    rows = [x.splitlines() for x in (a[f], b[f])]
    assert [i for i, (x, y) in enumerate(zip(*rows)) if x != y] == [int(k) - 1] and len(rows[0]) == len(rows[1])


def some_annotations(r, n=6):
    "Records as tools write them: whole numbers and not, masks, keys in any order, the words of keys in texts."
    def number(): return [int(r.integers(1, 90)), round(float(r.uniform(0, 90)), 2), float(r.integers(1, 90)),
                          1e-7*int(r.integers(1, 9))][r.integers(4)]
    def some(share, *values): return [values[r.integers(len(values))]] if r.random() < share else []
    for i in range(n):
        a = [('id', i), ('image_id', 1), ('category_id', 1), ('bbox', [number() for _ in range(4)])]
        a += [('area', v) for v in some(.8, number())] + [('iscrowd', v) for v in some(.8, 0, 1)]
        a += [('segmentation', v) for v in some(.5, [], [[1, 2, 3, 4, 5, 6.5]], dict(size=[2, 2], counts='a'))]
        a += [('note', v) for v in some(.2, '"bbox": [1, 2, 3, 4]', dict(bbox=[1, 2, 3, 4]), 'area', '"area": 3')]
        yield dict(a[k] for k in r.permutation(len(a)))


def test_moved_boxes_of_flat_records_are_written_as_all_others_are(tmp_path, monkeypatch):
    r = np.random.default_rng(0)
    for k in range(60):
        p = save(tmp_path/f'{k}.json', json.dumps(coco(annotations=[*some_annotations(r)]), indent=[None, 1][k % 2]))
        t = read(p)
        xyxy, axis = t.xyxy, r.integers(4)
        xyxy[r.random(6) < .7, axis] += [1, -.5, 2.25][k % 3]
        for way in ('quick', 'slow'):
            with monkeypatch.context() as m:
                if way == 'slow': m.setattr(formats, '_moved_record', lambda *_: None)
                write(t.with_xyxy(xyxy), tmp_path/f'{way}{k}.json', 'coco', sidecar=False)
        text = (tmp_path/f'quick{k}.json').read_text()
        assert text == (tmp_path/f'slow{k}.json').read_text()
        np.testing.assert_allclose(read(tmp_path/f'quick{k}.json').xyxy, xyxy)
        for a, b, moved in zip(json.loads(p.read_text())['annotations'], json.loads(text)['annotations'],
                               (xyxy != t.xyxy).any(1)):
            assert [*a] == [*b][:len(a)] and (moved or a == b)
            assert a['bbox'][1 - axis % 2::2] == b['bbox'][1 - axis % 2::2]  # the other axis keeps its digits
    lines = [formats._moved_record(json.dumps(a), [1., 2., 9., 9.], [0., 2., 9., 9.]) for a in some_annotations(r, 60)]
    assert 20 < sum(x is not None for x in lines) < 60


def awkward(folder):
    """What COCO files in the wild have: Korean names in both forms, RLE, crowd, unknown fields, gaps, orphans, odd
    digits, an image twice, no boxes."""
    ann = [dict(id=7, image_id=10, category_id=90, bbox=[1.5, 2, 30, 20], area=600.0, iscrowd=0,
                segmentation=[[1.5, 2, 31.5, 2, 31.5, 22]], who={'사람': [1]}),
           dict(id=3, image_id=10, category_id=90, bbox=[5, 5, 9, 9], area=40, iscrowd=1,
                segmentation={'counts': [0, 10, 990], 'size': [50, 100]}),
           dict(id=4, image_id=77, category_id=1, bbox=[0, 0, 1, 1]),
           dict(id=1, image_id=2, category_id=1, bbox=[90, 10, -20, 8], area=1e2, iscrowd=0, segmentation=[]),
           dict(id=900, image_id=2, category_id=1, bbox=[5, 5, 9, 9], area=81, iscrowd=0),
           dict(id=901, image_id=2, category_id=1, bbox=[5, 5, 9, 9], area=81, iscrowd=0)]
    d = dict(info=dict(year=2024), images=[
                 dict(id=10, file_name=unicodedata.normalize('NFD', '경기도 1.jpg'), width=100, height=50, license=3),
                 dict(id=2, file_name='경기도 2.jpg', height=50, width=100),
                 dict(id=5, file_name='sub/빈.jpg', width=100, height=50)], licenses=[], annotations=ann,
             categories=[dict(id=90, name='승용차', supercategory='차'), dict(id=1, name='school bus')])
    text = json.dumps(d, ensure_ascii=False, indent=1).replace('1.5,', '1.50,').replace('100.0', '1e2')
    return save(folder/'a.json', text)


POORER = ['yolo', 'darknet', 'voc', 'labelme', 'cvat', 'kitti']


@pytest.mark.parametrize('format', POORER)
@pytest.mark.parametrize('which', ['awkward', 'real'])
def test_coco_through_a_poorer_format_comes_back_as_it_was(tmp_path, format, which):
    if which == 'real' and DATA is None: pytest.skip('the real data sets are not beside this checkout (../shared/data)')
    f = awkward(tmp_path) if which == 'awkward' else DATA/'coco_val2014_100/instances_val2014_100.json'
    said = write(read(f), tmp_path/'poor', format)
    assert (any('crowd' in s for s in said) and any('segmentation' in s for s in said)
            and formats.detect_format(tmp_path/'poor') == format)
    write(read(tmp_path/'poor'), tmp_path/'back.json', 'coco')
    assert (tmp_path/'back.json').read_bytes() == f.read_bytes()
    again = write(read(tmp_path/'poor'), tmp_path/'poor2', format)    # and once more through the same door
    write(read(tmp_path/'poor2'), tmp_path/'back2.json', 'coco')
    assert again == said and (tmp_path/'back2.json').read_bytes() == f.read_bytes()


@pytest.mark.parametrize('format', POORER)
def test_edits_of_the_poorer_files_are_neither_lost_nor_pinned_on_others(tmp_path, format):
    f = awkward(tmp_path)
    write(read(f), tmp_path/'poor', format)
    t = read(tmp_path/'poor', sidecar=False)
    i = [n for n in range(t.n_images) if '2' in t.images['file'][n]][0]
    j = t.of(i).tolist()                     # a reversed box and two equal ones: 1, 900, 901
    w, h = (1, 1) if t.images['width'][i] == 0 and format in ('yolo', 'darknet') else (100, 50)
    def stored(table):                       # as an editor that knows nothing of sidecars would save it
        keep = (tmp_path/'poor/sidecar.json').read_bytes()
        shutil.rmtree(tmp_path/'edited', ignore_errors=True)
        write(table, tmp_path/'edited', format, sidecar=False)
        (tmp_path/'edited/sidecar.json').write_bytes(keep)
        write(read(tmp_path/'edited'), tmp_path/'edited.json'
              if not (tmp_path/'edited.json').exists() else tmp_path/f'edited{len(list(tmp_path.iterdir()))}.json',
              'coco')
        out = max(tmp_path.glob('edited*.json'), key=lambda p: p.stat().st_mtime_ns)
        return {a['id']: a for a in json.loads(out.read_text())['annotations']}
    old = {a['id']: a for a in json.loads(f.read_text())['annotations']}
    xyxy = t.xyxy
    # moved in its place: the same annotation, other numbers
    k = j[0]
    moved = xyxy.copy(); moved[k] += np.array([3/100*w, 2/50*h]*2)
    got = stored(t.with_xyxy(moved))
    np.testing.assert_allclose(got[1]['bbox'], [93, 12, -20, 8], atol=1e-6)
    assert ({i: a for i, a in got.items() if i != 1} == {i: a for i, a in old.items() if i != 1}
            and got[1]['area'] == pytest.approx(160))
    # deleted: gone, and the twin keeps one of the two ids
    got = stored(t.keep([n for n in range(len(t)) if n != j[0]]))
    assert got == {i: a for i, a in old.items() if i != 1}
    assert len(stored(t.keep([n for n in range(len(t)) if n != j[1]]))) == len(old) - 1
    # added: a new id, no field of another
    rows = np.r_[np.arange(len(t)), j[0]]
    more = t.keep(rows).with_columns(slot=np.r_[np.full(len(t), -1), -1])
    at = more.xyxy; at[-1] = np.array([40/100*w, 4/50*h, 50/100*w, 14/50*h])
    got = stored(more.with_xyxy(at))
    new = [a for i, a in got.items() if i not in old]
    assert (len(new) == 1 and {i: a for i, a in got.items() if i in old} == old
            and not {'who', 'segmentation'} & set(new[0]) and new[0]['image_id'] == 2)
    np.testing.assert_allclose(new[0]['bbox'], [40, 4, 10, 10], atol=1e-6)
    # one deleted and another added: not the same thing
    swap = t.keep([n for n in range(len(t)) if n != j[0]] + [j[0]]).with_columns(slot=np.full(len(t), -1))
    at = swap.xyxy; at[-1] = np.array([40/100*w, 4/50*h, 50/100*w, 14/50*h])
    got = stored(swap.with_xyxy(at))
    assert 1 not in got and len(got) == len(old)
    # a class changed where it stands: the same annotation
    c = t.boxes['category'].copy(); c[k] = 1 - c[k]
    got = stored(t.with_columns(category=c))
    assert got[1]['category_id'] == 90 and got[1]['bbox'] == old[1]['bbox']


@pytest.mark.parametrize('format', POORER)
def test_a_picture_deleted_from_the_poorer_files_stays_deleted(tmp_path, format):
    write(read(awkward(tmp_path)), tmp_path/'poor', format)
    if format == 'cvat':
        f = tmp_path/'poor/annotations.xml'
        a, b, c = f.read_text().partition('<image id="2"')
        f.write_text(a + c.split('</image>', 1)[1])
    else: next(p for p in (tmp_path/'poor').rglob('*2.*') if p.suffix in ('.txt', '.xml', '.json')).unlink()
    if format == 'darknet': (tmp_path/'poor/train.txt').write_text('images/경기도 1.jpg\nimages/sub/빈.jpg\n')
    write(read(tmp_path/'poor'), tmp_path/'less.json', 'coco')
    d = json.loads((tmp_path/'less.json').read_text())
    assert [m['id'] for m in d['images']] == [10, 5] and [a['id'] for a in d['annotations']] == [7, 3, 4]


def test_a_hostile_sidecar_is_refused(tmp_path):
    write(read(awkward(tmp_path)), tmp_path/'poor', 'yolo')
    good = json.loads((tmp_path/'poor/sidecar.json').read_text())
    for change in (lambda d: d['sources'][0].update(file='../../x.json'),
                   lambda d: d['sources'][0].update(file='/etc/x'), lambda d: d.pop('names'),
                   lambda d: d['sources'][0]['boxes'].append([5, 10**9]),
                   lambda d: d['boxes'].update(image=[99]*len(d['boxes']['image'])), lambda d: d.update(keys=[])):
        d = json.loads(json.dumps(good)); change(d)
        (tmp_path/'poor/sidecar.json').write_text(json.dumps(d))
        with pytest.raises(FormatError, match='not a sidecar that yolokit wrote'): read(tmp_path/'poor')


def test_classes_that_nobody_declares_are_an_error_or_on_request_a_finding(tmp_path):
    from yolokit.cleaning import checks
    for k in ('images', 'labels'): (tmp_path/'y'/k).mkdir(parents=True)
    for i, c in enumerate((0, 7)):
        images.write_image(tmp_path/f'y/images/{i}.png', np.full((20, 20, 3), 90, np.uint8))
        (tmp_path/f'y/labels/{i}.txt').write_text(f'{c} .5 .5 .2 .2\n')
    (tmp_path/'y/data.yaml').write_text('train: images\nnames: [car, van]\n')
    coco = dict(images=[dict(id=1, file_name='a.png', width=9, height=9)], categories=[dict(id=3, name='car')],
                annotations=[dict(id=1, image_id=1, category_id=3, bbox=[1, 1, 2, 2]),
                             dict(id=2, image_id=1, category_id=9, bbox=[1, 1, 3, 3])])
    (tmp_path/'c.json').write_text(json.dumps(coco))
    for path, name in ((tmp_path/'y', 'class 7'), (tmp_path/'c.json', 'category 9')):
        with pytest.raises(FormatError, match='out of range'): read(path)
        t = read(path, strict=False)
        found = checks.check(t, images=False).of('unknown-class')
        assert (len(t) == 2 and len(found) == 1 and found.rows['evidence'][0] == f'class {name!r}'
                and found.rows['box'][0] == 1)


def test_coco_s_own_layout_is_known(tmp_path):
    "images/ beside annotations/ is no YOLO folder as long as there are no labels."
    (tmp_path/'images/train2017').mkdir(parents=True); (tmp_path/'annotations').mkdir()
    images.write_image(tmp_path/'images/train2017/a.png', np.full((9, 9, 3), 90, np.uint8))
    (tmp_path/'annotations/instances_train2017.json').write_text(json.dumps(dict(
        images=[dict(id=1, file_name='a.png', width=9, height=9)], categories=[dict(id=3, name='car')],
        annotations=[dict(id=1, image_id=1, category_id=3, bbox=[1, 1, 2, 2])])))
    t = read(tmp_path)
    assert (formats.detect_format(tmp_path), len(t), t.images['split'][0],
            bool(t.images['path'][0])) == ('coco', 1, 'train', True)


def truth_of(path, reader):
    "A table's columns, or the error's words."
    try: t = reader(path)
    except ValueError as e: return f'{type(e).__name__}: {e}'
    boxes = {k: v for k, v in t.boxes.items() if k not in ('slot', 'origin')}
    return ({k: v.tolist() for k, v in t.images.items() if k not in ('source', 'place')},
            {k: [str(x) if x != x else x for x in v.tolist()] for k, v in boxes.items()},
            {k: (v.dtype, len(v)) for k, v in boxes.items()}, t.names, list(t.category_ids))


def test_a_truth_to_judge_by_is_read_alike(tmp_path, monkeypatch):
    """The quick reader against the full one: real files, odd records, damaged bytes; with the parser of the extra and
    without."""
    if d := shared_data_dir():
        for p in sorted(d.glob('data/*/**/*.json')):
            if p.stat().st_size < 6e6 and b'"categories"' in p.read_bytes():
                assert truth_of(p, formats.read_fast) == truth_of(p, formats.read), p.name
    plain = dict(images=[dict(id=i, file_name=f'{i}.jpg', width=9, height=8) for i in (3, 1)],
                 categories=[dict(id=2, name='a'), dict(id=1, name='b')],
                 annotations=[dict(id=i, image_id=(3, 1)[i % 2], category_id=1 + i % 2, bbox=[1, 2.5, i, 4], area=3.5
                                   + i, iscrowd=i % 2) for i in range(4)])
    odd = [dict(id='x'), dict(id=0), dict(id=True), dict(id=None), dict(id=2.), dict(image_id=9), dict(image_id='3'),
           dict(image_id=3.), dict(category_id=9), dict(category_id=None), dict(bbox=[1, 2, 3]),
           dict(bbox=[1, 2, 3, '4']), dict(bbox=None),
           dict(bbox=[1, 2, 3, True]), dict(bbox='1234'), dict(bbox=[1e308, 0, 1e308, 1]),
           dict(bbox=[10**400, 0, 1, 1]), dict(bbox=[float('nan'), 0, 1, 1]), dict(area=None), dict(area='5'),
           dict(area=10**20), dict(iscrowd=2), dict(iscrowd=True), dict(iscrowd=None), dict(score=.5),
           dict(segmentation=[[1, 2, 3, 4]])]
    cases = [json.dumps(plain)] + [
        json.dumps(plain | dict(annotations=plain['annotations'][:3] + [plain['annotations'][3] | o])) for o in odd]
    cases += [json.dumps(plain | o) for o in (dict(annotations=None), dict(annotations=[]), dict(annotations=[1]),
                                              dict(annotations={}), dict(images=[]), dict(images=None),
                                              dict(categories=[]), dict(categories=[dict(id=1, name='a')]*2),
                                              dict(images=[plain['images'][0]]*2),
                                              dict(images=[dict(id=3, file_name='../a.jpg'),
                                                           dict(id=1, file_name='b.jpg', split='val')]),
                                              dict(categories=[dict(id=1, name='\ud800')]*2))]
    cases += [json.dumps({k: v for k, v in plain.items() if k != gone}) for gone in plain] + [
        json.dumps([]), '', json.dumps(plain) + '}', '\ufeff' + json.dumps(plain),
        json.dumps(plain).replace('"id": 2', '"id": 2, "id": 7'),
        json.dumps(plain | dict(annotations=[{k: v for k, v in a.items() if k != 'iscrowd'}
                                             for a in plain['annotations']]))]
    rng, base = np.random.default_rng(0), cases[0].encode()
    flipped = [bytes(b if i not in at else rng.choice(np.frombuffer(b'0179.-e"\\,:[]{}n \xff', np.uint8))
                     for i, b in enumerate(base))
               for at in ({int(i) for i in rng.integers(0, len(base), 2)} for _ in range(150))]
    for k, text in enumerate([*(c.encode('utf-8', 'surrogatepass') for c in cases), *flipped]):
        (tmp_path/'t.json').write_bytes(text)
        want = truth_of(tmp_path/'t.json', formats.read)
        assert truth_of(tmp_path/'t.json', formats.read_fast) == want, (k, text[-600:])
        with monkeypatch.context() as m:
            m.setattr(formats, 'import_module', lambda name: None)
            assert truth_of(tmp_path/'t.json', formats.read_fast) == want, (k, text[-600:])


def test_boxes_of_no_file_are_written_as_json_writes_them(tmp_path):
    "The texts of new annotations are assembled, not encoded: they parse to the values, and read back the same."
    x = np.array([[0, 0, 2, 2], [.1, .2, .4, 5], [30, 5, 18, 11], [1e-7, 1e20, 1, 2e22], [np.nan, 1, np.inf, 4]])
    box = dict(image=[0, 0, 1, 1, 1], category=[0, 1, 1, 0, 0], **dict(zip(('x0', 'y0', 'x1', 'y1'), x.T)),
               score=[np.nan, .5, np.nan, 1, np.nan], crowd=[0, 1, 0, 0, 0], area=[np.nan, 3, np.nan, 7.5, 1])
    for more in ({}, dict(id=[9, 3, 1, 2, 7]), dict(id=['가', '"b"', 'c', 'd', 'e']), dict(id=[1, 'a', 2, 3, '\udce9'])):
        t = Table.make(dict(file=['주차"장\\.png', 'b.jpg'], width=[640, 2], height=[480, 2]), box | more,
                       ['승용차', 'b"us'], [18, 7])
        formats.write(t, tmp_path/'new.json', 'coco')
        text, d = (tmp_path/'new.json').read_text(encoding='utf-8'), formats.coco_dict(t)
        assert text == json.dumps(d, ensure_ascii='udce9' in str(more))   # half a character
        assert [a.get('score') for a in d['annotations']] == [None, .5, None, 1., None]
        assert [a['id'] for a in d['annotations']] == more.get('id', [1, 2, 3, 4, 5])
        assert d['annotations'][1] == dict(id=more.get('id', [1, 2])[1], image_id=0, category_id=7, bbox=[
            .1, .2, .4 - .1, 4.8], area=3., iscrowd=1, score=.5)
        (tmp_path/'new.json').unlink()
