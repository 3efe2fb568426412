"A capsule of a real run: changed in fifty ways, trained again here, and (soak) in an environment of its own."
import json, os, random, shutil, subprocess, sys, zipfile
from pathlib import Path
import pytest
from small import unjudged
from yolokit.apps import capsule
from yolokit.apps.capsule import CapsuleConfig, run_capsule
from yolokit.apps.train import train, TrainConfig

TINY = dict(data='squares', network='tiny.cfg', weights='none', recipe='scratch', stage='baseline', bs=4, workers=0,
            threads=1, device='cpu', amp='off')
CHECKOUT = Path(__file__).parents[2]


@pytest.fixture(scope='module')
def sent(root):
    "A run, and its capsule with the data in it."
    with pytest.MonkeyPatch.context() as m:
        unjudged(m)
        run = train(TrainConfig(**TINY, steps=4, name='보낸것'))
    return run, run_capsule(CapsuleConfig(run=run.name, data=True))


def members(path: Path) -> dict: # name: bytes
    with zipfile.ZipFile(path) as z: return {n: z.read(n) for n in z.namelist()}


def packed(files: dict, path: Path, folder: Path) -> Path:
    "The members as a capsule is packed."
    for n, x in files.items():
        (folder/n).parent.mkdir(parents=True, exist_ok=True)
        (folder/n).write_bytes(x)
    capsule._pack(folder, path)
    shutil.rmtree(folder)
    return path


def sealed(files: dict) -> dict:
    "A forger's: the manifest and the seal are made to fit."
    info = json.loads(files['capsule.json'])
    digests = {n: capsule.hashlib.sha256(x).hexdigest() for n, x in files.items() if n not in ('capsule.json', 'SEAL')}
    files['capsule.json'] = json.dumps(info | dict(files=digests)).encode()
    files['SEAL'] = capsule.hashlib.sha256(files['capsule.json']).hexdigest().encode()
    return files


def changed(path: Path, out: Path, seed: int) -> tuple: # how; what has to be named
    "A capsule that somebody changed."
    draw, raw, files = random.Random(seed), path.read_bytes(), members(path)
    rest = sorted(files.keys() - {'SEAL', 'capsule.json'})
    how = 'bit cut swapped added removed renamed byte tail sealed seal'.split()[seed % 10]
    a, b = draw.sample([n for n in rest if len(files[n]) > 1], 2)
    while files[a] == files[b]: b = draw.choice(rest)
    if how == 'bit':                                       # somewhere in the archive, its headers included
        at = draw.randrange(len(raw))
        return how, out.write_bytes(raw[:at] + bytes([raw[at] ^ 1 << draw.randrange(8)]) + raw[at + 1:]) and ''
    if how == 'cut': return how, out.write_bytes(raw[:draw.randrange(1, len(raw))]) and out.name
    if how == 'tail': return how, out.write_bytes(raw + b'\0') and out.name
    if how == 'swapped': files[a], files[b] = files[b], files[a]
    if how == 'added': a = f'{a}.more'; files[a] = b'more'
    if how == 'removed': del files[a]
    if how == 'renamed': files[f'{a}x'] = files.pop(a)
    if how == 'byte':
        at = draw.randrange(len(files[a]))
        files[a] = files[a][:at] + bytes([files[a][at] ^ 255]) + files[a][at + 1:]
    if how == 'sealed': files[a] += b' '; files = sealed(files)   # found by the seal that the sender gave
    if how == 'seal': files['SEAL'] = files['SEAL'][::-1]
    packed(files, out, out.with_suffix(''))
    return how, dict(sealed='seal: ', seal='SEAL').get(how, a)


def test_fifty_changed_capsules_are_named(sent, tmp_path):
    run, path = sent
    seal, names = members(path)['SEAL'].decode(), members(path).keys()
    assert capsule._verify_capsule(path, tmp_path/'whole', seal)[1] == []
    assert json.loads((tmp_path/'whole/capsule.json').read_text())['weights_sha256'] == run.info['weights_sha256']
    for seed in range(50):
        how, what = changed(path, tmp_path/'b.zip', seed)
        wrong = capsule._verify_capsule(tmp_path/'b.zip', tmp_path/'o', seal)[1]
        said = '\n'.join(wrong)
        assert wrong and what in said, (seed, how, what, said)
        assert any(n in said for n in (*names, 'b.zip', 'seal: ')), (seed, how, said)
        shutil.rmtree(tmp_path/'o', ignore_errors=True)


