"What nobody has labelled: from the table through mosaic and flips into the loss, and through evaluation."
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from yolokit.core.images import write_image
from yolokit.data import formats
from yolokit.data.augment import Augment
from yolokit.data.loader import Loader
from yolokit.data.table import Table, mark_ignored, merge
from yolokit.evaluation.metrics import coco
from yolokit.network import zoo
from yolokit.network.model import Detector
from yolokit.training.loss import Loss

AUGMENTS = dict(none=None, flips=Augment(flipud=.5, fliplr=.5), view=Augment(scale=.5, translate=.2),
                turned=Augment(degrees=20., shear=5.), mosaic=Augment(mosaic=1., scale=.5),
                mixup=Augment(mosaic=1., mixup=1., fliplr=.5), near=Augment(mosaic=1., near=8, scale=.3))


@pytest.fixture(scope='module')
def lot(tmp_path_factory):
    "Eight grey pictures, each with a white square that is labelled and a black one that is a crowd."
    folder, rows = tmp_path_factory.mktemp('사진'), []
    g = np.random.default_rng(0)
    for i in range(8):
        rgb = np.full((64, 96, 3), 114, np.uint8)
        for k, (value, x) in enumerate([(255, g.integers(2, 30)), (0, g.integers(50, 70))]):
            y = g.integers(2, 40)
            rgb[y:y+20, x:x+20] = value
            rows.append((i, 0, x, y, x + 20, y + 20, k == 1))
        write_image(folder/f'{i}.png', rgb)
    image, category, x0, y0, x1, y1, crowd = np.array(rows).T
    return Table.make(dict(file=[f'{i}.png' for i in range(8)], path=[str(folder/f'{i}.png') for i in range(8)],
                           width=[96]*8, height=[64]*8),
                      dict(image=image, category=category, x0=x0, y0=y0, x1=x1, y1=y1, crowd=crowd.astype(bool)),
                      ['car', 'bus'])


@pytest.mark.parametrize('how', AUGMENTS)
def test_a_region_stays_on_its_pixels(lot, how):
    "Whatever the augmentation, black pixels lie in a region, and the region is hardly larger than they are."
    loader = Loader(lot, (96, 64), bs=4, workers=0, augment=AUGMENTS[how])
    assert loader.unlabelled.tolist() == [[True, True]]
    for batch in loader.epoch(0):
        for rgb, targets in zip(batch.images, batch.targets):
            black = (rgb.amax(0) < 20) if how != 'mixup' else (rgb.amax(0) < 75)
            region = torch.zeros_like(black)
            for c, x, y, w, h in targets.tolist():
                if c != -2: continue
                region[max(0, int(y - h/2 - 1)):int(y + h/2 + 2), max(0, int(x - w/2 - 1)):int(x + w/2 + 2)] = True
            assert not (black & ~region).any()
            if how in ('none', 'flips', 'view'): assert region.sum() <= black.sum()*1.6 + 60


@pytest.mark.parametrize('network', ['yolokit-nano', 'yolov3-tiny'])
def test_gradient_of_the_maps_inside_a_region_is_zero(lot, network):
    "The head's maps of a real network on a real batch; outside nothing changes, bit for bit."
    loader = Loader(lot, (96, 64), bs=4, workers=0, augment=AUGMENTS['mosaic'])
    d = Detector(zoo.build(network, 2).with_size(96, 64))
    batch, loss = next(loader.epoch(0)), Loss(d)
    with torch.no_grad(): maps = d(batch.images.float()/255, logits=True)
    maps = [m.clone().requires_grad_() for m in maps]
    t = batch.targets.clone()
    t[..., 0] = torch.where(t[..., 0] >= 0, -1., t[..., 0])          # only the regions
    plain = torch.autograd.grad(loss(maps, t)[0], maps)
    loss.ignore(loader.unlabelled)
    for a, b, h in zip(plain, torch.autograd.grad(loss(maps, t)[0], maps), d.heads):
        inside = torch.zeros(len(t), *a.shape[2:], dtype=torch.bool)
        for i, rows in enumerate(t):
            for x, y, bw, bh in rows[rows[:, 0] == -2, 1:]:
                j, k = torch.arange(a.shape[2]), torch.arange(a.shape[3])
                inside[i] |= (((j + 1)*h.stride > y - bh/2) & (j*h.stride < y + bh/2))[:, None] & (
                    ((k + 1)*h.stride > x - bw/2) & (k*h.stride < x + bw/2))
        inside = inside[:, None].expand_as(a)
        assert inside.any() and (b[inside] == 0).all() and torch.equal(a[~inside], b[~inside])
        assert (a[inside] != 0).any()


def test_without_regions_the_batches_and_the_loss_are_what_they_were(lot):
    "A table whose crowds are dropped: the same targets as one that never had any, and no mask in the loss."
    bare = lot.keep(~lot.boxes['crowd'])
    without = Table.make(bare.images, {k: v for k, v in bare.boxes.items() if k != 'crowd'}, bare.names)
    a, b = (Loader(t, (96, 64), bs=4, workers=0, augment=AUGMENTS['mixup']) for t in (bare, without))
    assert a.unlabelled is None and b.unlabelled is None
    for x, y in zip(a.epoch(1), b.epoch(1)):
        assert torch.equal(x.images, y.images) and torch.equal(x.targets, y.targets)
    loss = Loss(Detector(zoo.build('yolokit-nano', 2)))
    loss.ignore(a.unlabelled)
    assert loss.unlabelled is None and not loss.state_dict()


