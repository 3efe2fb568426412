"The install lines of the Dockerfile, run in an empty environment."
import os, re, shutil, subprocess, sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
DOCKERFILE = (ROOT/'Dockerfile').read_text()
MODULES = sorted(f'yolokit.{p.parent.name}.{p.stem}' for p in (ROOT/'yolokit').glob('*/*.py') if p.stem[0] != '_')
CLEAN = {k: v for k, v in os.environ.items() if not k.startswith(('VIRTUAL_ENV', 'PYTHON', 'CONDA', 'MAKE', 'MFLAGS'))}


def test_dockerfile_says_what_it_must():
    assert 'gcc' in DOCKERFILE and 'fonts-nanum' in DOCKERFILE                   # torch.compile; Korean labels
    assert '--gpus all' in DOCKERFILE and '--shm-size' in DOCKERFILE
    # an ordinary user owns the environment
    assert DOCKERFILE.index('\nUSER yolo') < DOCKERFILE.index('\nRUN make setup')
    assert 'USER root' not in DOCKERFILE


def dockerfile_files():
    "What the COPY lines before `RUN make setup` bring into the image."
    head = DOCKERFILE[:DOCKERFILE.index('RUN make setup')]
    for line in re.findall(r'^COPY --chown=yolo (.*)$', head, re.M):
        *sources, to = line.split()
        yield from ((s, Path(to)/s if to.endswith('/') else Path(to)) for s in sources)


def test_a_wheel_holds_every_file_of_the_package(tmp_path):
    "The modules, the descriptions of formats, the app notebooks: what setuptools would put into it."
    says = ("from setuptools import Distribution; d = Distribution(dict(script_name='setup.py')); "
            "d.parse_config_files(['pyproject.toml']); c = d.get_command_obj('build_py'); c.ensure_finalized(); "
            "print(*c.get_outputs(False), sep='\\n')")
    done = subprocess.run([sys.executable, '-W', 'ignore', '-c', says], cwd=ROOT, capture_output=True, text=True)
    inside = {x.removeprefix('build/lib/') for x in done.stdout.splitlines()}
    there = {p.relative_to(ROOT).as_posix() for p in ROOT.glob('yolokit/**/*.*')
             if p.is_file() and '__pycache__' not in p.parts and p.name[0] != '.'}
    assert len(list(ROOT.glob('yolokit/data/described/*.yaml'))) >= 20
    assert there <= inside, sorted(there - inside)
    assert {f'yolokit/notebooks/{p.name}' for p in ROOT.glob('nbs/*.ipynb')} <= inside


@pytest.mark.soak
def test_dockerfile_install_lines_in_an_empty_environment(tmp_path):
    "Only what the Dockerfile copies, only what it runs, no environment beforehand; then every module imports."
    for source, to in dockerfile_files():
        (tmp_path/to).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT/source, tmp_path/to)
    folders, setup = re.findall(r'^RUN (mkdir -p nbs .*|make .*)$', DOCKERFILE, re.M)
    path = os.pathsep.join(p for p in CLEAN['PATH'].split(os.pathsep) if '.venv' not in p)
    subprocess.run(folders, shell=True, cwd=tmp_path, check=True)
    subprocess.run(setup.split(), cwd=tmp_path, env={**CLEAN, 'PATH': path, 'UV_LINK_MODE': 'hardlink'}, check=True)
    shutil.copytree(ROOT/'yolokit', tmp_path/'yolokit', dirs_exist_ok=True)
    run = lambda *a: subprocess.run([tmp_path/'.venv/bin'/a[0], *a[1:]], cwd=tmp_path, env=CLEAN, check=True,
                                    capture_output=True, text=True).stdout
    run('python', '-c', 'import ' + ', '.join(MODULES))
    assert 'nbdev_test' in run('nbdev_test', '--help') and '2.7' in run('papermill', '--version')


@pytest.mark.soak
@pytest.mark.parametrize('python,torch', [('3.12', '2.11.0'), ('3.13', '2.15.0')])
def test_library_alone_on_other_versions(tmp_path, python, torch):
    "GPU nodes lag behind: the runtime dependencies only, Python 3.12 with torch 2.11, and the newest Python at hand."
    uv = [sys.executable, '-m', 'uv']
    if subprocess.run([*uv, 'venv', '--python', python, tmp_path/'v'], capture_output=True).returncode:
        pytest.skip(f'no Python {python} on this machine')
    vision = {'2.11.0': 'torchvision==0.26.0'}.get(torch, 'torchvision')
    subprocess.run([*uv, 'pip', 'install', '-q', '--python', tmp_path/'v/bin/python', f'torch=={torch}', vision, ROOT],
                   check=True, env=CLEAN)
    program = 'import torch, ' + ', '.join(MODULES) + '''
from yolokit.network import zoo, model
maps = model.Detector(zoo.build('yolokit-nano', classes=3))(torch.zeros(1, 3, 256, 416))
print(torch.__version__, len(maps))'''
    done = subprocess.run([tmp_path/'v/bin/python', '-c', program], cwd=tmp_path, capture_output=True, text=True,
                          env=CLEAN)
    assert done.returncode == 0 and torch in done.stdout, done.stderr[-1500:]
