"""The ranking by a detector: what it must not depend on, what it refuses, how it reaches a table; the trial on the
parking lot is the chapter's own slow cells."""
from dataclasses import replace
import numpy as np, pytest
from yolokit.core.boxes import box_iou
from yolokit.core.rng import rng
from yolokit.data.table import Table
from yolokit.cleaning import checks, repair
from yolokit.evaluation import label_errors


def box(b, **k): return dict(zip(('x0', 'y0', 'x1', 'y1'), np.array(b, float).reshape(-1, 4).T)) | k


def town(n=1200, seed=0):
    "Six boxes an image, side by side, and what a good but noisy detector says about them."
    g = rng(seed)
    wh = g.uniform(30, 60, (n, 2))
    at = np.stack([np.arange(n) % 6*100 + g.uniform(5, 35, n), g.uniform(5, 300, n)], 1)
    images = dict(file=[f'{i}.png' for i in range(n//6)], width=[640]*(n//6), height=[384]*(n//6))
    truth = Table.make(images, box(np.concatenate([at, at + wh], 1), image=np.arange(n)//6,
                                   category=g.integers(0, 4, n)), list('abcd'))
    unsure = g.random(n) < .1
    return truth, truth.with_xyxy(truth.xyxy + g.normal(0, 1.5, (n, 4))).with_columns(
        score=np.where(unsure, .05 + .2*g.random(n), g.beta(5, 2, n)))


def same(a, b): return all(np.array_equal(a.rows[k], b.rows[k], equal_nan=a.rows[k].dtype.kind == 'f') for k in a.rows)


@pytest.mark.parametrize('seed', range(4))
def test_planted_faults_are_found_and_rules_see_none_of_them(seed):
    truth, seen = town(seed=seed)
    bad, key = label_errors.plant_label_errors(truth, .05, seed)
    assert not checks.check(bad, images=False).rows['certain'].any()
    for kind, (k, p) in label_errors.precision_at_k(label_errors.rank_label_errors(bad, seen), key).items():
        assert k == 60 and p >= .75, (kind, p)


def test_the_key_is_true():
    truth, _ = town()
    bad, key = label_errors.plant_label_errors(truth, .05, 3)
    again, same_key = label_errors.plant_label_errors(truth, .05, 3)
    assert (bad.xyxy.tobytes() == again.xyxy.tobytes() and key == same_key
            and key != label_errors.plant_label_errors(truth, .05, 4)[1])
    assert len(bad) == len(truth) # as many are gone as are invented
    for e in key:
        if e['kind'] == 'missing':
            assert (e['box'] == -1 and not len(b := bad.xyxy[bad.of(e['image'])])
                    or box_iou(np.array([e['xyxy']]), b).max(initial=0) < 1)
        elif e['kind'] == 'swapped':
            assert bad.boxes['category'][e['box']] != e['category'] and bad.xyxy[e['box']].tolist() == e['xyxy']
        elif e['kind'] == 'misplaced': assert .3 < box_iou(bad.xyxy[[e['box']]], np.array([e['xyxy']]))[0, 0] < .6
        else: assert box_iou(bad.xyxy[[e['box']]], truth.xyxy[truth.of(e['image'])]).max() < .2


def test_a_perfect_detector_accuses_nobody_of_much():
    truth, _ = town(120)
    f = label_errors.rank_label_errors(truth, truth.with_columns(score=np.full(len(truth), .9)))
    assert len(f) == 0, f


def test_scores_count_in_units_of_their_class():
    "A detector that is half as sure of everything says the same."
    truth, seen = town()
    bad, _ = label_errors.plant_label_errors(truth, .05, 0)
    a, b = (label_errors.rank_label_errors(bad, seen),
            label_errors.rank_label_errors(bad, seen.with_columns(score=seen.boxes['score']*.5)))
    first = lambda f, r: set(f.of(r).worst().rows['box'][:60].tolist())
    for r in ('swapped', 'misplaced', 'spurious'): assert len(first(a, r) & first(b, r)) >= 55, r


def test_the_order_of_images_and_classes_of_the_detections_does_not_matter():
    truth, seen = town(600)
    bad, _ = label_errors.plant_label_errors(truth, .05, 0)
    turned = seen.keep_images(rng(1).permutation(seen.n_images))
    other = replace(turned, names=list('dcba'), boxes=turned.boxes | dict(category=3 - turned.boxes['category']))
    assert same(label_errors.rank_label_errors(bad, seen), label_errors.rank_label_errors(bad, other))


def test_what_it_refuses():
    truth, seen = town(60)
    with pytest.raises(ValueError, match='not detected on, such as 9.png'):
        label_errors.rank_label_errors(truth, seen.keep_images(np.arange(9)))
    with pytest.raises(ValueError, match='classes the truth does not have: d'):
        label_errors.rank_label_errors(replace(truth.keep(truth.boxes['category'] < 3), names=list('abc'),
                                               category_ids=[0, 1, 2]), seen)
    with pytest.raises(ValueError, match='different tables'):
        label_errors.merge_findings(checks.check(truth, images=False),
                                    label_errors.rank_label_errors(seen.keep(np.arange(3)), seen))


def test_empty_tables_and_images_without_boxes():
    truth, seen = town(60)
    nobody = truth.keep(np.zeros(60, bool))
    f = label_errors.rank_label_errors(nobody, seen)
    assert len(f) == 0 # a tenth of no labels
    assert set(label_errors.rank_label_errors(nobody.keep(np.zeros(0, int)), nobody).rows) == set(f.rows)
    few = label_errors.rank_label_errors(truth, seen.keep(np.zeros(60, bool)))
    assert set(few.rows['reason']) <= {'spurious'}


def test_accepting_everything_heals_most_of_it():
    truth, seen = town()
    bad, key = label_errors.plant_label_errors(truth, .05, 1)
    p = repair.plan(label_errors.merge_findings(checks.check(bad, images=False),
                                                label_errors.rank_label_errors(bad, seen, .04)))
    assert not (p.rows['state'] == 'apply').any() # nothing is done without a person
    word = [{k: r[k] for k in ('box', 'reason', 'file', 'proposal', 'label') if k in r} | dict(decision='accept')
            for r in p.records() if r['reason'] in checks.MODEL_FINDINGS]
    mended, journal = repair.apply(bad, p.decide(word))
    good = lambda t: sum(
        ((box_iou(t.xyxy[t.of(i)], truth.xyxy[truth.of(i)]) > .7)
         & (t.boxes['category'][t.of(i)][:, None] == truth.boxes['category'][truth.of(i)])).any(0).sum()
        for i in range(truth.n_images))
    assert good(bad) < 1030 and good(mended) > good(bad) + 120
    assert repair.undo(mended, journal).same(bad)


@pytest.mark.parametrize('known', [False, True], ids=['by its detections', 'by the caller'])
def test_pictures_that_nobody_looked_at_are_not_accused(known, capsys):
    "The same findings as on the part alone, with the rows of the whole."
    truth, seen = town(600)
    bad, _ = label_errors.plant_label_errors(truth, .05, 0)
    looked = np.arange(100) % 3 == 1
    part = bad.keep_images(looked)
    alone = label_errors.rank_label_errors(part, seen.keep_images(looked))
    whole = label_errors.rank_where_looked(bad, seen.keep(looked[seen.boxes['image']]), looked if known else None)
    assert 'on 33 of 100 pictures' in capsys.readouterr().out and len(whole) == len(alone) > 0
    assert looked[whole.rows['image']].all()
    a, b = (sorted(zip(f.rows['reason'], f.table.images['file'][f.rows['image']],
                       f.rows['evidence'])) for f in (alone, whole))
    assert a == b
    on = whole.rows['box'] >= 0
    assert (bad.boxes['image'][whole.rows['box'][on]] == whole.rows['image'][on]).all()
    label_errors.merge_findings(checks.check(bad, images=False), whole)


def test_a_picture_that_was_looked_at_in_vain_has_invented_boxes():
    truth, seen = town(600)
    nothing = seen.keep(seen.boxes['image'] != 7)
    of_7 = lambda f: (f.rows['image'] == 7).sum()
    assert of_7(label_errors.rank_where_looked(truth, nothing)) == 0
    assert of_7(label_errors.rank_where_looked(truth, nothing, np.ones(100, bool))) == 6


def test_detections_of_other_sizes_pictures_or_classes_are_refused():
    truth, seen = town(600)
    rank = label_errors.rank_where_looked
    for scale, why in ((2., 'outside of their picture'), (.5, 'another size')):
        with pytest.raises(ValueError, match=why): rank(truth, seen.with_xyxy(seen.xyxy*scale))
    with pytest.raises(ValueError, match='other pictures'):
        rank(truth, town(600, seed=5)[1].with_xyxy(seen.xyxy[rng(1).permutation(600)]))
    with pytest.raises(ValueError, match='classes in another order'):
        rank(truth, seen.with_columns(category=(seen.boxes['category'] + 1) % 4))
