"""Pictures of every suffix with bytes changed, cut, doubled: each is read or is that picture's own finding, never an
exception out of the reader, never ten seconds. A sample here, a hundred thousand in `make soak`."""
import os, random, socket, struct, time, zlib
from io import BytesIO

import numpy as np, pytest
from PIL import Image

from yolokit.cleaning.checks import _gray_thumbnail, _probe_image
from yolokit.cleaning.split import _hash_image, _small_grey
from yolokit.core.files import IMAGES
from yolokit.core.images import image_size, ImageError, read_image


def pictures():
    "A small picture in each format that this machine's Pillow writes, by suffix."
    draw, out = np.random.default_rng(0), {}
    rgb = Image.fromarray(draw.integers(0, 255, (24, 32, 3), np.uint8))
    exif = Image.Exif()
    exif[0x112] = 6
    for suffix in IMAGES:
        for k, how in enumerate((dict(), dict(exif=exif), dict(progressive=True), dict(compression='tiff_lzw'))):
            f = BytesIO()
            try: rgb.save(f, Image.registered_extensions()[suffix], **how)
            except (KeyError, OSError, ValueError, TypeError): continue
            out[suffix, k] = f.getvalue()
    return out


def mutate(data, r):
    data = bytearray(data)
    for _ in range(r.choice([1, 1, 2, 4, 16])):
        i, what = r.randrange(max(len(data), 1)), r.random()
        if not data: break
        if what < .5: data[min(i, r.randrange(1, 80)) % len(data)] = r.choice([0, 1, 127, 128, 255, r.randrange(256)])
        elif what < .7: data[i] ^= 1 << r.randrange(8)
        elif what < .8: del data[i:]
        elif what < .9: data[i:i] = data[r.randrange(len(data)):][:r.randrange(1, 60)]
        else: data[i:i + 4] = r.choice([b'\xff'*4, b'\0'*4, b'\x7f\xff\xff\xff', b'\xff\xd9\xff\xd8'])
    return bytes(data)


def png_of(w, h): # white below, so that its thumbnail would not be zeros
    chunk = lambda kind, data: struct.pack('>I', len(data)) + kind + data + struct.pack('>I', zlib.crc32(kind + data))
    pack, rows = zlib.compressobj(9), (b'\0' + bytes(w//8), b'\0' + b'\xff'*(w//8))
    rows = b''.join(pack.compress(rows[y > h/2]) for y in range(h)) + pack.flush()
    head = chunk(b'IHDR', struct.pack('>IIBBBBB', w, h, 1, 0, 0, 0, 0))
    return b'\x89PNG\r\n\x1a\n' + head + chunk(b'IDAT', rows) + chunk(b'IEND', b'')


def campaign(folder, seeds):
    have = pictures()
    assert len({s for s, _ in have}) >= 12
    keys, read = list(have), 0
    for seed in seeds:
        r = random.Random(seed)
        (suffix, k), began = r.choice(keys), time.process_time()
        p = folder/f'a{suffix}'
        p.write_bytes(mutate(have[suffix, k], r))
        for f in (read_image, image_size):
            try: read += f is read_image and f(p).shape[2] == 3
            except ImageError as e: assert str(p) in str(e), seed
        found = _probe_image(str(p))
        assert isinstance(found, dict | str), seed
        _gray_thumbnail(p), _small_grey(str(p)), _hash_image(str(p), {})
        assert time.process_time() - began < 10, seed
    return read


def test_mutated_pictures(tmp_path): assert 50 < campaign(tmp_path, range(600)) < 550
def test_a_picture_of_few_bytes_and_many_pixels_costs_no_thumbnail(tmp_path):
    p = tmp_path/'a.png'
    p.write_bytes(png_of(200, 200))
    assert _gray_thumbnail(p).any()
    p.write_bytes(png_of(12_000, 12_000))
    began = time.process_time()
    assert not _gray_thumbnail(p).any() and time.process_time() - began < 1
@pytest.mark.soak
def test_mutated_pictures_long(tmp_path): campaign(tmp_path, range(1000, 101_000))


def test_what_is_no_file_is_not_opened(tmp_path, monkeypatch):
    os.mkfifo(tmp_path/'a.png')
    (tmp_path/'b.png').symlink_to(tmp_path/'a.png')
    (tmp_path/'c.jpg').symlink_to('/dev/zero')
    (tmp_path/'d.jpg').mkdir()
    with socket.socket(socket.AF_UNIX) as s:
        monkeypatch.chdir(tmp_path) # a socket's path is short
        s.bind('e.jpg')
        for n in ('a.png', 'b.png', 'c.jpg', 'd.jpg', 'e.jpg'):
            for f in (read_image, image_size):
                with pytest.raises(ImageError, match='it is a'): f(tmp_path/n)
            assert isinstance(_probe_image(str(tmp_path/n)), str) and _hash_image(str(tmp_path/n), {})[0] == ''
            assert not _gray_thumbnail(tmp_path/n).any() and not _small_grey(str(tmp_path/n)).any()
