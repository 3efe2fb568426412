"The pictures and the inspector without a browser."
import json, time, unicodedata
import cv2, numpy as np, pytest
from yolokit.core.files import FormatError
from yolokit.core.images import write_image
from yolokit.data import faults, viewer
from yolokit.data.table import from_columns
from yolokit.cleaning import checks, gallery, inspector, repair
from test_repair import clean


@pytest.fixture
def lot(tmp_path):
    "12 small pictures, 120 boxes, a third of them broken, one picture missing."
    t = clean(120, 12)
    g = np.random.default_rng(0)
    for f in t.images['file'][:11]:
        write_image(tmp_path/f'주차장_{f}', np.full((480, 640, 3), g.integers(60, 200), np.uint8))
    files = [f'주차장_{f}' for f in t.images['file']]
    t = t.with_images(file=files, path=[str(tmp_path/f) for f in files], split=['train']*8 + ['val']*4)
    return faults.plant_box_faults(t, .33, 0)[0]


def test_gallery_deals_the_reasons_out_in_turn(lot):
    p = repair.plan(checks.check(lot))
    titles = [a.get_title(loc='left') for a in gallery.gallery(lot, p, n=8).axes]
    first = [t.split(' ')[0] for t in titles]
    assert len(set(first)) == 8 and first[0] in ('reversed-x', 'reversed-y', 'reversed-xy', 'outside')
    assert all(t.startswith('outside') for t in [
        a.get_title(loc='left') for a in gallery.gallery(lot, p, n=4, reason='outside').axes] if t)


def test_gallery_of_a_missing_picture_and_of_nothing(lot):
    f = checks.check(lot)
    assert f.counts()['missing-image'] == 1
    assert gallery.gallery(lot, f.of('missing-image'))
    assert gallery.gallery(lot, f.of('leak')).axes[0].get_title() == 'nothing found'


def test_hangul_in_a_figure_is_drawn(lot, recwarn):
    import io
    named = from_columns(lot.images, lot.boxes, ['세단(승용차)'] + lot.names[1:])
    gallery.gallery(named, repair.plan(checks.check(named)), n=4, name='세단(승용차)').savefig(io.BytesIO())
    viewer.plot_distributions(named).savefig(io.BytesIO())
    assert not [w for w in recwarn if 'missing from' in str(w.message)], 'a glyph was not found'


def test_compare_counts_hits(lot):
    t = clean(40, 4)
    t = t.with_images(id=['a', 'b', 'c', 'd'])
    # the first box of every image is overlooked
    d = t.keep(np.arange(40) >= 4).with_columns(score=np.linspace(.9, .5, 36))
    d = d.keep_images([3, 2, 1, 0]) # matched by id, not by row
    titles = [a.get_title(loc='left') for a in viewer.show_predictions(t, d, n=4, conf=.1).axes]
    assert [x.rsplit(': ')[1] for x in titles[::2]] == ['9 of 10 found']*4
    assert titles[1].startswith('9 right, 0 wrong')


def test_compare_without_boxes_or_detections():
    t = from_columns(dict(file=['a'], width=[50], height=[40]), {}, ['a'])
    assert viewer.show_predictions(t, t)


def test_decisions_are_saved_as_they_are_made_and_read_again(lot, tmp_path):
    p, path = repair.plan(checks.check(lot)), tmp_path/'결정.json'
    box = inspector.Inspector(lot, p, path, reason='near-duplicate')
    box.accept()
    assert [d['decision'] for d in json.loads(path.read_text())] == ['accept'] and box.at == 1
    box.reject(); box.previous(); box.previous(); box.reject() # a change of mind about the first
    assert sorted(d['decision'] for d in json.loads(path.read_text())) == ['reject', 'reject']
    again = inspector.Inspector(lot, p, path)
    assert again.decisions == box.decisions
    assert len(again.filter(state='decided')) == 2 and len(again.filter(state='open')) == len(p) - 2
    states = p.decide(again.decisions).rows['state'][p.rows['reason'] == 'near-duplicate']
    assert (states == 'reject').sum() == 2 and p.rows['state'].tolist().count('reject') == 0


