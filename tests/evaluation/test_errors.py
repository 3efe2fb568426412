"""Errors and certainty: the base is COCO's, what is mended adds up, every number has its picture; copying images is
weighting them."""
import re

import numpy as np
import pytest

from test_evaluate import random_case, table
from yolokit.core.images import write_image
from yolokit.evaluation import bootstrap, errors, matching, metrics


def base(seeds):
    for seed in seeds:
        t, d = random_case(seed)
        if not len(t): continue
        c = errors._error_costs(errors.classify_errors(t, d))
        assert abs(c['AP50'] - metrics.coco(t, d, 'pycocotools')['AP50']) <= 1e-12, seed
        e = errors.classify_errors(t, d)
        whole = errors._ap50_if_fixed(e, errors.ERROR_TYPES)
        assert whole == -1 or abs(whole - 1) < 1e-12, seed
        if c['AP50'] > -1 and whole > -1:
            assert abs(c['AP50'] + sum(c[k]['in turn'] for k in errors.ERROR_TYPES) - 1) < 1e-9, seed

def test_the_base_is_cocos(): base(range(25))

@pytest.mark.soak
def test_the_base_is_cocos_long(): base(range(2000, 2600))


def test_every_answer_and_every_truth_is_told_once():
    for seed in range(30):
        t, d = random_case(seed)
        e = errors.classify_errors(t, d)
        f = e.match.found[0]
        assert ((e.kind == 'found') == (f >= 0)).all() and ((e.kind == '') == (f == matching.IGNORED)).all()
        told = {int(k) for k in f if k >= 0} | {
            int(k) for k, w in zip(e.of, e.kind) if w in ('wrong class', 'bad location')}
        assert set(np.flatnonzero(e.match.counts)) - told == set(np.flatnonzero(e.lost))
        assert len(e) == np.isin(e.kind, list(errors.ERROR_TYPES)).sum() + e.lost.sum()


def test_report_leads_from_every_number_to_a_picture(tmp_path):
    for i in range(3): write_image(tmp_path/f'p{i}.png', np.full((80, 80, 3), 90, np.uint8))
    t, d = random_case(3)
    t, d = (x.with_images(path=[str(tmp_path/f'p{i}.png') for i in range(3)]) for x in (t, d))
    e, c = errors.error_report(t, d, tmp_path/'오류.html', n=2, most=2)
    text = (tmp_path/'오류.html').read_text(encoding='utf-8')
    assert not set(re.findall(r'href="#([^"]+)"', text)) - set(re.findall(r'id="([^"]+)"', text))
    assert text.count('<img') >= 3 and 'src="http' not in text
    mine, pictures = tmp_path/'오류/메모.txt', sorted(p.name for p in (tmp_path/'오류').iterdir())
    mine.write_text('mine')
    errors.error_report(t, d, tmp_path/'오류.html', n=2, most=2)          # once more: other files of the folder stay
    assert mine.read_text() == 'mine' and len([*mine.parent.glob('*.jpg')]) == len(pictures)
    with pytest.raises(matching.EvaluateError): errors.classify_errors(t, table([[0, 0, 5, 5, 1, 1, .5]]))


def test_weights_are_copies():
    for seed in (1, 4, 9):
        t, d = random_case(seed)
        m = matching.match(t, d)
        assert abs(np.nan_to_num(bootstrap.bootstrap_ap(m, np.ones((1, 3), int))[0, 0],
                                 nan=-1) - matching.mean_valid(matching.precision_curves(m))) < 1e-12
    with pytest.raises(matching.EvaluateError):
        bootstrap.bootstrap_interval(table([[0, 0, 0, 0, 9, 9, np.nan]]), table([[0, 0, 0, 0, 9, 9, np.nan]]))
