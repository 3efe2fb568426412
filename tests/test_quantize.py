"int8 against others: onnxruntime's own quantiser, the played network, networks of every kind; faults, training, bundles."
import json, sys
from dataclasses import replace

import numpy as np
import pytest
import torch

from small import CFG, checkout
from yolokit import export, formats, qat as qa, quantize as qz, tensorrt as trt, zoo
from yolokit.cfg import Cfg
from yolokit.graph import graph, need
from yolokit.images import write
from yolokit.model import Detector, state_hash
from yolokit.runs import Run, exact
from yolokit.weights import load_checkpoint


@torch.no_grad()
def lively(cfg, n=8, seed=0):
    "A detector whose BatchNorms have seen pictures, and those pictures one by one."
    d, g = Detector(cfg, seed=seed), torch.Generator().manual_seed(seed)
    x = torch.cat([export.blobs(1, 3, *d.size[::-1], s) for s in range(n)])
    for m in d.modules():
        if isinstance(m, torch.nn.BatchNorm2d): m.momentum = 1; m.weight.uniform_(.7, 1.3, generator=g); m.bias.normal_(.3, .3, generator=g)
    d.train()(x)
    for h in d.heads: d.layers[h.conv].conv.bias.normal_(0, 1, generator=g)
    return d.eval(), [v[None].numpy() for v in x]


def tiny(**kw): return lively(Cfg.parse(CFG), **kw)


@pytest.mark.parametrize('name', ['yolov4-tiny', 'yolokit-nano'])
def test_kinds_of_networks(name):
    "Leaky and groups, SiLU: valid files of both targets whose maps stay near, fully int8 convolutions, the parent untouched."
    d, xs = lively(zoo.build(name, 3).with_size(64, 64), 6)
    before = state_hash(d)
    convs = sum(n.op_type == 'Conv' for n in graph(d, 'raw').graph.node)
    for target in qz.TARGETS[:2 if name == 'yolokit-nano' else 1]:
        c = qz.calibrate(d, xs, target)
        q = c.quantised()
        need().checker.check_model(q, full_check=True)
        assert len(c.layers) == convs and c.noises[c.method] < .2, c.noises
        kinds = {t.name: t.data_type for t in q.graph.initializer}
        zeros = [n.input[2] for n in q.graph.node if n.op_type == 'QuantizeLinear']
        assert {kinds[z] for z in zeros} == {2 if target == 'onnxruntime' else 3}            # uint8, int8
        if target == 'tensorrt': assert all(g.zero == 0 for g in c.plan.values()) and not any(t.name.endswith('_bias_q') for t in q.graph.initializer)
    assert state_hash(d) == before


@pytest.mark.parametrize('act', ['mish', 'relu', 'hardswish', 'linear'])
def test_activations_without_a_kernel_of_their_own(act):
    "They are computed in float between two grids, and the report says so."
    d, xs = lively(Cfg.parse(CFG.replace('leaky', act)))
    c = qz.calibrate(d, xs)
    nodes = qz.int8_nodes(c.model)
    assert c.noises[c.method] < .02 and qz.noise(c.quantised(), c.xs, c.wanted) == c.noises[c.method]
    assert bool(qz.left_out(c.model, nodes, 'onnxruntime')) == (act != 'linear') and {n.op_type for n in nodes} <= {'Conv', *qz.CARRY}
    assert qa.apart(qa.fake(d, c), c.quantised(), xs)[1] < .03


@pytest.mark.soak
@pytest.mark.parametrize('name', zoo.names())
def test_the_zoo(name):
    d, xs = lively(zoo.build(name, 3).with_size(128, 128), 4)
    c = qz.calibrate(d, xs)
    need().checker.check_model(c.quantised(), full_check=True)
    # noise adds up with depth: with random weights the two deepest, all in Mish, have .33 and .50 (p6 at 256: .35, so it is not the size)
    assert c.noises[c.method] < {'yolov4-p6': .4, 'yolov4-p7': .6}.get(name, .3), c.noises


def test_against_onnxruntimes_quantiser(tmp_path):
    "The same float file, ranges by minimum and maximum: our file is as near as theirs, and as small."
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
    d, xs = tiny()
    m = graph(d, 'raw')
    (tmp_path/'f.onnx').write_bytes(m.SerializeToString())
    class Reader(CalibrationDataReader):
        rows = iter([{'input': x} for x in xs])
        def get_next(self): return next(self.rows, None)
    quantize_static(tmp_path/'f.onnx', tmp_path/'q.onnx', Reader(), quant_format=QuantFormat.QDQ, per_channel=True, activation_type=QuantType.QUInt8, weight_type=QuantType.QInt8)
    theirs = need().load(tmp_path/'q.onnx')
    names = qz.tensors(m, qz.int8_nodes(m))
    plan = qz.shared_grids({t: qz.grid(*qz.minmax(h, ''), 'onnxruntime') for t, h in qz.observe(m, names, xs).items()}, qz.int8_nodes(m))
    ours, ref = qz.insert(m, plan), qz.maps_of(m, xs)
    assert qz.noise(ours, xs, ref) <= 1.1*qz.noise(theirs, xs, ref)
    assert ours.ByteSize() <= 1.1*theirs.ByteSize()
    a = {t.name: need().numpy_helper.to_array(t) for t in theirs.graph.initializer}
    b = {t.name: need().numpy_helper.to_array(t) for t in ours.graph.initializer}
    same = [k for k in b if k.endswith('_q') and k in {n.replace('_quantized', '_q') for n in a}]
    for k in same: assert np.abs(a[k.replace('_q', '_quantized')].astype(int) - b[k]).max() <= 1, k


