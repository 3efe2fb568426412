"""OpenVINO's and ncnn's files, where the packages are installed. The whole zoo: test_darknets.py (soak)."""
import pytest

from yolokit.network import zoo
from yolokit.network.cfg import Cfg
from yolokit.network.model import Detector
from yolokit.export.bundles import ExportError
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
