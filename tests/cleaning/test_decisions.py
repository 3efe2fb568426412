"Decisions are never lost: two inspectors on one file, one killed, undo, damaged and foreign files, sets that use them."
import json, multiprocessing, os, signal, time
import numpy as np, pytest
from yolokit.core.images import write_image
from yolokit.data.table import from_columns
from yolokit.cleaning import checks, repair
from yolokit.cleaning.inspector import Inspector
from yolokit.cleaning.repair import load_decisions, RepairError

N = 300


@pytest.fixture
def lot(tmp_path):
    "A picture with 300 boxes that stick out of it: as many findings."
    write_image(tmp_path/'a.png', np.zeros((100, 100, 3), np.uint8))
    k = np.arange(N)
    t = from_columns(dict(file=['a.png'], path=[str(tmp_path/'a.png')], width=[100], height=[100]),
                     dict(image=0*k, category=0*k, x0=-3. - k/100, y0=0.*k + 5, x1=20 + k/10, y1=30 + k/20), ['car'])
    return t, repair.plan(checks.check(t, images=False).of('outside'))


def decide(lot, path, places, said, every=0.):
    "A process of its own: decides, draws a box after each tenth, and says what was written."
    box = Inspector(*lot, path)
    for n, at in enumerate(places):
        box.go(at)
        row = int(box.shown.rows['box'][box.row])
        box.accept()
        os.write(said, f'{row}\n'.encode())
        if n % 10 == 9:
            box.go(at).edit('new', [1, 1, 9 + n, 9], 0)
            os.write(said, b'new\n')
        time.sleep(every)


def test_two_inspectors_200_decisions_and_a_third_is_killed(lot, tmp_path):
    path, pipes, made = tmp_path/'decisions.json', [], []
    fork = multiprocessing.get_context('fork')
    for k in range(3):
        read, write = os.pipe()
        p = fork.Process(target=decide, args=(lot, path, range(k, N, 3), write, .001*k))
        p.start(); os.close(write)
        pipes.append(read); made.append(p)
    first = os.read(pipes[2], 100)
    time.sleep(.3)
    os.kill(made[2].pid, signal.SIGKILL)
    for p in made: p.join(60)
    words = [first if k == 2 else b'' for k in range(3)]
    for k, read in enumerate(pipes):
        while data := os.read(read, 1 << 16): words[k] += data
    said = ' '.join(w.decode() for w in words).split()
    there = load_decisions(path)
    rows = {d['box'] for d in there if d['reason'] == 'outside'}
    drawn = [d for d in there if d['reason'] == 'by-hand']
    assert len(said) - said.count('new') >= 200 and {int(w) for w in said if w != 'new'} <= rows
    assert len(drawn) >= said.count('new') >= 20 and len({d['new'] for d in drawn}) == len(drawn)


def test_undo_takes_back_only_ones_own(lot, tmp_path):
    one, two = (Inspector(*lot, tmp_path/'d.json') for _ in range(2))
    one.go(0).accept(); two.go(1).reject(); one.go(2).accept()
    one.undo()
    assert [d['decision'] for d in load_decisions(tmp_path/'d.json')] == ['accept', 'reject']
    assert one.others == 1 and 'changed by another inspector' in one.html()
    two.undo(); one.undo()
    assert load_decisions(tmp_path/'d.json') == one.decisions == []


def test_what_could_not_be_written_is_written_with_the_next(lot, tmp_path, monkeypatch):
    one, two = (Inspector(*lot, tmp_path/'d.json') for _ in range(2))
    with monkeypatch.context() as m:
        m.setattr('yolokit.cleaning.inspector.atomic_write', lambda p: (_ for _ in ()).throw(OSError(28, 'full')))
        one.go(0).do('accept')
        assert 'full' in one.error
    two.go(1).accept()
    one.go(2).accept()
    assert len(load_decisions(tmp_path/'d.json')) == 3


def test_a_file_that_was_damaged_meanwhile_stops_the_decision_and_stays(lot, tmp_path):
    box = Inspector(*lot, tmp_path/'d.json')
    box.go(0).accept()
    (tmp_path/'d.json').write_text('[{"box": 1')
    box.go(1).do('accept')
    assert 'broken json' in box.error and (tmp_path/'d.json').read_text() == '[{"box": 1'