@pytest.mark.parametrize('target', qz.TARGETS)
def test_each_layer_played_is_the_files(target, monkeypatch):
    "Given the same input, a played layer and ONNX Runtime's give the same integers, but for one in ten thousand, and then the next one."
    d, xs = lively(zoo.build('yolokit-nano', 3).with_size(160, 96), 4)
    c = qz.calibrate(d, xs, target)
    f, q = qa.fake(d, c).eval(), c.quantised()
    names = list(f.plan)
    q.graph.output.extend(need().helper.make_tensor_value_info(f'{t}_dq', 1, None) for t in names)
    got = dict(zip(names, export.session(q.SerializeToString()).run([f'{t}_dq' for t in names], {'input': xs[0]})))
    flips, plain = {}, qa.Fake.round
    def taught(self, name, x):
        y = plain(self, name, x)
        if name not in got: return y
        far = np.abs(y.detach().numpy() - got[name])/self.plan[name].scale
        flips[name] = float((far > .5).mean()), float(far.max())
        return torch.from_numpy(got[name])
    monkeypatch.setattr(qa.Fake, 'round', taught)
    with torch.no_grad(): f(torch.from_numpy(xs[0]))
    assert set(flips) == set(names), set(names) - set(flips)
    assert max(v for v, _ in flips.values()) <= 1e-3 and np.mean([v for v, _ in flips.values()]) <= 1e-4, flips
    assert max(v for _, v in flips.values()) < 1.01


def test_dead_channels_and_large_biases():
    "A channel of zeros keeps its bias, and no bias leaves int32."
    d, xs = tiny()
    conv = d.fuse().layers[1].conv
    with torch.no_grad(): conv.weight[3] = 0; conv.bias[3] = 7.; conv.weight[4] *= 1e-9
    c = qz.calibrate(d, xs)
    assert c.noises[c.method] < .1
    q = {t.name: need().numpy_helper.to_array(t) for t in c.quantised().graph.initializer}
    np.testing.assert_allclose(q['1_Conv_bias_q']*q['1_Conv_bias_scale'].astype(float), conv.bias.detach(), atol=1e-4)


def test_layers_in_float():
    d, xs = tiny()
    c = qz.calibrate(d, xs)
    ops = lambda m: [n.op_type for n in m.graph.node]
    assert 'QuantizeLinear' not in ops(c.quantised(c.layers)) and qz.noise(c.quantised(c.layers), xs, qz.maps_of(c.model, xs)) == 0
    costs = qz.sensitivity(c)
    assert sorted(costs) == c.layers and list(costs.values()) == sorted(costs.values(), reverse=True)
    left = list(costs)[:1]
    assert qz.noise(c.quantised(left), c.xs, c.wanted) < c.noises[c.method]
    # an AP that is noise turned round: the search takes what reaches the goal, and the best where nothing does
    score = lambda r: 1 - 1e3*np.mean([((a.numpy() - b)**2).mean() for x, w in zip(c.xs, c.wanted) for a, b in zip(r(torch.from_numpy(x)), w)])
    whole = score(qz.Runtime(c.quantised(), d))
    assert qz.search(c, score, d, goal=whole - 1e-9)[0] == []
    floats, history = qz.search(c, score, d, goal=2, budget=2)
    assert len(history) == 3 and floats == max(history, key=lambda h: h[1])[0]
    with pytest.raises(qz.CalibrationError, match='finds nothing'): qz.search(c, lambda r: 0., d)


def test_offered_only_where_it_wins(tmp_path):
    d, xs = tiny()
    c = qz.calibrate(d, xs, 'tensorrt')
    r = qz.shipped(d, c, c.layers, tmp_path/'a')
    assert not r.offer['offered'] and 'neither' in r.offer['says'] and [f.name for f in (tmp_path/'a').iterdir()] == [f'{d.cfg.name}.onnx']
    r = qz.shipped(d, c, [], tmp_path/'b')
    assert 'small' in r.offer['says'] and r.offer['faster'] is None and len(r.files) == 2 == len(list((tmp_path/'b').iterdir()))


