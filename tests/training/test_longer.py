"Runs that go on under other conditions: made longer, asked again by name, checked before they have a folder."
import dataclasses, itertools, re, shutil
import pytest
import victims
from small import unjudged
from yolokit.training import runs
from yolokit.training.launcher import TrainingInterrupted
from yolokit.training.recipes import RECIPES, TrainError, check_recipe
from yolokit.training.runs import Run, RunError
from yolokit.apps import train as app
from yolokit.apps.train import train, TrainConfig

TINY = victims.TINY | dict(steps=8)


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    unjudged(monkeypatch, victims.judge)
    monkeypatch.setattr(app, 'finish_run', victims.finish)


def go(**kw): return train(TrainConfig(**TINY | kw))


def stop_after(n):
    "An on_evaluation that stops the run after n evaluations."
    def ask(count, numbers):
        if count >= n: raise TrainingInterrupted('stopped: test')
    return ask


def cut(n=1, **kw):
    with pytest.raises(TrainingInterrupted): train(TrainConfig(**TINY | kw), on_evaluation=stop_after(n))
    return Run.open(kw['name'])


# 9 and 16 steps: between two evaluations and two rows, and at both
SAME = [(f'{s}; augment.close_mosaic=0', a, b) for s in ('schedule=constant', 'schedule=restarts; restart=1',
                                                         'schedule=plateau') for a, b in ((9, 16), (16, 29))]


@pytest.mark.parametrize('change, short, whole', [pytest.param(*c, marks=[] if c[1] == 9 and 'restarts' in c[0]
                                                               else pytest.mark.soak) for c in SAME])
def test_a_run_made_longer_is_the_longer_run(root, change, short, whole):
    tag = f'{abs(hash((change, short)))}'
    go(name=f'whole{tag}', steps=whole, change=change)
    go(name=f'short{tag}', steps=short, change=change)
    train(TrainConfig(resume=f'short{tag}', steps=whole, workers=0))
    assert victims.end(root, f'short{tag}') == victims.end(root, f'whole{tag}')
    assert Run.open(f'short{tag}').info['steps'] == whole


def test_a_falling_rate_is_asked_how(root):
    go(name='fell', steps=6)
    with pytest.raises(TrainError, match='extend=stretch.*extend=last.*extend=restart'):
        train(TrainConfig(resume='fell', steps=9, workers=0))
    assert Run.open('fell').info['state'] == 'finished'                       # and nothing has happened to it
    with pytest.raises(RunError, match='may only become longer'): train(TrainConfig(resume='fell', steps=5, workers=0))
    run = train(TrainConfig(resume='fell', steps=9, extend='last', workers=0))
    assert run.info['recipe']['extended'] == 'last 6' and run.info['steps'] == 9 == run.info['config']['steps']
    with pytest.raises(RunError, match='is finished'): train(TrainConfig(resume='fell', workers=0))


def test_resume_takes_what_it_is_asked_or_says_why_not(root):
    cut(name='half', steps=18)
    for bad in (dict(bs=2), dict(lr0=.5), dict(seed=3), dict(recipe='scratch'), dict(width=64), dict(amp='bf16'),
                dict(name='other'), dict(change='clip=1'), dict(weights='half'), dict(split='hash'), dict(fix=False)):
        with pytest.raises(RunError, match=f'resume=half {next(iter(bad))}=.*that stays'):
            train(TrainConfig(resume='half', workers=0, **bad))
    same = dict(TINY, steps=18, workers=0)                                    # the whole command again: nothing new
    run = train(TrainConfig(**same | dict(resume='half', every=2., limit_mb=3., change='patience=50')))
    assert run.info['state'] == 'finished'
    assert (run.info['recipe']['every'], run.info['recipe']['patience'], run.config['limit_mb']) == (2., 50, 3.)


