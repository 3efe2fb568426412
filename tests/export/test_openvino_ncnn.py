"""OpenVINO's and ncnn's files, where the packages are installed. The whole zoo: test_darknets.py (soak)."""
import pytest
import torch

from yolokit.network import zoo
from yolokit.network.cfg import Cfg
from yolokit.network.model import Detector
from yolokit.export.bundles import ExportError
from yolokit.export.lowering import lower_to_darknet
from yolokit.export.openvino_ncnn import _build_ncnn, to_ncnn, to_openvino
from test_export import calibrated, some_cfg

EXPORTS = dict(openvino=to_openvino, ncnn=to_ncnn)


@pytest.mark.parametrize('package', EXPORTS)
@pytest.mark.parametrize('seed', range(4))
def test_random_networks(package, seed, tmp_path):
    pytest.importorskip(package)
    e = EXPORTS[package](calibrated(some_cfg(seed), seed), tmp_path)
    assert e.worst()[0] <= 1e-4, str(e)


def test_ncnn_says_what_it_does_not_have():
    text = str(zoo.build('yolokit-nano', 2).with_size(64, 64))
    with pytest.raises(ExportError, match='no activation gelu: take ONNX'):
        _build_ncnn(Detector(Cfg(text.replace('activation=swish', 'activation=gelu', 1), 'n.cfg')))


def test_a_blob_has_one_reader():
    text, _ = _build_ncnn(Detector(zoo.build('yolov4-tiny', 2).with_size(64, 64)))
    lines = [line.split() for line in text.split('\n')[2:-1]]
    reads = [b for words in lines for b in words[4:4 + int(words[2])]]
    assert len(reads) == len(set(reads))


def test_depthwise_sections_are_lowered():
    text = ('[net]\nwidth=32\nheight=32\nchannels=3\n'
            '[convolutional]\nfilters=8\nsize=3\nstride=2\npad=1\nactivation=leaky\n'
            '[depthwise]\nbatch_normalize=1\nfilters=8\nsize=3\nstride=1\npad=1\nactivation=leaky\n'
            '[convolutional]\nfilters=6\nsize=1\nactivation=linear\n[yolo]\nmask=0\nanchors=5,6\nclasses=1\nnum=1\n')
    d = Detector(Cfg(text, 'd.cfg')).eval()
    plain, _ = lower_to_darknet(d)
    x = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    assert [s.type for s in plain.cfg.sections] == ['net', *['convolutional']*3, 'yolo']
    assert (d(x)[0] - plain.eval()(x)[0]).abs().max() < 1e-5
