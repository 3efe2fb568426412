"A network through every export: the reference that tests of networks and of pruning share."
import copy
import tempfile
from pathlib import Path

import torch

from yolokit.network.cfg import Cfg
from yolokit.network.model import Detector
from yolokit.export import compatibility
from yolokit.export.bundles import _probe_inputs, _try_onnx, relative, smooth_noise, _write_darknet
from yolokit.export.lowering import lower_to_darknet
from yolokit.export.onnx_graph import build_onnx


@torch.no_grad()
def roundtrip(detector: Detector) -> dict: # export → worst difference of the maps, relative to their scale
    "A network through every export, in a temporary folder."
    d = copy.deepcopy(detector).double().eval()
    plain, done = lower_to_darknet(d)
    x = smooth_noise(1, d.cfg.net.int('channels', 3), *d.size[::-1]).double()
    maps = d(x, logits=True)
    out = dict(layers=len(d.layers), plain=len(plain.layers), float64=relative(plain(x, logits=True), maps),
               folded=relative(d.fuse()(x, logits=True), maps))
    del d, plain
    with tempfile.TemporaryDirectory() as folder:
        e = _write_darknet(detector, folder)
        out |= dict(files=e.worst('files read back')[0], opencv=e.worst('opencv')[0], notes=e.notes)
        again, name = Detector(Cfg.read(e.files[0])), detector.cfg.name
        seen, plan = compatibility.deepstream(again.cfg), again.cfg.plan()
        floats = (e.files[1].stat().st_size - 20)//4
        fits = not seen.problems and seen.inputs == [l.inputs for l in plan] and seen.floats == floats
        path = Path(folder)/f'{name}.onnx'
        path.write_bytes(build_onnx(detector, 'raw').SerializeToString())
        _try_onnx(e, path, detector, _probe_inputs(detector), 'raw')
    verdict = 'reads it' if fits else str(seen.problems[:1] or 'misreads it')
    return out | dict(onnx=e.worst('onnxruntime')[0], deepstream=verdict)