HAND = dict(box=-1, reason='by-hand', file='a.png', decision='accept', action='add', after=[1, 2, 30, 40], label=0)

@pytest.mark.parametrize('wrong, why', [
    (dict(box=5.5), 'box is'), (dict(box=True), 'box is'), (dict(box=-2), 'box is'), (dict(file=3), 'file is'),
    (dict(after=[1, 2, 3, '4']), 'four numbers'), (dict(after=[1, 2, 3, float('inf')]), 'four numbers'),
    (dict(label=1.0), 'label is'), (dict(decision='Accept'), 'accept, reject or skip'),
    (dict(reason='x'*999), 'reason is'),
    (dict(action=['set']), 'action is'), (dict(new=-1), 'new is'), (dict(lable=0), "no field 'lable'")])
def test_every_field_of_a_hand_edited_file_is_checked(wrong, why, tmp_path):
    (tmp_path/'d.json').write_text(json.dumps([HAND, HAND | wrong]))
    with pytest.raises(RepairError, match=why) as e: load_decisions(tmp_path/'d.json')
    assert 'd.json, decision 2 of 2' in str(e.value) and len(str(e.value)) < 400


@pytest.mark.parametrize('wrong, why', [(dict(label=1), 'class 1; there are 1'), (dict(file='b.png'), 'known file'),
                                        (dict(box=N, action='set'), 'no such box'),
                                        (dict(box=10**9, action='drop'), 'no such box')])
def test_a_decision_on_what_is_not_there_is_refused(lot, wrong, why):
    with pytest.raises(RepairError, match=why): lot[1].decide([HAND | wrong])


@pytest.fixture
def set_beside(tmp_path, monkeypatch):
    "A raw set of 12 pictures in a checkout of its own, and a function that writes a decision beside a folder."
    from yolokit.apps.prepare import decisions_file
    monkeypatch.setenv('YOLOKIT_ROOT', str(tmp_path))
    (tmp_path/'raw/labels').mkdir(parents=True)
    for n in range(12):
        write_image(tmp_path/f'raw/images/{n}.png', np.full((40, 40, 3), 20*n, np.uint8))
        (tmp_path/f'raw/labels/{n}.txt').write_text('0 .5 .5 .5 .5\n')
    def write(folder, word='accept'):
        decisions_file(folder).write_text(json.dumps([HAND | dict(file='1.png', decision=word)]))
    return write


def test_decisions_beside_a_set_are_used_and_said(set_beside, tmp_path, capsys):
    from yolokit.apps.prepare import prepare_if_needed
    p = prepare_if_needed('raw')
    assert len(p.table) == 12 and 'Decisions' not in capsys.readouterr().out
    set_beside(p, 'skip')                                               # nothing was decided
    assert prepare_if_needed('raw').info == p.info
    set_beside(p)
    assert len(prepare_if_needed('raw').table) == 13
    said = capsys.readouterr().out
    assert 'Decisions: 1 of' in said and 'raw-prepared-decisions.json' in said and 'raw-prepared-old-1' in said
    assert len(prepare_if_needed(str(p.folder)).table) == 13
    assert 'Decisions' not in capsys.readouterr().out                   # it was prepared with them


def test_where_they_are_not_used_that_is_said(set_beside, tmp_path, capsys):
    from yolokit.apps.prepare import prepare_if_needed
    p = prepare_if_needed('raw', fix=False)
    set_beside(tmp_path/'raw')
    assert len(prepare_if_needed('raw', fix=False).table) == 12
    assert 'not used, fix=False' in capsys.readouterr().out
    assert len(prepare_if_needed('raw', decisions='none').table) == 12
    assert 'not used, decisions=none' in capsys.readouterr().out
    assert len(prepare_if_needed('raw').table) == 13                    # beside the source
    set_beside(p)
    prepare_if_needed(str(p.folder))
    assert 'was prepared without those of' in capsys.readouterr().out


def test_a_run_keeps_the_data_that_it_was_trained_on(set_beside, tmp_path):
    from yolokit.apps.config import data_folder
    from yolokit.apps.prepare import prepare_if_needed
    p = prepare_if_needed('raw')
    facts = dict(folder='data/raw-prepared', fingerprint=p.info['fingerprint'])
    assert data_folder(facts) == p.folder
    set_beside(p)
    assert prepare_if_needed('raw').folder == p.folder
    assert data_folder(facts).name == 'raw-prepared-old-1'
