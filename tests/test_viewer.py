"The pictures and the inspector without a browser."
import json, time
import cv2, numpy as np, pytest
from yolokit import repair, viewer
from yolokit.images import write
from yolokit.table import make
from test_repair import clean


@pytest.fixture
def lot(tmp_path):
    "12 small pictures, 120 boxes, a third of them broken, one picture missing."
    t = clean(120, 12)
    g = np.random.default_rng(0)
    for f in t.images['file'][:11]: write(tmp_path/f'주차장_{f}', np.full((480, 640, 3), g.integers(60, 200), np.uint8))
    files = [f'주차장_{f}' for f in t.images['file']]
    t = t.with_images(file=files, path=[str(tmp_path/f) for f in files], split=['train']*8 + ['val']*4)
    return repair.corrupt(t, .33, 0)[0]


def test_gallery_deals_the_reasons_out_in_turn(lot):
    p = repair.plan(repair.check(lot))
    titles = [a.get_title(loc='left') for a in viewer.gallery(lot, p, n=8).axes]
    first = [t.split(' ')[0] for t in titles]
    assert len(set(first)) == 8 and first[0] in ('reversed-x', 'reversed-y', 'reversed-xy', 'outside')
    assert all(t.startswith('outside') for t in [a.get_title(loc='left') for a in viewer.gallery(lot, p, n=4, reason='outside').axes] if t)


def test_gallery_of_a_missing_picture_and_of_nothing(lot):
    f = repair.check(lot)
    assert f.counts()['missing-image'] == 1
    assert viewer.gallery(lot, f.of('missing-image'))
    assert viewer.gallery(lot, f.of('leak')).axes[0].get_title() == 'nothing found'


def test_hangul_in_a_figure_is_drawn(lot, recwarn):
    import io
    named = make(lot.images, lot.boxes, ['세단(승용차)'] + lot.names[1:])
    viewer.gallery(named, repair.plan(repair.check(named)), n=4, name='세단(승용차)').savefig(io.BytesIO())
    viewer.distributions(named).savefig(io.BytesIO())
    assert not [w for w in recwarn if 'missing from' in str(w.message)], 'a glyph was not found'


def test_compare_counts_hits(lot):
    t = clean(40, 4)
    t = t.with_images(id=['a', 'b', 'c', 'd'])
    d = t.keep(np.arange(40) >= 4).with_columns(score=np.linspace(.9, .5, 36)) # the first box of every image is overlooked
    d = d.keep_images([3, 2, 1, 0]) # matched by id, not by row
    titles = [a.get_title(loc='left') for a in viewer.compare(t, d, n=4, conf=.1).axes]
    assert [x.rsplit(': ')[1] for x in titles[::2]] == ['9 of 10 found']*4
    assert titles[1].startswith('9 right, 0 wrong')


def test_compare_without_boxes_or_detections():
    t = make(dict(file=['a'], width=[50], height=[40]), {}, ['a'])
    assert viewer.compare(t, t)


def test_decisions_are_saved_as_they_are_made_and_read_again(lot, tmp_path):
    p, path = repair.plan(repair.check(lot)), tmp_path/'결정.json'
    box = viewer.Inspector(lot, p, path, reason='near-duplicate')
    box.accept()
    assert [d['decision'] for d in json.loads(path.read_text())] == ['accept'] and box.at == 1
    box.reject(); box.previous(); box.previous(); box.reject() # a change of mind about the first
    assert sorted(d['decision'] for d in json.loads(path.read_text())) == ['reject', 'reject']
    again = viewer.Inspector(lot, p, path)
    assert again.decisions == box.decisions
    assert len(again.filter(state='decided')) == 2 and len(again.filter(state='open')) == len(p) - 2
    states = p.decide(again.decisions).rows['state'][p.rows['reason'] == 'near-duplicate']
    assert (states == 'reject').sum() == 2 and p.rows['state'].tolist().count('reject') == 0


def test_a_box_drawn_anew_goes_into_the_plan(lot):
    p = repair.plan(repair.check(lot))
    box = viewer.Inspector(lot, p, reason='outside').decision('accept', after=(1, 2, 30, 40))
    mended, journal = box.settle()
    assert [1, 2, 30, 40] in mended.xyxy.tolist()


def test_decisions_for_other_data_are_refused(lot):
    p = repair.plan(repair.check(lot))
    box = viewer.Inspector(lot, p).accept()
    box.decisions[0]['file'] = 'elsewhere.png'
    with pytest.raises(repair.RepairError, match='elsewhere.png'): box.settle()


def test_an_empty_plan_can_be_inspected():
    t = clean(20, 2)
    box = viewer.Inspector(t, repair.plan(repair.check(t, images=False)))
    assert len(box) == 0 and 'nothing to show' in box.accept().next().html() and box.png()[:4] == b'\x89PNG'


def test_next_finding_in_a_hundred_thousand_images_is_quick(tmp_path):
    n = 100_000
    t = clean(n, n)
    noise = np.random.default_rng(0).integers(0, 255, (90, 160, 3), dtype=np.uint8)
    write(tmp_path/'one.jpg', cv2.resize(noise, (1280, 720), interpolation=cv2.INTER_CUBIC)) # as much detail as a photo
    t = t.with_images(path=[str(tmp_path/'one.jpg')]*n, width=[1280]*n, height=[720]*n)
    table, _ = repair.corrupt(t, .05, 0)
    box = viewer.Inspector(table, repair.plan(repair.check(table, images=False)), tmp_path/'d.json')
    box.png(), box.html()
    times = []
    for _ in range(7):
        start = time.process_time() # not the wall: a busy machine is not the viewer's fault
        box.accept(); png = box.png(); box.html()
        times.append(time.process_time() - start)
    assert cv2.imdecode(np.frombuffer(png, np.uint8), 1).shape[0] == 420
    assert np.median(times) < .2, times


def test_widgets_call_the_same_methods(lot):
    pytest.importorskip('ipywidgets')
    box = viewer.Inspector(lot, repair.plan(repair.check(lot)))
    w = box.widget()
    assert w is box.widget() and box.image.value[:4] == b'\x89PNG'
    first = box.image.value
    box.buttons['accept'].click(); box.buttons['skip'].click(); box.buttons['previous'].click()
    assert box.at == 1 and len(box.decisions) == 2 and box.image.value != first
    box.menus['reason'].value = 'duplicate'
    assert 'duplicate' in box.text.value and box.at == 0