def test_a_picture_knows_what_its_source_has_labelled(lot):
    "Two sets: where one has not labelled buses, a cell that is taken for a bus is not background there."
    cars = Table.make(lot.images | dict(id=[*range(100, 108)]), lot.boxes, ['car', 'man'])
    both = merge([lot, cars])
    assert both.names == ['car', 'bus', 'man']
    loader = Loader(both, (96, 64), bs=16, workers=0, shuffle=False)
    assert loader.unlabelled.tolist() == [[True]*3, [False, False, True], [False, True, False]]
    batch = next(loader.epoch(0))
    numbers = [sorted(set((-2 - t[t[:, 0] < -1, 0]).int().tolist())) for t in batch.targets]
    assert numbers == [[0, 1]]*8 + [[0, 2]]*8
    head = SimpleNamespace(anchors=np.array([[20., 20]]), nc=3, stride=8, scale_x_y=2., new_coords=True, kind='yolo')
    loss = Loss(SimpleNamespace(heads=[head]))
    loss.ignore(loader.unlabelled)
    t = torch.tensor([[[-3., 48, 32, 96, 64]], [[-4., 48, 32, 96, 64]]])
    for taken, expected in ((0, (True, True)), (1, (True, False)), (2, (False, True))):
        p = torch.zeros(2, 8, 8, 12)
        p[:, 5 + taken] = 1
        p.requires_grad_()
        g, = torch.autograd.grad(loss([p], t)[0], p)
        assert tuple(bool(x.any()) for x in g[:, 4]) == expected, taken


def test_evaluation_ignores_them_as_coco_does(lot):
    "Detections on ignored things change no number; neither does one of a class that nobody has labelled there."
    b, n = lot.boxes, len(lot)
    marks = dict(crowd=lot, difficult=Table.make(lot.images, {k: v for k, v in b.items() if k != 'crowd'}
                                                 | dict(difficult=b['crowd']), lot.names))
    named = np.where(b['crowd'], 2, b['category'])
    for name in ('ignore', 'DontCare', 'Ignored regions'):
        marks[name] = Table.make(lot.images, {k: v for k, v in b.items() if k != 'crowd'} | dict(category=named),
                                 [*lot.names, name])
    found = Table.make(lot.images, {k: b[k] for k in ('image', 'x0', 'y0', 'x1', 'y1')}
                       | dict(category=np.zeros(n, int), score=np.linspace(.9, .1, n)), lot.names)
    for how, t in marks.items():
        t = mark_ignored(t)
        assert t.names == lot.names and t.boxes['crowd'].any(), how
        assert coco(t, found)['AP'] == pytest.approx(1), how
    gaps = np.empty(8, object); gaps[:4] = [('bus',)]*4
    t = lot.with_columns(category=(b['image'] == 7).astype(int)).with_images(unlabelled=gaps)
    corners = np.tile([20., 20, 40, 40], (9, 1))
    corners[0] = lot.xyxy[14]                                        # the bus; the others are on no bus
    bus = Table.make(lot.images, dict(image=np.r_[7, np.arange(8)], category=[1]*9, score=[.5, *[.9]*8],
                                      **dict(zip(('x0', 'y0', 'x1', 'y1'), corners.T))), lot.names)
    ap = [coco(x, bus)['per_class']['bus']['AP'] for x in (t, lot.with_columns(category=t.boxes['category']))]
    assert ap[0] == pytest.approx(1/5) and ap[1] == pytest.approx(1/9)  # four false alarms, or all eight


def test_a_merged_set_survives_a_file(lot, tmp_path):
    "LVIS's not_exhaustive_category_ids carries what is not labelled; a raw COCO file keeps it."
    both = merge([lot, Table.make(lot.images | dict(id=[*range(100, 108)], file=[f'b{i}.png' for i in range(8)]),
                                  lot.boxes, ['man', 'bus'])])
    formats.write(both, tmp_path/'merged.json', 'coco')
    again = formats.read(tmp_path/'merged.json')
    assert again.images['unlabelled'].tolist() == both.images['unlabelled'].tolist()
    assert again.boxes['crowd'].tolist() == both.boxes['crowd'].tolist()
    formats.write(again, tmp_path/'again.json', 'coco')
    assert (tmp_path/'again.json').read_text() == (tmp_path/'merged.json').read_text()


VOC = '''<annotation><filename>{0}.jpg</filename><size><width>50</width><height>40</height><depth>3</depth></size>
<object>
<name>car</name><pose>x</pose><truncated>0</truncated><difficult>{0}</difficult><bndbox><xmin>3</xmin><ymin>4</ymin>
<xmax>20</xmax><ymax>30</ymax></bndbox></object></annotation>'''


def test_what_voc_and_kitti_leave_open_is_marked(tmp_path):
    (tmp_path/'voc/Annotations').mkdir(parents=True)
    for i in '01': (tmp_path/f'voc/Annotations/{i}.xml').write_text(VOC.format(i))
    t = formats.read(tmp_path/'voc')
    assert 'crowd' not in t.boxes and mark_ignored(t).boxes['crowd'].tolist() == [False, True]
    (tmp_path/'kitti/labels').mkdir(parents=True)
    (tmp_path/'kitti/labels/000001.txt').write_text(
        'Car 0.00 0 1.5 10.0 10.0 30.0 30.0 1.5 1.6 3.9 1 1 10 1.6\n'
        'DontCare -1 -1 -10 40.0 10.0 60.0 20.0 -1 -1 -1 -1000 -1000 -1000 -10\n')
    t = formats.read(tmp_path/'kitti', 'kitti')
    m = mark_ignored(t)
    assert t.names == ['Car', 'DontCare'] and m.names == ['Car'] and m.boxes['crowd'].tolist() == [False, True]
