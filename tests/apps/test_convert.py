"Every format to every other by the app, opened by readers that are not ours: the same pictures, classes and boxes."
import csv, json, random, xml.etree.ElementTree as ET
from pathlib import Path

import numpy as np, pytest, yaml
from PIL import Image

from yolokit.apps.convert import convert, ConvertConfig
from yolokit.core.files import FormatError
from yolokit.core.images import write_image
from yolokit.cleaning.checks import check
from yolokit.data.formats import DESCRIBED, read, write, WRITERS
from yolokit.data.table import Table

FORMATS = sorted(set(WRITERS) - {'adapter'})
ONE = {'wider'}                                     # formats of one class, face
NAMES = ['pedestrian', 'car']                       # which mot and visdrone know, in an order that none of them has
BOXES = [(0, 0, 5, 6, 30, 40), (0, 1, 1, 2, 9, 12), (2, 0, 7.5, 8, 20.25, 30), (3, 1, 10, 4, 40, 44)]
SPLITS = ['train', 'train', 'val', 'val']


@pytest.fixture(scope='module')
def pairs(tmp_path_factory):
    "The same four pictures, one of them without boxes, in every format."
    d, out = tmp_path_factory.mktemp('sets'), {}
    for k in (1, 2, 3, 4): write_image(d/f'pics/{k:06d}.jpg', np.full((48, 64, 3), 40*k, np.uint8))
    pics = sorted((d/'pics').iterdir())
    for f in FORMATS:
        one = f in ONE
        c = [np.array(v) for v in zip(*BOXES)]
        boxes = dict(image=c[0], category=c[1]*(not one), x0=c[2], y0=c[3], x1=c[4], y1=c[5])
        t = Table.make(dict(file=[p.name for p in pics], path=list(map(str, pics)), width=[64]*4, height=[48]*4,
                            split=SPLITS), boxes, ['face'] if one else NAMES)
        write(t, d/f, f, sidecar=False)
        if f == 'coco': (d/f/'images').symlink_to(d/'pics')         # writing COCO links no pictures
        out[f] = d/f
    return out


def coco_by_pycocotools(d):
    from pycocotools.coco import COCO
    for f in sorted((d/'annotations').glob('instances_*.json')):
        c = COCO(str(f))
        for a in c.loadAnns(c.getAnnIds()):
            m, (x, y, w, h) = c.imgs[a['image_id']], a['bbox']
            split = f.stem.removeprefix('instances_')
            assert isinstance(m['id'], int) and a['id'] >= 1 and '/' not in m['file_name']
            assert Image.open(d/'images'/split/m['file_name']).size == (m['width'], m['height'])
            yield c.cats[a['category_id']]['name'], split, x, y, x + w, y + h


def fractions(label, picture, names, split):
    w, h = Image.open(picture).size
    for line in label.read_text().splitlines() if label.exists() else ():
        c, *v = map(float, line.split())
        if len(v) > 5:                                          # corners: the box around them
            xs, ys = v[::2], v[1::2]
            v = [(min(xs) + max(xs))/2, (min(ys) + max(ys))/2, max(xs) - min(xs), max(ys) - min(ys)]
        x, y, bw, bh = v[:4]
        yield names[int(c)], split, (x - bw/2)*w, (y - bh/2)*h, (x + bw/2)*w, (y + bh/2)*h


def yolo_as_trainers_read_it(d):
    "An absolute path; labels/ for images/."
    conf = yaml.safe_load((d/'data.yaml').read_text())
    for split in ('train', 'val'):
        for p in sorted((Path(conf['path'])/conf[split]).iterdir()):
            label = Path(str(p).replace('/images/', '/labels/')).with_suffix('.txt')
            yield from fractions(label, p, conf['names'], split)


def darknet_as_darknet_reads_it(d):
    "Started in the folder; the label beside the picture's path with labels for images."
    conf = dict(map(str.strip, l.split('=')) for l in (d/'obj.data').read_text().splitlines())
    names = (d/conf['names']).read_text().split('\n')
    for key, split in (('train', 'train'), ('valid', 'val')):
        for l in (d/conf[key]).read_text().split():
            yield from fractions((d/l.replace('images/', 'labels/')).with_suffix('.txt'), d/l, names, split)


def voc_as_torchvision_reads_it(d):
    for split in ('train', 'val'):
        for name in (d/f'ImageSets/Main/{split}.txt').read_text().split():
            root = ET.parse(d/f'Annotations/{name}.xml').getroot()
            Image.open(d/'JPEGImages'/root.findtext('filename'))
            for o in root.iter('object'):
                b = o.find('bndbox')
                yield o.findtext('name'), split, *(float(b.findtext(k)) for k in ('xmin', 'ymin', 'xmax', 'ymax'))


def labelme_files(d):
    for split in ('train', 'val'):
        for f in sorted((d/split).glob('*.json')):
            m = json.loads(f.read_text())
            Image.open(f.parent/m['imagePath'])
            for s in m['shapes']:
                xs, ys = zip(*s['points'])                      # two corners, or a polygon's
                yield s['label'], split, min(xs), min(ys), max(xs), max(ys)


def kitti_files(d):
    for folder, split in (('training', 'train'), ('validation', 'val')):
        for f in sorted((d/folder/'label_2').glob('*.txt')):
            for l in f.read_text().splitlines():
                w = l.split()
                yield w[0], split, *map(float, w[4:8])