def test_a_box_drawn_anew_goes_into_the_plan(lot):
    p = repair.plan(checks.check(lot))
    box = inspector.Inspector(lot, p, reason='outside').decision('accept', after=(1, 2, 30, 40))
    mended, journal = box.settle()
    assert [1, 2, 30, 40] in mended.xyxy.tolist()


def test_decisions_for_other_data_are_refused(lot):
    p = repair.plan(checks.check(lot))
    box = inspector.Inspector(lot, p).accept()
    box.decisions[0]['file'] = 'elsewhere.png'
    with pytest.raises(repair.RepairError, match='elsewhere.png'): box.settle()


def test_an_empty_plan_can_be_inspected():
    t = clean(20, 2)
    box = inspector.Inspector(t, repair.plan(checks.check(t, images=False)))
    assert len(box) == 0 and 'nothing to show' in box.accept().next().html() and box.png()[:4] == b'\x89PNG'


@pytest.fixture(scope='module')
def large(tmp_path_factory):
    """100,000 images of 1280 x 720, one box each, a twentieth broken; one picture with as much detail as a photo stands
    for all."""
    n, folder = 100_000, tmp_path_factory.mktemp('large')
    t = clean(n, n)
    noise = np.random.default_rng(0).integers(0, 255, (90, 160, 3), dtype=np.uint8)
    write_image(folder/'one.jpg', cv2.resize(noise, (1280, 720), interpolation=cv2.INTER_CUBIC))
    t = t.with_images(path=[str(folder/'one.jpg')]*n, width=[1280]*n, height=[720]*n)
    return faults.plant_box_faults(t, .05, 0)[0], folder


def cpu(what, times=7):
    "Median CPU seconds, not the wall: a busy machine is not the viewer's fault."
    out = []
    for _ in range(times):
        start = time.process_time(); what()
        out.append(time.process_time() - start)
    return float(np.median(out))


def test_next_finding_in_a_hundred_thousand_images_is_quick(large):
    pytest.importorskip('ipywidgets')
    table, folder = large
    box = inspector.Inspector(table, checks.check(table, images=False), folder/'d.json')
    box.widget()
    n = [0]
    def says(do, **e): # what the browser sends; all that Python does with it, the page it sends back included
        n[0] += 1
        box.ear.value = json.dumps([dict(n=n[0], k=box.row, do=do, **e)])
    figures = dict(next=cpu(lambda: says('next')), accept=cpu(lambda: says('accept')),
                   edit=cpu(lambda: says('edit', id=box.sel, after=[9, 9, 99, 99 + n[0]])))
    assert box.at == 14 and len(box.decisions) >= 8 and box.middle.value.count('<svg') == 1
    print({k: f'{v*1000:.0f} ms' for k, v in figures.items()}, f'{len(box.middle.value)//1024} kB')
    assert max(figures.values()) < .2, figures


@pytest.mark.soak
def test_thousands_of_decisions_do_not_slow_the_next(large):
    table, folder = large
    p = repair.plan(checks.check(table, images=False))
    box = inspector.Inspector(table, p, folder/'many.json')
    box.by = {d: e for k in range(len(p)) for e in [inspector._make_decision(p, k, 'reject')]
              for d in [inspector._decision_id(e)]}
    box.save()
    assert len(box.by) > 4000 and cpu(lambda: (box.accept(), box.stage())) < .2


def test_widgets_call_the_same_methods(lot):
    pytest.importorskip('ipywidgets')
    box = inspector.Inspector(lot, repair.plan(checks.check(lot)))
    w = box.widget()
    assert w is box.widget()
    first = box.middle.value
    box.buttons['accept'].click(); box.buttons['next'].click(); box.buttons['previous'].click()
    assert box.at == 1 and len(box.decisions) == 1 and box.middle.value != first
    box.menus['reason'].value = 'duplicate'
    assert 'duplicate' in box.html() and box.at == 0
    box.buttons['delete'].click()
    assert box.decisions[-2]['action'] == 'drop' and box.said() == 'deleted'