def test_bad_input(tmp_path, monkeypatch):
    d, xs = tiny()
    before = state_hash(d)
    for name in 'abc': (tmp_path/name).mkdir()
    for i in range(3): write(tmp_path/f'b/{i}.png', np.zeros((96, 96, 3), np.uint8))
    for i in range(9): (tmp_path/f'c/{i}.jpg').write_bytes(b'\xff\xd8 broken')
    out = tmp_path/'out'
    with pytest.raises(Exception, match='gone'): qz.ptq(d, tmp_path/'gone', out)
    with pytest.raises(Exception, match='no image|none|no calibration'): qz.ptq(d, tmp_path/'a', out)
    with pytest.raises(qz.CalibrationError, match='3 readable.*at least 8'): qz.ptq(d, tmp_path/'b', out)
    with pytest.raises(qz.CalibrationError, match='0 readable.*Unreadable'): qz.ptq(d, tmp_path/'c', out)
    with pytest.raises(ValueError, match='onnxruntime, tensorrt'): qz.ptq(d, xs, out, 'openvino')
    grey = Detector(Cfg.parse(CFG.replace('channels=3', 'channels=1')))
    with pytest.raises(qz.CalibrationError, match='takes 1 channels'): qz.ptq(grey, tmp_path/'b', out)
    broken = Detector(d.cfg)
    with torch.no_grad(): broken.layers[0].conv.weight[0] = np.nan
    with pytest.raises(qz.CalibrationError, match='not finite'): qz.ptq(broken, xs, out)
    with pytest.raises(qz.CalibrationError, match='no range'): qz.insert(graph(d, 'raw'), {})
    monkeypatch.setitem(sys.modules, 'onnxruntime', None)
    with pytest.raises(ImportError, match='yolokit.export'): qz.ptq(d, xs, out)
    assert not list(out.glob('*')) and state_hash(d) == before


def test_training_for_it(tmp_path, monkeypatch):
    "A few steps on squares: the same bits twice, the parent untouched, and a file with exactly the grids it was trained with."
    monkeypatch.setenv('YOLOKIT_ROOT', str(checkout(tmp_path)))
    train = formats.read(tmp_path/'squares').split('train')
    d, hashes = Detector(Cfg.parse(CFG), seed=0).eval(), []
    before = state_hash(d)
    c = qz.calibrate(d, train, n=12)
    for k in range(2):
        run = Run.new('qat', folder=tmp_path/'runs', seed=0)
        with exact(1): best, c2 = qa.qat(run, d, c, train, recipe=replace(qa.QAT, steps=5, bs=8, lr0=.01), workers=0)
        hashes.append(state_hash(best))
    assert hashes[0] == hashes[1] and state_hash(d) == before != hashes[0]
    assert not any('running' in k for k in best.state_dict()) and state_hash(load_checkpoint(run.folder/'weights/best.pt')) == hashes[0]
    target, plan, floats = qa.read_plan(run.folder/'grids.json')
    assert (target, plan, floats) == ('onnxruntime', c.plan, [])
    q = {t.name: need().numpy_helper.to_array(t) for t in qz.insert(graph(best, 'decoded'), plan).graph.initializer}
    for t in qz.tensors(c2.model, qz.int8_nodes(c2.model)): assert q[f'{t}_scale'] == np.float32(c.plan[t].scale) and q[f'{t}_zero'] == c.plan[t].zero
    share, worst = qa.apart(qa.fake(best, c2), c2.quantised(), c2.xs)
    assert share < .05 and worst < .1
    with pytest.raises(qz.CalibrationError, match='no boxes'): qa.qat(run, d, c, train.keep([]))


@pytest.mark.parametrize('via', ['qdq', 'table'])
def test_deepstream(tmp_path, via):
    d, xs = tiny()
    c = qz.calibrate(d, xs, 'tensorrt')
    e = trt.to_deepstream(d, tmp_path, c, via=via)
    own = export.read_config(tmp_path/'config_infer_primary.txt')['property']
    ops = {n.op_type for n in need().load(tmp_path/own['onnx-file']).graph.node}
    assert own['network-mode'] == '1' and 'int8' in own['model-engine-file'] and ('QuantizeLinear' in ops) == (via == 'qdq')
    assert any('not run in it' in t for t in e.done)
    if via == 'table':
        table = trt.read_table(tmp_path/own['int8-calib-file'])
        model = need().load(tmp_path/own['onnx-file'])
        assert set(table) <= {'input', *(t for n in model.graph.node for t in n.output)} and table['input'] <= 1 and f'{d.heads[0].conv}_Conv' in table
        dropped = trt.tops(c, [1])
        assert not any(t.startswith('1_') for t in dropped) and any(t.startswith('2_') for t in dropped)
    with pytest.raises(ValueError, match="target='tensorrt'"): trt.to_deepstream(d, tmp_path/'b', qz.calibrate(d, xs))
    with pytest.raises(ValueError, match='up to 10'): trt.to_deepstream(d, tmp_path/'b', c, version='11.4.0')