def cvat_file(d):
    for m in ET.parse(d/'annotations.xml').getroot().iter('image'):
        for b in m.iter('box'):
            yield b.get('label'), m.get('subset'), *(float(b.get(k)) for k in ('xtl', 'ytl', 'xbr', 'ybr'))
        for p in m.iter('polygon'):
            xs, ys = zip(*(map(float, q.split(',')) for q in p.get('points').split(';')))
            yield p.get('label'), m.get('subset'), min(xs), min(ys), max(xs), max(ys)


INDEPENDENT = dict(coco=coco_by_pycocotools, yolo=yolo_as_trainers_read_it, darknet=darknet_as_darknet_reads_it,
                   voc=voc_as_torchvision_reads_it, labelme=labelme_files, kitti=kitti_files, cvat=cvat_file)


def by_our_reader(d, format):
    t = read(d, format, sidecar=False)
    return [(t.names[c], t.images['split'][i], *b)
            for c, i, b in zip(t.boxes['category'], t.boxes['image'], t.xyxy.tolist())]


def one_way(pairs, source, to, out):
    try: was, now, lost = convert(ConvertConfig(str(pairs[source]), to, source, str(out)))
    except FormatError as e:
        # a format of one class has no word for another's; that is said by name
        assert 'class' in str(e) and to in DESCRIBED and DESCRIBED[to].classes, e
        return None
    was = by_our_reader(pairs[source], source)
    found = sorted(map(list, INDEPENDENT[to](out))) if to in INDEPENDENT else sorted(map(list, by_our_reader(out, to)))
    want = sorted(map(list, was))
    splits = not any(l == 'splits' for l in lost)
    names = lambda rows: sorted((r[0], *(r[1:2] if splits else ())) for r in rows)
    assert names(found) == names(want), (found, want, lost)
    key = lambda r: (r[0], *np.round(r[2:], 2))
    a, b = ([r[2:] for r in sorted(rows, key=key)] for rows in (found, want))
    np.testing.assert_allclose(a, b, atol=1e-4)
    return lost


def campaign(pairs, tmp_path, some):
    made = {}
    for source, to in some:
        made[source, to] = one_way(pairs, source, to, tmp_path/f'{source}-{to}')
    return made


def test_formats_to_others_a_sample(pairs, tmp_path):
    "Every independent reader once, and a seeded draw of the rest."
    g = random.Random(21)
    some = [(g.choice(sorted(set(FORMATS) - ONE)), to) for to in INDEPENDENT]
    some += [(g.choice(FORMATS), to) for to in g.sample(sorted(set(FORMATS) - set(INDEPENDENT)), 6)]
    assert sum(v is not None for v in campaign(pairs, tmp_path, some).values()) >= 10


@pytest.mark.soak
def test_every_format_to_every_other(pairs, tmp_path):
    made, bad = {}, {}
    for pair in [(a, b) for a in FORMATS for b in FORMATS]:
        try: made |= campaign(pairs, tmp_path, [pair])
        except Exception as e: bad[pair] = f'{type(e).__name__}: {str(e)[:300]}'
    print(len(made), 'pairs,', sum(v is None for v in made.values()), 'refused for their classes')
    assert not bad, f'{len(bad)} of them: ' + '\n'.join(f'{k}: {v}' for k, v in list(bad.items())[:40])
    assert {b for (a, b), v in made.items() if v is None} <= {'mot', 'visdrone', 'wider', 'parking'}


def test_our_own_check_finds_no_fault_in_it(pairs, tmp_path):
    convert(ConvertConfig(str(pairs['voc']), 'coco', out=str(tmp_path/'c')))
    convert(ConvertConfig(str(tmp_path/'c'), 'yolo', out=str(tmp_path/'y')))
    for f in ('c', 'y'):
        seen = set(check(read(tmp_path/f)).rows['reason'])
        assert seen <= {'unlabelled', 'rare-class'}, seen           # the picture without boxes, the classes of few


def test_flags_are_numbers_in_texts(pairs, tmp_path):
    "`difficult` came out as False: VOC's own tools take int() of it."
    convert(ConvertConfig(str(pairs['dota']), 'voc', out=str(tmp_path/'v')))
    records = [ET.parse(f) for f in (tmp_path/'v/Annotations').glob('*.xml')]
    said = {o.findtext('difficult') for r in records for o in r.iter('object')}
    convert(ConvertConfig(str(tmp_path/'v'), 'dota', out=str(tmp_path/'d')))
    assert said == {'0'} and 'False' not in (tmp_path/'d/train/labelTxt/000001.txt').read_text()


def test_masks_and_unknown_fields_stay_in_coco_and_are_named_elsewhere(pairs, tmp_path):
    d = json.loads(next((pairs['coco']/'annotations').glob('*train.json')).read_text())
    d['annotations'][0] |= dict(segmentation=[[5, 6, 30, 6, 30, 40]], iscrowd=1, mine='kept')
    (tmp_path/'a.json').write_text(json.dumps(d))
    _, _, lost = convert(ConvertConfig(str(tmp_path/'a.json'), 'coco', out=str(tmp_path/'c')))
    new = json.loads((tmp_path/'c/annotations/instances_all.json').read_text())['annotations'][0]
    assert new['mine'] == 'kept' and new['iscrowd'] == 1 and new['segmentation']
    _, _, lost = convert(ConvertConfig(str(tmp_path/'a.json'), 'voc', out=str(tmp_path/'v')))
    assert any('crowd' in l for l in lost) and any('segmentation' in l for l in lost)
