"Several processes on one training (gloo, one thread each): agreeing, the fixed tree, DDP, losing one, being told to stop, going on."
import dataclasses, hashlib, json, multiprocessing, os, socket, tempfile
from pathlib import Path
import numpy as np, pytest, torch
from small import CFG, checkout, environment
from yolokit import ranks, runs
from yolokit.augment import Augment
from yolokit.cfg import Cfg
from yolokit.loader import Loader
from yolokit.model import Detector, state_hash
from yolokit.runs import Run, Stop, Stopped
from yolokit.train import Recipe, fit

# one process imports torch, the ranks are forked from it
MANY = multiprocessing.get_context('forkserver')
MANY.set_forkserver_preload(['yolokit.stages'])


def be(rank, world, port, work, args, out):
    "A rank, as torchrun would start it."
    os.environ |= dict(RANK=str(rank), WORLD_SIZE=str(world), LOCAL_RANK=str(rank), LOCAL_WORLD_SIZE=str(world), MASTER_ADDR='127.0.0.1', MASTER_PORT=str(port))
    torch.set_num_threads(1)
    team = ranks.join()
    try: out.put((rank, work(team, *args)))
    except BaseException as e: out.put((rank, f'{type(e).__name__}: {e}'))
    finally: ranks.leave(team)


def together(world, work, *args):
    "What each of several processes answers."
    with socket.socket() as s: s.bind(('127.0.0.1', 0)); port = s.getsockname()[1]
    out = MANY.Queue()
    ps = [MANY.Process(target=be, args=(r, world, port, work, args, out)) for r in range(world)]
    for p in ps: p.start()
    try: got = dict(out.get(timeout=300) for _ in ps)
    finally:
        for p in ps: p.join(10); p.kill()
    return [got[r] for r in range(world)]


@pytest.fixture(scope='module')
def root(tmp_path_factory):
    folder = checkout(tmp_path_factory.mktemp('checkout'))
    with pytest.MonkeyPatch.context() as m:
        m.setenv('YOLOKIT_ROOT', str(folder))
        yield folder


DROPS = CFG.replace('[convolutional]\nfilters=21', '[dropout]\nprobability=.2\n\n[convolutional]\nfilters=21')
TINY = Recipe(steps=6, bs=8, lr0=.05, lrf=.1, warmup=0, ema=.95, ema_tau=5., every=1.7, augment=Augment(fliplr=.5, mosaic=.5))


class Later(Stop):
    "Asks to stop after some looks."
    def __init__(self, n): self.n, self.at_once = n, False
    @property
    def why(self): self.n -= 1; return 'test' if self.n < 0 else ''


def table(folder):
    from yolokit import formats
    return formats.read(folder/'squares').split('train')


def train(team, folder, name, recipe, stop=None, goes_on=False):
    "A training of the tiny network on this rank's share; hashes of all that is to be equal."
    run = team.share(lambda: Run.open(name, folder/'runs') if goes_on else Run.new('tiny', name, folder/'runs', seed=3))
    run.quiet = not team.first
    state = team.share(lambda: runs.load_checkpoint(run.folder/'checkpoint')) if goes_on else None
    if goes_on and team.first: [runs.cut_rows(run.folder/f, state[k]) for f, k in (('steps.csv', 'step'), ('metrics.csv', 'judged'))]
    data = table(folder)
    loader = Loader(data, (96, 96), recipe.bs, 3, recipe.augment, workers=0, share=(team.rank, team.world))
    seen = []
    def evaluate(model):
        seen.append(state_hash(model))
        return dict(AP=.5 - .01*len(seen), AP50=.5, per_class=dict(bright=.9, dark=.1*len(seen)))
    with runs.exact(1): t = fit(run, Detector(Cfg.parse(DROPS), data.names), loader, recipe, evaluate, stop=stop, state=state, rows=2, team=team)
    momenta = [v.flatten() for s in t.optimizer.state.values() for v in s.values() if torch.is_tensor(v)]
    found = dict(weights=state_hash(t.detector), ema=state_hash(t.ema.model), optimizer=hashlib.sha256(torch.cat(momenta).numpy().tobytes()).hexdigest(),
                 ap=t.ap, best=(t.best, t.best_step, t.stale), drawn=t.drawn)
    if team.first: found |= {f: (run.folder/f).read_text() for f in ('steps.csv', 'metrics.csv')}
    return found


def several(team, folder, jobs):
    "One training after the other in the same processes."
    return {name: train(team, folder, f'{name}-{team.world}', *args) for name, args in jobs.items()}


def vectors(team):
    x = torch.randn(1001, generator=torch.Generator().manual_seed(team.rank))
    who = team.share(lambda: f'rank {team.rank}')
    def no(): raise ValueError('not today')
    try: team.share(no)
    except ValueError as e: who += f', {e}'
    return who, team.agree(torch.tensor([float(team.rank)])).flatten().tolist(), team.gather(team.rank*'x'), hashlib.sha256(team.total(x).numpy().tobytes()).hexdigest()


def test_the_same_bits_for_any_number_of_processes(root):
    "Invariant mode, with dropout, image weights, summed batches; the ranks' own view is the same too. DDP beside it."
    exact, wild = dataclasses.replace(TINY, virtual=4), dataclasses.replace(TINY, virtual=4, nominal=16, image_weights=True, schedule='plateau', plateau_patience=0, steps=4)
    jobs = dict(exact=(exact,), wild=(wild,), ddp=(TINY,), summed=(dataclasses.replace(TINY, nominal=16, steps=3),))
    got = {w: together(w, several, root, jobs) for w in (1, 2, 4)}
    for w in got: assert not [g for g in got[w] if isinstance(g, str)], got[w]
    for name in ('exact', 'wild'):
        assert got[1][0][name] == got[2][0][name] == got[4][0][name]
        assert len(got[1][0][name]['steps.csv'].splitlines()) > 2
    for w in (2, 4):
        for name in jobs:
            for g in got[w][1:]: assert g[name] == {k: v for k, v in got[w][0][name].items() if not k.endswith('.csv')}
    loss = lambda w, name: np.array([[float(v) for v in l.split(',')[2:5]] for l in got[w][0][name]['steps.csv'].splitlines()[1:]])
    for name in ('ddp', 'summed'):
        assert got[1][0][name]['weights'] != got[2][0][name]['weights']
        assert np.allclose(loss(1, name), loss(2, name), rtol=.2, atol=.02) and np.isfinite(loss(4, name)).all()
    print('losses of the last steps, 1, 2, 4 processes:', *(loss(w, 'ddp')[-1].round(4).tolist() for w in (1, 2, 4)))


def test_a_team_speaks(root):
    got = together(2, vectors)
    assert got[0] == got[1]
    x = [torch.randn(1001, generator=torch.Generator().manual_seed(r)) for r in range(2)]
    assert got[0] == ('rank 0, not today', [0., 1.], ['', 'x'], hashlib.sha256((x[0] + x[1]).numpy().tobytes()).hexdigest())
