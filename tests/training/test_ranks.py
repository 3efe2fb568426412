"""Several processes on one training (gloo, one thread each): agreeing, the fixed tree, DDP, losing one, being told to
stop, going on."""
import dataclasses, hashlib, json, multiprocessing, os, signal, socket, subprocess, sys, time
from pathlib import Path
import jsonschema, numpy as np, pytest, torch, yaml
from small import CFG, environment
from yolokit.core.environment import deterministic
from yolokit.network.cfg import Cfg
from yolokit.network.model import Detector, state_hash
from yolokit.data.augment import Augment
from yolokit.data.loader import Loader
from yolokit.training import distributed, runs
from yolokit.training.recipes import Recipe
from yolokit.training.runs import Run
from yolokit.training.launcher import StopFlag
from yolokit.training.step import init_training
from yolokit.training.train import fit, FitOptions
from yolokit.apps import config
from yolokit.apps.train import recipe_for, TrainConfig

ROOT = Path(__file__).resolve().parents[2]

# one process imports torch, the ranks are forked from it
MANY = multiprocessing.get_context('forkserver')
MANY.set_forkserver_preload(['yolokit.apps.train'])


def be(rank, world, port, work, args, out, hours=1.):
    "A rank, as torchrun would start it."
    os.environ |= dict(RANK=str(rank), WORLD_SIZE=str(world), LOCAL_RANK=str(rank), LOCAL_WORLD_SIZE=str(world),
                       MASTER_ADDR='127.0.0.1', MASTER_PORT=str(port))
    torch.set_num_threads(1)
    team = distributed.init_distributed(hours=hours)
    try: out.put((rank, work(team, *args)))
    except BaseException as e: out.put((rank, f'{type(e).__name__}: {e}'))
    finally: distributed.shutdown_distributed(team)


def wait_for_judging(team):
    "Rank 0 is busy for longer than the ranks may let each other wait."
    return team.share(lambda: time.sleep(6) or 'judged')


def together(world, work, *args, hours=1.):
    "What each of several processes answers."
    with socket.socket() as s: s.bind(('127.0.0.1', 0)); port = s.getsockname()[1]
    out = MANY.Queue()
    ps = [MANY.Process(target=be, args=(r, world, port, work, args, out, hours)) for r in range(world)]
    for p in ps: p.start()
    try: got = dict(out.get(timeout=300) for _ in ps)
    finally:
        for p in ps: p.join(10); p.kill()
    return [got[r] for r in range(world)]


def test_the_others_wait_for_rank_0_as_long_as_it_lives():
    assert together(2, wait_for_judging, hours=2/3600) == ['judged']*2


DROPS = CFG.replace('[convolutional]\nfilters=21', '[dropout]\nprobability=.2\n\n[convolutional]\nfilters=21')
TINY = Recipe(steps=6, bs=8, lr0=.05, lrf=.1, warmup=0, ema=.95, ema_tau=5., every=1.7,
              augment=Augment(fliplr=.5, mosaic=.5))


class Later(StopFlag):
    "Asks to stop after some looks."
    def __init__(self, n): self.n, self.at_once = n, False
    @property
    def why(self): self.n -= 1; return 'test' if self.n < 0 else ''


def table(folder):
    from yolokit.data.formats import read
    return read(folder/'squares').split('train')


