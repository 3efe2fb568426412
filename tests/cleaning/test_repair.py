"Findings, plans, journals: recall and precision on planted faults, exact undo, real data, wild input, speed."
import json, time
from pathlib import Path
import cv2, numpy as np, pytest
from yolokit.core.boxes import box_iou_rowwise
from yolokit.core.rng import rng
from yolokit.core.files import shared_data_dir
from yolokit.data import faults, formats
from yolokit.data.table import from_columns
from yolokit.cleaning import checks, repair

CERTAIN = ('reversed-x', 'reversed-y', 'reversed-xy', 'subpixel', 'zero-area', 'duplicate')


def clean(n=2000, images=200, seed=0, size=(640, 480)):
    "Sound boxes, a fifth of them on the border, no two of one image alike."
    g = rng(seed)
    wh = g.uniform(8, 150, (n, 2))
    at = g.uniform(0, 1, (n, 2))*(np.array(size) - wh)
    side = g.integers(0, 4, n)[:n//5]
    at[:n//5][side == 0, 0] = 0; at[:n//5][side == 1, 1] = 0
    for k in (0, 1): rows = np.flatnonzero(side == 2 + k); at[rows, k] = size[k] - wh[rows, k]
    b = np.concatenate([at, at + wh], 1)
    t = from_columns(dict(file=[f'{i}.png' for i in range(images)], width=[size[0]]*images, height=[size[1]]*images,
                          split=['train']*images),
             dict(image=np.arange(n) % images, category=g.integers(0, 14, n),
                  **dict(zip(('x0', 'y0', 'x1', 'y1'), b.T)), id=np.arange(n) + 1,
                  area=(wh[:, 0]*wh[:, 1]), crowd=np.zeros(n, bool)), [f'class {i}' for i in range(14)])
    return repair.apply(t, repair.plan(checks.check(t, images=False)))[0]


def equal(a, b):
    assert list(a.boxes) == list(b.boxes)
    for k in a.boxes:
        assert a.boxes[k].dtype == b.boxes[k].dtype, k
        if a.boxes[k].dtype == object: assert a.boxes[k].tolist() == b.boxes[k].tolist(), k
        else: assert a.boxes[k].tobytes() == b.boxes[k].tobytes(), k
    assert a.images is b.images and a.names == b.names


def trial(base, share, seed):
    "recall, precision of each kind; the mend of reversed and sub-pixel boxes is the clean box."
    table, key = faults.plant_box_faults(base, share, seed)
    f = checks.check(table, images=False)
    p = repair.plan(f).rows
    said = {(b, r): i for i, (b, r) in enumerate(zip(p['box'].tolist(), p['reason']))}
    before = {(b, r) for b, r in zip(*(checks.check(base, images=False).rows[k].tolist() for k in ('box', 'reason')))}
    broken, out = {k['box'] for k in key}, {}
    for kind in faults.BOX_FAULT_KINDS:
        mine = [k for k in key if k['kind'] == kind]
        hit = [k for k in mine if (k['box'], kind) in said]
        wrong = sum(r == kind and b not in broken and (b, r) not in before for b, r in said)
        if mine: out[kind] = len(hit)/len(mine), len(hit)/max(len(hit) + wrong, 1)
        if kind in ('reversed-x', 'reversed-y', 'reversed-xy', 'subpixel') and hit:
            after = p['after'][[said[k['box'], kind] for k in hit]]
            assert box_iou_rowwise(after, np.array([k['clean'] for k in hit])).min() > .9995
    return out


@pytest.mark.parametrize('seed', [0, 1, 2])
def test_recall_and_precision_on_drawn_boxes(seed):
    got = trial(clean(seed=seed), .2, seed)
    assert set(got) == set(faults.BOX_FAULT_KINDS)
    for kind, (recall, precision) in got.items(): assert recall >= .99 and precision >= .99, (kind, recall, precision)


@pytest.mark.parametrize('name', ['bccd', 'parking_space'])
def test_recall_and_precision_on_real_boxes(name):
    if shared_data_dir() is None: pytest.skip('no shared data beside the checkout')
    raw = formats.read(shared_data_dir()/'data'/name)
    base = repair.apply(raw, repair.plan(checks.check(raw, images=False)))[0]
    for kind, (recall, precision) in trial(base, .1, 1).items():
        assert recall >= .99 and precision >= .99, (kind, recall, precision)


def test_bccd_is_known():
    if shared_data_dir() is None: pytest.skip('no shared data beside the checkout')
    f = checks.check(formats.read(shared_data_dir()/'data'/'bccd'))
    assert [r['file'] for r in f.of('zero-area').records()] == ['BloodImage_00338.jpg', 'BloodImage_00343.jpg']
    assert len(f.of('near-duplicate')) == 7 and f.of('near-duplicate').rows['certain'].sum() == 0


def test_polygons_of_parking_space_are_told_and_left():
    if shared_data_dir() is None: pytest.skip('no shared data beside the checkout')
    t = formats.read(shared_data_dir()/'data'/'parking_space')
    f = checks.check(t)
    split = t.images['split'][t.boxes['image']]
    # every row of valid and test
    assert set(f.of('polygon').rows['box'].tolist()) == set(np.flatnonzero(split != 'train').tolist())
    assert 'outside' not in f.counts() and 'polygon' not in repair.plan(f).rows['reason']


@pytest.mark.parametrize('seed', range(3))
def test_undo_gives_back_every_column(seed, tmp_path):
    table, key = faults.plant_box_faults(clean(seed=seed), .3, seed)
    extra = np.empty(len(table), object)
    extra[:] = [dict(점=[1, 2.5], n=i) if i % 3 else None for i in range(len(table))]
    xyxy = table.xyxy
    xyxy[5] = np.nan, 1, np.inf, 2
    table = table.with_xyxy(xyxy).with_columns(raw=extra, weight=rng(seed).random(len(table)).astype(np.float32))
    copy = {k: v.copy() for k, v in table.boxes.items()}
    p = repair.plan(checks.check(table, images=False))
    p = p.decide([dict(box=int(b), reason=r, decision=['accept', 'reject', 'skip'][i % 3])
                  for i, (b, r, s) in enumerate(zip(p.rows['box'], p.rows['reason'], p.rows['state'])) if s == 'ask'])
    mended, journal = repair.apply(table, p)
    assert len(mended) < len(table) and len(journal) > 300
    for k, v in copy.items():
        assert np.array_equal(v, table.boxes[k], equal_nan=v.dtype.kind == 'f'), f'apply wrote into column {k}'
    journal.save(tmp_path/'journal.json')
    json.loads((tmp_path/'journal.json').read_text(), parse_constant=lambda c: pytest.fail(f'{c} is no JSON'))
    equal(repair.undo(mended, repair.Journal.load(tmp_path/'journal.json')), table)
    equal(repair.undo(mended, journal), table)


def test_a_second_check_finds_nothing_certain():
    table, _ = faults.plant_box_faults(clean(), .3, 4)
    mended, _ = repair.apply(table, repair.plan(checks.check(table, images=False)))
    again = checks.check(mended, images=False)
    assert not again.rows['certain'].any(), again


def test_the_wrong_table_is_refused():
    a, b = (faults.plant_box_faults(clean(seed=s), .2, s)[0] for s in (0, 1))
    p = repair.plan(checks.check(a, images=False))
    with pytest.raises(repair.RepairError, match='another table'): repair.apply(b, p)
    mended, journal = repair.apply(a, p)
    with pytest.raises(repair.RepairError, match='not the table'): repair.undo(b, journal)
    moved = mended.with_xyxy(mended.xyxy + .5)
    with pytest.raises(repair.RepairError, match='journal left it'): repair.undo(moved, journal)


def test_area_follows_the_box_only_where_it_was_the_boxs():
    t = from_columns(dict(file=['a'], width=[100], height=[100]),
                     dict(image=[0, 0, 0], category=[0]*3, x0=[30, 30, 90], y0=[10, 50, 10], x1=[10, 10, 105],
                          y1=[20, 60, 20],
                          area=[-200., 77., 150.]), ['a'])
    mended, journal = repair.apply(t, repair.plan(checks.check(t, images=False)).decide([
        dict(box=2, reason='outside', decision='accept')]))
    assert mended.boxes['area'].tolist() == [200., 77., 100.]
    equal(repair.undo(mended, journal), t)


def test_negative_width_of_coco_and_yolo_is_a_reversed_box(tmp_path):
    d = dict(images=[dict(id=1, file_name='a.png', width=100, height=80)], categories=[dict(id=1, name='car')],
             annotations=[dict(id=1, image_id=1, category_id=1, bbox=[60, 20, -40, 30], area=1200, iscrowd=0)])
    (tmp_path/'a.json').write_text(json.dumps(d))
    t = formats.read(tmp_path/'a.json', 'coco')
    p = repair.plan(checks.check(t))
    assert p.rows['reason'].tolist() == ['reversed-x'] and p.rows['after'].tolist() == [[20, 20, 60, 50]]


def test_corrupt_is_seeded_and_the_key_is_true():
    base = clean()
    (a, k), (b, l), (c, m) = (faults.plant_box_faults(base, .05, 3), faults.plant_box_faults(base, .05, 3),
                              faults.plant_box_faults(base, .05, 4))
    assert k == l and k != m and a.xyxy.tobytes() == b.xyxy.tobytes()
    assert len(k) == 100 and {e['kind'] for e in k} == set(faults.BOX_FAULT_KINDS)
    json.dumps(k, allow_nan=False)
    for e in k:
        assert np.array_equal(a.xyxy[e['box']], e['planted']) and np.array_equal(base.xyxy[e['clean_box']], e['clean'])
        assert a.images['file'][a.boxes['image'][e['box']]] == e['file']
    untouched = np.setdiff1d(np.arange(len(base)), [e['box'] for e in k])
    assert np.array_equal(a.xyxy[untouched], base.xyxy[untouched])
    assert len(set(a.boxes['id'])) == len(a)
    with pytest.raises(faults._FaultError, match='no such kinds'):
        faults.plant_box_faults(base, .1, 0, ('upside-down',))


@pytest.mark.parametrize('seed', range(20))
def test_wild_numbers_do_not_hurt(seed):
    g = np.random.default_rng(seed)
    n = int(g.integers(0, 60))
    xyxy = g.choice([0, 1, -1, 1e-9, 50, 100, 100.5, 1e12, -1e12, 1e300, np.nan, np.inf, -np.inf], (n, 4))
    t = from_columns(dict(file=['a', 'b'], width=[100, 0], height=[100, 0]),
                     dict(image=g.integers(0, 2, n), category=np.zeros(n, int),
                          **dict(zip(('x0', 'y0', 'x1', 'y1'), xyxy.T))), ['a'])
    with np.errstate(all='ignore'):
        f = checks.check(t)
        p = repair.plan(f)
        mended, journal = repair.apply(t, p)
        str(f), str(p), str(journal), f._repr_markdown_(), p._repr_markdown_(), journal._repr_markdown_()
        f.records(), p.records()
    assert np.isfinite(mended.xyxy).all()
    back = repair.undo(mended, journal)
    assert np.array_equal(back.xyxy, t.xyxy, equal_nan=True)


def test_the_same_ids_in_two_splits_are_two_files():
    t = from_columns(dict(file=['a', 'b'], split=['train', 'val']),
                     dict(image=[0, 1, 1], category=[0]*3, x0=[0, 0, 20], y0=[0]*3, x1=[9, 9, 30], y1=[9]*3,
                          id=[1, 1, 1]), ['a'])
    assert checks.check(t, images=False).of('id-twice').rows['box'].tolist() == [2]


def test_no_boxes_at_all():
    t = from_columns(dict(file=['a.png'], width=[10], height=[10]), {}, ['a'])
    f = checks.check(t)
    assert len(repair.plan(f)) == 0
    assert len(repair.apply(t, repair.plan(f))[0]) == 0
    assert faults.plant_box_faults(t, .5)[1] == []


def test_a_hundred_thousand_boxes_take_seconds():
    base = clean(100_000, 18_000)
    table, _ = faults.plant_box_faults(base, .05, 0)
    start = time.process_time()
    p = repair.plan(checks.check(table, images=False))
    mended, journal = repair.apply(table, p)
    repair.undo(mended, journal)
    assert time.process_time() - start < 5 # about 0.4 s on an idle core


def test_ten_thousand_boxes_in_one_column_are_no_trap():
    "The neighbour search sorts by x0 + y0: neither a row nor a column of boxes makes it quadratic."
    n = 10_000
    for k in (0, 1):
        at = np.zeros((n, 2)); at[:, k] = np.arange(n)*6.
        b = np.concatenate([at, at + 5], 1)
        start = time.process_time()
        assert len(checks.overlapping_pairs(np.zeros(n, int), b)[0]) == 0
        assert time.process_time() - start < 1


def sound_set(name, tmp_path):
    "A real set without its certain faults, every image in a split."
    if name == 'embedded':
        from yolokit.data.parking import make_parking
        folder = make_parking(tmp_path/'lot', 36, 8, 2, workers=1)
        raw = formats.read(folder)
        raw = raw.keep_images(raw.images['split'] != 'test')
    else:
        if shared_data_dir() is None: pytest.skip('no shared data beside the checkout')
        raw = formats.read(shared_data_dir()/'data'/name)
    t = repair.apply(raw, repair.plan(checks.check(raw)))[0]
    return t.with_images(split=np.where(t.images['split'] == '', 'train', t.images['split']).astype(object))


def spoilt_trial(base, folder, share, seed, before=None):
    spoilt, key = faults.plant_set_faults(base, folder, share, seed)
    after = checks.check(spoilt)
    return faults.score_findings(before or checks.check(base), after, key), spoilt, after


@pytest.mark.parametrize('name', ['embedded', 'bccd', 'parking_space'])
def test_faults_of_pictures_and_sets_are_found(name, tmp_path):
    got, spoilt, after = spoilt_trial(sound_set(name, tmp_path), tmp_path/'spoilt', .02, 1)
    assert set(got) == set(faults.SET_FAULTS)
    for reason, (n, recall, precision) in got.items():
        assert n and recall >= .99 and precision >= .99, (reason, n, recall, precision)
    p = repair.plan(after)
    yes = [{k: r[k] for k in ('box', 'reason', 'file', 'proposal',
                              'label') if k in r} | dict(decision='accept') for r in p.records() if r['state'] == 'ask']
    mended, journal = repair.apply(spoilt, p.decide(yes)) # everything at once hurts nothing
    assert repair.undo(mended, journal).same(spoilt)
    journal.save(tmp_path/'journal.json')
    back = repair.undo(mended, repair.Journal.load(tmp_path/'journal.json'))
    assert (np.array_equal(back.xyxy, spoilt.xyxy, equal_nan=True) and back.names == spoilt.names
            and back.images['file'].tolist() == spoilt.images['file'].tolist())


FORMATS = ['coco', 'yolo', 'darknet', 'voc', 'labelme', 'cvat', 'kitti', 'parking']


def faulty(tmp_path, format):
    "A folder of a format, three pictures with pixels, with faults that the format can hold."
    from yolokit.core import images
    g, names = rng(3), ['세단', 'bus', 'cart']
    paths = []
    for i in range(3):
        images.write_image(tmp_path/f'pics/사진 {i}.png', g.integers(0, 255, (80, 100, 3), dtype=np.uint8))
        paths.append(str(tmp_path/f'pics/사진 {i}.png'))
    b = [[60.25, 20, 20, 50.5], [10, 10, 30, 30], [10, 10, 30, 30], [70, 60, 100.5, 79], [40, 40, 60, 60],
         [5, 5, 25, 45], [50, 50, 90, 70], [85, 5, 125, 25]]
    t = from_columns(dict(file=[f'사진 {i}.png' for i in range(3)], path=paths, width=[100]*3, height=[80]*3,
                          split=['train', 'train', 'val'], id=[1, 2, 3]),
             dict(image=[0, 0, 0, 0, 1, 1, 2, 2], category=[0, 1, 1, 2, 0, 2, 1, 0],
                  **dict(zip(('x0', 'y0', 'x1', 'y1'), np.array(b).T))), names, [1, 2, 3])
    formats.write(t, tmp_path/'source', format, sidecar=False)
    return formats.read(tmp_path/'source', format)


def annotation_files(folder):
    from yolokit.core.files import list_files
    return {k: p.read_bytes() for k, p in list_files(folder, ('.json', '.txt', '.xml', '.yaml', '.yml', '.data',
                                                              '.names')).items()}


@pytest.mark.parametrize('format', FORMATS)
def test_undo_gives_back_the_bytes_of_every_format(format, tmp_path):
    t = faulty(tmp_path, format)
    was = annotation_files(tmp_path/'source')
    p = repair.plan(checks.check(t))
    assert {'reversed-x', 'duplicate', 'subpixel', 'outside'} <= set(p.rows['reason']), p
    said = [dict(box=int(b), reason=r, decision='accept')
            for b, r, s in zip(p.rows['box'], p.rows['reason'], p.rows['state']) if s == 'ask' and b >= 0]
    hand = [dict(box=-1, reason='by-hand', file=str(t.images['file'][0]), decision='accept', action='add',
                 after=[30, 50, 60, 75], label=1),
            dict(box=4, reason='by-hand', file=str(t.images['file'][1]), decision='accept', action='class',
                 label=(int(t.boxes['category'][4]) + 1) % 3)]
    mended, journal = repair.write_repaired(t, p.decide(said + hand), tmp_path/'out', format)
    assert {'set', 'drop', 'add', 'class'} <= {e['action'] for e in journal.entries}
    assert annotation_files(tmp_path/'source') == was, 'the source was touched'
    # the new set is what the table says, and sound
    again = formats.read(tmp_path/'out', format)
    order = lambda t: sorted((str(t.images['file'][i]).rsplit('/', 1)[-1], t.names[c],
                              *np.round(b, 3).tolist()) for i, c, b in zip(t.boxes['image'], t.boxes['category'],
                                                                           t.xyxy))
    assert order(again) == order(mended)
    assert not (repair.plan(checks.check(again)).rows['state'] == 'apply').any(), checks.check(again)
    # and back: in memory, written again; from the folder alone
    formats.write(repair.undo(mended, journal), tmp_path/'undone', format, sidecar=False)
    assert annotation_files(tmp_path/'undone') == was
    files = repair.restore_sources(tmp_path/'out', tmp_path/'restored')
    assert annotation_files(tmp_path/'restored') == was and set(files) == set(was)
    # a folder that somebody worked on is not overwritten with the past
    some = next(p for k, p in sorted((k, tmp_path/'out'/k) for k in was) if p.stat().st_size)
    some.write_bytes(some.read_bytes() + b'\n')
    with pytest.raises(repair.RepairError, match='not what the repair wrote'):
        repair.restore_sources(tmp_path/'out', tmp_path/'elsewhere')


def test_the_size_of_the_challenge_takes_seconds():
    base = clean(134_741, 24_650)
    table, _ = faults.plant_box_faults(base, .05, 0)
    start = time.process_time()
    f = checks.check(table, images=False)
    assert time.process_time() - start < 10 # about 1.5 s on an idle core
    assert len(f) > 6000


def test_a_decision_on_what_has_no_box_survives_a_second_check(tmp_path):
    from yolokit.core import images
    for n in 'ab': images.write_image(tmp_path/f'{n}.png', np.zeros((40, 60, 3), np.uint8))
    d = dict(file=['a.png', 'b.png'], path=[str(tmp_path/f'{n}.png') for n in 'ab'], width=[60]*2, height=[40]*2,
             split=['train', 'train'])
    t = from_columns(d, dict(image=[0, 1], category=[0, 0], x0=[1, 1], y0=[1, 1], x1=[9, 9], y1=[9, 9]), ['car '])
    word = json.loads(json.dumps([dict(r, decision='accept') for r in repair.plan(checks.check(t)).records()],
                                 default=str))
    (tmp_path/'decisions.json').write_text(json.dumps([{k: r[k] for k in ('box', 'reason', 'file', 'label',
                                                                          'decision') if k in r} for r in word]))
    new, journal = repair.apply(
        t, repair.plan(checks.check(t)).decide(repair.load_decisions(tmp_path/'decisions.json')))
    assert (new.n_images, len(new), new.names) == (1, 1, ['car'])
    assert repair.undo(new, journal).same(t)


def test_prepare_obeys_a_file_of_decisions(tmp_path):
    from yolokit.cleaning import prepare
    from yolokit.core import images
    rows = []
    for i in range(6):
        images.write_image(tmp_path/f'raw/images/{i}.png', rng(i).integers(0, 255, (40, 60, 3), dtype=np.uint8))
        (tmp_path/'raw/labels').mkdir(exist_ok=True)
        (tmp_path/f'raw/labels/{i}.txt').write_text('0 0.5 0.5 0.2 0.4\n' + ('0 0.95 0.5 0.4 0.4\n' if i == 2 else ''))
    (tmp_path/'raw/data.yaml').write_text('names: [car]\n')
    p = repair.plan(checks.check(formats.read(tmp_path/'raw')))
    assert p.rows['reason'].tolist() == ['outside'] and p.rows['state'].tolist() == ['ask']
    checks.save_strict_json(tmp_path/'said.json', [dict(box=int(p.rows['box'][0]), reason='outside', file='2.png',
                                                 decision='accept')])
    before = prepare.prepare(tmp_path/'raw', tmp_path/'out', val=.3)
    after = prepare.prepare(tmp_path/'raw', tmp_path/'out', val=.3, decisions=str(tmp_path/'said.json'))
    assert (before.info['repair']['asked'] == 1
            and after.info['repair'] | dict(found=0) == dict(found=0, changed=1, asked=0))
    assert max(after.table.boxes['x1']) == 60
    with pytest.raises(repair.RepairError, match='cannot be opened'):
        prepare.prepare(tmp_path/'raw', tmp_path/'out', decisions='nowhere.json')


def test_a_plain_jpeg_is_told_as_pillow_tells_it(tmp_path, monkeypatch):
    "The quick look at a JPEG's header against Pillow's, over damaged headers."
    rng, pic = np.random.default_rng(0), np.random.default_rng(1).integers(0, 255, (40, 30, 3), dtype=np.uint8)
    whole = [cv2.imencode('.jpg', p, how)[1].tobytes()
             for p in (pic, pic[..., 0]) for how in ([], [cv2.IMWRITE_JPEG_PROGRESSIVE, 1])]
    def both(path):
        quick = checks._probe_image(path)
        with monkeypatch.context() as m:
            m.setattr(checks, '_probe_jpeg', lambda head: None)
            return quick, checks._probe_image(path)
    path, told = str(tmp_path/'a.jpg'), []
    for i in range(400):
        data = bytearray(whole[i % 4])
        for _ in range(i // 4 % 4): data[rng.integers(2, 640)] = rng.integers(0, 256)
        if i % 7 == 6: data = data[:rng.integers(1, len(data))] + b'\xff\xd9'
        Path(path).write_bytes(data)
        quick, slow = both(path)
        assert quick == slow, (i, quick, slow)
        told.append(isinstance(quick, dict) and checks._probe_jpeg(bytes(data[:4096])) is not None)
    assert sum(told) > 150
    assert both(str(tmp_path/'none.jpg')) == both('') == both(str(tmp_path/'a.jpg/x')) == both('a\0b') == (None, None)
