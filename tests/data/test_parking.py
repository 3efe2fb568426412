"""The embedded data set as its users find it: what is in it, and the same bytes from the same seed."""
import hashlib, json, shutil
import numpy as np
import pytest
from yolokit.core import images
from yolokit.data import formats, parking, scene


@pytest.fixture(scope='module')
def made(tmp_path_factory):
    return parking.make_parking(tmp_path_factory.mktemp('parking')/'DATA', 40, 8, 4, workers=2)


def bytes_of(folder):
    return {p.relative_to(folder).as_posix(): hashlib.sha256(p.read_bytes()).hexdigest()
            for p in sorted(folder.rglob('*')) if p.is_file()}


def test_the_promised_contents(made):
    t = formats.read(made, 'parking')
    assert {s: t.split(s).n_images for s in ('train', 'val', 'test')} == {'train': 40, 'val': 8, 'test': 4}
    assert t.names == parking.CLASSES and len(t.split('test')) == 0
    assert t.category_ids == list(range(1, 15))
    clean = json.loads((made/'key.json').read_text())['clean']['annotations']
    wide = np.array([a['bbox'][2] for a in clean])
    kinds = np.bincount([a['category_id'] for a in clean], minlength=15)[1:]
    assert len(clean)/40 >= 5
    assert .44 < (wide < .05*scene.WIDTH).mean() < .58 and wide.min() >= 5
    assert kinds.min() > .02*len(clean)
    assert kinds.argmax() == parking.CLASSES.index('adult')


def test_objects_overlap(made):
    val = formats.read(made, 'parking').split('val')
    from yolokit.core.boxes import box_iou
    crossing = sum((np.triu(box_iou(val.xyxy[val.of(i)], val.xyxy[val.of(i)]),
                            1) > .05).sum() for i in range(val.n_images))
    assert crossing >= val.n_images


def test_planted_faults(made):
    key = json.loads((made/'key.json').read_text())
    n, planted = len(key['clean']['annotations']), key['planted']
    assert abs(len(planted)/n - .05) < .005
    assert len({p['kind'] for p in planted}) >= 5
    dirty = json.loads((made/'train/label/Train.json').read_text())['annotations']
    p = next(p for p in planted if p['kind'] == 'reversed-x')
    x, y, w, h = dirty[p['box']]['bbox']
    assert w < 0 < h and abs(x - p['planted'][0]) < .01
    val = formats.read(made, 'parking').split('val')
    assert (val.xyxy[:, 2:] > val.xyxy[:, :2]).all() and (val.xyxy >= 0).all() and (val.xyxy <= (640, 384)*2).all()


def test_names_and_pictures(made):
    names = [p.name for p in (made/'train/images').iterdir()]
    assert all(f.split('_')[4] in parking.WEATHER and f.split('_')[5] in ('주간', '야간') and f.split('_')[6] == '실외'
               for f in names)
    assert len({f.split('_')[4] for f in names}) == 4
    files = list(made.rglob('*.png'))
    assert all(images.image_size(f) == (640, 384) for f in files)
    assert np.mean([f.stat().st_size for f in files]) < 150_000 and max(f.stat().st_size for f in files) < 200_000
    night = np.mean([images.read_image(made/'train/images'/f).mean() for f in names if '야간' in f][:3])
    day = np.mean([images.read_image(made/'train/images'/f).mean() for f in names if '주간' in f][:3])
    assert night < day


def test_same_seed_same_bytes(made, tmp_path):
    a, b, other = (parking.make_parking(tmp_path/f'{k}', 6, 2, 1, seed=seed,
                                        workers=w) for k, (seed, w) in enumerate([(0, 1), (0, 2), (1, 1)]))
    assert bytes_of(a) == bytes_of(b)
    pictures = lambda d: {v for k, v in bytes_of(d).items() if k.endswith('.png')}
    assert not pictures(a) & pictures(other)
    assert pictures(a) <= pictures(made)               # more pictures leave the first ones as they are


def test_used_again_and_never_overwritten(made, tmp_path):
    before = bytes_of(made)
    assert parking.make_parking(made, 40, 8, 4) == made
    with pytest.raises(parking.ParkingError, match='something else in it'): parking.make_parking(made, 41, 8, 4)
    assert bytes_of(made) == before
    (tmp_path/'mine').mkdir()
    (tmp_path/'mine/thesis.txt').write_text('years of work')
    with pytest.raises(parking.ParkingError): parking.make_parking(tmp_path/'mine', 1, 1, 1)
    assert (tmp_path/'mine/thesis.txt').read_text() == 'years of work'


def test_a_failure_leaves_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(parking, '_coco', lambda *a: 1/0)
    with pytest.raises(ZeroDivisionError): parking.make_parking(tmp_path/'DATA', 1, 1, 1, workers=1)
    assert list(tmp_path.iterdir()) == []


def test_two_that_draw_at_once_both_end_well(tmp_path, monkeypatch):
    "Another process has the whole folder in place while this one still draws; anything else there is an error."
    real, folder = parking._build_parking, tmp_path/'DATA'
    def sooner(part, p, *more):
        real(part, p, *more)
        shutil.copytree(part, folder)
    monkeypatch.setattr(parking, '_build_parking', sooner)
    assert parking.make_parking(folder, 2, 1, 1, workers=1) == folder
    assert sorted(x.name for x in tmp_path.iterdir()) == ['DATA']
    monkeypatch.setattr(parking, '_build_parking', lambda part, p, *more: (other.mkdir(),
                                                                           (other/'mine.txt').write_text('')))
    other = tmp_path/'OTHER'
    with pytest.raises(parking.ParkingError, match='another process'): parking.make_parking(other, 2, 1, 1, workers=1)
    assert [x.name for x in other.iterdir()] == ['mine.txt']