def test_every_kind_of_finding_is_shown(lot):
    "Boxes, images, pairs of images, classes, the whole set; those without a mend too."
    f = checks.check(lot)
    box = inspector.Inspector(lot, f)
    assert len(box) == len(f) and {'missing-image', 'id-gaps'} & set(f.rows['reason'])
    seen = set()
    for _ in range(len(box)):
        assert box.png()[:4] == b'\x89PNG' and 'src="data:image/jpeg' in box.stage()
        seen.add(box.shown.rows['reason'][box.row]); box.next()
    assert seen == set(f.rows['reason'])
    note = inspector.Inspector(lot, f, reason='missing-image').accept() # nothing to decide, nothing written
    assert note.decisions == []


def test_a_detectors_findings_go_the_same_way(lot):
    "Overlooked, swapped, misplaced, spurious: shown, accepted, and known to the plan."
    r, b = lot.boxes['image'][:4], lot.xyxy
    rows = [checks.make_findings('overlooked', r[:1], ['x'], proposal=[[5., 6, 50, 60]], label=1),
            checks.make_findings('swapped', r[1:2], ['x'], [1], label=1),
            checks.make_findings('misplaced', r[2:3], ['x'], [2], proposal=[[7., 8, 70, 80]]),
            checks.make_findings('spurious', r[3:4], ['x'], [3])]
    f = checks.Findings(lot, {k: np.concatenate([p[k] for p in rows]) for k in rows[0]}, np.zeros((lot.n_images, 2)))
    box = inspector.Inspector(lot, f)
    assert len(box) == 4
    for _ in range(4): assert box.stage(); box.accept()
    new, journal = box.settle()
    assert len(new) == len(lot) and [5, 6, 50, 60] in new.xyxy.tolist() and [7, 8, 70, 80] in new.xyxy.tolist()
    # what `prepare` does: its plan knows nothing of the detector
    rules = repair.plan(checks.check(lot)).of('outside').decide(box.decisions)
    new, _ = repair.apply(lot, rules)
    assert ([5, 6, 50, 60] in new.xyxy.tolist() and [7, 8, 70, 80] in new.xyxy.tolist()
            and rules.rows['action'][-4:].tolist().count('drop') == 1)
    # the proposal corrected: it is the person's box then
    box = inspector.Inspector(lot, f, reason='overlooked').edit('p', [1, 2, 30, 40], 0)
    assert box.said() == 'reject' and 'p' not in box.boxes() and [1, 2, 30, 40] in box.settle()[0].xyxy.tolist()


def test_edits_are_undone_one_by_one(lot, tmp_path):
    box = inspector.Inspector(lot, checks.check(lot), tmp_path/'d.json', reason='outside')
    empty, start = box.boxes(), box.sel
    box.edit(start, [1, 2, 30, 40]); box.edit('new', [50, 60, 70, 80], 2); box.erase(start)
    assert start not in box.boxes() and box.boxes()['h0'] == ([50, 60, 70, 80], 2)
    saved = json.loads((tmp_path/'d.json').read_text())
    assert {d.get('action') for d in saved} == {'drop', 'add', None}
    box.undo().undo().undo()
    assert box.boxes() == empty and json.loads((tmp_path/'d.json').read_text()) == []


def test_no_event_is_lost_or_taken_twice(lot):
    "ipywidgets passes on only the latest text while the kernel is busy: the queue holds what was not heard."
    box = inspector.Inspector(lot, checks.check(lot))
    e = [dict(n=i, k=box.row, do='next') for i in (1, 2, 3)]
    box.hear(json.dumps(e[:1])); box.hear(json.dumps(e))
    assert box.at == 3 and box.ack == 3
    # meant for a finding that is gone from the screen
    box.hear(json.dumps([dict(n=4, k=int(box.rows[0]), do='accept')]))
    assert box.decisions == [] and box.at == 3


def test_a_full_disk_is_said_on_the_page(lot, tmp_path):
    (tmp_path/'d.json').mkdir()
    box = inspector.Inspector(lot, checks.check(lot), reason='outside')
    box.path = tmp_path/'d.json'
    box.do('accept')
    assert 'yk-bad' in box.html() and 'd.json' in box.html()