def train(team, folder, name, recipe, stop=None, goes_on=False):
    "A training of the tiny network on this rank's share; hashes of all that is to be equal."
    run = team.share(lambda: Run.open(name, folder/'runs') if goes_on else Run.new('tiny', name, folder/'runs', seed=3))
    run.quiet = not team.first
    state = team.share(lambda: runs.load_run_checkpoint(run.folder/'checkpoint')) if goes_on else None
    if goes_on and team.first:
        [runs.truncate_csv(run.folder/f, state[k]) for f, k in (('steps.csv', 'step'), ('metrics.csv', 'judged'))]
    data = table(folder)
    loader = Loader(data, (96, 96), recipe.bs, 3, recipe.augment, workers=0, share=(team.rank, team.world))
    seen = []
    def evaluate(model):
        seen.append(state_hash(model))
        return dict(AP=.5 - .01*len(seen), AP50=.5, per_class=dict(bright=.9, dark=.1*len(seen)))
    with deterministic(1):
        t = init_training(Detector(Cfg.parse(DROPS), data.names), recipe, team=team, state=state)
        fit(run, t, loader, evaluate, stop, FitOptions(rows=2))
    momenta = [v.flatten() for s in t.optimizer.state.values() for v in s.values() if torch.is_tensor(v)]
    found = dict(weights=state_hash(t.detector), ema=state_hash(t.ema.model),
                 optimizer=hashlib.sha256(torch.cat(momenta).numpy().tobytes()).hexdigest(),
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
    return (who, team.agree(torch.tensor([float(team.rank)])).flatten().tolist(), team.gather(team.rank*'x'),
            hashlib.sha256(team.total(x).numpy().tobytes()).hexdigest())


def test_the_same_bits_for_any_number_of_processes(root):
    "Invariant mode, with dropout, image weights, summed batches; the ranks' own view is the same too. DDP beside it."
    exact, wild = (dataclasses.replace(TINY, virtual=4),
                   dataclasses.replace(TINY, virtual=4, nominal=16, image_weights=True, schedule='plateau',
                                       plateau_patience=0, steps=4))
    jobs = dict(exact=(exact,), wild=(wild,), ddp=(TINY,), summed=(dataclasses.replace(TINY, nominal=16, steps=3),))
    got = {w: together(w, several, root, jobs) for w in (1, 2, 4)}
    for w in got: assert not [g for g in got[w] if isinstance(g, str)], got[w]
    for name in ('exact', 'wild'):
        assert got[1][0][name] == got[2][0][name] == got[4][0][name]
        assert len(got[1][0][name]['steps.csv'].splitlines()) > 2
    for w in (2, 4):
        for name in jobs:
            for g in got[w][1:]: assert g[name] == {k: v for k, v in got[w][0][name].items() if not k.endswith('.csv')}
    loss = lambda w, name: np.array([[float(v) for v in l.split(',')[2:5]]
                                     for l in got[w][0][name]['steps.csv'].splitlines()[1:]])
    for name in ('ddp', 'summed'):
        assert got[1][0][name]['weights'] != got[2][0][name]['weights']
        assert np.allclose(loss(1, name), loss(2, name), rtol=.2, atol=.02) and np.isfinite(loss(4, name)).all()
    print('losses of the last steps, 1, 2, 4 processes:', *(loss(w, 'ddp')[-1].round(4).tolist() for w in (1, 2, 4)))


def gradient_of_share(team, text, sync_bn):
    "The gradient of one step, of a share of eight pictures with 40, 1, 0, 3, 9, 0, 0 and 2 boxes; running statistics."
    from yolokit.data.loader import Batch
    from yolokit.training.step import step_gradients, StepBatches, wrap_ddp
    g, counts = torch.Generator().manual_seed(0), (40, 1, 0, 3, 9, 0, 0, 2)
    pixels, boxes = torch.randint(0, 256, (8, 3, 96, 96), generator=g, dtype=torch.uint8), torch.full((8, 40, 5), -1.)
    for image, n in zip(boxes, counts):
        u = torch.rand(n, 5, generator=g)
        image[:n] = torch.cat([(2*u[:, :1]).floor(), 8 + 80*u[:, 1:3], 8 + 24*u[:, 3:]], 1)
    mine = slice(team.rank*8//team.world, (team.rank + 1)*8//team.world)
    n = 8//team.world
    batch = Batch(pixels[mine], boxes[mine], torch.arange(n), ['']*n, [None]*n)
    with deterministic(1):
        t = init_training(Detector(Cfg.parse(text), seed=1), dataclasses.replace(TINY, sync_bn=sync_bn), team=team)
        wrap_ddp(t)
        losses = step_gradients(t, StepBatches(lambda: iter([batch]), [(None, True)], 0))
    return (torch.cat([p.grad.flatten() for p in t.params]).double().tolist(), {k: float(v) for k, v in losses.items()},
            [v for b in t.detector.buffers() for v in b.flatten().tolist()])


@pytest.mark.parametrize('text, sync_bn, limit', [(CFG.replace('batch_normalize=1\n', ''), False, 1e-6),
                                                  (CFG, True, 1e-5)])
def test_several_ranks_are_one_batch(root, text, sync_bn, limit):
    "Uneven boxes, one step in ordinary mode: without BatchNorm, and with statistics over all processes."
    one, = together(1, gradient_of_share, text, sync_bn)
    for w in (2, 4):
        got = together(w, gradient_of_share, text, sync_bn)
        assert not [g for g in got if isinstance(g, str)], got
        want = np.array(one[0])
        for grad, _, stats in got:
            off = np.linalg.norm(np.array(grad) - want)/np.linalg.norm(want)
            assert off < limit, (w, off)
            assert np.allclose(stats, one[2], rtol=1e-5, atol=1e-6)
        for k, v in one[1].items(): assert np.isclose(np.mean([g[1][k] for g in got]), v, rtol=1e-5), k
        print(f'{w} ranks, sync_bn={sync_bn}: gradient {off:.1e} off')


@pytest.mark.soak
def test_eight_processes(root):
    "A node of eight, in the invariant mode: the bits of one, two and four."
    recipe = dataclasses.replace(TINY, virtual=8, bs=16, nominal=32, image_weights=True, steps=4)
    got = {w: together(w, several, root, dict(eight=(recipe,))) for w in (1, 2, 4, 8)}
    for w in got: assert not [g for g in got[w] if isinstance(g, str)], got[w]
    for w in (2, 4, 8):
        assert got[w][0] == got[1][0]
        for g in got[w][1:]:
            assert g['eight'] == {k: v for k, v in got[w][0]['eight'].items() if not k.endswith('.csv')}


def test_a_team_speaks(root):
    got = together(2, vectors)
    assert got[0] == got[1]
    x = [torch.randn(1001, generator=torch.Generator().manual_seed(r)) for r in range(2)]
    assert got[0] == ('rank 0, not today', [0., 1.], ['', 'x'],
                      hashlib.sha256((x[0] + x[1]).numpy().tobytes()).hexdigest())


# ---- the whole way: -p gpus 2, signals, losses. Each process imports torch, so that most of it is `make soak`'s.

def call(folder, *words, torchrun=False):
    "A stage on two processes, from Python as the notebook does it, or under torchrun itself."
    program = ('import sys; from yolokit.apps import config, train; '
               'train.train(config.make_config(dict(w.split("=", 1) for w in sys.argv[1:]), train.TrainConfig))')
    start = ['-m', 'torch.distributed.run', '--standalone', '--nproc-per-node', '2', '-m',
             'yolokit.apps.train'] if torchrun else ['-c', program, 'gpus=2']
    words = ['device=cpu', *words] if any(w.startswith('resume') for w in words) else [*FIXED, *words]
    return subprocess.Popen([sys.executable, *start, *words], env=environment(folder) | dict(PYTHONPATH=str(ROOT)),
                            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True)


FIXED = ('stage=baseline data=squares network=tiny.cfg weights=none bs=8 device=cpu workers=0 amp=off threads=1 '
         'every=50'.split())


def info(folder, name): return json.loads((folder/'runs'/name/'run.json').read_text())
def alive(pid):
    try: return Path(f'/proc/{pid}/stat').read_text().rsplit(')', 1)[1].split()[0] != 'Z'
    except OSError: return False


def family(pid):
    "A process's children, and theirs."
    found, all_ = [], [(int(p.parent.name), p) for p in Path('/proc').glob('[0-9]*/stat')]
    parent = {}
    for k, p in all_:
        try: parent[k] = int(p.read_text().rsplit(')', 1)[1].split()[1])
        except OSError: pass
    todo = [pid]
    while todo:
        kids = [k for k, v in parent.items() if v == todo[0]]
        found += kids
        todo = todo[1:] + kids
    return found


def wait(what, seconds=200):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if what(): return True
        time.sleep(.05)
    return False


def under_way(folder, name, p):
    "Wait until a run writes its rows; who belongs to it, rank 0 last."
    rows = folder/'runs'/name/'steps.csv'
    assert wait(lambda: rows.exists() and len(rows.read_text().splitlines()) > 3
                or p.poll() is not None), p.communicate()[0][-3000:]
    assert p.poll() is None, p.communicate()[0][-3000:]
    zero = info(folder, name)['pid']
    return sorted(family(p.pid), key=lambda k: k == zero)


def final(folder, name): return info(folder, name)['weights_sha256'], (folder/'runs'/name/'steps.csv').read_text()


def goes_on(folder, name, *words):
    p = call(folder, f'resume={name}', *words)
    said = p.communicate(timeout=400)[0]
    assert p.returncode == 0, said[-3000:]
    return said, final(folder, name)


@pytest.mark.soak
def test_stopped_lost_and_resumed_is_the_same(root, tmp_path):
    """Invariant mode on two processes: SIGTERM to the caller, to torchrun, a rank killed, the agent killed, the caller
    killed; each resumed, on one, two or four processes."""
    long = ('steps=80', 'change=virtual=4')
    p = call(root, *long, 'name=whole')
    said = p.communicate(timeout=400)[0]
    assert p.returncode == 0, said[-3000:]
    want = final(root, 'whole')
    cases = dict(caller=(signal.SIGTERM, lambda p, kin: p.pid, 'interrupted', 2),
                 ctrl_c=(signal.SIGINT, lambda p, kin: p.pid, 'interrupted', 1),
                 torchrun=(signal.SIGTERM, lambda p, kin: p.pid, 'interrupted', 2),
                 rank=(signal.SIGKILL, lambda p, kin: [
                     k for k in kin[:-1]
                     if b'yolokit.training.launcher' not in Path(f'/proc/{k}/cmdline').read_bytes()][0], 'failed', 4),
                 first=(signal.SIGKILL, lambda p, kin: kin[-1], 'failed', 1),
                 agent=(signal.SIGKILL, lambda p, kin: [
                     k for k in kin
                     if b'yolokit.training.launcher' in Path(f'/proc/{k}/cmdline').read_bytes()][0], 'interrupted', 2),
                 gone=(signal.SIGKILL, lambda p, kin: p.pid, 'interrupted', 2))
    for name, (sig, whom, state, then) in cases.items():
        p = call(root, *long, f'name={name}', torchrun=name == 'torchrun')
        kin = under_way(root, name, p)
        began = time.monotonic()
        os.kill(whom(p, kin), sig)
        assert wait(lambda: not any(map(alive, kin)), 60), f'{name}: left behind'
        took = time.monotonic() - began
        said = p.communicate(timeout=60)[0]
        i = info(root, name)
        print(f'{name}: {i["state"]} in {took:.1f} s: {i.get("error")}')
        assert p.returncode and i['state'] == state, (name, i['state'], i.get('error'), said[-2000:])
        if state == 'interrupted': assert list((root/'runs'/name/'checkpoint').glob('*.sha256')), name
        if name in ('rank', 'first'): assert 'killed by SIGKILL' in i['error'] and f'resume={name}' in said
        said, got = goes_on(root, name, f'gpus={then}')
        assert got == want, name
        if then != 2: assert f'2 processes then, {then} now: on virtual ranks the result is the same' in said


@pytest.mark.soak
def test_ordinary_training_on_another_number_says_so(root):
    p = call(root, 'steps=100000', 'name=plain')
    kin = under_way(root, 'plain', p)
    p.send_signal(signal.SIGTERM)
    p.communicate(timeout=60)
    step = runs.load_run_checkpoint(root/'runs/plain/checkpoint')['step']
    i = info(root, 'plain')
    i['config']['steps'] = i['recipe']['steps'] = step + 3
    (root/'runs/plain/run.json').write_text(json.dumps(i))
    said, _ = goes_on(root, 'plain', 'gpus=1')
    assert '2 processes then, 1 now: the result will not be the same to the bit' in said and not any(map(alive, kin))


@pytest.mark.soak
def test_papermill_told_to_stop(root, tmp_path):
    name, words = 'book', dict(w.split('=', 1) for w in [*FIXED, 'steps=100000', 'change=virtual=2', 'gpus=2',
                                                         'name=book'])
    p = subprocess.Popen([sys.executable, '-m', 'papermill', '--no-progress-bar', str(ROOT/'nbs/train.ipynb'),
                          str(tmp_path/'out.ipynb'), *[x for k, v in words.items() for x in ('-p', k, v)]],
                         env=environment(root) | dict(PYTHONPATH=str(ROOT)), stdout=subprocess.PIPE,
                         stderr=subprocess.STDOUT, text=True)
    kin = under_way(root, name, p)
    began = time.monotonic()
    p.send_signal(signal.SIGTERM)
    assert wait(lambda: not any(map(alive, kin)), 60)
    print(f'papermill: gone in {time.monotonic() - began:.1f} s')
    said = p.communicate(timeout=60)[0]
    assert info(root, name)['state'] == 'interrupted' and list((root/f'runs/{name}/checkpoint').glob('*.sha256'))
    assert 'step/s' in said and 'on 2 processes' in said         # what the ranks say reaches the terminal


@pytest.mark.soak
def test_a_child_s_failure_is_told(root):
    p = call(root, 'steps=4', 'name=bad', 'change=freeze=0-99')
    said = p.communicate(timeout=200)[0]
    assert (p.returncode and 'nothing is left to train' in info(root, 'bad')['error']
            and 'process 0 of 2: TrainError' in said or 'process 1 of 2: TrainError' in said)


# ---- deploy/: what a TrainJob may hold, restated from manifests/base/crds/trainer.kubeflow.org_trainjobs.yaml of
# github.com/kubeflow/trainer (8c0f505, August 2026)
TEXT = dict(type='string', minLength=1)
def obj(required=(), **props):
    return dict(type='object', properties=props, required=list(required), additionalProperties=False)
def many(item): return dict(type='array', items=item, minItems=1)
AMOUNTS = dict(type='object', additionalProperties=dict(type=['string', 'integer']))
GROUP = obj(runAsUser=dict(type='integer'), runAsNonRoot=dict(type='boolean'), fsGroup=dict(type='integer'))
POD = obj(securityContext=GROUP, terminationGracePeriodSeconds=dict(type='integer', minimum=1),
          containers=many(obj(('name',), name=TEXT, env=many(obj(('name',), name=TEXT, value=TEXT)),
                              volumeMounts=many(obj(('name', 'mountPath'), name=TEXT, mountPath=TEXT)))),
          volumes=many(obj(('name',), name=TEXT, persistentVolumeClaim=obj(('claimName',), claimName=TEXT),
                           emptyDir=obj(medium=TEXT, sizeLimit=TEXT))))
JOBS = many(obj(('name',), name=TEXT, template=obj(spec=obj(template=obj(spec=POD)))))
TRAINJOB = obj(('apiVersion', 'kind', 'metadata', 'spec'), apiVersion=dict(const='trainer.kubeflow.org/v1alpha1'),
               kind=dict(const='TrainJob'),
    metadata=obj(('name',), name=dict(type='string', pattern='^[a-z0-9]([-a-z0-9]*[a-z0-9])?$', maxLength=63),
                 namespace=TEXT, labels=dict(type='object', additionalProperties=TEXT)),
    spec=obj(('runtimeRef',), runtimeRef=obj(('name',), name=TEXT, kind=TEXT, apiGroup=TEXT),
             trainer=obj(image=TEXT, command=many(TEXT), args=many(TEXT),
                         env=many(obj(('name',), name=TEXT, value=TEXT)),
numNodes=dict(type='integer', minimum=1), numProcPerNode=dict(type='integer', minimum=1),
resourcesPerNode=obj(limits=AMOUNTS, requests=AMOUNTS)),
        runtimePatches=many(obj(('manager',), manager=TEXT,
                                trainingRuntimeSpec=obj(template=obj(spec=obj(replicatedJobs=JOBS)))))))


def asked(command):
    "The words of a command line that are yolokit's."
    given = dict(w.split('=', 1) for w in command.split('yolokit.apps.train', 1)[1].split() if '=' in w
                 and '$' not in w)
    return config.make_config(given, TrainConfig)


@pytest.mark.parametrize('name, nodes', [('one-node', 1), ('two-nodes', 2)])
def test_the_trainjobs_are_ones(name, nodes):
    job = yaml.safe_load((ROOT/f'deploy/trainjob-{name}.yaml').read_text())
    jsonschema.validate(job, TRAINJOB)
    crd = os.environ.get('YOLOKIT_KUBEFLOW')
    if crd:
        from test_sweeps import strict
        jsonschema.validate(job, strict(yaml.safe_load(
            (Path(crd)/'trainer.kubeflow.org_trainjobs.yaml').read_text()
        )['spec']['versions'][0]['schema']['openAPIV3Schema']))
    t = job['spec']['trainer']
    assert t['numNodes'] == nodes and t['command'][:2] == ['sh', '-c'] and 'exec torchrun ' in t['command'][2]
    c = asked(t['command'][2])
    distributed.check_batch_divides(recipe_for(c.stage, c).bs, 0, nodes*t['numProcPerNode'])
    pod = job['spec']['runtimePatches'][0]['trainingRuntimeSpec']['template']['spec']['replicatedJobs'][0][
        'template']['spec']['template']['spec']
    assert pod['terminationGracePeriodSeconds'] > 30
    for spoil in (lambda j: j['spec'].update(podTemplate={}), lambda j: j['spec']['trainer'].update(numProcPerNode='8'),
                  lambda j: j['spec'].pop('runtimeRef')):
        bad = yaml.safe_load((ROOT/f'deploy/trainjob-{name}.yaml').read_text())
        spoil(bad)
        with pytest.raises(jsonschema.ValidationError): jsonschema.validate(bad, TRAINJOB)


def test_the_slurm_script():
    text = (ROOT/'deploy/train.sbatch').read_text()
    assert subprocess.run(['bash', '-n'], input=text, text=True).returncode == 0
    c = asked('yolokit.apps.train ' + text.split('WHAT="', 1)[1].split('"', 1)[0])
    distributed.check_batch_divides(recipe_for(c.stage, c).bs, 0, 16)
    assert '--signal=TERM@' in text and 'scontrol requeue' in text and 'name=$NAME' in text
