"Detection in parts: killed anywhere and begun again, on any number of processes, in any shape: the same table."
import os
import random
import shutil
import signal
import subprocess
import sys
import time
import numpy as np
import psutil
import pytest
import torch
from yolokit.core import rng
from yolokit.core.images import write_image
from yolokit.evaluation.results import results_text
from yolokit.inference import parts
from yolokit.inference.detect import detect
from yolokit.inference.ensemble import Ensemble
from yolokit.network.model import Detector
from yolokit.network.zoo import build

HOW = dict(size=(96, 96), bs=2, conf=1e-4, workers=0)

@pytest.fixture(scope='module')
def net():
    torch.set_num_threads(1)
    return Detector(build('yolokit-nano', classes=2), names=['차', '사람'], seed=3).eval()

@pytest.fixture(scope='module')
def shots(tmp_path_factory):
    to = tmp_path_factory.mktemp('사진')
    for k in range(24):
        h, w = [(48, 64), (64, 48), (20, 90)][k % 3]
        write_image(to/f'{k:02d}.png', rng.rng(k).integers(0, 256, (h, w, 3)).astype(np.uint8))
    (to/'07b.png').write_bytes(b'no picture')
    return to

def asked(net, shots, to, n=0, **kw): return results_text(parts.detect_in_parts(net, shots, to, n, **HOW | kw))

def killed(work, after): # was it killed before it was done?
    "A forked process that works, and is killed with signal 9."
    pid = os.fork()
    if not pid:
        try: work()
        finally: os._exit(0)
    time.sleep(after)
    os.kill(pid, signal.SIGKILL)
    return os.WIFSIGNALED(os.waitpid(pid, 0)[1])

def kill_often(net, shots, to, times, **kw):
    want = asked(net, shots, to/'whole', **kw)
    draw, hits, begun = random.Random(0), 0, time.monotonic()
    asked(net, shots, to/'timed', **kw)
    takes = time.monotonic() - begun
    while hits < times:
        shutil.rmtree(to/'cut', ignore_errors=True)
        while killed(lambda: asked(net, shots, to/'cut', **kw), draw.uniform(0, takes)):
            hits += 1
            if hits % 4 == 0: break
        assert asked(net, shots, to/'cut', **kw) == want
    assert not list((to/'cut').glob('parts-*/.*.part')) or hits

def test_killed_and_begun_again_is_the_same_table(net, shots, tmp_path): kill_often(net, shots, tmp_path, 4)

@pytest.mark.soak
@pytest.mark.parametrize('kw', [{}, dict(rectangles=True), dict(tta=True), dict(workers=2)])
def test_killed_twenty_times(net, shots, tmp_path, kw): kill_often(net, shots, tmp_path, 20, **kw)

def test_in_parts_is_detect(net, shots, tmp_path):
    for kw in (dict(tta=True), dict(mode='stretch', workers=3)):
        assert asked(net, shots, tmp_path, **kw) == results_text(detect(net, shots, **HOW | kw)), kw

def test_other_questions_have_other_parts(net, shots, tmp_path):
    first = asked(net, shots, tmp_path)
    assert asked(net, shots, tmp_path, conf=.01) != first
    other = Detector(net.cfg, net.names, seed=4).eval()
    assert asked(other, shots, tmp_path) != first
    assert asked(net, shots, tmp_path) == first

def test_an_ensemble_in_parts(net, shots, tmp_path):
    both = Ensemble([net, Detector(net.cfg, net.names, seed=4).eval()])
    assert asked(both, shots, tmp_path) == results_text(detect(both, shots, **HOW))

def test_a_rectangle_holds_the_picture(net, shots, tmp_path):
    slim = parts.detect_in_parts(net, shots, tmp_path, rectangles=True, **HOW | dict(size=(128, 128)))
    b, w = slim.boxes, {int(i) for i in slim.boxes['image']}
    assert w == set(range(25)) - {8} and (np.diff(b['image']) >= 0).all() and slim.extra['detect']['rectangles']

@pytest.mark.soak
def test_processes_killed_and_any_number_of_them(net, shots, tmp_path):
    want = asked(net, shots, tmp_path/'one', 1)
    assert want == asked(net, shots, tmp_path/'none')
    for n in (2, 4): assert want == asked(net, shots, tmp_path/f'{n}', n, workers=n % 3)
    torch.save(net, tmp_path/'net.pt')
    code = ('import sys, torch; from yolokit.inference.parts import detect_in_parts; '
            f'net = torch.load(sys.argv[1], weights_only=False); torch.set_num_threads(1); '
            f'detect_in_parts(net, sys.argv[2], sys.argv[3], 2, **{HOW})')
    for k in range(3):
        p = subprocess.Popen([sys.executable, '-c', code, tmp_path/'net.pt', shots, tmp_path/'cut'])
        while p.poll() is None and len(list((tmp_path/'cut').glob('parts-*/*.npz'))) < 3*k + 1: time.sleep(.01)
        p.kill()
        p.wait()
    assert asked(net, shots, tmp_path/'cut', 2) == want

@pytest.mark.soak
def test_five_hundred_calls_leave_memory_flat(net, shots):
    "At most 2 % more after the first tenth."
    held = []
    for k in range(500):
        detect(net, shots, **HOW | dict(bs=16))
        held.append(psutil.Process().memory_info().rss)
    assert max(held[50:]) <= 1.02*max(held[:50]), (max(held[:50]), max(held[50:]))