def test_names_of_files_and_classes_cannot_put_script_into_the_page(lot):
    bad = '<img src=x onerror=alert(1)>"'
    t = from_columns({**lot.images, 'file': [f'{bad}{i}' for i in range(lot.n_images)]}, lot.boxes,
                     [bad + n for n in lot.names])
    page = inspector.Inspector(t, checks.check(t)).stage()
    assert '<img src=x' not in page and page.count('onload=') == 1


def test_the_font_holds_the_letters_of_decomposed_names(lot):
    t = from_columns(lot.images, lot.boxes, [unicodedata.normalize('NFD', '세단(승용차)')] + lot.names[1:])
    glyphs = inspector._used_glyphs(t)
    assert set('세단승용차') <= set(glyphs) and 'font/woff' in inspector._web_font(glyphs)


def test_it_opens_on_what_needs_a_person_and_says_how_many_others(lot):
    f = checks.check(lot)
    box = inspector.Inspector(lot, f, state='ask')
    asks = box.shown.rows['state'][:len(box.plan)] == 'ask'
    assert 0 < len(box) == asks.sum() < len(f) and f'{len(f) - len(box)} others are decided or repaired' in box.html()
    certain = f.of('missing-image')
    assert len(inspector.Inspector(lot, certain, state='ask')) == 1   # nothing asks: all are shown, not an empty page


def test_every_picture_can_be_browsed_searched_tagged_and_drawn_on(lot, tmp_path):
    box = inspector.Inspector(lot, checks.check(lot), tmp_path/'lot-decisions.json', reason='picture')
    assert len(box) == lot.n_images and '<svg' in box.stage() and box.png()[:4] == b'\x89PNG'
    name = str(lot.images['file'][2])
    assert [int(box.shown.rows['image'][r]) for r in box.filter('picture', find=name).rows] == [
        i for i, f in enumerate(lot.images['file']) if name in f]
    box.tag('night,  흐림 ')
    other = inspector.Inspector(lot, checks.check(lot), tmp_path/'lot-decisions.json')
    assert other.tags == {name: ['night', '흐림']} and not (tmp_path/'lot-decisions.json').exists()
    assert len(other.filter('picture', find='#흐림')) == 1 and len(other.filter('picture', find='#foggy')) == 0
    with_class = other.filter('picture', name=lot.names[1])
    assert len(with_class) == len({*lot.boxes['image'][lot.boxes['category'] == 1]})
    box.edit('new', [1, 2, 30, 40], 0)
    assert box.decisions[-1]['action'] == 'add' and box.decisions[-1]['file'] == name
    (tmp_path/'lot-tags.json').write_text('[1]')
    with pytest.raises(FormatError, match='holds no tags'): inspector.Inspector(lot, checks.check(lot),
                                                                                tmp_path/'lot-decisions.json')


def test_a_picture_stands_beside_what_a_detector_found(lot):
    found = lot.with_columns(score=np.linspace(.1, .9, len(lot)))
    box = inspector.Inspector(lot, checks.check(lot), reason='picture', found=found)
    low = box.near((300, 300))
    box.least = .95
    assert not np.array_equal(low, box.near((300, 300))) and 'wrongly found' in box.stage()


def test_every_control_has_a_name(lot):
    W = pytest.importorskip('ipywidgets')
    box = inspector.Inspector(lot, checks.check(lot), found=lot.with_columns(score=np.ones(len(lot))))
    def every(w):
        yield w
        for c in getattr(w, 'children', ()): yield from every(c)
    kinds = W.Button, W.Dropdown, W.Text, W.FloatText, W.FloatSlider
    controls = [w for w in every(box.widget()) if isinstance(w, kinds)]
    assert len(controls) > 15 and all(w.description for w in controls)
    assert all(w.tooltip for w in controls if isinstance(w, W.Button))
    page = box.stage()
    assert page.count('<img') == page.count('<img alt=') and 'aria-label' in page