def test_a_name_that_comes_again(root, capsys):
    whole = go(name='job0', steps=18)
    cut(name='job', steps=18)
    with pytest.raises(RunError, match="run job exists already .*seed=0 and not 5"): go(name='job', steps=18, seed=5)
    assert go(name='job', steps=18).info['state'] == 'finished'               # goes on
    assert victims.end(root, 'job') == victims.end(root, 'job0')
    capsys.readouterr()
    assert go(name='job', steps=18).name == 'job' and 'nothing is left to do' in capsys.readouterr().out
    with pytest.raises(RunError, match='run job exists already'): go(name='job', steps=18, recipe='scratch')
    (root/'runs/empty').mkdir()
    with pytest.raises(RunError, match='run empty exists already'): go(name='empty')


def test_nothing_trained_leaves_no_folder_that_nobody_can_use(root, capsys, monkeypatch):
    before = {p.name for p in (root/'runs').iterdir()} if (root/'runs').exists() else set()
    for bad in (dict(change='clip=-1'), dict(change='freeze=stage99'), dict(width=100), dict(device='cuda:9'),
                dict(lr0=float('nan')), dict(limit_mb=-1.), dict(seed=2**70), dict(weights='no.pt'), dict(steps=-1),
                dict(change='alias=../../x'), dict(change='gains.box.lr0=1'), dict(change='at=a')):
        with pytest.raises(ValueError): go(**TINY | bad)
    (root/'cut.weights').write_bytes(b'\0'*40)
    with pytest.raises(ValueError, match='cut.weights'): go(weights='cut.weights')
    assert ({p.name for p in (root/'runs').iterdir()} if (root/'runs').exists() else set()) == before
    def fails(*a, **kw): raise TrainError('as planned')
    with monkeypatch.context() as m:
        m.setattr(app, 'init_training', fails)
        with pytest.raises(TrainError, match='as planned'): go()
    said = capsys.readouterr().out
    name = re.search(r'the folder (\S+) is used again', said)[1]
    assert 'resume=' not in said and Run.open(name).info['state'] == 'failed'
    assert go().name == name                                                  # the same folder
    assert 'as planned' in (root/f'runs/{name}/log.txt').read_text()


def test_a_chain_stopped_in_its_first_stage_names_a_run_that_goes_on(root, capsys):
    c = TrainConfig(**TINY | dict(stage='finetune', weights='', steps=9, name='after', width=64, height=64))
    with pytest.raises(TrainingInterrupted): train(c, on_evaluation=stop_after(1))
    first = re.search(r'-p resume (\S+?),?\s', capsys.readouterr().out)[1].rstrip(',')
    assert first == Run.open('after').info['parent']
    assert train(TrainConfig(resume=first, workers=0)).info['state'] == 'finished'
    assert train(TrainConfig(resume='after', workers=0)).info['state'] == 'finished'


def odd_values():
    "Values outside their range for every number and word of a recipe."
    flat = [(k, v) for k, v in vars(RECIPES['baseline']).items() if not dataclasses.is_dataclass(v)]
    flat += [(f'{g}.{k}', v) for g in ('gains', 'augment') for k, v in vars(getattr(RECIPES['baseline'], g)).items()]
    for k, v in flat:
        if isinstance(v, bool): yield from ((k, x) for x in ('maybe', '2'))
        elif isinstance(v, (int, float)): yield from ((k, x) for x in ('-1', 'nan', 'inf', '1e30', 'many', ''))
        elif isinstance(v, tuple): yield from ((k, x) for x in ('-1', 'nan', '1e9', 'a b'))
        elif k not in ('note', 'source', 'freeze'): yield from ((k, x) for x in ('no such', '../../x'))
    yield from (('restart_mult', '0'), ('anchor_t', '0'), ('gains.anchor_t', '1'), ('restart', '1e-6'), ('bs', '0'),
                ('parts', '0'), ('ema_tau', '0'), ('alias', 'best'), ('alias', 'last'), ('every', '0'), ('lr0', '0'),
                ('augment.scale', '1'), ('gains.box.lr0', '1'), ('augment', '1'), ('momentum', '1'))


def test_odd_values_of_change_are_refused_in_words():
    odd = list(odd_values())
    assert len(odd) > 200
    for k, v in odd:
        with pytest.raises(ValueError) as e: app.recipe_for('baseline', TrainConfig(change=f'{k}={v}'))
        assert k.split('.')[-1] in str(e.value), (k, v, e.value)


