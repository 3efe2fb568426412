"The GPU benchmark's roofline, against figures that were derived by hand; the benchmark itself runs where a GPU is."
import subprocess
import sys
import pytest
import gpu
from yolokit.network import zoo


# milliseconds an image at 790 TFLOP/s and 4.0 TB/s: convolutions, and 26 or 16 bytes an activation
@pytest.mark.parametrize('name, size, eager, fused',
                         [('yolov5s6', 1280, .44 + .68, .44 + .42), ('yolov5x6', 1280, 3.54 + 2.92, 3.54 + 1.80),
                          ('yolov4', 608, .66 + .74, .66 + .46)])
def test_roofline(name, size, eager, fused):
    cfg = zoo.build(name).with_size(size, size)
    for want, f in ((eager, False), (fused, True)):
        assert 1e3*gpu.least(cfg, 790e12, 4e12, 2, f) == pytest.approx(want, abs=.011)


@pytest.mark.soak
@pytest.mark.parametrize('part', gpu.PARTS)
def test_every_part_runs_without_a_gpu(part, tmp_path):
    "And leaves its table."
    words = [part, '--device', 'cpu', '--networks', 'yolokit-nano:64:2', '--steps', '6', '--to', str(tmp_path)]
    done = subprocess.run([sys.executable, gpu.__file__, *words], capture_output=True, text=True, check=True)
    assert (tmp_path/f'{part}.md').read_text(encoding='utf-8').strip() in done.stdout
    assert gpu.PARTS[part].__doc__ in done.stdout and len(done.stdout.splitlines()) > 4