def test_the_app_refuses_what_was_changed_and_makes_no_run(sent, root):
    _, path = sent
    files = members(path)
    files['run/run.json'] += b' '
    bad = packed(files, root/'bad.zip', root/'bad')
    with pytest.raises(ValueError, match='bad.zip is not what was sent:\nrun/run.json: its bytes'):
        run_capsule(CapsuleConfig(replay=str(bad)))
    assert run_capsule(CapsuleConfig(replay=str(path), check=True)) is None
    assert {p.name for p in (root/'runs').iterdir() if (p/'run.json').is_file()} == {'보낸것'}
    with pytest.raises(ValueError, match='is there already'): run_capsule(CapsuleConfig(run='보낸것'))


def test_trained_again_the_weights_are_the_same(sent, root, monkeypatch):
    run, path = sent
    unjudged(monkeypatch)
    again = run_capsule(CapsuleConfig(replay=str(path)))
    report = json.loads((again.folder/'replay.json').read_text())
    assert report['same'] and again.info['weights_sha256'] == run.info['weights_sha256'] and report['different'] == []
    assert again.info['data']['folder'] != run.info['data']['folder']            # the data of the capsule


def test_another_picture_or_package_is_named(sent, root, monkeypatch):
    run, _ = sent
    unjudged(monkeypatch)
    small = run_capsule(CapsuleConfig(run=run.name, out=str(root/'hashes.zip')))
    image = root/'squares/images/train/train3.png'
    was = image.read_bytes()
    shutil.copyfile(root/'squares/images/train/train4.png', image)
    with pytest.raises(ValueError, match='data .*train3.png: other bytes'):
        run_capsule(CapsuleConfig(replay=str(small)))
    image.write_bytes(was)
    real = capsule._here
    def elsewhere(dev):
        here = real(dev)
        packages = here['packages'] | dict(numpy=dict(version='1.0', sha256='0'*64))
        return here | dict(instructions='NONE', packages=packages)
    monkeypatch.setattr(capsule, '_here', elsewhere)
    real_train = capsule.train
    monkeypatch.setattr(capsule, 'train', lambda c: real_train(TrainConfig(**vars(c) | dict(seed=1))))
    with pytest.raises(ValueError, match='the weights are not those') as e:
        run_capsule(CapsuleConfig(replay=str(small)))
    assert 'package numpy' in str(e.value) and 'instruction set' in str(e.value)


FRESH = '''
import sys
from pathlib import Path
from yolokit.apps.capsule import CapsuleConfig, run_capsule
run = run_capsule(CapsuleConfig(replay=sys.argv[1], seal=sys.argv[2]))
print(run.info['weights_sha256'])
'''


@pytest.mark.soak
def test_replayed_in_a_fresh_environment(sent, tmp_path):
    "A folder with the capsule only, an environment with the packages that it names only: the same sha256."
    run, path = sent
    info = json.loads(members(path)['capsule.json'])
    wheels = [f'{n}=={p["version"]}' for n, p in info['here']['packages'].items()]
    python, uv = tmp_path/'v/bin/python', [sys.executable, '-m', 'uv']
    clean = {k: v for k, v in os.environ.items() if not k.startswith(('VIRTUAL_ENV', 'PYTHON', 'YOLOKIT'))}
    subprocess.run([*uv, 'venv', '-q', '--python', info['here']['python'], tmp_path/'v'], check=True, env=clean)
    subprocess.run([*uv, 'pip', 'install', '-q', '--python', python, *wheels, CHECKOUT], check=True, env=clean)
    shutil.copyfile(path, tmp_path/'capsule.zip')
    (tmp_path/'replay.py').write_text(FRESH)
    (tmp_path/'root').mkdir()
    env = clean | dict(YOLOKIT_ROOT=str(tmp_path/'root'))
    (tmp_path/'root/settings.ini').write_text('[DEFAULT]\n')
    done = subprocess.run([python, tmp_path/'replay.py', tmp_path/'capsule.zip', members(path)['SEAL'].decode()],
                          cwd=tmp_path, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-3000:]
    assert done.stdout.split()[-1] == run.info['weights_sha256']
