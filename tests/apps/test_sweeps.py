"""Sweeps: real short trainings under Optuna, killed and gone on with, in parallel; the Katib experiment and what a pod
prints."""
import json, os, re, signal, socket, subprocess, sys, time
from pathlib import Path

import jsonschema
import pytest
import yaml

from small import checkout, environment
from yolokit.training import runs
from yolokit.apps import sweep

ROOT = Path(__file__).resolve().parents[2]
YAML = ROOT/'deploy/katib-experiment.yaml'
FIXED = ('stage=baseline data=squares network=tiny.cfg weights=none recipe=scratch steps=4 every=0.5 workers=0 '
         'threads=1 device=cpu')


@pytest.fixture
def here(tmp_path, monkeypatch):
    folder = tmp_path/'checkout'
    folder.mkdir()
    monkeypatch.setenv('YOLOKIT_ROOT', str(checkout(folder, n=8)))
    return folder


def config(**kw): return sweep.SweepConfig(**dict(space='lr0=0.001..0.05:log bs=2|4', fixed=FIXED, trials=3) | kw)


def test_trials_are_runs_and_a_sweep_goes_on(here):
    out = sweep.run_search(config(trials=2))
    assert len(out['trials']) == 2 and out['value'] == max(t['AP'] for t in out['trials'] if t['state'] == 'complete')
    for t in out['trials']:
        run = runs.Run.open(t['run'])
        assert (run.info['state'] in ('finished', 'pruned') and run.config['bs'] == t['bs']
                and abs(run.config['lr0'] - t['lr0']) < 1e-12 and run.config['steps'] == 4)
        if t['state'] == 'complete': assert run.info['result']['AP'] == t['AP'] and (run.folder/'judged.json').exists()
    more = sweep.run_search(config(trials=3))
    assert [t['run'] for t in more['trials']][:2] == [t['run'] for t in out['trials']] and len(more['trials']) == 3
    # a sampler that starts again does not repeat itself
    assert len({t['lr0'] for t in more['trials']}) == 3
    began = time.monotonic()
    assert sweep.run_search(config(trials=3))['trials'] == more['trials'] and time.monotonic() - began < 5
    with pytest.raises(sweep.SweepError, match='asked something else'): sweep.run_search(config(space='lr0=0.1..0.2'))
    judged = sweep.run_search(sweep.SweepConfig(what='judge', space='iou=0.3|0.7',
                                                fixed=f'run={more["run"]} workers=0 device=cpu', trials=2, name='nms'))
    assert {runs.Run.open(t['run']).info['stage'] for t in judged['trials']} == {'judged'}


def test_settings_of_a_dead_process_are_tried_again(here):
    c = config()
    (here/'runs').mkdir(exist_ok=True)
    gone = subprocess.Popen([sys.executable, '-c', ''])
    gone.wait()
    for pid in (gone.pid, os.getpid()):                              # one that is gone, one that lives
        t = sweep.open_study(c).ask()
        t.set_user_attr('pid', pid); t.set_user_attr('host', socket.gethostname())
        sweep._suggest(t, sweep._parse_space(c.space))
    assert sweep._requeue_dead_trials(sweep.open_study(c)) == 1
    after = sweep.open_study(c).trials
    assert ([t.state.name for t in after] == ['FAIL', 'RUNNING', 'WAITING']
            and after[2].system_attrs['fixed_params'] == after[0].params)