def test_every_number_of_a_recipe_has_a_range():
    from yolokit.training import recipes
    r = RECIPES['baseline']
    numbers = {k for k, v in vars(r).items() if isinstance(v, (int, float, tuple)) and not isinstance(v, bool)}
    numbers |= {f'{g}.{k}' for g in ('gains', 'augment') for k, v in vars(getattr(r, g)).items()
                if isinstance(v, (int, float)) and not isinstance(v, bool)}
    assert numbers <= recipes._RANGES.keys()
    for r in RECIPES.values(): check_recipe(r)


@pytest.mark.parametrize('ap', [-1., float('nan'), 0.])
def test_the_first_evaluation_is_the_best_whatever_it_says(root, monkeypatch, ap):
    "A validation split without boxes, or with crowds only: AP is -1."
    unjudged(monkeypatch, lambda table, **kw: lambda detector: dict(AP=ap, AP50=ap))
    run = go(name=f'odd{ap}'.replace('.', ''))
    assert run.info['state'] == 'finished' and (run.folder/'weights/best.pt').exists()


def test_what_is_lost_and_what_is_not_needed(root, capsys):
    d = go(name='giver').folder/'weights/best.pt'
    shutil.copyfile(d, root/'start.pt')
    shutil.copyfile(root/'tiny.cfg', root/'gone.cfg')
    cut(name='loser', steps=18, weights='start.pt', network='gone.cfg')
    (root/'start.pt').unlink()
    (root/'gone.cfg').unlink()
    assert train(TrainConfig(resume='loser', workers=0)).info['state'] == 'finished'
    assert 'gone.cfg is gone' in capsys.readouterr().out
    go(name='child', stage='finetune', weights='', steps=18, recipe='transfer')
    parent = Run.open('child').info['parent']
    run = cut(name='orphan', stage='finetune', weights='', steps=18, recipe='transfer')
    shutil.move(root/'runs'/run.info['parent'], root/'moved')
    assert train(TrainConfig(resume='orphan', workers=0)).info['state'] == 'finished'
    assert f'its parent {parent} is gone' in capsys.readouterr().out
    shutil.move(root/'moved', root/'runs'/parent)
    run = cut(name='nobest', steps=18, n=2)
    (run.folder/'weights/best.pt').unlink()
    with pytest.raises(RunError, match='weights/best.pt is gone'): train(TrainConfig(resume='nobest', workers=0))
    run = cut(name='newer', steps=18)
    run.update(recipe=run.info['recipe'] | dict(colour='blue'))
    with pytest.raises(RunError, match='newer yolokit.*colour'): train(TrainConfig(resume='newer', workers=0))


def test_a_short_parent_and_half_filled_weights_are_said(root, capsys):
    go(name='brief', steps=1)
    go(stage='finetune', weights='', name='heir', steps=0, epochs=2)
    assert 'brief made only 1 steps' in capsys.readouterr().out
    other = (root/'tiny.cfg').read_text().replace('filters=32', 'filters=24').replace('filters=16', 'filters=12')
    (root/'other.cfg').write_text(other)
    go(network='other.cfg', weights='brief', name='part')
    assert re.search(r'warning: .* fills \d+% of this network.*the first that does not fit', capsys.readouterr().out)


def test_a_full_disk_is_waited_for(root, monkeypatch):
    "torch says RuntimeError; the run waits, says so, and ends as if nothing had been."
    import torch
    monkeypatch.setattr(runs, '_ROOM_SECONDS', .01)
    whole, real, calls = go(name='roomy'), torch.save, itertools.count()
    def save(x, path, *a, **kw):
        if next(calls) in (2, 4, 5, 6):
            raise RuntimeError('[enforce fail at inline_container.cc:664] . unexpected pos 64 vs 0')
        return real(x, path, *a, **kw)
    monkeypatch.setattr(torch, 'save', save)
    run = go(name='narrow')
    assert 'the disk is full' in run.log.read_text() or 'could not be written' in run.log.read_text()
    monkeypatch.undo()
    assert victims.end(root, 'narrow') == victims.end(root, 'roomy')
