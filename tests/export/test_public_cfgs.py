"""What five runtimes really do with public cfgs, against `check_compatibility`.

Soak: YOLOKIT_CFGS names a folder of .cfg files (any depth), YOLOKIT_DARKNET and YOLOKIT_DARKNET_V5 the compiled
Darknets. YOLOKIT_CFGS_LOG keeps the answers, one json a line, so that a stopped campaign goes on where it was."""
import hashlib
import json
import os
import subprocess
import sys
from collections import Counter
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch

from yolokit.network.cfg import Cfg, CfgError
from yolokit.network.model import Detector
from yolokit.export import bundles
from yolokit.export.compatibility import check_compatibility
from yolokit.export.onnx_graph import build_onnx
from yolokit.export.openvino_ncnn import _build_ncnn, ncnn_runner, openvino_runner
from darknets import DARKNETS

FOLDER, LOG = os.environ.get('YOLOKIT_CFGS'), os.environ.get('YOLOKIT_CFGS_LOG')
MOST = 8e6 # parameters of a network that is built here


def in_darknet(where, path): # → '' or its words
    "Reading the cfg alone."
    done = subprocess.run([sys.executable, Path(__file__).resolve().with_name('darknets.py'), 'load', where, path],
                          capture_output=True, timeout=300, cwd=where)    # a tree=data/9k.tree is in its folder
    said = (done.stdout + done.stderr).decode('utf-8', 'replace')
    return '' if done.returncode == 0 else said[-300:] or f'exit code {done.returncode}'


def in_opencv(path, cfg, tmp):
    "Read with weights of zeros, and each layer's shape asked for: what it refuses at the first picture is refused too."
    import cv2
    zeros = tmp/'zeros.weights'
    if not zeros.exists():
        zeros.write_bytes(np.array([0, 2, 5, 0, 0], np.int32).tobytes())
        os.truncate(zeros, 2**30)                                 # takes no room on the disk
    shape = [1, cfg.net.int('channels', 3), cfg.net.int('height', 416), cfg.net.int('width', 416)]
    try: cv2.dnn.readNetFromDarknet(str(path), str(zeros)).getFLOPS(shape)
    except cv2.error as e: return e.err or str(e)
    return ''


def through(detector, target, tmp): # → '' or why not
    "ONNX Runtime, OpenVINO or ncnn: built, loaded and run once."
    w, h = detector.size
    x = np.zeros((1, detector.cfg.net.int('channels', 3), h, w), np.float32)
    try:
        if target == 'onnx': bundles.onnx_session(build_onnx(detector, 'raw')).run(None, {'input': x})
        elif target == 'openvino': openvino_runner(build_onnx(detector, 'raw').SerializeToString())(x)
        else:
            text, numbers = _build_ncnn(detector)
            (tmp/'n.param').write_text(text), (tmp/'n.bin').write_bytes(numbers)
            ncnn_runner(tmp/'n.param')(x)
    except Exception as e: return f'{type(e).__name__}: {e}'[:300] or type(e).__name__
    return ''


def answers(path, tmp): # → {target: [said by the check, '' or why the runtime refused it]}
    "One cfg in every runtime that is here."
    data = path.read_bytes()
    try: cfg = Cfg.read(path)
    except (CfgError, ValueError): return {}                    # no cfg at all
    out, here = {}, {t: os.environ[v] for t, v in DARKNETS.items() if os.environ.get(v)}
    said = lambda t: sorted({f.found for f in check_compatibility(cfg, t) if f.effect == 'rejected'})
    for target, where in here.items(): out[target] = [said(target), in_darknet(where, path)]
    out['opencv'] = [said('opencv'), in_opencv(path, cfg, tmp)]
    others = ['onnx'] + [t for t in ('openvino', 'ncnn') if find_spec(t)]
    try:
        with torch.device('meta'): params = sum(p.numel() for p in Detector(cfg).parameters())
        if params > MOST: return out
        small = cfg if cfg.net.int('width', 0) <= 256 else cfg.with_size(256, 256)
        detector = Detector(small).eval()
    except (CfgError, ValueError) as e:
        return out | {t: [said(t), f'not built: {e}'[:300]] for t in others}
    return out | {t: [said(t), through(detector, t, tmp)] for t in others}


@pytest.mark.soak
@pytest.mark.skipif(not FOLDER, reason='no folder of cfgs in YOLOKIT_CFGS')
def test_every_refusal_is_foretold(tmp_path):
    log = Path(LOG) if LOG else tmp_path/'answers.jsonl'
    seen = dict(json.loads(line) for line in log.read_text().splitlines()) if log.exists() else {}
    distinct = {hashlib.md5(p.read_bytes()).hexdigest(): p for p in sorted(Path(FOLDER).rglob('*.cfg'))}
    with log.open('a') as f:
        for key, path in sorted(distinct.items(), key=lambda k: k[1].stat().st_size):
            if key in seen: continue
            seen[key] = dict(path=str(path), answers=answers(path, tmp_path))
            f.write(json.dumps([key, seen[key]]) + '\n')
            f.flush()
    missed, false, counts = [], [], Counter()
    for key, path in distinct.items():
        for target, (said, why) in seen[key]['answers'].items():
            counts[target] += 1
            if why and not said: missed.append((path.name, target, why))
            if said and not why: false.append((path.name, target, said))
    print(len(distinct), dict(counts), len(missed), len(false))
    for row in missed + false: print(row)
    assert not missed and len(false) <= .02*sum(counts.values())
