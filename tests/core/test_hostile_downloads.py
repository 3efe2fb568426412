"""A server that lies in every way: status, length, ranges, ETag, places, packing, speed, and bodies without end. The
right file comes, or a DownloadError; no more than was to come is taken. A sample here, 2,000 answers in `make soak`."""
import hashlib, random, socket, threading, time

import pytest

from yolokit.core import download as d

BODY = random.Random(0).randbytes(40_000)
RIGHT = hashlib.sha256(BODY).hexdigest()
LENGTHS = ['abc', '-5', '9'*30, '9'*5000, '', '40000', '40000', '41000', '39000', '0', '4e4', '40_000', '４']
PLACES = ['file:///etc/passwd', 'ftp://127.0.0.1/a', 'javascript:1', '', '/a', '//127.0.0.1:1/', 'http://[::', '/b\x00',
          'http://127.0.0.1:1/' + 'x'*70_000, 'gopher://x', 'data:,hi', 'HTTP://127.0.0.1:1/x', '/ü', 'mailto:a@b']
RANGES = ['bytes 0-39999/40000', 'bytes 5-3/40000', 'bytes */40000', 'bytes 0-39999/*', 'x', '', 'bytes 0-99999/10',
          'bytes -1-5/6', f'bytes 0-39999/{"9"*60}', 'bytes {first}-39999/40000', 'bytes {first}-39999/40000']
TAGS = ['"a"', '"a"', 'W/"a"', '', '"' + 'x'*9000 + '"', '\x7f', '"ü"', 'null']
CODES = [200]*8 + [206]*5 + [301, 302, 307, 308, 304, 401, 404, 410, 416, 429, 500, 503, 100, 204, 999, 0]


def answer(r, asked):
    "Bytes of an answer by chance, and how they are sent."
    first = int(asked.split(b'bytes=')[1].split(b'-')[0]) if b'bytes=' in asked else 0
    if r.random() < .35: # honest
        head = f'HTTP/1.1 {206 if first else 200} x\r\nContent-Length: {len(BODY) - first}\r\nETag: "a"\r\n'
        head += f'Content-Range: bytes {first}-39999/40000\r\n'*(first > 0)
        return f'{head}\r\n'.encode() + BODY[first:], False, False
    code, head = r.choice(CODES), []
    if r.random() < .8: head.append(f'Content-Length: {r.choice(LENGTHS)}' if r.random() < .6 else
                                    f'Content-Length: {len(BODY) - first}')
    if code == 206 or r.random() < .1: head.append('Content-Range: ' + r.choice(RANGES).replace('{first}', str(first)))
    if 300 <= code < 309 or r.random() < .05: head.append('Location: ' + r.choice(PLACES))
    if r.random() < .5: head.append('ETag: ' + r.choice(TAGS))
    if r.random() < .1: head.append('Content-Encoding: ' + r.choice(['gzip', 'br', 'identity', 'x'*99]))
    if r.random() < .1: head.append('Transfer-Encoding: chunked')
    if r.random() < .1: head.append('Content-Type: text/html')
    if r.random() < .03: head += [f'X-{k}: 1' for k in range(200)]
    if r.random() < .03: head.append('no colon at all')
    text = f'HTTP/1.1 {code} x\r\n' + '\r\n'.join(head) + '\r\n\r\n'
    body = BODY[first:] if r.random() < .7 else r.choice([b'', BODY, BODY*3, b'5\r\nab', b'\xff'*100, BODY[:1000]])
    data = text.encode('utf-8') + body
    if r.random() < .1: data = data[:r.randrange(len(data))]
    if r.random() < .03: data = r.randbytes(300)
    return data, r.random() < .02, r.random() < .02


class Liar:
    def __init__(self):
        self.socket = socket.create_server(('127.0.0.1', 0))
        self.url, self.r, self.sent = f'http://127.0.0.1:{self.socket.getsockname()[1]}/a', random.Random(0), 0
        threading.Thread(target=self.serve, daemon=True).start()

    def serve(self):
        while True:
            try: c, _ = self.socket.accept()
            except OSError: return
            threading.Thread(target=self.one, args=(c,), daemon=True).start()

    def one(self, c):
        try:
            c.settimeout(2)
            data, endless, slow = answer(self.r, c.recv(65536))
            c.sendall(data if not slow else data[:200])
            for _ in range(40 if slow else 0): c.sendall(b'x'); time.sleep(.02)
            for _ in range(200 if endless else 0): c.sendall(bytes(1 << 16)); self.sent += 1 << 16
        except OSError: pass
        finally: c.close()


def campaign(folder, seeds, monkeypatch):
    for k, v in (('_BACKOFF', .001), ('_TIMEOUT', .2), ('_SLOW', (.3, 10_000)), ('_ATTEMPTS', 8)):
        monkeypatch.setattr(d, k, v)
    monkeypatch.setenv('no_proxy', '127.0.0.1')
    liar, whole, named = Liar(), 0, 0
    for seed in seeds:
        liar.r = r = random.Random(seed)
        file, began = folder/f'{seed}.bin', time.time()
        know = r.choice([(RIGHT, len(BODY)), (RIGHT, None), (None, len(BODY))])
        try:
            data = d.download(liar.url, file, *know).read_bytes()
            assert hashlib.sha256(data).hexdigest() == RIGHT if know[0] else len(data) == len(BODY), seed
            whole += 1
        except d.DownloadError as e: named += 1; assert not file.exists() and len(str(e)) < 1200, seed
        for p in folder.iterdir():
            # nothing tells how much is to come where neither size nor length is known
            assert p.stat().st_size <= len(BODY) or not know[1], (seed, p)
            p.unlink()
        assert time.time() - began < 10, seed
    liar.socket.close()
    print(f'{whole} right files, {named} refused by name')
    return whole


def test_lies(tmp_path, monkeypatch): assert 5 < campaign(tmp_path, range(25), monkeypatch) < 25


@pytest.mark.soak
def test_lies_in_full(tmp_path, monkeypatch): campaign(tmp_path, range(1000, 3000), monkeypatch)