@pytest.mark.soak
def test_a_trial_that_was_killed_is_tried_again(here):
    program = ('import json, sys; from yolokit import sweeps; '
               'sweeps.search(sweeps.SweepConfig(**json.loads(sys.argv[1])))')
    long = config(fixed=FIXED.replace('steps=4', 'steps=4000'), trials=1)
    p = subprocess.Popen([sys.executable, '-c', program, json.dumps(runs.json_ready(long))], env=environment(here),
                         stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    rows = here/'runs/sweep-0000/steps.csv'
    end = time.monotonic() + 120
    while not rows.exists() and time.monotonic() < end: time.sleep(.1)
    p.send_signal(signal.SIGKILL)
    p.wait()
    assert rows.exists()
    cut = sweep.open_study(long).trials
    assert [t.state.name for t in cut] == ['RUNNING']
    assert sweep._requeue_dead_trials(sweep.open_study(long)) == 1
    after = sweep.open_study(long).trials
    assert ([t.state.name for t in after] == ['FAIL', 'WAITING']
            and after[1].system_attrs['fixed_params'] == cut[0].params)
    assert sweep._requeue_dead_trials(sweep.open_study(long)) == 0


@pytest.mark.soak
def test_two_workers_share_a_study(here):
    out = sweep.run_search(config(trials=6, workers=2, name='two'))
    done = [t for t in out['trials'] if t['state'] in ('complete', 'pruned')]
    assert 6 <= len(done) <= 7 and len({t['run'] for t in done}) == len(done)
    pids = {t.user_attrs['pid'] for t in sweep.open_study(config(name='two')).trials}
    assert len(pids) == 2 and os.getpid() not in pids


def test_hopeless_trials_are_pruned(here, monkeypatch):
    "A made-up detector quality, a real training loop: the median decides between evaluations."
    values = iter([.9, .8, .85, .9, .1, .1, .1])
    def trial(what, v, name, tell):
        runs.Run.new('baseline', name)
        q = next(values)
        for step in range(1, 4): tell(step, dict(AP=q))
        return dict(AP=q)
    monkeypatch.setattr(sweep, '_run_trial', trial)
    out = sweep.run_search(config(trials=6))
    assert [t['state'] for t in out['trials']] == ['complete']*4 + ['pruned']*2
    assert runs.Run.open('sweep-0004').info['state'] == 'pruned'


def test_faults_are_told_not_swept_under(here):
    with pytest.raises(sweep.SweepError, match='three trials in a row failed'):
        sweep.run_search(config(fixed=FIXED.replace('data=squares', 'data=nowhere'), trials=9))
    with pytest.raises(sweep.SweepError, match='starts from weights'):
        sweep._run_trial('train', dict(stage='finetune'), 'x')
    with pytest.raises(sweep.SweepError, match='metric'): sweep.run_search(config(metric='loss'))
    with pytest.raises(sweep.SweepError, match='name='): sweep.run_search(config(name='../x'))


# What an Experiment and a TrainJob must look like, written here from the published types; nothing else is let through.
TEXT, COUNT = dict(type='string'), dict(type='integer', minimum=1)
def obj(required=(), **props):
    return dict(type='object', properties=props, required=list(required), additionalProperties=False)
def many(item): return dict(type='array', items=item, minItems=1)
NAMED = many(obj(('name', 'value'), name=TEXT, value=TEXT))
META = obj(('name',), name=dict(type='string', pattern='^[a-z0-9]([-a-z0-9]*[a-z0-9])?$'), namespace=TEXT,
           labels=dict(type='object', additionalProperties=TEXT))
SPACE = obj(min=TEXT, max=TEXT, step=TEXT, distribution=dict(enum=['uniform', 'logUniform', 'normal', 'logNormal']),
            list=many(TEXT))
JOB = obj(('apiVersion', 'kind', 'spec'), apiVersion=dict(const='trainer.kubeflow.org/v1alpha1'),
          kind=dict(const='TrainJob'), spec=obj(('runtimeRef', 'trainer'),
                                                runtimeRef=obj(('name',), name=TEXT, kind=TEXT, apiGroup=TEXT),
trainer=obj(('image', 'command'), image=TEXT, command=many(TEXT), args=many(TEXT), numNodes=COUNT, numProcPerNode=COUNT,
            env=NAMED, resourcesPerNode=obj(limits=dict(type='object'), requests=dict(type='object'))),
                                                runtimePatches=dict(type='array')))
EXPERIMENT = obj(('apiVersion', 'kind', 'metadata', 'spec'), apiVersion=dict(const='kubeflow.org/v1beta1'),
                 kind=dict(const='Experiment'), metadata=META,
                 spec=obj(('objective', 'algorithm', 'parameters', 'trialTemplate'),
objective=obj(('type', 'objectiveMetricName'), type=dict(enum=['maximize', 'minimize']), goal=dict(type='number'),
              objectiveMetricName=TEXT, additionalMetricNames=many(TEXT),
              metricStrategies=many(obj(('name', 'value'), name=TEXT, value=dict(enum=['min', 'max', 'latest'])))),
algorithm=obj(('algorithmName',), algorithmName=TEXT, algorithmSettings=NAMED),
earlyStopping=obj(('algorithmName',), algorithmName=TEXT, algorithmSettings=NAMED),
parallelTrialCount=COUNT, maxTrialCount=COUNT, maxFailedTrialCount=COUNT,
resumePolicy=dict(enum=['Never', 'LongRunning', 'FromVolume']),
parameters=many(obj(('name', 'parameterType', 'feasibleSpace'), name=TEXT,
                    parameterType=dict(enum=['double', 'int', 'discrete', 'categorical']), feasibleSpace=SPACE)),
metricsCollectorSpec=obj(('collector',), collector=obj(('kind',), kind=dict(enum=['StdOut', 'File', 'Push']))),
trialTemplate=obj(('primaryContainerName', 'trialParameters', 'trialSpec'), primaryContainerName=TEXT,
                  successCondition=TEXT, failureCondition=TEXT, retain=dict(type='boolean'),
                  trialParameters=many(obj(('name', 'reference'), name=TEXT,
                                                                        reference=TEXT, description=TEXT)),
                  trialSpec=JOB)))


def experiment(): return yaml.safe_load(YAML.read_text())


def test_the_experiment_is_one():
    e = experiment()
    jsonschema.validate(e, EXPERIMENT)
    for spoil in (lambda e: e['spec'].update(maxTrials=3),
                  lambda e: e['spec']['parameters'][0]['feasibleSpace'].update(min=.001),
                  lambda e: e['spec']['trialTemplate'].pop('primaryContainerName')):
        bad = experiment()
        spoil(bad)
        with pytest.raises(jsonschema.ValidationError): jsonschema.validate(bad, EXPERIMENT)


def filled(values):
    """The pod's command as Katib's webhook makes it: placeholders replaced, arguments joined by spaces, output into its
    log."""
    t = experiment()['spec']['trialTemplate']
    assert ({p['reference'] for p in t['trialParameters']}
            == {p['name'] for p in experiment()['spec']['parameters']} == set(values))
    by = {p['name']: values[p['reference']] for p in t['trialParameters']}
    command = [re.sub(r'\$\{trialParameters\.([\w-]+)\}', lambda m: by[m[1]],
                      a) for a in t['trialSpec']['spec']['trainer']['command']]
    assert command[:2] == ['sh', '-c'] and '${' not in command[2]
    return command[:2], ' '.join([*command[2:], '1>{log} 2>&1', '&&', 'echo completed > {done}'])


def test_every_value_katib_may_choose_is_one_the_app_takes():
    e = experiment()['spec']
    for p in e['parameters']:
        s = p['feasibleSpace']
        for v in s.get('list', [s.get('min'), s.get('max')]):
            line = filled({
                q['name']: v if q is p else (q['feasibleSpace'].get('list') or [q['feasibleSpace']['min']])[0]
                for q in e['parameters']})[1]
            fixed = re.search(r"-p fixed '([^']*)'", line)[1]
            assert sweep._parse_settings(fixed)[p['name']] == float(v)
    names = [e['objective']['objectiveMetricName'], *e['objective']['additionalMetricNames']]
    assert set(names) <= {'AP', 'AP50', 'AP75', 'precision', 'recall'}                   # those that report() prints
    assert [s['name'] for s in e['objective']['metricStrategies']] == names


def test_a_pod_s_command_here_and_what_katib_reads_of_it(here, tmp_path):
    "The manifest's own line through a shell, as Katib wraps it; small settings instead of the cluster's."
    shell, line = filled(dict(lr0='0.01', bs='4'))
    line = line.replace("data=data/parking-challenge steps=2000 amp=auto",
                        'data=squares network=tiny.cfg weights=none recipe=scratch steps=4 every=1 workers=0 threads=1 '
                        'device=cpu')
    line = line.replace('nbs/sweep.ipynb', str(ROOT/'nbs/sweep.ipynb')).replace(
        'runs/$HOSTNAME.ipynb', str(tmp_path/'$HOSTNAME.ipynb')).format(
        log=tmp_path/'metrics.log', done=tmp_path/'pid')
    env = environment(here) | dict(PATH=f'{Path(sys.executable).parent}:{os.environ["PATH"]}', HOSTNAME='pod-1')
    assert subprocess.run([*shell, line], env=env, cwd=tmp_path,
                          timeout=300).returncode == 0, (tmp_path/'metrics.log').read_text()[-3000:]
    assert (tmp_path/'pid').read_text() == 'completed\n'
    log, run = (tmp_path/'metrics.log').read_text(), runs.Run.open('baseline-001')
    names = ['AP', 'AP50', 'AP75']
    found = {k: sweep._parse_katib_log(log, names, k) for k in sweep._KATIB_FILTERS}
    assert found['now'] == found['2021'] == found['2020']
    ap = [float(v) for stamp, name, v in found['now'] if name == 'AP' and stamp]
    said = [float(v) for v in runs.read_csv(run.folder/'metrics.csv')['AP']]
    assert (len(ap) == len(said) + 1 and all(abs(a - b) < 1e-6 for a, b in zip(ap, said))
            and abs(ap[-1] - run.info['result']['AP']) < 1e-6)
    # nothing was read from a line without a time
    assert len(found['now']) == len([1 for s, *_ in found['now'] if s])


@pytest.mark.soak
def test_a_pod_that_fails_says_so(here, tmp_path):
    shell, line = filled(dict(lr0='0.01', bs='4'))
    line = line.replace('data=data/parking-challenge', 'data=nowhere').replace(
        'nbs/sweep.ipynb', str(ROOT/'nbs/sweep.ipynb')).replace('runs/$HOSTNAME', str(tmp_path/'out')).format(
        log=tmp_path/'metrics.log', done=tmp_path/'pid')
    env = environment(here) | dict(PATH=f'{Path(sys.executable).parent}:{os.environ["PATH"]}')
    assert subprocess.run([*shell, line], env=env, cwd=tmp_path,
                          timeout=300).returncode != 0 and not (tmp_path/'pid').exists()
    assert sweep._parse_katib_log((tmp_path/'metrics.log').read_text(), ['AP', 'AP50']) == [('', 'AP', 'unavailable')]


def strict(schema, definitions=None):
    "A published schema as one that lets nothing unknown through."
    if '$ref' in schema: return strict(definitions[schema['$ref'].rsplit('/', 1)[1]], definitions)
    if schema.get('x-kubernetes-int-or-string'): return {}
    out = {k: v for k, v in schema.items() if k in ('type', 'enum', 'required', 'pattern', 'minimum', 'maximum',
                                                    'maxLength', 'minLength')}
    if 'properties' in schema:
        out['properties'] = {k: strict(v, definitions) for k, v in schema['properties'].items()}
        if not schema.get('x-kubernetes-preserve-unknown-fields'): out['additionalProperties'] = False
    elif isinstance(schema.get('additionalProperties'), dict):
        out['additionalProperties'] = strict(schema['additionalProperties'], definitions)
    if 'items' in schema: out['items'] = strict(schema['items'], definitions)
    return out


@pytest.mark.soak
def test_the_published_schemas_take_it():
    """The CRD of TrainJob and the types of Katib, from checkouts that are not part of this repository: YOLOKIT_KUBEFLOW
    names a folder with katib's pkg/apis/v1beta1/swagger.json and trainer's
    manifests/base/crds/trainer.kubeflow.org_trainjobs.yaml."""
    where = os.environ.get('YOLOKIT_KUBEFLOW')
    if not where:
        pytest.skip('YOLOKIT_KUBEFLOW does not name a folder with swagger.json and trainer.kubeflow.org_trainjobs.yaml')
    e = experiment()
    crd = yaml.safe_load((Path(where)/'trainer.kubeflow.org_trainjobs.yaml').read_text())
    job = strict(crd['spec']['versions'][0]['schema']['openAPIV3Schema'])
    jsonschema.validate(e['spec']['trialTemplate']['trialSpec'], job)
    types = json.loads((Path(where)/'swagger.json').read_text())['definitions']
    types = types | {k: dict(type='object') for k in re.findall(r'#/definitions/([^"]+)',
                                                                json.dumps(types)) if k not in types}
    spec = dict(types['v1beta1.ExperimentSpec'])
    spec['properties'] = {k: v for k, v in spec['properties'].items()
                          if k not in ('nasConfig', 'trialTemplate', 'metricsCollectorSpec')} | {
        k: {} for k in ('trialTemplate', 'metricsCollectorSpec')}
    jsonschema.validate(e['spec'], strict(spec, types))
    template = {k: v for k, v in types['v1beta1.TrialTemplate']['properties'].items()
                if k not in ('trialSpec', 'configMap')} | dict(trialSpec={})
    jsonschema.validate(e['spec']['trialTemplate'], strict(dict(type='object', properties=template), types))
    collector = types['v1beta1.CollectorSpec']['properties'] | dict(customCollector={})
    jsonschema.validate(e['spec']['metricsCollectorSpec']['collector'],
                        strict(dict(type='object', properties=collector), types))
    for spoil in (lambda t: t['spec'].update(podTemplate={}), lambda t: t['spec']['trainer'].update(imagePull='x'),
                  lambda t: t['spec'].pop('runtimeRef')):
        bad = experiment()['spec']['trialTemplate']['trialSpec']
        spoil(bad)
        with pytest.raises(jsonschema.ValidationError): jsonschema.validate(bad, job)
